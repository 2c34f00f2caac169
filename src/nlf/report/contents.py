"""The contents of a report's page: from runs to the variables of its template."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlf.report import figures, tables
from nlf.report.credit import Credited, credited
from nlf.report.plots import Drawing
from nlf.report.reading import Run
from nlf.report.results import System, main_metric, others, plain_models, plain_name
from nlf.report.samples import (
    HARMLESS,
    MARKS,
    Sample,
    Samples,
    Scored,
    about,
    explained_by,
    read_all,
    scored_by,
    side_by_side,
)
from nlf.report.wording import number


@dataclass(frozen=True)
class Source:
    """One prompt source: its tables, plots and samples."""

    name: str
    headline: tables.Table
    tradeoff: figures.Plot | None
    sweep: tables.Table | None
    ridges: figures.Plot | None
    shape: tables.Table
    lengths: figures.Plot | None
    everything: tables.Table
    chosen: list[System]  # the systems whose samples are shown
    samples: list[Sample]
    about_samples: str
    explained_by: str  # the scorers that mark words in the samples


@dataclass(frozen=True)
class Contents:
    """The variables of `page.html.j2`. The first run is shown in full; tables and plots compare all runs."""

    run: Run  # the first
    path: str  # of the first run, quoted for a shell
    runs: list[figures.Key]  # a legend entry for each of several runs
    date: str  # of the evaluation, YYYY-MM-DD
    about: str  # title
    outcome: list[str]  # sentences below the title
    sources: list[Source]
    others_on: str  # the prompts of the tags beside the main one; empty if no such tag is shown
    evaluated_on: str  # the prompts of the evaluations during training
    diamonds: list[str]  # the plain models that are shown: "the distilled model"
    veils: bool  # whether any text is blurred
    scored: Scored
    curves: list[figures.Plot]
    credit: list[Credited]  # the first and the last iteration with credit
    facts: list[tuple[str, list[tuple[str, str]]]]
    configs: list[tuple[str, list[tuple[str, str]]]]
    skipped: list[str]
    harmless: str  # the toxicity from which texts are blurred
    marks: list[str]  # the shares from which words are marked by a thin, a thick and a double line

    @property
    def sections(self) -> list[tuple[str, str]]:
        """(id, title) of each section that is not empty."""
        return [(name, title) for name, title, shown in SECTIONS if shown(self)]


SECTIONS: tuple[tuple[str, str, Callable[[Contents], bool]], ...] = (  # id, title, whether there is anything to show
    ("results", "Results", lambda page: True),
    ("trade-off", "Trade-off", lambda page: any(source.tradeoff for source in page.sources)),
    ("control", "Control", lambda page: any(source.ridges or source.sweep for source in page.sources)),
    ("text", "Length and diversity", lambda page: any(source.shape.columns for source in page.sources)),
    ("training", "Training", lambda page: bool(page.curves)),
    ("credit", "Credit", lambda page: bool(page.credit)),
    ("samples", "Samples", lambda page: any(source.samples for source in page.sources)),
    ("details", "Details", lambda page: bool(page.facts or page.configs)),
    ("not-shown", "Not shown", lambda page: bool(page.skipped)),
)


def contents(runs: Sequence[Run], num_samples: int, seed: int, drawing: Drawing) -> Contents:
    """Collect the contents of the page. For `num_samples` and `seed` see `write_report`."""
    run = runs[0]
    scored = scored_by(main_metric(run.systems, run.headlines), run.headlines)
    samples = read_all(run, scored, num_samples, seed)
    title, outcome = tables.headings(runs)
    names = list(dict.fromkeys(name for each in runs for name in each.sources))
    sources = [_source(runs, name, samples, scored, drawing) for name in names]
    return Contents(
        run=run,
        path=shlex.quote(str(run.path)),
        runs=[figures.Key(each.name, figures.ink_of(i)) for i, each in enumerate(runs)] if runs[1:] else [],
        date=str((run.results.get("date") if run.results else None) or "")[:10],
        about=title,
        outcome=outcome,
        sources=sources,
        others_on=next((tables.prompts_of(s) for each in runs for name in names for s in others(each.on(name))), ""),
        evaluated_on=f"at most {run.config.get('max_eval_prompts') or 'all'} evaluation prompts",
        diamonds=list(dict.fromkeys(plain_name(s) for each in runs for s in plain_models(each.systems))),
        veils=any(_has_veil(sample) for source in sources for sample in source.samples),
        scored=scored,
        curves=figures.curves(runs, drawing),
        credit=credited(run),
        facts=tables.facts(run),
        configs=tables.configs(run),
        skipped=_skipped(runs),
        harmless=number(HARMLESS)[:3],
        marks=[f"{share:g}" for share in MARKS],
    )


def _source(runs: Sequence[Run], name: str, samples: dict[str, Samples], scored: Scored, drawing: Drawing) -> Source:
    """Collect the contents of one prompt source."""
    run = runs[0]
    chosen, shown = side_by_side(run, name, samples, scored) if name in run.sources else ([], [])
    return Source(
        name=name,
        headline=tables.headline(runs, name),
        tradeoff=figures.tradeoff(runs, name, drawing),
        sweep=tables.sweep(run, name),
        ridges=figures.ridges(run, name, samples, scored, drawing),
        shape=tables.shape(run, name),
        lengths=figures.lengths(run, name, samples, drawing),
        everything=tables.everything(run, name),
        chosen=chosen,
        samples=shown,
        about_samples=about(shown, chosen) if shown else "",
        explained_by=explained_by(shown),
    )


def _has_veil(sample: Sample) -> bool:
    return sample.veiled or any(text.veiled for texts in sample.texts for text in texts)


def _skipped(runs: Sequence[Run]) -> list[str]:
    """Notes on skipped rows and on anything that cannot be shown."""
    lines = []
    for run in runs:
        said = [str(line) for line in (run.results["skipped"] if run.results else [])]
        lines += [f"{run.name}: {line}" if len(runs) > 1 else line for line in said + run.missing]
    return lines
