"""How a policy behaves on prompts: sample under a tag, score, and measure; `nlf evaluate` and evaluation while
training.

Everything is measured on the sampled token ids. Perplexity is that of the frozen start (or of the base model) on the
completions given their bare prompts, token-weighted; nothing is dropped (the published script drops values over 1e4
and one-token prompts without saying so).
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from nlf import __version__, metrics
from nlf.batches import PromptEncoder, model_inputs, pad
from nlf.completions import progress_bar, sample_table, score_table
from nlf.config import SamplingOptions, sampling_options
from nlf.errors import UserError
from nlf.iteration import number_occurrences
from nlf.losses import token_stats
from nlf.policy import Policy, completion_logits, load_policy
from nlf.prompts import load_prompts
from nlf.quantize import quantile_edges
from nlf.rewards import Reward, resolve_reward
from nlf.rollouts import Pool
from nlf.rundir import run_settings, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Likelihoods:
    """Sums over the tokens of each completion, `(N,)`: NLL under the reference; KL(ref‖policy) and entropy of the
    policy.
    """

    nll: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    tokens: np.ndarray


def sample_and_score(
    policy: Policy,
    encoder: PromptEncoder,
    rows: Sequence[dict],
    feedback: str | None,
    options: SamplingOptions,
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
    *,
    negative: str | None = None,
    seed: int,
    occurrences: Sequence[int] | None = None,
    token_budget: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Completions of every row with their rewards, as rollouts; row i's completions stand together."""
    if occurrences is None:
        occurrences = [n for _, n in number_occurrences(range(len(rows)), [row["prompt_id"] for row in rows])]
    table = sample_table(
        policy, encoder, rows, occurrences, feedback, options,
        negative=negative, seed=seed, iteration=-1, token_budget=token_budget, progress=progress,
    )  # fmt: skip
    return score_table(table, rows, rewards, weights)


@torch.no_grad()
def likelihoods(
    table: pa.Table, policy: Policy, encoder: PromptEncoder, rows: Sequence[dict], batch_size: int = 64
) -> Likelihoods:
    """Run policy and reference over sampled completions; `rows` are the prompt rows of the table, in its order.

    A policy without reference is its own: its KL is 0.
    """
    feedback = table["feedback"].to_pylist()
    prompts, completions = table["prompt_ids"].to_pylist(), table["completion_ids"].to_pylist()
    copies = table.num_rows // len(rows)
    messages = [None if isinstance(row["prompt"], str) else row["prompt"] for row in rows for _ in range(copies)]
    queries = [encoder.query_ids(f, p, m) for f, p, m in zip(feedback, prompts, messages, strict=True)]
    order = np.argsort([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], kind="stable")
    sums = np.zeros((4, table.num_rows))
    for start in range(0, table.num_rows, batch_size):
        picked = order[start : start + batch_size]
        sums[:, picked] = _batch_sums(
            policy, [queries[i] for i in picked], [prompts[i] for i in picked], [completions[i] for i in picked]
        )
    return Likelihoods(*sums)


def _batch_sums(policy: Policy, queries: list, prompts: list, completions: list) -> np.ndarray:
    """`(4, B)`: NLL under the reference, KL, entropy, tokens."""
    pad_id = policy.tokenizer.pad_token_id
    device = policy.model.device
    labels = pad(completions, pad_id, "right").to(device)  # (B, T)
    mask = pad([[1] * len(c) for c in completions], 0, "right").to(device).bool()
    bare = {k: v.to(device) for k, v in model_inputs(prompts, completions, pad_id).items()}
    asked = {k: v.to(device) for k, v in model_inputs(queries, completions, pad_id).items()}
    with policy.reference() as reference:
        ref_logits = completion_logits(reference, **bare, num_completion_tokens=labels.shape[1])
    logits = completion_logits(policy.model, **asked, num_completion_tokens=labels.shape[1])
    tagged = token_stats(logits, labels, ref_logits, excluded_ids=policy.added_token_ids)
    nll = -token_stats(ref_logits, labels, None).logp
    columns = [torch.where(mask, each, 0).sum(-1) for each in (nll, tagged.kl, tagged.entropy)] + [mask.sum(-1)]
    return torch.stack([c.double() for c in columns]).cpu().numpy()


def summarize(table: pa.Table, num_prompts: int, found: Likelihoods | None = None) -> dict[str, float]:
    """The metrics of one sampled table, under TRL's names where TRL has one.

    Keys: `reward`, `reward_std`, `rewards/<name>/mean`, `num_unscored`; with a toxicity attribute `toxicity`,
    `expected_max_toxicity`, `toxicity_probability` (at least one of a prompt's completions >= .5); `dist-1/2/3` over
    each prompt's completions; `completions/mean_length`, `completions/ended_ratio`; with likelihoods `perplexity`
    (token-weighted, under the reference), `kl` (nats a token) and `entropy` (nats a token).
    """
    reward = _floats(table["reward"])
    copies = table.num_rows // num_prompts
    lengths = np.array([len(ids) for ids in table["completion_ids"].to_pylist()])
    results = {
        "reward": float(np.nanmean(reward)) if np.isfinite(reward).any() else float("nan"),
        "reward_std": float(np.nanstd(reward)) if np.isfinite(reward).any() else float("nan"),
        "num_unscored": int(np.isnan(reward).sum()),
        "completions/mean_length": float(lengths.mean()),
        "completions/ended_ratio": float(np.mean(table["ended"].to_pylist())),
    }
    for name, values in _map_columns(table["rewards"]).items():
        results[f"rewards/{name}/mean"] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    toxicity = _map_columns(table["attributes"]).get("toxicity")
    if toxicity is not None:
        scores = toxicity.reshape(num_prompts, copies)
        results["toxicity"] = float(np.nanmean(scores))
        results["expected_max_toxicity"] = metrics.mean(metrics.expected_max_toxicity(scores))
        results["toxicity_probability"] = metrics.mean(metrics.toxicity_probability(scores))
    texts = table["completion"].to_pylist()
    grouped = [texts[i : i + copies] for i in range(0, len(texts), copies)]
    for n in (1, 2, 3):
        results[f"dist-{n}"] = float(np.mean(metrics.dist_n(grouped, n)))
    if found is not None:
        total = found.tokens.sum()
        results["perplexity"] = float(np.exp(found.nll.sum() / total))
        results["kl"], results["entropy"] = float(found.kl.sum() / total), float(found.entropy.sum() / total)
    return results


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in column.to_pylist()], dtype=np.float64)


def _map_columns(column: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """A map column as arrays by name."""
    rows = [dict(row or ()) for row in column.to_pylist()]
    names = list(rows[0]) if rows else []
    return {name: np.array([np.nan if r.get(name) is None else r[name] for r in rows]) for name in names}


@dataclass(frozen=True)
class System:
    """One row of a comparison: a model under a tag, perhaps guided, on the first `num_prompts` prompts (None = all)."""

    name: str
    policy: Policy
    tag: str | None = None
    guidance_scale: float = 0.0
    num_prompts: int | None = None


def systems(base: Policy, policy: Policy, options) -> list[System]:
    """What a tagged model is compared on: the base, its tag, that with guidance, and the other tags."""
    tag = {"best": policy.scheme.best, "none": None}.get(options.tag, options.tag)
    name = "no tag" if tag is None else "best tag" if policy.scheme.quantile_of(tag) == 0 else "tag"
    rows = [System("base", base), System(name, policy, tag)]
    if options.guidance_scale:
        rows.append(System(f"{name}, guidance {options.guidance_scale:g}", policy, tag, options.guidance_scale))
    others = [each for each in policy.scheme.tags if each != tag] if options.sweep_tags else []
    return rows + [System("tag", policy, each, num_prompts=options.sweep_prompts) for each in others]


def evaluate_systems(
    compared: Sequence[System],
    rows: Sequence[dict],
    options: SamplingOptions,
    rewards: Sequence[Reward],
    output_dir: str | Path,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    token_budget: int | None = None,
) -> list[dict]:
    """Sample, score and measure each system on the same prompts with the same random numbers.

    Writes `generations-<name>.jsonl` (one prompt a line) as each system is done, and `results.json` at the end.

    Returns:
        One dict a system: name, tag, guidance_scale, num_prompts, and the metrics of `summarize`.

    Raises:
        UserError: the folder cannot be written, or a prompt or reward is bad.
    """
    output_dir = Path(output_dir)
    results = []
    for system in compared:
        picked = list(rows[: system.num_prompts])
        encoder = PromptEncoder(system.policy.tokenizer, system.policy.scheme)
        given = replace(options, guidance_scale=system.guidance_scale)
        table = sample_and_score(
            system.policy, encoder, picked, system.tag, given, rewards, weights,
            negative=system.policy.scheme.worst if system.policy.scheme else None, seed=seed,
            token_budget=token_budget, progress=progress_bar(system.name, len(picked) * options.num_generations),
        )  # fmt: skip
        found = summarize(table, len(picked), likelihoods(table, system.policy, encoder, picked))
        about = {"name": system.name, "tag": system.tag, "guidance_scale": system.guidance_scale}
        results.append({**about, "num_prompts": len(picked), **found})
        name = re.sub(r"\W+", "-", f"{system.name} {system.tag or ''}".strip().lower())
        write_text(output_dir / f"generations-{name}.jsonl", "".join(generation_lines(table, len(picked))))
    whole = {"nlf_version": __version__, "seed": seed, "sampling": asdict(options), "systems": results}
    whole["rewards"] = [reward.label for reward in rewards]
    write_text(output_dir / "results.json", json.dumps(whole, indent=1))
    return results


def generation_lines(table: pa.Table, num_prompts: int):
    """One JSON line a prompt: prompt, feedback, and lists over its completions."""
    copies = table.num_rows // num_prompts
    for i in range(num_prompts):
        part = table.slice(i * copies, copies).to_pydict()
        lists = {name: part[name] for name in ("completion", "completion_ids", "reward")}
        lists["attributes"] = [dict(a) for a in part["attributes"]]
        yield json.dumps({"prompt": part["prompt"][0], "feedback": part["feedback"][0], **lists}) + "\n"


def evaluate_command(options) -> str:
    """`nlf evaluate`: compare a tagged model with its base, write the files, and return the table to show.

    Args:
        options: The fields of `config.EvaluationOptions` and `config.SamplingOptions`.
    """
    rows = load_prompts(
        options.dataset, column=options.dataset_prompt_column, split=options.dataset_test_split,
        limit=options.max_prompts,
    )  # fmt: skip
    base, policy = load_pair(options.model, options.base_model, options.dtype)
    results = evaluate_systems(
        systems(base, policy, options), rows, sampling_options(options),
        [resolve_reward(spec) for spec in options.reward_funcs], options.output_dir or Path(options.model, "evaluation"),
        weights=options.reward_weights, seed=options.seed, token_budget=options.sampling_batch_tokens,
    )  # fmt: skip
    return comparison(results, options.num_generations)


def load_pair(model: str, base_model: str | None, dtype: str = "float32") -> tuple[Policy, Policy]:
    """The base and the tagged model, each measured against the base.

    Raises:
        UserError: either cannot be loaded, the model has no tags, or its base is not known.
    """
    policy = load_policy(model, dtype=dtype)
    if policy.scheme is None:
        raise UserError(f"{model} has no tags.json; expected a model that nlf has trained")
    start = base_model or run_settings(Path(model)).get("model_name_or_path")
    if not start:
        raise UserError(f"{model} does not say what it was trained from; name it with --base_model")
    base = load_policy(start, dtype=dtype)
    return replace(base, reference_model=base.model), replace(policy, reference_model=base.model)


COLUMNS = {
    "toxicity_probability": "toxicity probability",
    "expected_max_toxicity": "expected max",
    "toxicity": "mean toxicity",
    "reward": "reward",
    "perplexity": "perplexity",
    "dist-2": "dist-2",
}


def comparison(results: Sequence[dict], num_generations: int) -> str:
    """The systems as a Markdown table; columns that no system has are left out."""
    columns = {key: name for key, name in COLUMNS.items() if any(key in row for row in results)}
    lines = [f"| system | prompts × {num_generations} | {' | '.join(columns.values())} |"]
    lines.append("| --- " * (len(columns) + 2) + "|")
    for row in results:
        name = f"{row['name']}: {row['tag']}" if row["tag"] else row["name"]
        cells = [f"{row[key]:.3f}" if key != "perplexity" else f"{row[key]:.1f}" for key in columns]
        lines.append(f"| {name} | {row['num_prompts']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pool_statistics(pool: Pool, quantiles: np.ndarray, iteration: int, num_quantiles: int) -> dict[str, float]:
    """What is logged of a refreshed pool: its size, this iteration's rewards, and the quantiles' edges."""
    fresh = pool.rewards[pool.iteration == iteration]
    scored = fresh[~np.isnan(fresh)]
    lengths = pool.completion_lengths[pool.iteration == iteration]
    logs = {
        "iteration": iteration,
        "pool/size": len(pool),
        "pool/num_unscored": int(np.isnan(pool.rewards).sum()),
        "reward": float(scored.mean()) if len(scored) else float("nan"),
        "reward_std": float(scored.std()) if len(scored) else float("nan"),
        "completions/mean_length": float(lengths.mean()),
    }
    for q, edges in enumerate(quantile_edges(pool.rewards, quantiles, num_quantiles)):
        if edges is not None:
            logs[f"quantile/{q}/low"], logs[f"quantile/{q}/high"] = edges
    return logs


def log_completions(table: pa.Table, count: int, step: int) -> None:
    """A few sampled completions with their rewards, evenly spread over the prompts."""
    for i in np.linspace(0, table.num_rows - 1, count).astype(int).tolist():
        row = {name: table[name][i].as_py() for name in ("prompt", "feedback", "completion", "reward")}
        logger.info(
            "step %d | %s | %s ⟶ %s | reward %s",
            step,
            row["feedback"],
            row["prompt"],
            row["completion"],
            row["reward"],
        )
