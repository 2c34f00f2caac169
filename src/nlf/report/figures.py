"""The plots of a report: from runs and samples to the drawings of `nlf.report.plots`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from nlf.evaluation.headlines import merged
from nlf.report.plots import SERIES, Band, Curve, Drawing, Point, Ridge, Trail, steps
from nlf.report.reading import Run
from nlf.report.results import System, aligned, base_of, featured, main_metric, others, plain_models, tags_reversed
from nlf.report.samples import Samples, Scored
from nlf.report.tables import bounds, prefers_higher, tags_of
from nlf.report.wording import family, is_number, label, title


@dataclass(frozen=True)
class Key:
    """A legend entry: the label, colour and dash of a line."""

    label: str
    ink: str
    dash: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and legend."""

    svg: Markup
    title: str
    keys: tuple[Key, ...] = ()


def ink_of(index: int) -> str:
    """The colour of a run."""
    return SERIES[index % len(SERIES)]


# ---- the trade-off ------------------------------------------------------------------------------------------------


def tradeoff(runs: Sequence[Run], source: str, drawing: Drawing) -> Plot | None:
    """Plot the main metric against perplexity; a line joins the guided systems by growing scale g."""
    systems = [system for run in runs for system in run.on(source)]
    scorers = merged([run.headlines for run in runs])
    name = main_metric(runs[0].on(source), runs[0].headlines) or main_metric(systems)
    if name is None:
        return None
    trails = [_trail(run, i, source, name, len(runs) > 1) for i, run in enumerate(runs)]
    for run, trail in zip(runs, trails, strict=True):
        if source in run.sources and not trail.points:
            run.missing.append(f"trade-off on {source}: no system has both perplexity and {name}")
    trails = [trail for trail in trails if trail.points]
    if not trails:
        return None
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[
        prefers_higher(runs[0], name, systems)
    ]
    heading = title(name, scorers)
    told = f"{heading} against perplexity on {source}: " + "; ".join(
        f"{point.label} {point.y:.3f} at {point.x:.1f}" for trail in trails for point in trail.points
    )
    svg = drawing.tradeoff(trails, "perplexity (lower is better)", heading + better, told)
    return Plot(svg, f"{heading[0].upper()}{heading[1:]} against perplexity, {source}")


def _trail(run: Run, index: int, source: str, name: str, several: bool) -> Trail:
    """The points of a run: the main tag by growing guidance, then the plain models, the other tags and the base."""
    systems = run.on(source)
    ink = ink_of(index)
    colours = _tag_inks(run)
    curve = [_point(s, name, _strength(s), ink) for s in aligned(systems)]
    plain = [_point(s, name, s["name"], ink if several else "s3", "D") for s in plain_models(systems)]
    rest = [
        _point(s, name, s["tag"] or s["name"], ink if several else colours.get(s["tag"] or "", "muted"), "v")
        for s in others(systems)
    ]
    base = base_of(systems)
    start = [_point(base, name, "base", ink if several else "ink", "s")] if base else []
    joined, single = ([p for p in points if p] for points in (curve, plain + rest + start))
    return Trail(joined + single, len(joined), ink)


def _strength(system: System) -> str:
    return f"g = {system['guidance_scale']:g}" if system["guidance_scale"] else system["name"]


def _point(system: System, name: str, label: str, ink: str, marker: str = "o") -> Point | None:
    found = system["metrics"]
    if not is_number(found.get(name)) or not is_number(found.get("perplexity")):
        return None
    across, up = bounds(found.get("perplexity_ci95")), bounds(found.get(f"{name}_ci95"))
    return Point(found["perplexity"], found[name], label, ink, marker, across, up)


def _tag_inks(run: Run) -> dict[str, str]:
    tags = tags_of(run)
    return dict(zip(tags, steps(len(tags)), strict=True))


# ---- distributions over samples -----------------------------------------------------------------------------------


def ridges(run: Run, source: str, samples: dict[str, Samples], scored: Scored, drawing: Drawing) -> Plot | None:
    """Plot the distribution of scores under each tag, best tag first, below the base and the guided systems."""
    rows = [_ridge(run, system, samples[system["id"]]) for system in _by_tag(run, source) if system["id"] in samples]
    rows = [row for row in rows if len(row.values)]
    if not rows:
        return None
    told = f"Distribution of {scored.name} on {source}: " + "; ".join(
        f"{row.label}, mean {row.values.mean():.2f}" for row in rows
    )
    return Plot(drawing.ridges(rows, f"{scored.name} of a completion", told), "Scores under each tag")


def _by_tag(run: Run, source: str) -> list[System]:
    """The base, the main tag by falling guidance, then the other tags, best first."""
    systems = run.on(source)
    order = {tag: i for i, tag in enumerate(tags_of(run))}
    rest = sorted(others(systems), key=lambda s: order.get(s["tag"] or "", len(order)))
    main = aligned(systems)[::-1]
    if tags_reversed(systems):
        rest.reverse()
    return [*filter(None, [base_of(systems)]), *main, *rest]


def _ridge(run: Run, system: System, samples: Samples) -> Ridge:
    values = samples.scores[~np.isnan(samples.scores)]
    if system["model"] == "base":
        return Ridge("base", values, "muted")
    ink = _tag_inks(run).get(system["tag"] or "", "s1")
    strength = f", g = {system['guidance_scale']:g}" if system["guidance_scale"] else ""
    return Ridge(label(system["tag"] or system["name"]) + strength, values, ink)


# colours and dashes of the lengths
LINES = (("muted", ""), ("s1", "dashed"), ("s2", "dotted"), ("s3", ""), ("s4", "dashed"))


def lengths(run: Run, source: str, samples: dict[str, Samples], drawing: Drawing) -> Plot | None:
    """Plot the completion lengths of the base, the main tag, the guided policy and the plain models."""
    systems = run.on(source)
    plain = plain_models(systems)
    shown = [s for s in sorted(featured(systems), key=plain.__contains__) if s["id"] in samples]
    rows = [Ridge(s["name"], samples[s["id"]].lengths, k[0]) for s, k in zip(shown, LINES, strict=False)]
    if not rows:
        return None
    told = f"Lengths on {source}: " + "; ".join(f"{row.label}, mean {row.values.mean():.1f} tokens" for row in rows)
    keys = [Key(f"{row.label}, mean {row.values.mean():.1f}", *k) for row, k in zip(rows, LINES, strict=False)]
    return Plot(drawing.outlines(rows, "tokens in a completion", told), "Lengths", tuple(keys))


# ---- training -----------------------------------------------------------------------------------------------------

Keys = tuple[str, ...]  # names in the log
# title, names logged by training, names logged by evaluation during training
PANELS: tuple[tuple[str, Keys, Keys], ...] = (
    ("Reward", ("reward",), ("eval_reward",)),
    ("Toxicity probability", (), ("eval_toxicity_probability",)),
    ("Positive completions", (), ("eval_positive_fraction",)),
    ("Loss", ("loss",), ()),
    ("KL to the reference, nats a token", ("kl",), ("eval_kl",)),
    ("Entropy, nats a token", ("entropy",), ("eval_entropy",)),
    ("Contrast", ("contrast",), ()),
    ("Tag accuracy", ("accuracy", "tag_accuracy"), ()),
    ("Perplexity", (), ("eval_perplexity",)),
)

AUDITED = (("Toxicity probability", ("eval_toxicity_probability",)), ("Reward", ("eval_reward",)))


def curves(runs: Sequence[Run], drawing: Drawing) -> list[Plot]:
    """Plot each logged metric over the training steps, first by auditors. The quantile edges are those of the first run."""
    marks = sorted({row["step"] for row in runs[0].log if "iteration" in row})
    logged = dict.fromkeys(name for row in runs[0].log for name in row)
    cut = dict.fromkeys(name.partition("quantile/")[0] for name in logged if "quantile/" in name)
    edges = [plot for prefix in cut for plot in _edges(runs[0], drawing, marks, prefix)]
    rewards = [(f"Reward {name.partition('/')[2]}", (name,), ()) for name in logged if name.startswith("reward/")]
    labels = _auditors(runs)
    audited = [(f"{name}, {label} (auditor)", (), keys, label) for label in labels for name, keys in AUDITED]
    panels = [*audited, *((*panel, None) for panel in (*PANELS, *rewards))]
    found = [plot for panel in panels if (plot := _panel(runs, *panel, marks, drawing))]
    first = sum(1 for plot in found if plot.title.endswith("(auditor)")) + 1
    return found[:first] + edges + found[first:]


def _auditors(runs: Sequence[Run]) -> list[str]:
    """The labels of the scorers that the runs' evaluations in training logged and that were not trained on."""
    lists = [found for run in runs if isinstance(found := run.config.get("auditors"), list)]
    return list(dict.fromkeys(str(label) for found in lists for label in found))


def _panel(
    runs: Sequence[Run],
    name: str,
    logged: Keys,
    evaluated: Keys,
    auditor: str | None,
    marks: list[float],
    drawing: Drawing,
) -> Plot | None:
    """Plot one metric of every run, by an auditor or by None: the rewards; None if no run logged it."""
    lines = [
        Curve(*found, ink_of(i), keys is evaluated)
        for i, run in enumerate(runs)
        for keys in (logged, evaluated)
        if (found := _values(run.log, keys, auditor, _auditors([run])))[0]
    ]
    last = [f"{line.y[-1]:.3g} at step {line.x[-1]:g}" for line in lines]
    return Plot(drawing.curves(lines, [], marks, f"{name} over steps: {', '.join(last)}"), name) if lines else None


def _values(
    log: Sequence[dict[str, Any]], keys: Keys, auditor: str | None, auditors: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Steps and values of the first logged name that matches one of the keys: by an auditor, or by none of the auditors."""
    names = dict.fromkeys(name for row in log for name in row if name in keys or family(name) in keys)
    by = {name: next((label for label in auditors if name.endswith(f"/{label}")), None) for name in names}
    name = next((name for name in names if by[name] == auditor), "")
    found = [(row["step"], row[name]) for row in log if is_number(row.get(name))]
    return [x for x, _ in found], [y for _, y in found]


def _edges(run: Run, drawing: Drawing, marks: list[float], prefix: str) -> list[Plot]:
    """Plot the rewards at the edges of each quantile by iteration; `prefix` names an attribute, empty for the pool."""
    start = f"{prefix}quantile/"
    numbers = {name[len(start) :].split("/")[0] for row in run.log for name in row if name.startswith(start)}
    quantiles = sorted(map(int, filter(str.isdecimal, numbers)))
    bands = []
    for q, ink in zip(quantiles, steps(len(quantiles)), strict=True):
        names = [f"{start}{q}/{end}" for end in ("low", "high")]
        rows = [row for row in run.log if all(is_number(row.get(name)) for name in names)]
        if rows:
            low, high = ([row[name] for row in rows] for name in names)
            bands.append(Band([row["step"] for row in rows], low, high, ink))
    what = prefix.removeprefix("attribute/").strip("/") or "the pool"
    about = f"Rewards at the edges of each quantile of {what}, over steps"
    return [Plot(drawing.curves([], bands, marks, about), f"Quantiles of {what}, by reward")] if bands else []
