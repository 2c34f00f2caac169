"""The share of completions that a scorer could not score, and the line that warns of it.

Figures of a scorer are over what it could score. A model that writes another language, or no text, would look clean by
them, so every table has the share beside them, and above 2 % a line warns.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 0.02  # the highest share that needs no warning
BESIDE = "figures are over the rest, so compare them with care"


def warning(who: str, unscored: int, of: int, then: str = BESIDE, things: str = "completions") -> str | None:
    """A line if the scorer `who` could not score more than 2 % of `of` texts, else None.

    Args:
        then: What follows for the texts without a score, or for the figures.
        things: The name of the texts.
    """
    if unscored <= MOST * of:
        return None
    return f"warning: {who} could not score {unscored:,} of {of:,} {things} ({percent(unscored, of)}): {then}"


def percent(unscored: int, of: int) -> str:
    """The share in words: `2.5 %`."""
    return f"{100 * unscored / of:.1f} %" if of else "–"


def of_counts(counts: Mapping[str, Any], scorers: Sequence[str], where: str) -> list[str]:
    """The warnings about one system, from the counts of `metrics.measure`.

    Args:
        scorers: The labels of the scorers.
        where: The system, said before each scorer.
    """
    found = [(label, counts.get(f"unscored/{label}")) for label in scorers]
    completions = counts.get("completions")
    if not isinstance(completions, int):
        return []
    lines = (warning(f"{where}: {label}", n, completions) for label, n in found if isinstance(n, int))
    return [line for line in lines if line]


def of_systems(systems: Iterable[Mapping[str, Any]], scorers: Sequence[str]) -> list[str]:
    """The warnings about the systems of a `results.json`."""
    return [line for each in systems for line in of_counts(each["counts"] or {}, scorers, str(each["name"]))]
