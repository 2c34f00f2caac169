"""`nlf report`: runs as one self-contained page that opens from disk and needs no network.

The page holds no script at all, and its Content-Security-Policy lets none run and nothing be loaded: what models write
can be looked at safely. Texts that may offend are blurred until clicked, by CSS alone. The same input gives the same
bytes. The first run is shown in full; the others stand beside it in the tables and plots that compare. A folder that
`benchmarks/frontier.py` wrote adds its plots and its table.
"""

import base64
import hashlib
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup

from nlf.data.files import write_text
from nlf.report import figures, frontier, tables
from nlf.report.plots import Drawing
from nlf.report.reading import Run, judged_by, others, read_runs
from nlf.report.samples import HARMLESS, Samples, Scored, about, read_all, scored_by, side_by_side
from nlf.report.wording import clean, number

FILE = "report.html"
SECTIONS: tuple[tuple[str, str, Callable[[dict], bool]], ...] = (  # id, title, whether there is anything to show
    ("results", "Results", lambda page: not page["run"].bare),
    ("trade-off", "Trade-off", lambda page: any(source["tradeoff"] for source in page["sources"])),
    ("frontier", "Beside other methods", lambda page: bool(page["frontiers"])),
    ("control", "Control", lambda page: any(source["ridges"] or source["sweep"] for source in page["sources"])),
    ("text", "Length and diversity", lambda page: any(source["shape"].columns for source in page["sources"])),
    ("training", "Training", lambda page: bool(page["curves"])),
    ("samples", "Samples", lambda page: any(source["samples"] for source in page["sources"])),
    ("details", "Details", lambda page: bool(page["facts"] or page["configs"])),
    ("not-shown", "Not shown", lambda page: bool(page["skipped"])),
)


def report_command(options: SimpleNamespace) -> str:
    """`nlf report`: write the page and say where it is.

    Args:
        options: The fields of `config.ReportOptions`.
    """
    output = Path(options.output) if options.output else None
    path = write_report([Path(run) for run in options.runs], output, options.num_samples, options.seed)
    return f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser"


def write_report(runs: Sequence[Path], output: Path | None = None, num_samples: int = 30, seed: int = 0) -> Path:
    """Write the page of one or more runs.

    Args:
        runs: Run folders, folders of evaluations, or of a frontier; the first is shown in full.
        output: The page; None is report.html in the first run.
        num_samples: Prompts whose samples are shown, over all prompt sources.
        seed: Which prompts those are.

    Returns:
        Where the page is.

    Raises:
        UserError: a run cannot be read (what of it is broken is named), or the page cannot be written.
    """
    paths = [Path(run) for run in runs]
    found = read_runs(paths)
    path = output or (paths[0] if paths[0].is_dir() else paths[0].parent) / FILE
    write_text(path, render(found, num_samples, seed))
    return path


def render(runs: Sequence[Run], num_samples: int, seed: int) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, finalize=clean, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = resources.files("nlf.report")
    page = contents(runs, num_samples, seed)
    style = files.joinpath("page.css").read_text(encoding="utf-8") + page.pop("plot_css")
    policy = f"default-src 'none'; style-src 'sha256-{_hash(style)}'; base-uri 'none'; form-action 'none'"
    template = environment.from_string(files.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(page, style=Markup(style), policy=policy).strip() + "\n"


def _hash(style: str) -> str:
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def contents(runs: Sequence[Run], num_samples: int, seed: int) -> dict[str, Any]:
    """Everything the template shows."""
    everything, runs = runs, [run for run in runs if not run.bare] or runs[:1]
    run, drawing = runs[0], Drawing()
    scored = scored_by(judged_by(run.systems))
    samples = read_all(run, scored, num_samples, seed)
    about_run, outcome = tables.headings(runs)
    sources = list(dict.fromkeys(source for each in runs for source in each.sources))
    found = [_source(runs, source, samples, scored, drawing) for source in sources]
    page = {
        "run": run,
        "path": shlex.quote(str(run.path)),
        "runs": [figures.Key(each.name, figures.ink_of(i)) for i, each in enumerate(runs)] if runs[1:] else [],
        "date": str((run.results or {}).get("date") or "")[:10],
        "about": about_run,
        "outcome": outcome,
        "sources": found,
        "has_others": any(others(each.on(source)) for each in runs for source in sources),
        "veils": any(s.veiled or any(t.veiled for ts in s.texts for t in ts) for f in found for s in f["samples"]),
        "scored": scored,
        "curves": figures.curves(runs, drawing),
        "frontiers": [
            frontier.section(each.name, each.home, each.frontier, drawing, each.missing)
            for each in everything
            if each.frontier
        ],
        "facts": tables.facts(run),
        "configs": tables.configs(run),
        "skipped": _skipped(everything),
        "harmless": number(HARMLESS)[:3],
        "plot_css": drawing.styles.css(),
    }
    return page | {"sections": [(name, title) for name, title, shown in SECTIONS if shown(page)]}


def _source(
    runs: Sequence[Run], source: str, samples: dict[str, Samples], scored: Scored, drawing: Drawing
) -> dict[str, Any]:
    """What is shown of one prompt source."""
    run = runs[0]
    chosen, shown = side_by_side(run, source, samples, scored) if source in run.sources else ([], [])
    return {
        "name": source,
        "headline": tables.headline(runs, source),
        "tradeoff": figures.tradeoff(runs, source, drawing),
        "sweep": tables.sweep(run, source),
        "ridges": figures.ridges(run, source, samples, scored, drawing),
        "shape": tables.shape(run, source),
        "lengths": figures.lengths(run, source, samples, drawing),
        "everything": tables.everything(run, source),
        "chosen": chosen,
        "samples": shown,
        "about_samples": about(shown, chosen) if shown else "",
    }


def _skipped(runs: Sequence[Run]) -> list[str]:
    """What the evaluations left out, and what could not be shown here."""
    lines = []
    for run in runs:
        said = [str(line) for line in (run.results or {}).get("skipped") or []]
        lines += [f"{run.name}: {line}" if len(runs) > 1 else line for line in said + run.missing]
    return lines
