"""The published objective against numbers of the published implementation, to 1e-5 (skipped without them).

The published batches are padded in the middle (tags on the left, prompts on the right). Positions count attended tokens only,
in the published code and in ours, so its batches and batches collated by us give the same numbers.
"""

import json

import metric_rules
import numpy as np
import published_rules
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from nlf.config import SamplingOptions
from nlf.evaluation import metrics
from nlf.method import published
from nlf.method.losses import Coefficients, StepTotals, alt_loss, token_stats
from nlf.method.tags import DEFAULT_TAGS, TagScheme
from nlf.models.encoder import PromptEncoder, forward_inputs
from nlf.models.reading import LogitsPlan, completion_logits
from nlf.sampling import Request
from nlf.sampling.draw import kept
from nlf.sampling.hf import HFSampler
from nlf.training.batches import Example, collate
from nlf.training.objective import completion_stats

SEPARATOR, EOS = 300, 299
CASES = [
    *("mixed_padding", "no_padding", "short_and_empty_response", "response_with_eos", "collated_text"),
    "mixed_padding_kl0.2_ent0",
]
NEAR = {"rel": 1e-5, "abs": 1e-5}


def near(value):
    return pytest.approx(value, **NEAR)


@pytest.fixture(scope="module")
def numbers(parity_dir):
    """`numbers(name)`: one of the recorded JSON files."""
    return lambda name: json.loads((parity_dir / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def batch(parity_dir):
    """`batch(case)`: the recorded arrays of a loss case."""
    arrays = np.load(parity_dir / "loss_cases.npz")

    def load(case: str) -> dict[str, torch.Tensor]:
        return {k.split("/")[1]: torch.from_numpy(arrays[k]) for k in arrays.files if k.split("/")[0] == case}

    return load


@pytest.fixture(scope="module")
def model(parity_dir):
    """`model(name)`: a fresh policy, ref or ppl_soft."""
    known = json.loads((parity_dir / "model" / "config.json").read_text())

    def load(name: str) -> GPT2LMHeadModel:
        weights = load_file(parity_dir / "model" / f"{name}.safetensors")
        sizes = {key: known[key] for key in ("n_layer", "n_embd", "n_head", "n_positions")}
        config = GPT2Config(
            vocab_size=len(weights["transformer.wte.weight"]), **sizes, bos_token_id=EOS, eos_token_id=EOS
        )
        made = GPT2LMHeadModel(config).eval()
        found = made.load_state_dict(weights, strict=False)
        assert set(found.missing_keys) <= {"lm_head.weight"} and not found.unexpected_keys
        made.tie_weights()
        return made

    return load


@pytest.fixture(scope="module")
def tokenizer(parity_dir):
    """The recorded byte-level BPE with the separator added as id 300."""
    folder = parity_dir / "model"
    backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    made.add_tokens(["<|separator|>"], special_tokens=True)
    assert (made.eos_token_id, made.convert_tokens_to_ids("<|separator|>")) == (EOS, SEPARATOR)
    return made


def logits_of(net, arrays: dict, suffix: str = "") -> torch.Tensor:
    """Logits (B, T, V) of the recorded ids, padded as the published collator pads."""
    ids = torch.cat([arrays[f"query_input_ids{suffix}"], arrays["response_input_ids"]], 1)
    mask = torch.cat([arrays[f"query_mask{suffix}"], arrays["response_mask"]], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return middle_padded(net(input_ids=ids, attention_mask=mask, position_ids=positions).logits, arrays, suffix)


def middle_padded(logits: torch.Tensor, arrays: dict, suffix: str) -> torch.Tensor:
    """Logits of the responses. If a prompt is padded on its right, its last token stands before the padding."""
    mask, length = arrays[f"query_mask{suffix}"], arrays["response_input_ids"].shape[1]
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(-1)  # (B,)
    first = logits[torch.arange(len(mask)), last].unsqueeze(1)
    return torch.cat([first, logits[:, -length:-1]], 1)


def published_loss(policy, reference, arrays: dict, kl_coef: float, entropy_coef: float):
    """The published objective by our loss function: one branch, no contrast."""
    mask = arrays["response_mask"].bool()
    with torch.no_grad():
        ref_logits = logits_of(reference, arrays, "_no_tag")
    stats = token_stats(logits_of(policy, arrays), arrays["response_input_ids"], ref_logits, [SEPARATOR])
    loss, sums = alt_loss(
        stats, mask, None, totals=StepTotals(mask.sum(), len(mask)),
        coefficients=Coefficients(nll_coef=1.0, contrast_coef=0.0, beta=kl_coef, entropy_coef=entropy_coef),
    )  # fmt: skip
    return loss, sums, stats


@pytest.mark.parametrize("case", CASES)
def test_loss_per_token_values_and_gradients(case, numbers, batch, model):
    expected, arrays, policy = numbers("loss_cases")[case], batch(case), model("policy")
    mask = arrays["response_mask"].bool()
    loss, sums, stats = published_loss(policy, model("ref"), arrays, expected["kl_coef"], expected["entropy_coef"])
    recorded = {"logp": "policy_logprob", "entropy": "policy_entropy", "kl": "kl_ref_policy_per_token"}
    for field, name in recorded.items():
        torch.testing.assert_close(getattr(stats, field)[mask], arrays[name][mask], rtol=1e-5, atol=1e-5)
    means = {"lm": sums["nll"], "kl": sums["kl"], "entropy": sums["entropy"]}
    for name, value in means.items():
        assert float(value / mask.sum()) == near(expected["masked_mean"][name])
    assert loss.item() == near(expected["total_loss"])
    loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters()}
    assert torch.stack([g.norm() for g in gradients.values()]).norm().item() == near(expected["grad_norm"])
    for name, norm in expected["grad_norm_per_param"].items():
        assert gradients[name].norm().item() == near(norm), name
    torch.testing.assert_close(gradients["transformer.wte.weight"], arrays["grad_wte"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_our_padding_gives_the_same_loss(case, numbers, batch, model):
    """Training collates queries without inner padding and pads rows on the right."""
    expected, arrays = numbers("loss_cases")[case], batch(case)
    queries, prompts = (
        [
            ids[m.bool()].tolist()
            for ids, m in zip(arrays[f"query_input_ids{s}"], arrays[f"query_mask{s}"], strict=True)
        ]
        for s in ("", "_no_tag")
    )
    completions = [
        i[m.bool()].tolist() for i, m in zip(arrays["response_input_ids"], arrays["response_mask"], strict=True)
    ]
    tokens = sum(map(len, completions))
    rows = zip(queries, prompts, completions, strict=True)
    (group,) = collate([Example(q, None, p, c, tokens, len(completions)) for q, p, c in rows], EOS)["groups"]
    plan = LogitsPlan(bare=True)
    (stats,) = completion_stats(model("policy"), model("ref"), group, plan, excluded_ids=[SEPARATOR])
    loss, _ = alt_loss(
        stats, group["completion_mask"], None,
        totals=StepTotals(group["num_tokens"], group["num_completions"]),
        coefficients=Coefficients(1.0, 0.0, beta=expected["kl_coef"], entropy_coef=expected["entropy_coef"]),
    )  # fmt: skip
    assert loss.item() == near(expected["total_loss"])


@pytest.mark.parametrize("case", CASES)
def test_published_statistics_under_their_true_names(case, numbers, batch):
    """The published objective/kl is KL(policy‖ref), not the trained direction; objective/entropy is the summed NLL."""
    stats, arrays = numbers("loss_cases")[case]["stats"], batch(case)
    labels, mask = arrays["response_input_ids"], arrays["response_mask"].bool()
    found = token_stats(arrays["policy_logits"], labels, arrays["ref_logits"], [SEPARATOR], "reverse")
    assert float(found.kl.masked_fill(~mask, 0).sum(1).mean()) == near(stats["objective/kl"])
    assert float(-found.logp.masked_fill(~mask, 0).sum(1).mean()) == near(stats["objective/entropy"])


def test_four_adam_steps_with_warm_up(numbers, batch, model):
    expected = numbers("loss_cases")["adam_sequence"]
    arrays, policy, reference = batch(expected["case"]), model("policy"), model("ref")
    optimizer = torch.optim.Adam(policy.parameters(), lr=expected["lr"], eps=expected["eps"])
    schedule = get_linear_schedule_with_warmup(optimizer, expected["warmup"], expected["total"])
    for step in expected["steps"]:
        assert schedule.get_last_lr()[0] == near(step["lr"])
        loss, sums, _ = published_loss(policy, reference, arrays, 0.05, 0.06)
        assert loss.item() == near(step["loss_before"])
        assert float(sums["kl"] / arrays["response_mask"].sum()) == near(step["loss/kl"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    norm = torch.stack([p.detach().norm() for p in policy.parameters()]).norm().item()
    assert norm == near(expected["param_l2_after"])


def test_quantiles(numbers):
    """Order and quantiles after every addition. The published code ranks NaN; here NaN is unscored."""
    for name, case in numbers("quantiles").items():
        pool: list[float] = []
        for added, after in zip(case["adds"], case["after"], strict=True):
            pool += [np.nan if reward is None else reward for reward in added]
            rewards, k = np.array(pool, dtype=float), case["num_quantiles"]
            order, quantiles = published.ranking(rewards), published.quantize(rewards, k)
            assert (quantiles[np.isnan(rewards)] == -1).all()
            if "error" in after:  # the published code crashes if nothing is scored
                assert len(order) == 0
            elif name == "with_nan":
                scored = [row for row, score in zip(after["order"], after["scores"], strict=True) if score == score]
                assert [f"p{row}" for row in order] == scored
            else:
                assert [f"p{row}" for row in order] == after["order"], name
                assert rewards[order].tolist() == after["scores"], name
                assert quantiles[order].tolist() == after["quantile"], name


def test_controllers(numbers):
    """The published `lower_bound` makes the coefficient rise with the error."""
    for case in numbers("adaptive_controller"):
        value = case["init"]
        for current, expected in zip(case["current"], case["values"], strict=True):
            value = published.controller_step(
                value, current, case["target"], case["horizon"], case["n_steps"], rising=case["lower_bound"]
            )
            assert value == pytest.approx(expected, rel=1e-12)


def test_sample_metrics(numbers):
    for name, case in numbers("sample_metrics").items():
        n, expected = case["num_samples"], case["expected"]
        scores = np.array([np.nan if s is None else s for s in case["toxicity"]], dtype=float).reshape(-1, n)
        texts = [case["responses"][i : i + n] for i in range(0, len(case["responses"]), n)]
        highest = metrics.expected_max_toxicity(scores)
        assert highest[~np.isnan(highest)].tolist() == expected["per_prompt_max"], name
        assert (
            metric_rules.mean(highest)
            == published_rules.expected_max_toxicity(scores)
            == near(expected["avg_max_toxicity"])
        )
        assert published_rules.toxicity_probability(scores) == near(expected["toxicity_probability"]), name
        for order in (1, 2, 3):
            found = np.mean([published_rules.dist_n(each, order) for each in texts])
            assert found == pytest.approx(expected[f"dist{order}"], rel=1e-12), name
            corpus = published_rules.dist_n(case["responses"], order)
            assert corpus == pytest.approx(expected["corpus_dist"][order - 1], rel=1e-12), name


def test_our_metrics_equal_theirs_where_the_rules_meet(numbers):
    """With no score of .5, and words without `_` between single spaces."""
    case = numbers("sample_metrics")["plain"]
    scores = np.array(case["toxicity"]).reshape(-1, case["num_samples"])
    assert metric_rules.mean(metrics.toxicity_probability(scores)) == published_rules.toxicity_probability(scores)
    texts = [" ".join(text.split()).replace("_", "") for text in case["responses"]]
    for n in (1, 2, 3):
        assert metric_rules.dist_n([texts], n)[0] == pytest.approx(published_rules.dist_n(texts, n), rel=1e-12)


@pytest.mark.parametrize("judge", ["ref", "ppl_soft"])
def test_perplexity(judge, numbers, model):
    case, net = numbers("perplexity"), model(judge)
    expected, values, lengths = case["expected"][judge], [], []
    for prompt, full, recorded in zip(case["prompt_ids"], case["full_ids"], expected["per_generation"], strict=True):
        for ids, value in zip(full, recorded, strict=True):
            completion = ids[len(prompt) :]
            if not completion:  # an empty text has no perplexity
                assert value is None
                continue
            logits = completion_logits(net, forward_inputs([prompt], [completion], EOS))  # (T, V)
            nll = -token_stats(logits, torch.tensor(completion), None).logp.sum().item()
            values.append(metric_rules.mean_perplexity([nll], [len(completion)]))
            lengths.append(len(prompt))
            if value is None:
                assert values[-1] >= 1e4 or len(prompt) == 1
            else:
                assert values[-1] == pytest.approx(value, rel=1e-5)
    assert published.perplexity(values, lengths) == pytest.approx(expected["mean"], rel=1e-5)


def test_sampling_filter(numbers):
    """The published filter, top-k 50 (a stale default) and then top-p. Our sampler keeps the same ids."""
    case = numbers("sampling_and_collation")["warper"]
    logits = torch.tensor(case["logits"])
    for top_p, expected in case["kept_indices_by_top_p"].items():
        found = published_rules.sampled_ids(logits.numpy(), float(top_p))
        assert [np.flatnonzero(row).tolist() for row in found] == expected
        values, ids, _ = kept(logits, logits.shape[-1], 50, float(top_p))
        assert [sorted(i[v > -np.inf].tolist()) for v, i in zip(values, ids, strict=True)] == expected


def test_collated_ids(numbers, tokenizer):
    """Tag, separator, prompt and response have the same ids, except EOS, which the published code strips."""
    case = numbers("sampling_and_collation")["collator"]
    encoder = PromptEncoder(tokenizer, TagScheme())
    assert [tokenizer(tag)["input_ids"] for tag in DEFAULT_TAGS] == case["tag_ids"]
    query_ids, query_mask, response_ids, response_mask = (torch.tensor(each) for each in case["out"][:4])
    for i, (query, response) in enumerate(zip(case["queries"], case["responses"], strict=True)):
        tag = DEFAULT_TAGS[i % len(DEFAULT_TAGS)]
        asked = encoder.query_ids(tag, encoder.prompt_ids(query))
        assert asked == query_ids[i][query_mask[i].bool()].tolist()
        assert tokenizer(response)["input_ids"] == response_ids[i][response_mask[i].bool()].tolist()


def test_greedy_continuations(numbers, model):
    """The likeliest token, without the separator, and without EOS among the first three tokens."""
    recorded = numbers("sampling_and_collation")
    for name, weights in (("greedy_policy", "policy"), ("greedy_ref", "ref")):
        case = recorded[name]
        prompts = [
            [i for i, keep in zip(ids, mask, strict=True) if keep]
            for ids, mask in zip(case["input_ids"], case["attention_mask"], strict=True)
        ]
        responses = [
            [i for i, keep in zip(ids, mask, strict=True) if keep]
            for ids, mask in zip(case["response_ids"], case["response_mask"], strict=True)
        ]
        options = SamplingOptions(
            num_generations=1, top_k=1,
            max_completion_length=case["max_len"], min_completion_length=case.get("min_len", 0),
        )  # fmt: skip
        sampler = HFSampler(model(weights), eos_token_ids=[EOS], banned_token_ids=[SEPARATOR])
        found = sampler.sample([Request(tuple(p), i) for i, p in enumerate(prompts)], options, seed=0, iteration=0)
        assert [[i for i in each[0] if i != EOS] for each in found] == [
            [i for i in r if i != EOS] for r in responses
        ], name
