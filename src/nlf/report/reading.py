"""What is in a run's folder: its results, its log lines and its settings; what cannot be shown, and why.

`results.json` is what the page is about: one that cannot be read stops the report. Everything else (the log, the
settings, a frontier) is left out where it is broken, and listed on the page with the reason.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlf.data.run_folder import CONFIG, FACTS, METRICS, settings_in
from nlf.errors import UserError
from nlf.report.frontier import FILE as FRONTIER
from nlf.report.frontier import read_frontier
from nlf.report.wording import family, is_number

RESULTS, SCHEMA_VERSION = "results.json", 1
# What a system is judged by, the first one that is there; mean scores come after what they are thresholded to.
JUDGED_BY = ("toxicity_probability", "positive_fraction", "toxic_fraction", "toxicity", "positive", "reward")


@dataclass
class Run:
    """A run as found on disk. `missing` grows by one line for everything that could not be shown."""

    path: Path
    name: str
    evaluation: Path
    results: dict[str, Any] | None
    log: list[dict] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    frontier: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The run's folder, whichever part of it was named."""
        return _home(self.path)

    @property
    def bare(self) -> bool:
        """Whether there is a frontier at most: neither results nor a training."""
        return self.results is None and not self.log and not self.config

    @property
    def systems(self) -> list[dict]:
        return self.results["systems"] if self.results else []

    @property
    def sources(self) -> list[str]:
        """The prompt sources, in the order of the systems; one whose tags were turned round is a source of its own."""
        return list(dict.fromkeys(map(source_of, self.systems)))

    def on(self, source: str) -> list[dict]:
        return [system for system in self.systems if source_of(system) == source]

    def difference(self, system: dict) -> dict:
        """Paired differences to the base, by metric."""
        found = (each for each in self.results["differences"] if each["system"] == system["id"])
        return next(found, {"metrics": {}})["metrics"]


def source_of(system: dict) -> str:
    """What a system was sampled on."""
    return system["prompts"] + (", tags reversed" if system.get("reversed") else "")


def turned(systems: Sequence[dict]) -> bool:
    """Whether the order of the tags was turned round, so that what is usually worse is aimed at."""
    return any(system.get("reversed") for system in systems)


def base_of(systems: Sequence[dict]) -> dict | None:
    """The base among the systems of one prompt source."""
    return next((system for system in systems if system["model"] == "base"), None)


def aligned(systems: Sequence[dict]) -> list[dict]:
    """The policy under its main tag, then the same guided, by strength."""
    policy = [system for system in systems if system["model"] != "base"]
    main = next((system for system in policy if not system["guidance_scale"]), policy[0] if policy else None)
    same = [system for system in policy if system["tag"] == main["tag"]]
    return sorted(same, key=lambda system: system["guidance_scale"])


def featured(systems: Sequence[dict]) -> list[dict]:
    """The base, the policy under its main tag, and that guided by a strength of 1, or the nearest to it."""
    main = aligned(systems)
    guided = sorted((s for s in main if s["guidance_scale"]), key=lambda s: abs(s["guidance_scale"] - 1))
    plain = [system for system in main if not system["guidance_scale"]]
    return [*filter(None, [base_of(systems)]), *plain[:1], *guided[:1]]


def others(systems: Sequence[dict]) -> list[dict]:
    """The policy under other tags."""
    taken = [id(system) for system in [base_of(systems), *aligned(systems)]]
    return [system for system in systems if id(system) not in taken]


def judged_by(systems: Sequence[dict]) -> str | None:
    """The name of the metric that these systems are judged by."""
    names = [name for system in systems for name, value in system["metrics"].items() if is_number(value)]
    found = (name for wanted in JUDGED_BY for name in names if family(name) == wanted)
    return next(found, None)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run, under a name of its own.

    Raises:
        UserError: no run is named, a folder holds nothing to show, or a `results.json` is not of this version.
    """
    if not paths:
        raise UserError("report: no run is named; expected one or more run folders: nlf report RUN [RUN ...]")
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [_home(path.resolve()).parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"report: the same run is named twice: {', '.join(map(str, paths))}; name each once")


def _home(path: Path) -> Path:
    """The run's folder, whether it, its evaluation or a file of results was named."""
    folder = path.parent if path.name in (RESULTS, FRONTIER) else path
    above = folder.parent
    known = any((above / name).is_file() for name in (METRICS, CONFIG))
    return above if folder.name == "evaluation" and known else folder


def _read_run(path: Path, name: str) -> Run:
    if not path.exists():
        raise UserError(f"{path}: no such folder; expected a run, or a folder that `nlf evaluate` wrote")
    home = _home(path)
    folders = [path.parent if path.name == RESULTS else path, home / "evaluation"]
    evaluation = next((folder for folder in folders if (folder / RESULTS).is_file()), folders[-1])
    results = read_results(evaluation / RESULTS) if (evaluation / RESULTS).is_file() else None
    run = Run(path, name, evaluation, results)
    run.log = _log(home / METRICS, run.missing)
    run.config = _settings(home, run.missing)
    run.frontier = read_frontier(home, run.missing)
    if run.bare and not run.frontier:
        found = "; ".join(run.missing) or f"neither {RESULTS} nor {METRICS} in it"
        raise UserError(
            f"{path}: {found}; expected a folder that `nlf train`, `nlf evaluate` or `make frontier` wrote"
        )
    return run


def read_results(path: Path) -> dict[str, Any]:
    """A checked `results.json`.

    Raises:
        UserError: it cannot be read, has another schema_version, or lacks what every version 1 has.
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
    return {"differences": [], "skipped": [], "scorers": [], "tags": None, "higher_is_better": {}} | found


SYSTEM = {"id": str, "name": str, "model": str, "prompts": str, "guidance_scale": int | float, "metrics": dict}
OPTIONAL = {"tag": str, "generations": str, "n_samples": dict, "num_generations": int, "counts": dict}


def _faults(found: dict) -> Iterator[str]:
    """What a results.json lacks, first things first."""
    systems = found.get("systems")
    if not isinstance(systems, list) or not systems:
        yield "'systems' was expected to be a list of one or more"
        return
    for i, system in enumerate(systems):
        if not isinstance(system, dict):
            yield f"systems[{i}] was expected to be an object"
            return
        for name, kind in SYSTEM.items():
            if not isinstance(system.get(name), kind):
                yield f"systems[{i}].{name} is {system.get(name)!r:.60}, which makes no sense"
        for name, kind in OPTIONAL.items():
            if not isinstance(system.setdefault(name, None), kind | None):
                yield f"systems[{i}].{name} is {system[name]!r:.60}, which makes no sense"
    for name, kind in (("differences", list), ("skipped", list), ("higher_is_better", dict), ("tags", list | None)):
        if not isinstance(found.get(name, kind() if isinstance(kind, type) else None), kind):
            yield f"'{name}' makes no sense"
    for i, each in enumerate(found.get("differences") or []):
        if not isinstance(each, dict) or not isinstance(each.get("metrics"), dict) or "system" not in each:
            yield f"differences[{i}] was expected to have 'system' and 'metrics'"


def _log(path: Path, missing: list[str]) -> list[dict]:
    """The lines of metrics.jsonl that are whole."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{METRICS}: cannot be read ({error})")
        return []
    rows = [_log_line(line) for line in lines if line.strip()]
    broken = [str(i) for i, row in enumerate(rows, 1) if row is None]
    if broken:
        missing.append(
            f"{METRICS}: line {', '.join(broken[:5])} of {len(rows)} is broken, and is left out of the curves"
        )
    return [row for row in rows if row is not None]


def _log_line(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None


def _settings(home: Path, missing: list[str]) -> dict[str, Any]:
    """The settings in config.yaml and run.json."""
    found: dict[str, Any] = {}
    for path in (home / CONFIG, home / FACTS):
        try:
            found |= settings_in(path)
        except UserError as error:
            missing.append(str(error).removeprefix(f"{home}/"))
    return found
