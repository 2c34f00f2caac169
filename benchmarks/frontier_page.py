"""The page of the frontier: `frontier.html`, self-contained like a report, with the plots and the table of all settings.

    python benchmarks/frontier_page.py runs/frontier      # benchmarks/frontier.py writes the page too

It is made from the `frontier.json` and the plots of a folder. The page keeps only what draws of the plots' SVG.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from frontier_points import auditor_names

from nlf.data.files import write_text
from nlf.errors import UserError
from nlf.report.page import fill
from nlf.report.svg import Styles, adopt
from nlf.report.wording import clip, count, is_number, number, title

RESULTS, PAGE = "frontier.json", "frontier.html"
TEMPLATE = Path(__file__).with_name("frontier.html.j2")
PLOTS = {
    "frontier-reward.svg": "Reward against the KL to the base, with best of n as the limit, and against perplexity",
    "frontier.svg": "Toxicity against perplexity, diversity and the KL to the base",
    "frontier-seconds.svg": "Toxicity, perplexity, diversity and the KL over seconds of training",
}
NO_METRICS = ("id", "group", "series", "label", "cost", "seeds")


@dataclass(frozen=True)
class Row:
    """A setting."""

    group: str
    label: str
    about: str  # seeds and cost
    cells: list[tuple[str, str]]  # mean and spread, by metric


def write_page(folder: Path) -> Path:
    """Write the page of a folder and return its path.

    Raises:
        UserError: frontier.json cannot be read.
    """
    found, styles = read_frontier(folder), Styles()
    plots, missing = [], []
    for i, (name, about) in enumerate(PLOTS.items(), 1):
        try:
            svg = (folder / name).read_bytes()
            plots.append((about, adopt(svg, f"f{i}", f"{about}; the numbers are in the table", styles, "plot sheet")))
        except (OSError, ValueError, ParseError, RecursionError) as error:
            missing.append(f"{name}: cannot be shown ({error})")
    columns, rows = table(found["summary"])
    values = {"columns": columns, "rows": rows, "aim": aim(found), "plots": plots, "missing": missing}
    write_text(folder / PAGE, fill(TEMPLATE.read_text(encoding="utf-8"), values, styles))
    return folder / PAGE


def read_frontier(folder: Path) -> dict[str, Any]:
    """Read and check a folder's frontier.json.

    Raises:
        UserError: The file cannot be read, or its summary is no list of settings.
    """
    path = folder / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = found["summary"]
        whole = bool(rows) and all(isinstance(row["group"], str) and isinstance(row["label"], str) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); run benchmarks/frontier.py again to write it anew"
        ) from error
    if not whole:
        raise UserError(f"{path}: 'summary' was expected to be a list of settings, each with group and label")
    return found | {"summary": [auditor_names(row) for row in rows]}


def table(rows: Sequence[dict]) -> tuple[list[str], list[Row]]:
    """The titles of the metrics, and a row for each setting: by group, then by toxicity."""
    numbers = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    metrics = [name for name in numbers if name not in NO_METRICS and not name.endswith("_sd")]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    order = sorted(rows, key=lambda row: (groups.index(row["group"]), toxicity(row)))
    return list(map(title, metrics)), [shown(row, metrics) for row in order]


def toxicity(row: dict) -> float:
    return row["toxicity"] if is_number(row.get("toxicity")) else float("inf")


def shown(row: dict, metrics: Sequence[str]) -> Row:
    cells = []
    for name in metrics:
        cells.append((number(row.get(name), name), spread(row, name)))
    seeds, cost = row.get("seeds"), row.get("cost")
    about = [count(seeds, "seed")] if is_number(seeds) else []
    about += [f"cost {cost:g} ×"] if is_number(cost) else []
    return Row(clip(row["group"], 60), clip(row["label"], 120), ", ".join(about), cells)


def spread(row: dict, name: str) -> str:
    """The deviation between seeds, or the interval over prompts of one seed; empty where neither is known."""
    deviation, interval = row.get(f"{name}_sd"), row.get(f"{name}_ci95")
    if is_number(deviation):
        return f"± {number(deviation, name)}"
    known = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
    return "[" + ", ".join(number(end, name) for end in interval) + "]" if known else ""


def aim(found: dict[str, Any]) -> str:
    """One sentence on how many GRPO stops nlf beats; empty where the file does not say it."""
    stops = [each for each in found.get("aim") or [] if isinstance(each, dict)]
    if not stops:
        return ""
    won = sum(bool(each.get("beaten_by")) for each in stops)
    return (
        f"GRPO stops between 0.3 × the base's toxicity probability and 0.01 that no other stop dominates: {len(stops)}; "
        f"beaten by some nlf setting: {won}."
    )


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python benchmarks/frontier_page.py FOLDER")
    try:
        print(f"wrote {write_page(Path(sys.argv[1]))}; open it in a browser")
    except UserError as error:
        raise SystemExit(f"frontier_page: {error}") from error


if __name__ == "__main__":
    main()
