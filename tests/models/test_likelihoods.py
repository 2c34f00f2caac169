"""Likelihoods from shared caches equal those of one plain forward pass per completion, for every architecture."""

import contextlib
import functools

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from nlf.errors import UserError
from nlf.method.losses import token_stats
from nlf.models import likelihoods
from nlf.models.likelihoods import Conditioned, ReadPrompts, conditional_nll, divergence

SHARED = {
    **tiny.ARCHITECTURES,
    "sliding window": {**tiny.ARCHITECTURES["mistral"], "sliding_window": 4},
    "windows between": {
        **{"model_type": "gemma3_text", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "sliding_window": 4},
        **{"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 96},
    },
}
WHOLE = {
    "recurrent": {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "half recurrent": {
        **{"model_type": "lfm2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "intermediate_size": 32, "layer_types": ["conv", "full_attention"]},
    },
}
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21], [5]]
COMPLETIONS = [
    [[30, 31, 32], [], [33]],
    [[40, 41, 42, 43, 44, 45, 46], [47], [40, 41, 42, 43, 44, 45, 46]],
    [[], []],
    [[30, 31, 32], [50, 51]],
]


def build(config: dict, seed: int = 0):
    """A model with weights large enough for peaked distributions."""
    made = AutoConfig.for_model(**config, vocab_size=60, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(made).eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data.mul_(5)
    return model


@torch.no_grad()
def plain_logits(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits (1, T, V) of one sequence, without padding or cache."""
    return model(torch.tensor([prompt + completion])).logits[:, len(prompt) - 1 : -1]


def plain_nll(model, prompt: list[int], completion: list[int]) -> float:
    logp = plain_logits(model, prompt, completion).double().log_softmax(-1)[0]
    return -sum(float(logp[t, token]) for t, token in enumerate(completion))


def flat(found: list) -> list[float]:
    return [float(value) for each in found for value in each]


@pytest.mark.parametrize("name", [*SHARED, *WHOLE])
def test_nll_is_that_of_one_plain_pass_a_completion(name):
    model = build((SHARED | WHOLE)[name])
    with torch.inference_mode():
        assert (ReadPrompts(model, [(1, 2)]).cache is not None) == (name in SHARED)
    expected = [plain_nll(model, p, c) for p, rows in zip(PROMPTS, COMPLETIONS, strict=True) for c in rows]
    for batch_tokens in (None, 1, 30):
        found = conditional_nll(model, PROMPTS, COMPLETIONS, batch_tokens=batch_tokens)
        assert flat(found) == pytest.approx(expected, rel=1e-5, abs=1e-6), batch_tokens
    assert [len(each) for each in found] == [3, 3, 2, 2] and expected[1] == 0.0 and max(expected) > 10


@pytest.mark.parametrize("name", ["gpt2", "llama", "recurrent"])
def test_divergence_is_that_of_two_plain_passes(name):
    policy, reference = build((SHARED | WHOLE)[name]), build(SHARED["gpt2"], seed=1)
    queries, excluded = [[58, 59, *p] for p in PROMPTS], [59]
    kl, entropy = divergence(
        Conditioned(policy, queries),
        Conditioned(reference, PROMPTS),
        COMPLETIONS,
        excluded_ids=excluded,
        batch_tokens=60,
    )
    for i, rows in enumerate(COMPLETIONS):
        for j, ids in enumerate(rows):
            if not ids:
                assert kl[i][j] == entropy[i][j] == 0
                continue
            logits = plain_logits(policy, queries[i], ids), plain_logits(reference, PROMPTS[i], ids)
            stats = token_stats(logits[0], torch.tensor([ids]), logits[1], excluded)
            assert kl[i][j] == pytest.approx(float(stats.kl.sum()), rel=1e-5)
            assert entropy[i][j] == pytest.approx(float(stats.entropy.sum()), rel=1e-5)
    assert kl[0][0] > 0.1


def test_a_model_has_no_divergence_from_itself():
    model = Conditioned(tiny.model(), PROMPTS)
    kl, entropy = divergence(model, model, COMPLETIONS)
    assert flat(kl) == pytest.approx([0] * 10, abs=1e-5) and max(flat(entropy)) > 5


ids = st.lists(st.integers(0, 59), max_size=8)


@pytest.fixture(scope="module")
def gpt2():
    return build(SHARED["gpt2"])


@contextlib.contextmanager
def without_trial():
    """Within, no trial passes are made; they take longer than the passes over a few tiny prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "reader_of", lambda model: functools.partial(ReadPrompts, model))
        yield


@settings(max_examples=15, deadline=None)
@given(
    lines=st.lists(st.tuples(ids.filter(bool), st.lists(ids, max_size=3)), min_size=1, max_size=4),
    tokens=st.integers(1, 80),
)
def test_no_completion_depends_on_those_beside_it(gpt2, lines, tokens):
    prompts, completions = [p for p, _ in lines], [rows for _, rows in lines]
    with without_trial():
        together = conditional_nll(gpt2, prompts, completions, batch_tokens=tokens)
        alone = [value for p, rows in lines for c in rows for value in flat(conditional_nll(gpt2, [p], [[c]]))]
    assert flat(together) == pytest.approx(alone, rel=1e-5, abs=1e-5)


@contextlib.contextmanager
def watched(model, see):
    """Within, `see(input_ids)` is called before every forward pass."""
    handle = model.register_forward_pre_hook(lambda module, args, given: see(given["input_ids"]), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def no_trial():
    """Leave out the trial passes, so that a test sees the passes over its own prompts only."""
    with without_trial():
        yield


def test_a_prompt_is_read_once_and_so_is_a_repeated_completion(gpt2, no_trial):
    read = []
    with watched(gpt2, lambda ids: read.append(ids.tolist())):
        conditional_nll(gpt2, [[1, 2, 3]] * 2, [[[4, 5]] * 25, [[4, 5], [6, 7], [8]]], batch_tokens=5)
    assert read[0] == [[1, 2, 3]] and sorted(read[1:]) == [[[4]], [[6]]]  # the last tokens 5, 7 and 8 predict nothing


def test_logits_are_made_for_completions_only(gpt2):
    with torch.inference_mode():
        reader = ReadPrompts(gpt2, [(1,) * 40, (2, 3)])
        first, rest = reader.logits(torch.tensor([0, 1, 1]), [(4, 5, 6), (7,), (8, 9)])
    assert (reader.first.shape, first.shape, rest.shape) == ((2, 1, 60), (3, 1, 60), (3, 2, 60))


def test_what_is_done_is_told(gpt2):
    told = []
    conditional_nll(gpt2, PROMPTS, COMPLETIONS, progress=told.append)
    assert sum(told) == 10 and told[0] == 3  # the empty completions


def test_training_mode_and_random_state_stay_as_they_were():
    model = build({**SHARED["gpt2"], "resid_pdrop": 0.5}).train()
    state = torch.random.get_rng_state()
    twice = [flat(conditional_nll(model, PROMPTS, COMPLETIONS)) for _ in range(2)]
    assert twice[0] == twice[1] and model.training and torch.equal(state, torch.random.get_rng_state())


def out_of_memory_above(tokens: int):
    def see(ids):
        if ids.numel() > tokens:
            raise torch.OutOfMemoryError("no memory")

    return see


def test_out_of_memory_goes_on_with_less(gpt2, caplog, no_trial):
    prompts, completions = [[1, 2, 3], [4, 5, 6]], [[[7, 8, i] for i in range(20, 25)]] * 2
    expected, told = flat(conditional_nll(gpt2, prompts, completions)), []
    with watched(gpt2, out_of_memory_above(6)):
        found = conditional_nll(gpt2, prompts, completions, batch_tokens=64, progress=told.append)
        with pytest.raises(UserError, match="out of memory with a single completion"):
            conditional_nll(gpt2, [[1] * 10], [[[2]]])
    assert flat(found) == pytest.approx(expected, rel=1e-5) and "half as many" in caplog.text and sum(told) == 10


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([[1], []], [[[2]], [[2]]], "prompt 2 of 2 has no tokens"),
        ([[1], [1] * 90], [[[2]], [[2], [2] * 7]], "prompt 2 of 2 has 90 tokens, 97 with its longest completion.* 96"),
        ([[1]], [[[2, 60]]], "prompt 1 of 1 has token ids of 60 or more"),
    ],
)
def test_bad_input_names_the_prompt(gpt2, prompts, completions, message):
    with pytest.raises(UserError, match=message):
        conditional_nll(gpt2, prompts, completions)
    with pytest.raises(UserError, match="file x"):
        conditional_nll(gpt2, prompts, completions, names=["file x"] * 2)


@pytest.mark.parametrize("kind", ["bart", "openai-gpt", "rwkv"])
def test_a_cache_that_counts_padding_is_not_used(kind):
    model = tiny.any_model(kind)
    found = flat(conditional_nll(model, PROMPTS, COMPLETIONS))
    expected = [plain_nll(model, p, c) if c else 0 for p, cs in zip(PROMPTS, COMPLETIONS, strict=True) for c in cs]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_reader_that_is_not_causal_is_refused():
    with pytest.raises(UserError, match="BertLMHeadModel. is not causal"):
        conditional_nll(tiny.any_model("bert"), [[1, 2]], [[[3]]])


def test_a_full_context_fits(gpt2):
    found = conditional_nll(gpt2, [[1] * 90, [3]], [[[2] * 6], [[4] * 95]])
    assert flat(found) == pytest.approx([plain_nll(gpt2, [1] * 90, [2] * 6), plain_nll(gpt2, [3], [4] * 95)], rel=1e-5)


def test_a_broken_model_is_an_error_not_a_number():
    model = build(SHARED["gpt2"])
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="prompt 1 of 1: the model gave a likelihood that is not finite"):
        conditional_nll(model, [[1]], [[[2]]])


def test_an_adapter_is_seen_through():
    from peft import LoraConfig, get_peft_model

    model = build(SHARED["gpt2"])
    expected = flat(conditional_nll(model, PROMPTS, COMPLETIONS))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.inference_mode():
        assert ReadPrompts(adapted, [(1, 2)]).cache is not None
    assert flat(conditional_nll(adapted, PROMPTS, COMPLETIONS)) == pytest.approx(expected, rel=1e-5)
