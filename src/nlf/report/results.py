"""The results of an evaluation in `results.json`, and the systems that each part of the report shows.

docs/evaluation.md documents every key. The file comes from disk, so numbers in `metrics` may be missing or malformed;
they are checked where they are shown.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, TypedDict, cast

from nlf.data.run_folder import SCHEMA_VERSION
from nlf.errors import UserError
from nlf.evaluation.headlines import Headlines
from nlf.evaluation.metrics import by_scorer
from nlf.report.wording import family, is_number

# Names of the models that need no tag: the one that `nlf distill` makes, "student" in its own comparison, and that of a run
# with `plain`.
PLAIN = ("distilled", "student", "plain")
# The metrics that can decide a comparison, by rank. A thresholded metric ranks above the mean of the same scores.
MAIN_METRICS = ("toxicity_probability", "positive_fraction", "toxic_fraction", "toxicity", "positive", "reward")
SCORED = {*MAIN_METRICS, "expected_max_toxicity"}  # the metrics of a scorer


class SampleSize(TypedDict, total=False):
    """Numbers of prompts."""

    original: int
    effective: int


class System(TypedDict):
    """A model under one tag, perhaps guided, on one prompt source."""

    id: str
    name: str
    model: str  # "base" or "policy"
    prompts: str  # the prompt source
    tag: str | None
    negative_tag: NotRequired[str | None]
    guidance_scale: float  # 0: no guidance
    reversed: NotRequired[bool]  # whether the tags are in reverse order
    generations: str | None  # file name
    n_samples: SampleSize | None
    num_generations: int | None  # completions of a prompt
    counts: dict[str, Any] | None
    metrics: dict[str, Any]  # `metric` and `metric_stderr`: numbers, `metric_ci95`: [low, high]


class Difference(TypedDict):
    """Paired differences of one system from the base: by metric `difference`, `ci95` and `p_value`."""

    system: str  # id
    against: NotRequired[str]  # id
    metrics: dict[str, Any]


class Results(TypedDict):
    """A checked `results.json`."""

    systems: list[System]
    differences: list[Difference]
    skipped: list[Any]
    scorers: list[Any]
    auditors: NotRequired[list[Any]]
    trained_on: NotRequired[list[Any]]  # the scorers that the model's run was trained on
    audited_by: NotRequired[list[Any]]  # its auditors
    noise_floor: NotRequired[dict[str, Any]]  # by scorer
    tags: list[Any] | None  # best first
    higher_is_better: dict[str, Any]
    nlf_version: NotRequired[Any]
    git_hash: NotRequired[Any]
    date: NotRequired[Any]
    task: NotRequired[Any]
    config: NotRequired[Any]
    versions: NotRequired[Any]
    models: NotRequired[Any]
    seeds: NotRequired[Any]


# ---- which systems are shown where --------------------------------------------------------------------------------


def source_of(system: System) -> str:
    """The prompt source of a system. A source with reversed tags counts as a different source."""
    return system["prompts"] + (", tags reversed" if system.get("reversed") else "")


def tags_reversed(systems: Sequence[System]) -> bool:
    """Whether the tags are in reverse order, so that these systems aim at the outcome that is usually the worst."""
    return any(system.get("reversed") for system in systems)


def base_of(systems: Sequence[System]) -> System | None:
    """The base among the systems of one prompt source."""
    return next((system for system in systems if system["model"] == "base"), None)


def plain_models(systems: Sequence[System]) -> list[System]:
    """The plain models, which most people use: the distilled one, and the one trained directly; there may be neither."""
    return [system for system in systems if system["name"] in PLAIN and system["tag"] is None]


def plain_name(system: System) -> str:
    """`the distilled model`, `the plain model`."""
    return "the plain model" if system["name"] == "plain" else "the distilled model"


def aligned(systems: Sequence[System]) -> list[System]:
    """The policy under its main tag: first without guidance, then by growing guidance scale."""
    plain = plain_models(systems)
    policy = [system for system in systems if system["model"] != "base" and system not in plain]
    main = next((system for system in policy if not system["guidance_scale"]), policy[0] if policy else None)
    same = [system for system in policy if main and system["tag"] == main["tag"]]
    return sorted(same, key=lambda system: system["guidance_scale"])


def featured(systems: Sequence[System]) -> list[System]:
    """The plain models, the base, the policy under its main tag, and the guided policy whose scale is nearest to 1."""
    main = aligned(systems)
    guided = sorted((s for s in main if s["guidance_scale"]), key=lambda s: abs(s["guidance_scale"] - 1))
    plain = [system for system in main if not system["guidance_scale"]]
    return [*plain_models(systems), *filter(None, [base_of(systems)]), *plain[:1], *guided[:1]]


def others(systems: Sequence[System]) -> list[System]:
    """The policy under its other tags."""
    taken = [id(system) for system in [base_of(systems), *plain_models(systems), *aligned(systems)]]
    return [system for system in systems if id(system) not in taken]


def main_metric(systems: Sequence[System], scorers: Headlines | None = None) -> str | None:
    """The name of the metric that decides a comparison of these systems, with its suffix: `toxicity_probability@25`.

    An auditor of the run decides if there is one, and else the first scorer.
    """
    audited = scorers.audited if scorers else []
    own = [
        name
        for system in systems
        for name in (audited or by_scorer(system["metrics"])[0])
        if is_number(system["metrics"].get(name))
    ]
    found = (name for wanted in MAIN_METRICS for name in own if family(name) == wanted)
    return next(found, None)


# ---- reading and checking -----------------------------------------------------------------------------------------


def read_results(path: Path) -> Results:
    """Read and check a `results.json`.

    Raises:
        UserError: The file cannot be read, has another schema_version, or lacks a required key.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); run `nlf evaluate` again to write it anew") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version is {version!r}, this nlf reads {SCHEMA_VERSION}; "
            "run `nlf evaluate` again, or use the nlf that wrote it"
        )
    wrong = next(_faults(found), None)
    if wrong:
        raise UserError(f"{path}: {wrong}; run `nlf evaluate` again to write it anew")
    defaults: dict[str, Any] = {"differences": [], "skipped": [], "scorers": [], "tags": None, "higher_is_better": {}}
    return cast(Results, defaults | found)  # as `_faults` has checked


Kinds = dict[str, type | UnionType]
REQUIRED: Kinds = {
    **{"id": str, "name": str, "model": str, "prompts": str},
    **{"guidance_scale": int | float, "metrics": dict},
}
OPTIONAL: Kinds = {"tag": str, "generations": str, "n_samples": dict, "num_generations": int, "counts": dict}
TOP: Kinds = {
    **dict.fromkeys(("differences", "skipped", "scorers", "auditors", "trained_on", "audited_by"), list),
    **{"higher_is_better": dict, "noise_floor": dict, "tags": list | None},
}


def _faults(found: dict[str, Any]) -> Iterator[str]:
    """Faults of a results.json, in order. Missing optional keys of a system are set to None."""
    systems = found.get("systems")
    if not isinstance(systems, list) or not systems:
        yield "'systems' was expected to be a list of one or more"
        return
    for i, system in enumerate(systems):
        if not isinstance(system, dict):
            yield f"systems[{i}] was expected to be an object"
            return
        yield from _system_faults(system, f"systems[{i}]")
    for name, kind in TOP.items():
        if name in found and not isinstance(found[name], kind):
            yield f"'{name}' has a wrong type: {found[name]!r:.60}"
    for i, each in enumerate(found.get("differences") or []):
        if not isinstance(each, dict) or not isinstance(each.get("metrics"), dict) or "system" not in each:
            yield f"differences[{i}] was expected to have 'system' and 'metrics'"


def _system_faults(system: dict[str, Any], where: str) -> Iterator[str]:
    for name, kind in REQUIRED.items():
        if not isinstance(system.get(name), kind):
            yield f"{where}.{name} is {system.get(name)!r:.60}, which has a wrong type"
    for name, kind in OPTIONAL.items():
        if not isinstance(system.setdefault(name, None), kind | None):
            yield f"{where}.{name} is {system[name]!r:.60}, which has a wrong type"
