"""Read a run's folder: its results, its log and its settings, with a note on anything that cannot be shown.

A broken `results.json` stops the report. A broken log or settings file is left out, and the page says why.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlf.config import renamed
from nlf.data.run_folder import CONFIG, FACTS, METRICS, PLAIN, RESULTS, settings_in
from nlf.errors import UserError
from nlf.evaluation.headlines import Headlines, headlines
from nlf.report.results import SCORED, Results, System, read_results, source_of
from nlf.report.wording import family, is_number

FRONTIER = "frontier.json"  # of benchmarks/frontier.py; a frontier has a separate page


@dataclass
class Run:
    """A run on disk. `missing` has one line for each file or figure that the page cannot show."""

    path: Path
    name: str
    evaluation: Path  # folder of the results and the generations
    results: Results | None
    log: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The folder that training wrote."""
        return _home(self.path)

    @property
    def systems(self) -> list[System]:
        return self.results["systems"] if self.results else []

    @property
    def sources(self) -> list[str]:
        """The prompt sources in the order of the systems."""
        return list(dict.fromkeys(map(source_of, self.systems)))

    def on(self, source: str) -> list[System]:
        """The systems on one prompt source."""
        return [system for system in self.systems if source_of(system) == source]

    @property
    def headlines(self) -> Headlines:
        """Whose figures come first."""
        return headlines(self.results) if self.results else Headlines({}, {})

    def difference(self, system: System) -> dict[str, Any]:
        """Paired differences of a system from the base, by metric."""
        known = self.results["differences"] if self.results else []
        return next((each["metrics"] for each in known if each["system"] == system["id"]), {})


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs and give each a distinct name.

    Raises:
        UserError: No run is named, a folder holds nothing to show, or a `results.json` has another version.
    """
    if not paths:
        raise UserError("report: no run is named; expected one or more run folders: nlf report RUN [RUN ...]")
    runs = [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    _tell_scorers_apart([run.results for run in runs if run.results])
    return runs


def _tell_scorers_apart(results: Sequence[Results]) -> None:
    """If the scorers of runs differ, add the scorer to the names of the metrics that come from it.

    Results of several scorers hold such names already.
    """
    if len({tuple(map(str, each["scorers"])) for each in results}) < 2:
        return
    for each in results:
        if len(each["scorers"]) == 1:
            for entry in [*each["systems"], *each["differences"]]:
                entry["metrics"] = {
                    _with_scorer(name, each["scorers"][0]): value for name, value in entry["metrics"].items()
                }


def _with_scorer(name: str, scorer: str) -> str:
    """`reward/local@1_ci95` for `reward_ci95`; a metric that needs no scorer keeps its name."""
    base = re.sub(r"_(stderr|ci95)$", "", name)
    return f"{base}/{scorer}{name[len(base) :]}" if family(base) in {*SCORED, "unscored_fraction"} else name


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest path endings that are distinct."""
    whole = [_home(path.resolve()).parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"report: the same run is named twice: {', '.join(map(str, paths))}; name each run once")


def _home(path: Path) -> Path:
    """The run's folder, from the folder, its evaluation folder or its results.json."""
    folder = path.parent if path.name == RESULTS else path
    above = folder.parent
    known = any((above / name).is_file() for name in (METRICS, CONFIG))
    return above if folder.name == "evaluation" and known else folder


def _read_run(path: Path, name: str) -> Run:
    _refuse_frontier(path)
    if not path.exists():
        raise UserError(f"{path}: no such folder; expected a run, or a folder that `nlf evaluate` wrote")
    home = _home(path)
    folders = [path.parent if path.name == RESULTS else path, home / "evaluation"]
    evaluation = next((folder for folder in folders if (folder / RESULTS).is_file()), folders[-1])
    results = read_results(evaluation / RESULTS) if (evaluation / RESULTS).is_file() else None
    run = Run(path, name, evaluation, results)
    trained = _trained(home)
    run.log = _log(trained / METRICS, run.missing)
    run.config = _settings(trained, run.missing)
    if run.results is None and not run.log and not run.config:
        _refuse_frontier(home / FRONTIER)
        found = "; ".join(run.missing) or f"neither {RESULTS} nor {METRICS} in it"
        raise UserError(f"{path}: {found}; expected a folder that `nlf train` or `nlf evaluate` wrote")
    return run


def _trained(home: Path) -> Path:
    """The folder of the training: the run's, or that of its plain model, which taught it its tags."""
    plain = home / PLAIN
    return plain if not (home / METRICS).is_file() and (plain / METRICS).is_file() else home


def _refuse_frontier(path: Path) -> None:
    """Raise UserError for a frontier, which has a separate page."""
    if path.name == FRONTIER and path.is_file():
        folder = path.parent
        raise UserError(
            f"{folder} holds a frontier, not a run; open {folder / 'frontier.html'}, "
            f"or write it with `python benchmarks/frontier_page.py {folder}`"
        )


def _log(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The unbroken lines of metrics.jsonl."""
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


def _log_line(line: str) -> dict[str, Any] | None:
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
            found |= renamed(settings_in(path))
        except UserError as error:
            missing.append(str(error).removeprefix(f"{home}/"))
    return found
