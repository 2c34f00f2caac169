"""The plots of a report, by matplotlib. Each function draws one figure and returns it as an element of the page.

Colours are the page's variables (`svg.INKS`), so a plot follows the light or dark theme; they stay apart for the
colour-blind. Points are labelled, lines of one run differ in dash and marker, runs in colour. Matplotlib takes a second
to import, so it is when the first figure is drawn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from nlf.report.svg import INKS, SIZE, Styles, adopt, embed, settings
from nlf.report.wording import clean, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = [f"s{i}" for i in range(1, 7)]  # one a run
BINS = 48


def steps(k: int) -> list[str]:
    """k colours from the best tag's to the worst tag's."""
    return [f"t{1 + round(i * 6 / max(k - 1, 1))}" for i in range(k)]


@dataclass(frozen=True)
class Point:
    """A system between two metrics, with its 95 % intervals where they are known."""

    x: float
    y: float
    label: str
    ink: str
    marker: str = "o"
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trail:
    """A run in the plane of two metrics: points, of which the first `joined` are joined in their order."""

    points: list[Point]
    joined: int
    ink: str


@dataclass(frozen=True)
class Ridge:
    """A named distribution; values without NaN."""

    label: str
    values: np.ndarray
    ink: str


@dataclass(frozen=True)
class Curve:
    """A line over steps; dashed with dots where it was measured in evaluation."""

    x: list[float]
    y: list[float]
    ink: str
    evaluated: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines over steps."""

    x: list[float]
    low: list[float]
    high: list[float]
    ink: str


class Drawing:
    """What the figures of one page share: their styles, and names for their ids."""

    def __init__(self) -> None:
        self.styles = Styles()
        self.count = 0

    def figure(self, width: float, height: float) -> "tuple[Figure, Axes]":
        """A figure and its axes, in units of the view box."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        return figure, figure.add_subplot()

    def embed(self, figure: "Figure", about: str) -> Markup:
        """The figure as an element; `about` is what it shows, in words."""
        self.count += 1
        return embed(figure, f"f{self.count}", str(clean(about)), self.styles)

    def adopt(self, svg: bytes, about: str) -> Markup:
        """A plot that somebody else has drawn, on a white ground in both themes.

        Raises:
            xml.etree.ElementTree.ParseError, ValueError: it is no SVG.
        """
        self.count += 1
        return adopt(svg, f"f{self.count}", str(clean(about)), self.styles, "plot sheet")

    def tradeoff(self, trails: Sequence[Trail], x_label: str, y_label: str, about: str) -> Markup:
        """Two metrics against each other: points with intervals, joined as guidance grows."""
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
        """Distributions above each other, the first on top; each with a tick at its mean."""
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
        """Lines over steps; `marks` are the steps at which an iteration starts."""
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
        """Distributions of whole numbers as lines over each other, as shares."""
        with settings():
            figure, axes = self.figure(380, 190)
            high = max(int(row.values.max(initial=0)) for row in rows)
            width = max(1, -(-(high + 1) // BINS))
            edges = np.arange(0, high + width + 1, width)
            for row, dash in zip(rows, ("-", "--", ":"), strict=False):
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
    """Room around the points; a log axis where they span more than a factor of 5; shares from 0 to 1."""
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
    """Each point's label at the first place around it that is free; left out where there is none (the table has it)."""
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
                offset = {"xytext": (across, up), "textcoords": "offset points", "annotation_clip": False}
                axes.annotate(
                    text, (point.x, point.y), ha=side, va="center", color=INKS["ink"], size=SIZE - 1, **offset
                )
                taken.append(area)
                break


PLACES = (
    *((6, 9, "left"), (6, -9, "left"), (-6, 9, "right"), (-6, -9, "right"), (9, 0, "left"), (-9, 0, "right")),
    *((0, 13, "center"), (0, -13, "center"), (6, 20, "left"), (6, -20, "left"), (-6, 20, "right"), (-6, -20, "right")),
)


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _span(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """0 to 1 for scores, the range of the values for others."""
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
    """A word right of the axes."""
    offset = {"xytext": (6, 0), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (x, y), va="center", size=SIZE - 1, color=INKS["muted"], **offset)


def _draw_curve(axes: "Axes", line: Curve) -> None:
    few = len(line.x) < 8
    style = {"ls": "--", "marker": "D", "ms": 4} if line.evaluated else {"marker": "o" if few else "", "ms": 3.5}
    axes.plot(line.x, line.y, color=INKS[line.ink], lw=1.5, **style)


def _draw_band(axes: "Axes", band: Band) -> None:
    axes.fill_between(band.x, band.low, band.high, color=INKS[band.ink], alpha=0.45, lw=0)
    axes.plot(band.x, band.high, color=INKS[band.ink], lw=1, marker="o", ms=2.5)
