"""`nlf.TagGuidance` in transformers' generate: the tokens and the probabilities of our own sampler."""

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlf
from nlf.config import SamplingOptions
from nlf.errors import UserError
from nlf.evaluation.sample import EVALUATION
from nlf.method.losses import guided_log_probs
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy, save_policy

PROMPTS = ["the weather is warm", "she said", "a quarrel about nothing"]
NEW = 8


@pytest.fixture(scope="module", params=["gpt2", "llama", "mistral"])
def folder(request, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("guidance")
    save_policy(prepare_policy(tiny.model(request.param), tiny.tokenizer(), TagScheme()), path)
    return str(path)


@pytest.fixture
def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def generated(loaded, guidance, **options) -> list[list[int]]:
    """The new tokens of each sequence, up to its EOS."""
    model, _ = loaded
    out = model.generate(**guidance.inputs, logits_processor=[guidance], max_new_tokens=NEW, top_k=0, **options)
    rows = out[:, guidance.width :].tolist()
    return [row[: row.index(0) + 1] if 0 in row else row for row in rows]


def sampled(folder, **options) -> list[list[int]]:
    writer = nlf.load(folder, device="cpu")
    rule = {"temperature": 0, "num_generations": 1, "max_completion_length": NEW, **options}
    chosen = writer.guided(SamplingOptions(**rule), None)
    requests = writer.requests(writer.prompts(PROMPTS), writer.words(), chosen)
    return [rows[0] for rows in writer._sampler.sample(requests, chosen, seed=0, iteration=EVALUATION)]


@pytest.mark.parametrize("scale", [0, 0.5, 3])
def test_greedy_completions_are_those_of_our_sampler(folder, loaded, scale):
    guidance = nlf.TagGuidance(*loaded, PROMPTS, guidance_scale=scale)
    expected = sampled(folder, guidance_scale=float(scale))
    assert generated(loaded, guidance, do_sample=False) == expected
    assert generated(loaded, guidance, do_sample=False) == expected  # it can be used again
    assert scale < 3 or expected != sampled(folder)


def test_several_sequences_of_a_prompt(folder, loaded):
    guidance = nlf.TagGuidance(*loaded, PROMPTS, guidance_scale=1.5)
    torch.manual_seed(0)
    rows = generated(loaded, guidance, do_sample=True, temperature=1e-4, num_return_sequences=2)
    assert rows[::2] == rows[1::2] == sampled(folder, guidance_scale=1.5)


def test_the_probabilities_are_guided_and_eos_keeps_its_own(loaded):
    model, tokenizer = loaded
    guidance = nlf.TagGuidance(model, tokenizer, PROMPTS[:1], guidance_scale=2.0)
    ids, negative = guidance.inputs["input_ids"], torch.tensor([guidance.negative[0]])
    with torch.no_grad():
        best, worst = (model(each).logits[:, -1] for each in (ids, negative))
        found = guidance(ids, best.clone())
    expected = guided_log_probs(best, worst, 2.0, [0])
    separator = tokenizer.convert_tokens_to_ids("<|separator|>")
    assert found[0, separator] == -torch.inf and found[0, 0] == pytest.approx(
        float(best.log_softmax(-1)[0, 0]), abs=1e-5
    )
    expected[0, separator] = -torch.inf
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_mistakes(loaded, tmp_path):
    with pytest.raises(UserError, match="unknown tag 'polite'"):
        nlf.TagGuidance(*loaded, PROMPTS, tag="polite")
    with pytest.raises(UserError, match="not beams"):
        generated(loaded, nlf.TagGuidance(*loaded, PROMPTS), num_beams=3, do_sample=False)
    plain = tiny.save(tmp_path)
    with pytest.raises(UserError, match="has no tags"):
        nlf.TagGuidance(AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain), PROMPTS)
