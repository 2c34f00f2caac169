"""`nlf score --explain`: which words made the scores of a file.

The shares of a text's words stand beside its reward (`scores["local@2"]["words"]`, lists `[start, end, share]`), so that
the report can mark them. A table shows the words that raise the attribute most over the whole file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlf.data.generations import Row
from nlf.data.markdown import printable, text_table
from nlf.errors import UserError
from nlf.evaluation.score_files import SCORES, WORDS, Form
from nlf.rewards import Reward
from nlf.rewards.contract import Share, shares

DIGITS = 3  # of a share in a file
MOST = 10  # words in the table
WIDTH = 40  # characters of a word in the table


def check_explains(rewards: Iterable[Reward]) -> None:
    """Raise UserError if a reward cannot explain its scores."""
    for reward in rewards:
        if not reward.explains:
            raise UserError(
                f"explain: reward {reward.label!r} cannot say which words made its scores; expected a scorer object with a "
                "method explain(text); leave out --explain, or this reward"
            )


def with_words(scores: Mapping[str, Any], texts: Sequence[str], reward: Reward) -> Mapping[str, Any]:
    """Scores of a line with the shares of the words of each text; a text that could not be scored has none.

    Args:
        scores: Of a line of generations, with a list of rewards; or of one text, with one reward.
    """
    if WORDS in scores:
        return scores
    listed = isinstance(scores["reward"], list)
    rewards = scores["reward"] if listed else [scores["reward"]]
    words = [_words(reward, text) if value is not None else [] for value, text in zip(rewards, texts, strict=True)]
    return {**scores, WORDS: words if listed else words[0]}


def _words(reward: Reward, text: str) -> list[list[float]]:
    return [[start, end, round(share, DIGITS)] for start, end, share in reward.explain(text)]


def words_table(path: Path, form: Form, reward: Reward) -> str:
    """The words of an explained file that raise the attribute most, by the sum of their shares. Case makes no difference.

    Raises:
        UserError: a line holds no shares of words of its texts.
    """
    counts, sums = Counter[str](), defaultdict[str, float](float)
    for number, row in enumerate(form.read(path), 1):
        for text, words in _explained(row, form, reward.label, f"{path}, row {number}"):
            for start, end, share in words:
                word = text[start:end].lower()
                counts[word] += 1
                sums[word] += share
    top = sorted((-total, word) for word, total in sums.items() if total > 0)
    if not top:
        return f"{reward.label}: no word raises {reward.explained}"
    lines = [("word", "count", "mean share", "sum")]
    for _, word in top[:MOST]:
        numbers = str(counts[word]), f"{sums[word] / counts[word]:.3f}", f"{sums[word]:.3f}"
        lines.append((printable(word)[:WIDTH], *numbers))
    return (
        f"{reward.label}: the words that raise {reward.explained} most (shares of the logit)\n{text_table(lines, '>')}"
    )


def _explained(row: Row, form: Form, label: str, where: str) -> list[tuple[str, list[Share]]]:
    """The texts of a row, each with the shares of its words."""
    texts, words = form.texts(row), row[SCORES][label][WORDS]
    by_text = words if form.text_column is None else [words]
    if isinstance(by_text, list) and len(by_text) == len(texts):
        found = [(text, shares(each, text)) for text, each in zip(texts, by_text, strict=True)]
        known = [(text, each) for text, each in found if each is not None]
        if len(known) == len(texts):
            return known
    raise UserError(
        f"{where}: the {WORDS!r} of {label} are no words of its text; expected lists [start, end, share]; remove them, "
        "and explain again"
    )
