"""The drawings of a report, made by matplotlib. Each method of `Drawing` returns one figure as an SVG element.

Colours are CSS variables of the page (`svg.INKS`), so plots follow its light or dark theme. The palette suits
colour-blind readers. Colour tells runs apart; dash and marker tell the lines of one run apart. Matplotlib takes a
second to import, so it is imported with the first figure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from nlf.report.svg import INKS, SIZE, Styles, embed, settings
from nlf.report.wording import clean, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = [f"s{i}" for i in range(1, 7)]  # colours of runs
BINS = 48  # of a histogram


def steps(k: int) -> list[str]:
    """The colours of k tags, best first."""
    return [f"t{1 + round(i * 6 / max(k - 1, 1))}" for i in range(k)]


@dataclass(frozen=True)
class Point:
    """A system in the plane of two metrics, with its known 95 % intervals."""

    x: float
    y: float
    label: str
    ink: str
    marker: str = "o"
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trail:
    """The points of a run; a line joins the first `joined` of them."""

    points: list[Point]
    joined: int
    ink: str


@dataclass(frozen=True)
class Ridge:
    """A named distribution."""

    label: str
    values: np.ndarray  # (N,), no NaN
    ink: str


@dataclass(frozen=True)
class Curve:
    """A line over steps."""

    x: list[float]
    y: list[float]
    ink: str
    evaluated: bool = False  # measured by evaluation during training: dashed


@dataclass(frozen=True)
class Band:
    """The area between two lines over steps."""

    x: list[float]
    low: list[float]
    high: list[float]
    ink: str


class Drawing:
    """Draws the figures of one page, which share styles and have distinct ids."""

    def __init__(self) -> None:
        self.styles = Styles()
        self.count = 0

    def figure(self, width: float, height: float) -> "tuple[Figure, Axes]":
        """Make a figure and its axes; sizes are in units of the view box."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        return figure, figure.add_subplot()

    def embed(self, figure: "Figure", about: str) -> Markup:
        """Convert a figure to an SVG element; `about` describes it to people who cannot see it."""
        self.count += 1
        return embed(figure, f"f{self.count}", str(clean(about)), self.styles)

    def tradeoff(self, trails: Sequence[Trail], x_label: str, y_label: str, about: str) -> Markup:
        """Draw two metrics against each other: points with intervals, lines by growing guidance."""
        with settings():
            figure, axes = self.figure(380, 280)
            axes.grid(True)
            points = [point for trail in trails for point in trail.points]
            for trail in trails:
                joined = trail.points[: trail.joined]
                axes.plot([p.x for p in joined], [p.y for p in joined], color=INKS[trail.ink], lw=1.4, alpha=0.6)
            for point in points:
                _draw_point(axes, point)
            axes.set_xlabel(x_label)
            axes.set_ylabel(label(y_label, 60))
            _ranges(axes, points)
            figure.draw_without_rendering()
            _label_points(axes, points)
            return self.embed(figure, about)

    def ridges(self, rows: Sequence["Ridge"], x_label: str, about: str) -> Markup:
        """Draw distributions below each other, each with a tick at its mean."""
        with settings():
            figure, axes = self.figure(380, 48 + 30 * len(rows))
            low, high = _span([row.values for row in rows])
            edges = np.linspace(low, high, BINS + 1)
            for i, row in enumerate(rows):
                _draw_ridge(axes, row, edges, len(rows) - 1 - i)
            names = [label(row.label, 30) for row in rows]
            axes.set_yticks([len(rows) - 1 - i for i in range(len(rows))], names)
            axes.tick_params(axis="y", length=0, labelcolor=INKS["ink"])
            axes.spines["left"].set_visible(False)
            axes.set_xlim(low, high)
            _beside(axes, high, len(rows) - 0.4, "mean")
            axes.set_ylim(-0.12, len(rows) - 0.05)
            axes.grid(True, axis="x")
            axes.set_xlabel(x_label)
            return self.embed(figure, about)

    def curves(self, lines: Sequence["Curve"], bands: Sequence["Band"], marks: Iterable[float], about: str) -> Markup:
        """Draw lines and bands over steps; `marks` are the first steps of the iterations."""
        with settings():
            figure, axes = self.figure(330, 190)
            for x in marks:
                axes.axvline(x, color=INKS["rule"], lw=0.7)
            for band in bands:
                _draw_band(axes, band)
            for line in lines:
                _draw_curve(axes, line)
            axes.grid(True, axis="y")
            axes.set_xlabel("step")
            axes.margins(x=0.03)
            axes.locator_params(axis="y", nbins=5)
            return self.embed(figure, about)

    def outlines(self, rows: Sequence["Ridge"], x_label: str, about: str) -> Markup:
        """Draw distributions of whole numbers as lines in one plot; heights are shares."""
        with settings():
            figure, axes = self.figure(380, 190)
            high = max(int(row.values.max(initial=0)) for row in rows)
            width = max(1, -(-(high + 1) // BINS))
            edges = np.arange(0, high + width + 1, width)
            for row, dash in zip(rows, ("-", "--", ":", "-", "--"), strict=False):
                share = np.histogram(row.values, edges)[0] / max(len(row.values), 1)
                axes.stairs(share, edges, baseline=None, color=INKS[row.ink], lw=1.6, ls=dash)
            axes.grid(True, axis="y")
            axes.set_xlabel(x_label)
            axes.set_ylabel("share")
            axes.set_ylim(bottom=0)
            axes.margins(x=0.01)
            axes.locator_params(axis="x", integer=True)
            axes.locator_params(axis="y", nbins=5)
            return self.embed(figure, about)


def _draw_point(axes: "Axes", point: Point) -> None:
    ink = INKS[point.ink]
    if point.x_interval:
        axes.plot(point.x_interval, [point.y] * 2, color=ink, lw=1, alpha=0.35)
    if point.y_interval:
        axes.plot([point.x] * 2, point.y_interval, color=ink, lw=1, alpha=0.35)
    hollow = point.marker == "s"
    axes.plot(
        [point.x], [point.y], point.marker,
        ms=7, mew=1.6, mec=ink, mfc=INKS["paper"] if hollow else ink,
    )  # fmt: skip


def _ranges(axes: "Axes", points: Sequence[Point]) -> None:
    """Set the axes: a log x axis if x spans more than a factor of 5, and about 0 to 1 for shares."""
    xs, ys = [p.x for p in points], [p.y for p in points]
    if min(xs) > 0 and max(xs) > 5 * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1, y=0.12)
    if min(ys) >= 0 and max(ys) <= 1:
        axes.set_ylim(-0.04, max(1.04 * max(ys), 0.12))
        if max(ys) > 0.6:
            axes.set_ylim(-0.04, 1.06)


def _label_points(axes: "Axes", points: Sequence[Point]) -> None:
    """Write each label at the first free place around its point, or not at all: the tables hold all labels."""
    to_pixels = axes.transData.transform
    spots = [to_pixels((point.x, point.y)) for point in points]
    scale = axes.figure.dpi / 72
    box = axes.bbox
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in spots]
    for i, (point, (x, y)) in enumerate(zip(points, spots, strict=True)):
        text = label(point.label)
        wide, high = 0.56 * SIZE * len(text) * scale, SIZE * scale
        for across, up, side in PLACES:
            left = x + across * scale - {"left": 0, "right": wide, "center": wide / 2}[side]
            area = (left, y + up * scale - high / 2, left + wide, y + up * scale + high / 2)
            inside = area[0] >= box.x0 and area[2] <= box.x1 and area[1] >= box.y0 and area[3] <= box.y1
            if text and inside and not any(_overlap(area, each) for j, each in enumerate(taken) if j != i):
                axes.annotate(
                    text, (point.x, point.y), (across, up), textcoords="offset points", annotation_clip=False,
                    ha=side, va="center", color=INKS["ink"], size=SIZE - 1,
                )  # fmt: skip
                taken.append(area)
                break


PLACES = (  # across, up, and the side of the text at the point
    *((6, 9, "left"), (6, -9, "left"), (-6, 9, "right"), (-6, -9, "right"), (9, 0, "left"), (-9, 0, "right")),
    *((0, 13, "center"), (0, -13, "center"), (6, 20, "left"), (6, -20, "left"), (-6, 20, "right"), (-6, -20, "right")),
)


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _span(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The range of the axis: 0 to 1 if all values lie in it, else the range of the values."""
    low = min((float(v.min()) for v in values if len(v)), default=0.0)
    high = max((float(v.max()) for v in values if len(v)), default=1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _draw_ridge(axes: "Axes", row: Ridge, edges: np.ndarray, base: int) -> None:
    counts = np.histogram(row.values, edges)[0]
    heights = base + 0.82 * counts / max(counts.max(), 1)
    ink = INKS[row.ink]
    axes.stairs(heights, edges, baseline=base, fill=True, color=ink, alpha=0.35)
    axes.stairs(heights, edges, baseline=None, color=ink, lw=1)
    axes.axhline(base, color=INKS["rule"], lw=0.6)
    if len(row.values):
        mean = float(row.values.mean())
        axes.plot([mean, mean], [base, base + 0.9], color=INKS["ink"], lw=1.2)
        _beside(axes, edges[-1], base, f"{mean:.2f}")


def _beside(axes: "Axes", x: float, y: float, text: str) -> None:
    """Write a word to the right of the axes."""
    axes.annotate(
        text, (x, y), (6, 0), textcoords="offset points", annotation_clip=False,
        va="center", size=SIZE - 1, color=INKS["muted"],
    )  # fmt: skip


def _draw_curve(axes: "Axes", line: Curve) -> None:
    few = len(line.x) < 8
    ls, marker, size = ("--", "D", 4.0) if line.evaluated else ("-", "o" if few else "", 3.5)
    axes.plot(line.x, line.y, color=INKS[line.ink], lw=1.5, ls=ls, marker=marker, ms=size)


def _draw_band(axes: "Axes", band: Band) -> None:
    axes.fill_between(band.x, band.low, band.high, color=INKS[band.ink], alpha=0.45, lw=0)
    axes.plot(band.x, band.high, color=INKS[band.ink], lw=1, marker="o", ms=2.5)
