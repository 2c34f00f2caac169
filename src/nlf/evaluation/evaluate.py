"""`nlf evaluate`: a model and its base side by side, on the same prompts with the same random numbers.

Each system (a model under a tag, perhaps guided) has a generations file in the output folder. It is sampled, scored and
read by the measuring models in turn, each step appending to disk, so that a killed evaluation goes on where it was; then
`results.json` is made of the files alone, in the manner of lm-evaluation-harness: `metric`, `metric_stderr`, and
`metric_ci95` from a bootstrap over prompts. docs/evaluation.md documents every key.

Perplexity is that of the base model, or of `eval_model`, on completions given their bare prompts; KL is to the base.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from json import dumps
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nlf import __version__
from nlf.config import remote_options, sampler_options, sampling_options
from nlf.data.environment import git_revision, versions
from nlf.data.files import write_text
from nlf.data.generations import annotate, read
from nlf.data.progress import progress_bar
from nlf.data.run_folder import run_settings
from nlf.evaluation import intervals, metrics
from nlf.evaluation.perplexity import measure_file, model_label
from nlf.evaluation.sample import sample_file
from nlf.evaluation.score import SUM, add_sum, score_file
from nlf.evaluation.systems import chosen_tag, load_for_commands, negative_tag, prompt_sets, slug, with_tags
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder
from nlf.models.likelihoods import Conditioned, divergence
from nlf.models.policy import Policy
from nlf.rewards import Reward
from nlf.rewards.registry import configure, resolve_reward

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
DISTILLED = "distilled"  # folder of the plain model in a run's


@dataclass(frozen=True)
class System:
    """One row of a comparison: a model under a tag, perhaps guided, on the first `num_prompts` prompts (None = all)."""

    name: str
    policy: Policy
    tag: str | None = None
    negative: str | None = None
    guidance_scale: float = 0.0
    num_prompts: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a system stands: its source of prompts, what names begin with, and whether the tags are turned round."""

    source: str
    prefix: str
    turned: bool

    def id(self, system: System) -> str:
        return f"{self.prefix}{'reversed-' if self.turned else ''}{slug(system.name)}"

    def file(self, system: System) -> str:
        """The base is the same whichever way the tags are turned, and is sampled once."""
        return f"generations-{replace(self, turned=self.turned and system.name != 'base').id(system)}.jsonl"


@dataclass(frozen=True)
class Judges:
    """What measures samples: rewards, the model of perplexity, and the base that KL is measured to."""

    rewards: Sequence[Reward]
    eval_name: str
    eval_model: Policy
    base_name: str
    base: Policy | None


def evaluate_command(options) -> str:
    """`nlf evaluate`: compare a model with its base, write the files, and return the table to show.

    Args:
        options: The fields of `config.COMMAND_GROUPS["evaluate"]`.
    """
    return evaluate(options, systems_of)


def evaluate(options, compare: Callable[[Policy | None, Policy, Any, bool], list[System]]) -> str:
    """The same for the systems that `compare(base, policy, options, turned)` names, the base first."""
    rewards = [resolve_reward(spec) for spec in options.reward_funcs]
    configure(remote_options(options))
    sets = [(source, rows, False) for source, rows in prompt_sets(options, options.prompts)]
    sets += [(source, rows, True) for source, rows in prompt_sets(options, options.reverse_prompts or [])]
    policy = with_tags(load_for_commands(options.model, options), options.tags)
    base_name, base = load_base(options)
    if options.eval_model:
        judge_name, judge = options.eval_model, load_for_commands(options.eval_model, options)
    else:
        judge_name, judge = (base_name, base) if base else (options.model, policy)
    judges = Judges(rewards, judge_name, judge, base_name, base)
    folder = Path(options.output_dir or Path(options.model, "evaluation"))
    systems, differences = [], []
    for source, rows, turned in sets:
        prefix = f"{slug(source)}-" if len(sets) > 1 else ""
        found = [
            measured_system(system, rows, judges, options, folder, Place(source, prefix, turned))
            for system in compare(base, policy, options, turned)
        ]
        systems += [entry for entry, _ in found]
        differences += differences_to_first(found) if base else []
    results = {
        "schema_version": SCHEMA_VERSION,
        "nlf_version": __version__,
        "git_hash": git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": options.task,
        "config": vars(options),
        "versions": versions(),
        "models": models_of(options.model, policy, judges),
        "scorers": [reward.label for reward in rewards],
        "seeds": {"sampling": options.seed, "bootstrap": 0},
        "tags": list(policy.scheme.tags) if policy.scheme else None,
        "higher_is_better": {name: metrics.higher_is_better(name) for name in metric_names(systems)},
        "systems": systems,
        "differences": differences,
        "skipped": skipped(options, policy, base),
    }
    write_text(folder / "results.json", dumps(results, indent=1, ensure_ascii=False) + "\n")
    return comparison(results)


def load_base(options) -> tuple[str, Policy | None]:
    """The model it is compared with: the one named, or the run's own start; None where neither is known."""
    start = options.base_model or run_settings(Path(options.model)).get("model_name_or_path")
    return (start, load_for_commands(start, options)) if start else ("", None)


def systems_of(base: Policy | None, policy: Policy, options, turned: bool) -> list[System]:
    """What is compared: the base, the model under its tag, that with guidance, and the other tags."""
    if turned:
        scheme = policy.scheme
        policy = replace(policy, scheme=TagScheme(scheme.tags[::-1], scheme.template, scheme.separator))
    tag = chosen_tag(policy, options.tag)
    name = "no tag" if tag is None else "best tag" if tag == policy.scheme.best else "tag"
    rows = [System("base", base)] if base else []
    rows.append(System(name, policy, tag))
    for scale in sorted(set(options.guidance_scales) - {0}) if tag else ():
        negative = negative_tag(policy, options.negative_tag)
        rows.append(System(f"{name}, guidance {scale:g}", policy, tag, negative, scale))
    student = Path(options.model, DISTILLED)
    if (student / "config.json").is_file() and not turned:
        rows.append(System("distilled", load_for_commands(str(student), options)))
    others = [each for each in policy.scheme.tags if each != tag] if options.sweep_tags and policy.scheme else []
    return rows + [System(f"tag {each}", policy, each, num_prompts=options.sweep_prompts) for each in others]


def measured_system(
    system: System, rows: Sequence[dict], judges: Judges, options, folder: Path, place: Place
) -> tuple[dict, metrics.Measured]:
    """Sample, score and measure one system, as its entry in `results.json` and as what it was made of.

    What its file holds already is not done again.
    """
    picked, path = rows[: system.num_prompts], folder / place.file(system)
    values = {**vars(options), "guidance_scale": system.guidance_scale, "negative_tag": None}
    if system.policy.identity.name != options.model:  # sampler_model names that one
        values["sampler_model"] = None
    drawn = SimpleNamespace(**values)
    sample_file(
        path, system.policy, picked, system.tag, sampling_options(drawn), negative=system.negative,
        seed=options.seed, part=options.prompts_per_part, token_budget=options.sampling_batch_tokens,
        sampler=sampler_options(drawn), what=system.name,
    )  # fmt: skip
    score_file(path, judges.rewards, block=options.prompts_per_part)
    judge = judges.eval_model
    measure_file(
        path, judges.eval_name, judge.model, judge.tokenizer,
        batch_tokens=options.sampling_batch_tokens, added_ids=judge.added_token_ids,
    )  # fmt: skip
    if judges.base:
        measure_divergence(path, system.policy, judges.base_name, judges.base)
    labels = [reward.label for reward in judges.rewards]
    found = metrics.measure(
        as_measured(islice(read(path), len(picked)), system, judges, options),
        scores=[*labels, SUM] if labels[1:] else labels,
        likelihoods=model_label(judges.eval_name, judge.model), threshold=options.threshold,
    )  # fmt: skip
    entry = {
        "id": place.id(system),
        "name": system.name,
        "model": "base" if system.name == "base" else "policy",
        "prompts": place.source,
        "tag": system.tag,
        "negative_tag": system.negative,
        "guidance_scale": system.guidance_scale,
        "reversed": place.turned,
        "generations": path.name,
        "n_samples": {"original": len(rows), "effective": len(picked)},
        "num_generations": found.num_generations,
        "counts": found.counts,
        "metrics": with_intervals(found),
    }
    return entry, found


def with_intervals(found: metrics.Measured) -> dict[str, float | list[float] | None]:
    """`metric`, `metric_stderr` and `metric_ci95` of every metric; those of the corpus as a whole have no interval."""
    spread = intervals.intervals(found.ratios)
    values = {}
    for name, ratio in found.ratios.items():
        stderr, low, high = map(plain, spread[name])
        values |= {name: plain(ratio.value), f"{name}_stderr": stderr, f"{name}_ci95": [low, high]}
    return values | {name: plain(value) for name, value in found.corpus.items()}


def plain(value: float) -> float | None:
    """JSON has no NaN: what nobody knows is null."""
    return float(value) if isfinite(value) else None


def differences_to_first(found: Sequence[tuple[dict, metrics.Measured]]) -> list[dict]:
    """Each system against the first, the base, on the prompts they share."""
    (base, start), *others = found
    return [
        {
            "system": entry["id"],
            "against": base["id"],
            "metrics": {
                name: {
                    key: [plain(v) for v in value] if isinstance(value, list) else plain(value)
                    for key, value in each.items()
                }
                for name, each in intervals.paired(first(start, measured), measured.ratios).items()
            },
        }
        for entry, measured in others
    ]


def first(measured: metrics.Measured, like: metrics.Measured) -> dict[str, intervals.Ratio]:
    """The metrics of as many prompts as another system has."""
    count = len(next(iter(like.ratios.values())).num)
    return {
        name: intervals.Ratio(ratio.num[:count], ratio.den[:count], ratio.exp)
        for name, ratio in measured.ratios.items()
        if name in like.ratios
    }


def measure_divergence(path: Path, policy: Policy, base_name: str, base: Policy) -> None:
    """Add KL(base || policy) and the policy's entropy, nats over the tokens of each completion, to a file's lines."""
    encoder = PromptEncoder(policy.tokenizer, policy.scheme)

    def measure(rows: list[dict]) -> list[dict]:
        prompts = [row["prompt_ids"] for row in rows]
        queries = [encoder.query_ids(row["feedback"], row["prompt_ids"], row["prompt"]) for row in rows]
        found = divergence(
            Conditioned(policy.model, queries), Conditioned(base.model, prompts), [row["completion_ids"] for row in rows],
            excluded_ids=policy.added_token_ids,
        )  # fmt: skip
        return [{"kl": kl.tolist(), "entropy": entropy.tolist()} for kl, entropy in zip(*found, strict=True)]

    total = sum(len(row["completions"]) for row in read(path))
    annotate(
        path, "divergence", divergence_label(policy, base_name, base), measure, progress=progress_bar("KL", total)
    )


def divergence_label(policy: Policy, base_name: str, base: Policy) -> str:
    """Which two models a divergence is between."""
    return f"{policy.revision[:12]} from {model_label(base_name, base.model)}"


def as_measured(rows: Iterator[dict], system: System, judges: Judges, options) -> Iterator[dict]:
    """Lines as `metrics.measure` takes them: the KL to this comparison's base stands with the likelihoods and, where
    there are several rewards, their weighted sum with the scores.
    """
    name = model_label(judges.eval_name, judges.eval_model.model)
    label = divergence_label(system.policy, judges.base_name, judges.base) if judges.base else None
    labels = [reward.label for reward in judges.rewards]
    for row in rows:
        if label:
            found = row["divergence"][label]
            row["likelihoods"][name] |= {"kl": found["kl"], "entropy": found["entropy"]}
        yield add_sum(row, labels, options.reward_weights) if labels[1:] else row


# ---- what is said about it ----------------------------------------------------------------------------------------


def metric_names(systems: Sequence[dict]) -> list[str]:
    """Every metric that some system has, without the keys of its spread."""
    names = dict.fromkeys(name for system in systems for name in system["metrics"])
    return [name for name in names if not name.endswith(("_stderr", "_ci95"))]


def models_of(name: str, policy: Policy, judges: Judges) -> dict[str, dict[str, str]]:
    """Names and revisions of the models that took part."""
    named = {"policy": (name, policy), "eval": (judges.eval_name, judges.eval_model)}
    named |= {"base": (judges.base_name, judges.base)} if judges.base else {}
    return {role: {"name": each, "revision": p.revision} for role, (each, p) in named.items()}


def skipped(options, policy: Policy, base: Policy | None) -> list[str]:
    """What a reader might look for and does not find, and why."""
    notes = []
    if base is None:
        notes.append(
            f"no base model: {options.model} does not say what it was trained from; name it with --base_model"
        )
    if policy.scheme is None:
        notes.append("no tags, so neither guidance nor a sweep: the model has no tags.json")
    elif not options.sweep_tags:
        notes.append("the other tags: add --sweep_tags")
    elif options.sweep_prompts:
        notes.append(f"the other tags are sampled on the first {options.sweep_prompts} prompts of each source")
    return notes


COLUMNS = {
    "toxicity_probability": "toxicity probability",
    "expected_max_toxicity": "expected max",
    "toxicity": "mean toxicity",
    "positive_fraction": "positive",
    "reward": "reward",
    "perplexity": "perplexity",
    "dist-2": "dist-2",
}


def comparison(results: dict) -> str:
    """The systems as a Markdown table with 95 % intervals; columns that no system has are left out."""
    names = metric_names(results["systems"])
    columns = {name: headed(name) for plain in COLUMNS for name in names if bare(name) == plain}
    if {bare(name) for name in columns} - {
        "reward",
        "perplexity",
        "dist-2",
    }:  # rewards are one minus what stands there
        columns = {name: head for name, head in columns.items() if bare(name) != "reward"}
    several = len({(s["prompts"], s["reversed"]) for s in results["systems"]}) > 1
    heads = ["system", *(["prompts from"] if several else []), "prompts", *columns.values()]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for system in results["systems"]:
        source = [system["prompts"] + (", tags reversed" if system["reversed"] else "")] if several else []
        cells = [cell(system["metrics"], name) for name in columns]
        size = f"{system['n_samples']['effective']} × {system['num_generations']}"
        lines.append(f"| {' | '.join([title(system), *source, size, *cells])} |")
    return "\n".join(lines)


def bare(name: str) -> str:
    """A metric's name without the number of completions, the threshold and the scorer."""
    return re.split("[@>/]", name)[0]


def headed(name: str) -> str:
    """The head of a metric's column, with its scorer where there are several."""
    scorer = name.partition("/")[2]
    return COLUMNS[bare(name)] + (f", {scorer}" if scorer else "")


def title(system: dict) -> str:
    """A system's name with the words it was given."""
    told = not system["tag"] or system["name"].endswith(system["tag"])
    return system["name"] if told else f"{system['name']}: {system['tag']}"


def cell(values: dict, name: str) -> str:
    """A value with its interval."""
    if values.get(name) is None:
        return "–"
    digits = 1 if bare(name) == "perplexity" else 3
    low, high = values[f"{name}_ci95"]
    return f"{values[name]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
