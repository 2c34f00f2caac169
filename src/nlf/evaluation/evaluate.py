"""`nlf evaluate`: compare a model with its base on the same prompts, with the same random numbers.

A system is a model under a tag, perhaps guided. Each system has a generations file in the output folder. The command
samples, scores and measures one system after another. Every step appends to disk, so a killed evaluation continues
where it stopped. `results.json` is made from the files alone. Its metrics follow lm-evaluation-harness: `metric`,
`metric_stderr`, and `metric_ci95` from a bootstrap over prompts. docs/evaluation.md documents every key.

The reader of the perplexity is the base model or `eval_model`; it reads bare prompts. KL is measured to the base.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice
from json import loads
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from nlf import __version__
from nlf.config import EvaluateOptions, sampler_options, sampling_options
from nlf.data.environment import git_revision, versions
from nlf.data.files import json_text, refuse_other, write_text
from nlf.data.generations import Divergence, Generation, Row, annotate, in_folder, read, refuse_other_lines
from nlf.data.locks import locked_files, locked_folder
from nlf.data.markdown import markdown_table
from nlf.data.progress import duration, progress_bar
from nlf.data.prompts import PromptRow, other_columns
from nlf.data.run_folder import (
    DISTILLED,
    PLAIN,
    RESULTS,
    SCHEMA_VERSION,
    is_plain_run,
    model_folder,
    run_settings,
)
from nlf.errors import UserError
from nlf.evaluation import exports, intervals, metrics, unscored
from nlf.evaluation.headlines import headlines
from nlf.evaluation.perplexity import measure_file, model_label
from nlf.evaluation.pipeline import divergence_of, metrics_of
from nlf.evaluation.run_defaults import Scorers, recorded_base, scorers_of, with_length, with_prompts
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.score import SUM, score_file
from nlf.evaluation.systems import (
    PromptSet,
    System,
    check_prompts,
    chosen_tag,
    load_for_commands,
    negative_tag,
    prompt_sets,
    slug,
    split_sets,
    with_tags,
    with_turned_tags,
)
from nlf.models.names import SUFFIX
from nlf.models.policy import Policy
from nlf.rewards import Reward, check_calls

logger = logging.getLogger(__name__)

Compare = Callable[[Policy | None, Policy, EvaluateOptions, bool], list[System]]  # the signature of `systems_of`


@dataclass(frozen=True)
class Instruments:
    """The scorers and models that measure samples.

    Attributes:
        scorers: The rewards, and the auditors beside them.
        reader: The model that measures perplexity.
        base: The model that KL is measured to; None if it is unknown.
    """

    scorers: Scorers
    reader: Policy
    base: Policy | None


class SystemEntry(TypedDict):
    """A system in `results.json`; docs/evaluation.md documents the keys."""

    id: str
    name: str
    model: str
    prompts: str
    tag: str | None
    negative_tag: str | None
    guidance_scale: float
    reversed: bool
    generations: str
    n_samples: dict[str, int]
    num_generations: int
    counts: dict[str, int]
    metrics: dict[str, float | list[float | None] | None]


class Evaluated(NamedTuple):
    """A system's entry, and the metrics by prompt that it was made from."""

    entry: SystemEntry
    measured: metrics.Measured


def evaluate_command(options: EvaluateOptions) -> str:
    """`nlf evaluate`: compare a model with its base, write the files, and return the table to show."""
    return evaluate(options, systems_of)


def evaluate(options: EvaluateOptions, compare: Compare, scorers: Scorers | None = None) -> str:
    """Evaluate the systems returned by `compare`, write the files, and return the table to show.

    Args:
        compare: Takes the base, the policy, the options, and whether the order of the tags is reversed; returns the
            systems, the base first.
        scorers: None = the scorers of the options, or else of the model's run.
    """
    options = replace(options, model=model_folder(options.model))
    folder = Path(options.output_dir or Path(options.model.removesuffix(SUFFIX), "evaluation"))
    with locked_folder(folder):
        refuse_others_results(folder)
        options = with_prompts(options, options.model)
        sets = all_prompt_sets(options)
        options = with_length(options, options.model, [prompts.rows for prompts in sets])
        exports.check_sets(options.format, folder, sets)
        policy, instruments = loaded(options, sets, scorers or scorers_of(options, options.model))
        by_set = [
            [
                measured_system(system, prompts, instruments, options, folder)
                for system in compare(instruments.base, policy, options, prompts.turned)
            ]
            for prompts in sets
        ]
        results = results_of(options, policy, instruments, by_set)
        write_text(folder / RESULTS, json_text(results, indent=1) + "\n")
        written = exports.export(options.format, folder, results, model_label(instruments.reader))
    warnings = unscored.of_systems(results["systems"], results["scorers"])
    files = [f"results: {folder / RESULTS}", *(f"{options.format}: {path}" for path in written)]
    return "\n\n".join([comparison(results), *warnings, "\n".join(files)])


def loaded(options: EvaluateOptions, sets: Sequence[PromptSet], scorers: Scorers) -> tuple[Policy, Instruments]:
    """Load the model and what measures it.

    Raises:
        UserError: a model cannot be loaded, a scorer needs a column that the prompts lack, or a model cannot read a prompt.
    """
    check_calls(scorers.all, {name for each in sets for row in each.rows for name in other_columns(row)})
    policy = load_for_commands(options.model, options)
    policy = with_tags(policy, options.tags, [row for each in sets for row in each.rows])
    if options.reverse_prompts and policy.scheme is None:
        raise UserError(f"reverse_prompts: {options.model} has no tags whose order could be reversed; give --tags")
    base = load_base(options)
    reader = load_for_commands(options.eval_model, options) if options.eval_model else base or policy
    check_prompts(sets, policy, base, reader)
    return policy, Instruments(scorers, reader, base)


def refuse_others_results(folder: Path) -> None:
    """Refuse a folder in which other programs have written files with the names of ours.

    Raises:
        UserError: one of them is there.
    """
    refuse_other(folder / RESULTS, is_results)
    for path in in_folder(folder):
        refuse_other_lines(path)


def is_results(text: str) -> bool:
    """Whether a text is the content of a `results.json` of ours."""
    try:
        found = loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and {"schema_version", "systems"} <= found.keys()


def all_prompt_sets(options: EvaluateOptions) -> list[PromptSet]:
    """The prompt sets of `prompts`, then of `reverse_prompts`, split by `prompts_by`; with several sets each has a prefix."""
    turned = [replace(each, turned=True) for each in prompt_sets(options, options.reverse_prompts or [])]
    sets = prompt_sets(options, options.prompts or []) + turned
    if options.prompts_by:
        sets = split_sets(sets, options.prompts_by)
    return [replace(each, prefix=f"{slug(each.source)}-") for each in sets] if len(sets) > 1 else sets


def load_base(options: EvaluateOptions) -> Policy | None:
    """Load `base_model`, or else the model that the run started from; None if neither is known."""
    start = options.base_model or recorded_base(run_settings(Path(options.model)), options.model)
    return load_for_commands(start, options) if start else None


def systems_of(base: Policy | None, policy: Policy, options: EvaluateOptions, turned: bool) -> list[System]:
    """The systems: the base, the model under its tag, the guided model, the distilled and the plain model, the other tags.

    Args:
        turned: Reverse the order of the tags.
    """
    if turned:
        policy = with_turned_tags(policy)
    scheme, tag = policy.scheme, chosen_tag(policy, options.tag)
    bare = PLAIN if is_plain_run(options.model) else "no tag"
    name = bare if tag is None else "best tag" if scheme and tag == scheme.best else "tag"
    rows = [System("base", base)] if base else []
    rows.append(System(name, policy, tag))
    for scale in sorted(set(options.guidance_scales) - {0}) if tag else ():
        negative = negative_tag(policy, options.negative_tag)
        rows.append(System(f"{name}, guidance {scale:g}", policy, tag, negative, scale))
    for each in (DISTILLED, PLAIN):
        untagged = Path(options.model, each)
        if (untagged / "config.json").is_file() and not turned:
            rows.append(System(each, load_for_commands(str(untagged), options)))
    others = [each for each in scheme.tags if each != tag] if options.sweep_tags and scheme else []
    return rows + [System(f"tag {each}", policy, each, num_prompts=options.sweep_prompts) for each in others]


def measured_system(
    system: System, prompts: PromptSet, instruments: Instruments, options: EvaluateOptions, folder: Path
) -> Evaluated:
    """Sample, score and measure one system; finished lines of its file are kept."""
    rows, path, start = prompts.rows[: system.num_prompts], folder / prompts.file(system), time.monotonic()
    sample_system(path, system, rows, options)
    score_file(path, instruments.scorers.all, block=options.prompts_per_part)
    measure_file(path, instruments.reader, batch_tokens=options.sampling_batch_tokens)
    if instruments.base:
        measure_divergence(path, system.policy, instruments.base)
    lines = with_divergence(islice(read(path), len(rows)), system.policy, instruments)
    likelihoods = model_label(instruments.reader)
    scorers = instruments.scorers
    found = metrics_of(
        lines, scorers.rewards, scorers.weights, likelihoods, options.threshold, auditors=scorers.auditors
    )
    logger.info(
        "%s: %d × %d completions, %s", path.name, len(rows), found.num_generations, duration(time.monotonic() - start)
    )
    return Evaluated(entry_of(system, prompts, path, len(rows), found), found)


def sample_system(path: Path, system: System, rows: Sequence[PromptRow], options: EvaluateOptions) -> None:
    """Append the missing completions of these prompts to the system's file."""
    sampling = replace(sampling_options(options), guidance_scale=system.guidance_scale, negative_tag=system.negative)
    sampler = sampler_options(options)
    if system.policy.identity.name != options.model:  # sampler_model is the server's name of that model
        sampler = replace(sampler, sampler_model=None)
    with prompt_sampler(
        system.policy, sampling, seed=options.seed, sampler=sampler, token_budget=options.sampling_batch_tokens
    ) as drawing:
        sample_file(path, drawing, rows, system.tag, part=options.prompts_per_part, what=system.name)


def measure_divergence(path: Path, policy: Policy, base: Policy) -> None:
    """Add KL(base || policy) and the policy's entropy, nats over the tokens of each completion, to a file's lines."""
    encoder = policy.encoder()

    def measure(rows: list[Row]) -> list[Divergence]:
        return divergence_of(rows, policy, encoder, base.model)

    total = sum(len(row["completions"]) for row in read(path))
    with locked_files(path):
        annotate(path, "divergence", divergence_label(policy, base), measure, progress=progress_bar("KL", total))


def divergence_label(policy: Policy, base: Policy) -> str:
    """The key of a divergence in a line: the names of its two models."""
    return f"{policy.revision[:12]} from {model_label(base)}"


def with_divergence(rows: Iterable[Generation], policy: Policy, instruments: Instruments) -> Iterator[Generation]:
    """For `metrics_of`, copy the KL to this comparison's base and the entropy into the reader's likelihoods."""
    reader = model_label(instruments.reader)
    label = divergence_label(policy, instruments.base) if instruments.base else None
    for row in rows:
        if label:
            found = row["divergence"][label]
            row["likelihoods"][reader] |= {"kl": found["kl"], "entropy": found["entropy"]}
        yield row


# ---- results.json -------------------------------------------------------------------------------------------------


def results_of(
    options: EvaluateOptions, policy: Policy, instruments: Instruments, by_set: Sequence[Sequence[Evaluated]]
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        by_set: The systems of each set of prompts, the base first.
    """
    systems = [each.entry for each in chain.from_iterable(by_set)]
    base = instruments.base
    config = {"guidance_scale" if name == "guidance_scales" else name: v for name, v in vars(options).items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "nlf_version": __version__,
        "git_hash": git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": options.task,
        "config": config,
        "versions": versions(),
        "models": models_of(policy, instruments),
        "scorers": [reward.label for reward in instruments.scorers.all],
        "auditors": [reward.label for reward in instruments.scorers.auditors],
        "trained_on": [*instruments.scorers.trained_on],
        "audited_by": [*instruments.scorers.audited_by],
        "noise_floor": noise_floors(instruments.scorers.all),
        "seeds": {"sampling": options.seed, "bootstrap": 0},
        "tags": list(policy.scheme.tags) if policy.scheme else None,
        "higher_is_better": {name: metrics.higher_is_better(name) for name in metric_names(systems)},
        "systems": systems,
        "differences": [each for found in by_set for each in differences_to_first(found)] if base else [],
        "skipped": skipped(options, policy, base),
    }


def entry_of(system: System, prompts: PromptSet, path: Path, effective: int, found: metrics.Measured) -> SystemEntry:
    """A system's entry.

    Args:
        path: The system's generations file.
        effective: The number of prompts that the system completed, out of all prompts of the set.
    """
    return {
        "id": prompts.id(system),
        "name": system.name,
        "model": "base" if system.name == "base" else "policy",
        "prompts": prompts.source,
        "tag": system.tag,
        "negative_tag": system.negative,
        "guidance_scale": system.guidance_scale,
        "reversed": prompts.turned,
        "generations": path.name,
        "n_samples": {"original": len(prompts.rows), "effective": effective},
        "num_generations": found.num_generations,
        "counts": found.counts,
        "metrics": with_intervals(found),
    }


def with_intervals(found: metrics.Measured) -> dict[str, float | list[float | None] | None]:
    """`metric`, `metric_stderr` and `metric_ci95` of every metric; metrics of the whole corpus have no interval."""
    spread = intervals.intervals(found.ratios)
    values: dict[str, float | list[float | None] | None] = {}
    for name, ratio in found.ratios.items():
        stderr, low, high = map(plain, spread[name])
        values |= {name: plain(ratio.value), f"{name}_stderr": stderr, f"{name}_ci95": [low, high]}
    return values | {name: plain(value) for name, value in found.corpus.items()}


def plain(value: float) -> float | None:
    """A value for JSON, which has no NaN: NaN becomes null."""
    return float(value) if isfinite(value) else None


def differences_to_first(found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """The differences of each system from the base, which is the first system, on the prompts that both completed."""
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
    """The metrics over the first prompts: as many prompts as the other system `like` has."""
    count = len(next(iter(like.ratios.values())).num)
    return {
        name: intervals.Ratio(ratio.num[:count], ratio.den[:count], ratio.exp)
        for name, ratio in measured.ratios.items()
        if name in like.ratios
    }


def noise_floors(scorers: Sequence[Reward]) -> dict[str, dict[str, Any]]:
    """By scorer, the noise floor in the card of its weights, which `tools/noise_floor.py` measures; others have none."""
    cards = {scorer.label: getattr(scorer.function, "card", None) for scorer in scorers}
    floors = {label: card.get("noise_floor") for label, card in cards.items() if isinstance(card, dict)}
    return {label: floor for label, floor in floors.items() if floor}


def metric_names(systems: Sequence[SystemEntry]) -> list[str]:
    """Every metric that any system has, without the keys of standard errors and intervals."""
    names = dict.fromkeys(name for system in systems for name in system["metrics"])
    return [name for name in names if not name.endswith(("_stderr", "_ci95"))]


def models_of(policy: Policy, instruments: Instruments) -> dict[str, dict[str, str]]:
    """Names and revisions of the policy, the reader and the base, by their keys in `results.json`."""
    models = {"policy": policy, "eval": instruments.reader}
    if instruments.base:
        models["base"] = instruments.base
    return {role: {"name": each.identity.name, "revision": each.revision} for role, each in models.items()}


def skipped(options: EvaluateOptions, policy: Policy, base: Policy | None) -> list[str]:
    """Notes about missing rows and columns, with the reason."""
    notes = []
    if base is None:
        notes.append(
            f"no base model: {options.model} does not name the model it was trained from; name it with --base_model"
        )
    if is_plain_run(options.model):
        notes.append("no tags, so neither guidance nor a sweep: this is a plain model")
    elif policy.scheme is None:
        notes.append("no tags, so neither guidance nor a sweep: the model has no tags.json")
    elif not options.sweep_tags:
        notes.append("the other tags: add --sweep_tags")
    elif options.sweep_prompts:
        notes.append(f"the other tags are sampled on the first {options.sweep_prompts} prompts of each source")
    return notes


# ---- the table ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "toxicity_probability": "toxicity probability",
    "expected_max_toxicity": "expected max",
    "toxicity": "mean toxicity",
    "positive_fraction": "positive",
    "reward": "reward",
    "unscored_fraction": "unscored",
    "perplexity": "perplexity",
    "dist-2": "dist-2",
}
BESIDE = {"toxicity", "unscored_fraction"}  # the columns of a scorer that audits no reward; results.json has all
FLOOR = "noise floor: what a scorer's own error makes of clean texts (docs/evaluation.md, Noise floor)"
# columns whose values are not attributes of a scorer
NO_ATTRIBUTE = {"reward", "unscored_fraction", "perplexity", "dist-2"}


def comparison(results: dict[str, Any]) -> str:
    """The systems as a Markdown table with 95 % intervals; columns without a value are left out.

    The columns of an auditor of the model's run stand before those of the reward that the run was trained on.
    """
    found = headlines(results)
    others = [label for label in results.get("auditors", ()) if label not in found.roles]
    beside = tuple(f"/{label}" for label in others)
    measured = [name for name in metric_names(results["systems"]) if name != f"unscored_fraction/{SUM}"]
    names = [n for n in measured if metrics.family(n) in (BESIDE if n.endswith(beside) else COLUMNS)]
    names.sort(key=lambda n: (n.endswith(beside), [*COLUMNS].index(metrics.family(n)), found.order(n)))
    columns = {name: COLUMNS[metrics.family(name)] + found.suffix(name) for name in names}
    for group in metrics.by_scorer(measured):
        if {metrics.family(name) for name in group} & COLUMNS.keys() - NO_ATTRIBUTE:
            for name in [*group, f"reward/{SUM}"]:  # the reward is one minus such an attribute
                if metrics.family(name) == "reward":
                    columns.pop(name, None)
    several = len({(s["prompts"], s["reversed"]) for s in results["systems"]}) > 1
    heads = ["system", *(["prompts from"] if several else []), "prompts", *columns.values()]
    rows = []
    for system in results["systems"]:
        source = [system["prompts"] + (", tags reversed" if system["reversed"] else "")] if several else []
        cells = [cell(system["metrics"], name) for name in columns]
        size = f"{system['n_samples']['effective']} × {system['num_generations']}"
        rows.append([title(system), *source, size, *cells])
    floors = [found.floor(name) for name in columns]
    if not any(floors):
        return markdown_table(heads, rows)
    rows.append(
        ["noise floor", *[""] * (len(heads) - 1 - len(floors)), *("" if f is None else f"{f:.3f}" for f in floors)]
    )
    return f"{markdown_table(heads, rows)}\n\n{FLOOR}"


def title(system: dict) -> str:
    """A system's name, and its tag unless the name ends with the tag."""
    told = not system["tag"] or system["name"].endswith(system["tag"])
    return system["name"] if told else f"{system['name']}: {system['tag']}"


def cell(values: dict, name: str) -> str:
    """A value with its interval."""
    if values.get(name) is None:
        return "–"
    digits = 1 if metrics.family(name) == "perplexity" else 3
    low, high = values[f"{name}_ci95"]
    return f"{values[name]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
