"""The trade-off beside other methods, as `benchmarks/frontier.py` leaves it: a table and plots, read and checked.

The plots are that benchmark's own SVG; what of it is not plain drawing is left out (`svg.adopt`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from markupsafe import Markup

from nlf.report.plots import Drawing
from nlf.report.wording import clip, count, is_number, number, title

FILE = "frontier.json"
PLOTS = {
    "frontier.svg": "Toxicity against perplexity, diversity and the KL to the base",
    "frontier-seconds.svg": "The same over seconds of training",
}
NAMES = ("id", "group", "series", "label", "cost", "seeds")  # what is no metric


@dataclass(frozen=True)
class Row:
    """A setting: its values with their deviations between seeds."""

    group: str
    label: str
    about: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """What is shown of one folder."""

    name: str
    columns: list[str]
    rows: list[Row]
    aim: str
    plots: list[tuple[str, Markup]]


def read_frontier(folder: Path, missing: list[str]) -> dict[str, Any] | None:
    """What is in a folder's frontier.json; None, and a line in `missing`, where it makes no sense."""
    if not (folder / FILE).is_file():
        return None
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        rows = found["summary"]
        whole = bool(rows) and all(isinstance(row["group"], str) and isinstance(row["label"], str) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        missing.append(f"{FILE}: cannot be read ({error})")
        return None
    if not whole:
        missing.append(f"{FILE}: 'summary' was expected to be a list of settings, each with group and label")
        return None
    return found


def section(name: str, folder: Path, found: dict[str, Any], drawing: Drawing, missing: list[str]) -> Section:
    """A folder's frontier as it is shown; a plot that cannot be is named in `missing`."""
    plots = []
    for file, told in PLOTS.items():
        try:
            plots.append((told, drawing.adopt((folder / file).read_bytes(), f"{told}; the numbers are in the table")))
        except (OSError, ValueError, ParseError, RecursionError) as error:
            missing.append(f"{file}: cannot be shown ({error})")
    rows = found["summary"]
    metrics = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    metrics = [name for name in metrics if name not in NAMES and not name.endswith("_sd")]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    order = sorted(rows, key=lambda row: (groups.index(row["group"]), _toxicity(row)))
    return Section(name, list(map(title, metrics)), [_row(row, metrics) for row in order], _aim(found), plots)


def _toxicity(row: dict) -> float:
    return row["toxicity"] if is_number(row.get("toxicity")) else 0.0


def _row(row: dict, metrics: Sequence[str]) -> Row:
    cells = []
    for name in metrics:
        spread = row.get(f"{name}_sd")
        cells.append((number(row.get(name), name), f"± {number(spread, name)}" if is_number(spread) else ""))
    seeds, cost = row.get("seeds"), row.get("cost")
    about = [count(seeds, "seed")] if is_number(seeds) else []
    about += [f"cost {cost:g} ×"] if is_number(cost) else []
    return Row(clip(row["group"], 60), clip(row["label"], 120), ", ".join(about), cells)


def _aim(found: dict[str, Any]) -> str:
    """How often nlf beats GRPO, where that was looked at."""
    stops = [each for each in found.get("aim") or [] if isinstance(each, dict)]
    if not stops:
        return ""
    won = sum(bool(each.get("beaten_by")) for each in stops)
    return (
        f"GRPO stops between 0.3 × the base's toxicity probability and 0.01 that no other stop dominates: {len(stops)}; "
        f"beaten by some nlf setting: {won}."
    )
