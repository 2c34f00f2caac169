"""The plots of the frontier: a colour for each group, a line for each series."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from frontier_points import BASE, DIAL, DISTILLED, DPO, GROUPS, GRPO, PLAIN, PROMPTING, SFT, STEERING

COLOURS = dict(
    zip(
        GROUPS,
        "#444444 #999933 #882255 #117733 #332288 #0072b2 #009e73 #56b4e9 #cc79a7 #d55e00 #e69f00 #aa4499".split(),
        strict=True,
    )
)
NAMES = {
    "toxicity_probability": "toxicity probability",
    "perplexity": "perplexity under the base",
    "dist-2": "dist-2",
    "kl_per_completion": "KL to the base, nats a completion",
    "unfiltered_reward": "reward at temperature 1",
    "seconds": "seconds of training",
}
MARKERS = "osD^v<>pP*"  # of the series of a group
PLOTS = {
    "frontier.svg": [(name, "toxicity_probability") for name in ("perplexity", "dist-2", "kl_per_completion")],
    "frontier-reward.svg": [(name, "unfiltered_reward") for name in ("kl_per_completion", "perplexity")],
    "frontier-seconds.svg": [
        ("seconds", name) for name in ("toxicity_probability", "perplexity", "dist-2", "kl_per_completion")
    ],
}
SUMMARY = "frontier-summary.svg"
LEGEND = {  # of the summary
    BASE: "base and its best of n: the limit",
    PROMPTING: "a text before the prompt",
    STEERING: "steering vector",
    GRPO: "GRPO (TRL)",
    DPO: "DPO (TRL)",
    SFT: "SFT on best of 8 (TRL)",
    DIAL: "nlf, tags by credit",
    DISTILLED: "nlf, distilled",
    PLAIN: "nlf, a plain model by credit",
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
    """The plot of the README: the reward of each system by the KL that it spends, with best of n as the limit, and by perplexity."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "nlf", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        for axes, x in zip(figure.subplots(1, 2, sharey=True), ("kl_per_completion", "perplexity"), strict=True):
            for group, name in LEGEND.items():
                points = [row for row in rows if row["group"] == group and {x, "unfiltered_reward"} <= {*row}]
                if points:
                    bars(axes, points, x, "unfiltered_reward", fmt="o-" if group == BASE else "o", label=name, ms=4)
            finish(axes, x)
        figure.axes[0].set_ylabel(NAMES["unfiltered_reward"])
        handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw(axes, rows: Sequence[dict], x: str, y: str) -> None:
    """Draw one metric against another; a point shows the end of its label: guidance, step, n or tag."""
    seen = Counter()
    for series in dict.fromkeys(row["series"] for row in rows):
        points = [row for row in rows if row["series"] == series and x in row and y in row]
        if points:
            group = points[0]["group"]
            marker = MARKERS[seen[group] % len(MARKERS)]
            seen[group] += 1
            bars(axes, points, x, y, marker=marker, label=group, ms=3.5, lw=0.8)
            for p in points:
                at = {"xytext": (3, 3), "textcoords": "offset points", "size": 5.5}
                axes.annotate(p["label"].split()[-1], (p[x], p[y]), color=COLOURS[group], **at)
    finish(axes, x, y)
    axes.set_ylabel(NAMES[y])


def bars(axes, points: Sequence[dict], x: str, y: str, **style) -> None:
    """Draw the points of one group with their spreads."""
    spread = {"xerr": spreads(points, x), "yerr": spreads(points, y)}
    axes.errorbar(
        [point[x] for point in points], [point[y] for point in points], **spread, color=COLOURS[points[0]["group"]],
        elinewidth=0.5, alpha=0.85, **style,
    )  # fmt: skip


def finish(axes, x: str, y: str | None = None) -> None:
    """Set scales, the name of x and the grid."""
    for name, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if name == "kl_per_completion":  # good settings lie below 3 nats, collapsed ones at tens of nats
            scale("symlog", linthresh=1, base=2)
            axis.set_major_formatter("{x:g}")
    axes.set_xlabel(NAMES[x])
    axes.grid(alpha=0.25, lw=0.5)


def spreads(points: Sequence[dict], name: str) -> list[list[float]]:
    """How far the bars go below and above: standard deviations between seeds, or the interval over prompts of one seed."""

    def ends(point: dict) -> tuple[float, float]:
        interval, spread = point.get(f"{name}_ci95"), point.get(f"{name}_sd") or 0.0
        low, high = interval or (point[name] - spread, point[name] + spread)
        return max(point[name] - low, 0.0), max(high - point[name], 0.0)

    return [list(side) for side in zip(*map(ends, points), strict=True)]
