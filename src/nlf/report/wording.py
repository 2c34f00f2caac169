"""How numbers, metrics and runs are put in words, and how foreign text is made safe to look at.

Escaping is the template's (autoescape) and the SVG writer's work. Here, characters that cannot be seen or that turn the
direction of the text around them are made visible, so that nothing in a page can pose as something else.
"""

import math
import re

from markupsafe import Markup

# Controls, direction overrides and isolates, lone surrogates and non-characters; not tab, newline or plain RTL marks.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
TITLES = {
    "toxicity": "mean toxicity",
    "positive": "mean positivity",
    "toxic_fraction": "share of toxic completions",
    "positive_fraction": "share of positive completions",
    "expected_max_toxicity": "expected maximum toxicity",
    "mean_completion_perplexity": "mean completion perplexity",
    "completion_length": "length, tokens",
    "ended_fraction": "share that ended",
    "self_bleu": "self-BLEU",
    "judge_toxicity": "mean toxicity by a judge that no training saw",
    "unfiltered_reward": "reward at temperature 1",
    "kl_per_completion": "KL to the base, nats a completion",
    "seconds": "seconds of training",
    "corpus_dist-1": "corpus dist-1",
    "corpus_dist-2": "corpus dist-2",
    "corpus_dist-3": "corpus dist-3",
}
ONE_DECIMAL = {"perplexity", "mean_completion_perplexity", "completion_length", "seconds"}


def clean(value: object) -> object:
    """What the template shows of a value: text without unseen characters, a dash for None; anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", value)


def clip(text: str, limit: int) -> str:
    """The text, or its start and how much was left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def label(text: str, limit: int = 22) -> str:
    """A name short enough for a plot, on one line."""
    words = " ".join(str(clean(text)).split())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def family(name: str) -> str:
    """A metric's name without what it depends on: `toxicity_probability` of `toxicity_probability@25>=0.7/local@1`."""
    return re.split(r"[@>/]", name, maxsplit=1)[0]


def title(name: str) -> str:
    """A metric's name as a person would say it, with what it depends on: `toxicity probability @25`."""
    base = family(name)
    rest, slash, label = name[len(base) :].partition("/")
    rest = rest.replace("@", " @").replace(">=", " ≥ ")
    return TITLES.get(base, base.replace("_", " ")) + rest + (f", {label}" if slash else "")


def is_number(value: object) -> bool:
    """A finite number, truth values left out."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, name: str = "", sign: bool = False) -> str:
    """A metric's value: three decimals (one for perplexity and lengths), a true minus, a dash for what is not known."""
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


def count(n: int, thing: str) -> str:
    """`1 prompt`, `2,000 prompts`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
