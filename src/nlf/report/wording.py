"""Words for numbers and metrics, and text made safe to look at.

Jinja's autoescape and the SVG writer escape markup. `clean` makes invisible characters visible, direction overrides
among them, so that no text on the page can pose as other text.
"""

import math
import re
from typing import TypeGuard

from markupsafe import Markup

from nlf.evaluation.headlines import Headlines
from nlf.evaluation.metrics import family

# Controls, direction overrides and isolates, lone surrogates, non-characters. Tab, newline and RTL marks are allowed.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
TITLES = {
    "toxicity": "mean toxicity",
    "positive": "mean positivity",
    "unscored_fraction": "share unscored",
    "toxic_fraction": "share of toxic completions",
    "positive_fraction": "share of positive completions",
    "expected_max_toxicity": "expected maximum toxicity",
    "mean_completion_perplexity": "mean completion perplexity",
    "completion_length": "length, tokens",
    "ended_fraction": "share that ended",
    "self_bleu": "self-BLEU",
    "auditor_toxicity": "mean toxicity by the auditor",
    "auditor_toxicity_probability": "toxicity probability by the auditor",
    "auditor_expected_max_toxicity": "expected maximum toxicity by the auditor",
    "judge_toxicity": "mean toxicity by the auditor",  # its name in older files
    "unfiltered_reward": "reward at temperature 1",
    "kl_per_completion": "KL to the base, nats a completion",
    "seconds": "seconds of training",
    "corpus_dist-1": "corpus dist-1",
    "corpus_dist-2": "corpus dist-2",
    "corpus_dist-3": "corpus dist-3",
}
ONE_DECIMAL = {"perplexity", "mean_completion_perplexity", "completion_length", "seconds"}


def clean(value: object) -> object:
    """Prepare a value for the template: invisible characters become visible, None becomes a dash."""
    if value is None:
        return "–"
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", value)


def clip(text: str, limit: int) -> str:
    """Cut a text after `limit` characters and append how many were cut."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def label(text: str, limit: int = 22) -> str:
    """Shorten a name to one line that fits a plot."""
    words = " ".join(str(clean(text)).split())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def title(name: str, scorers: Headlines | None = None) -> str:
    """Say a metric's name in words, suffixes included: `toxicity probability @25, audit@1 (auditor)`."""
    base = family(name)
    rest, slash, label = name[len(base) :].partition("/")
    rest = rest.replace("@", " @").replace(">=", " ≥ ")
    by = scorers.suffix(name) if scorers else f", {label}" if slash else ""
    return TITLES.get(base, base.replace("_", " ")) + rest + by


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite int or float. Booleans do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, name: str = "", sign: bool = False) -> str:
    """Format a metric's value with a true minus sign; a dash stands for an unknown value.

    Args:
        name: The metric. Perplexities, lengths and seconds get one decimal, other metrics three.
        sign: Whether positive values get a plus sign.
    """
    if not is_number(value):
        return "–"
    digits = 1 if family(name) in ONE_DECIMAL else 3
    text = f"{value:{'+' if sign else ''},.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")


def p_value(value: object) -> str:
    """`p = 0.012`, `p < 0.001`."""
    if not is_number(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(n: float, thing: str) -> str:
    """`1 prompt`, `2,000 prompts`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
