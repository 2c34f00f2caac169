"""The plots of the frontier: a colour for each group, a line for each series."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from frontier_points import BASE, DISTILLED, GROUPS, GRPO, PLAIN

COLOURS = dict(
    zip(GROUPS, "#444444 #117733 #332288 #0072b2 #009e73 #56b4e9 #cc79a7 #d55e00 #e69f00".split(), strict=True)
)
NAMES = {
    "toxicity_probability": "toxicity probability",
    "perplexity": "perplexity under the base",
    "dist-2": "dist-2",
    "kl_per_completion": "KL to the base, nats a completion",
    "seconds": "seconds of training",
}
MARKERS = "osD^v<>pP*"  # of the series of a group
PLOTS = {
    "frontier.svg": [(name, "toxicity_probability") for name in ("perplexity", "dist-2", "kl_per_completion")],
    "frontier-seconds.svg": [("seconds", name) for name in NAMES if name != "seconds"],
}
SUMMARY = "frontier-summary.svg"
LEGEND = {  # of the summary
    BASE: "base model",
    PLAIN: "nlf, a plain model by credit",
    DISTILLED: "nlf, distilled to a plain model",
    GRPO: "GRPO (TRL), stopped at several steps",
}


def write_plots(rows: Sequence[dict], folder: Path) -> None:
    """Write the SVGs of `PLOTS`; the same rows give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "nlf", "axes.spines.top": False, "axes.spines.right": False}
    for name, pairs in PLOTS.items():
        with rc_context(style):
            figure = Figure(figsize=(4.2 * len(pairs), 4), layout="constrained")
            for axes, pair in zip(figure.subplots(1, len(pairs)), pairs, strict=True):
                draw(axes, rows, *pair)
            handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(GROUPS), frameon=False)
            figure.savefig(folder / name, metadata={"Date": None})
    write_summary(rows, folder / SUMMARY)


def write_summary(rows: Sequence[dict], path: Path) -> None:
    """The plot of the README: the base, the distilled models and GRPO's stops, by perplexity and by seconds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "nlf", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        for axes, x in zip(figure.subplots(1, 2, sharey=True), ("perplexity", "seconds"), strict=True):
            for group, name in LEGEND.items():
                points = [row for row in rows if row["group"] == group and row["cost"] == 1 and x in row]
                if not points:
                    continue
                xs, ys = ([point[key] for point in points] for key in (x, "toxicity_probability"))
                spread = {"xerr": spreads(points, x), "yerr": spreads(points, "toxicity_probability")}
                axes.errorbar(xs, ys, **spread, fmt="o", label=name, color=COLOURS[group], ms=5, elinewidth=0.7)
            axes.set_xlabel(NAMES[x])
            axes.set_ylim(0, 1.03)
            axes.grid(alpha=0.25, lw=0.5)
        figure.axes[0].set_ylabel("toxicity probability")
        handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(LEGEND), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw(axes, rows: Sequence[dict], x: str, y: str) -> None:
    """Draw one metric against another; a point shows the end of its label: guidance, step, n or tag."""
    seen = Counter()
    for series in dict.fromkeys(row["series"] for row in rows):
        points = [row for row in rows if row["series"] == series and x in row and y in row]
        if points:
            spread = {"xerr": spreads(points, x), "yerr": spreads(points, y)}
            group = points[0]["group"]
            marker = MARKERS[seen[group] % len(MARKERS)]
            seen[group] += 1
            axes.errorbar(
                [p[x] for p in points], [p[y] for p in points], **spread, label=group, color=COLOURS[group],
                marker=marker, ms=3.5, lw=0.8, elinewidth=0.5, alpha=0.85,
            )  # fmt: skip
            for p in points:
                at = {"xytext": (3, 3), "textcoords": "offset points", "size": 5.5}
                axes.annotate(p["label"].split()[-1], (p[x], p[y]), color=COLOURS[group], **at)
    for name, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if name == "kl_per_completion":  # good settings lie below 3 nats, collapsed ones at tens of nats
            scale("symlog", linthresh=1, base=2)
            axis.set_major_formatter("{x:g}")
    axes.set_xlabel(NAMES[x])
    axes.set_ylabel(NAMES[y])
    axes.grid(alpha=0.25, lw=0.5)


def spreads(points: Sequence[dict], name: str) -> list[float]:
    """Standard deviations between seeds; 0 for a single seed."""
    return [point.get(f"{name}_sd") or 0.0 for point in points]
