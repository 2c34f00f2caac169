"""Spelling tricks undone: look-alike letters, digits and symbols for letters, masks, separators and stretched letters.

Each trick is undone only where that gives a known word, with rude words first: people seldom mask other ones.
"""

import re
from collections.abc import Iterator
from itertools import islice, product
from math import log

from nlf.rewards.characters import LATIN, TURNED, UPRIGHT
from nlf.rewards.vocabulary import LETTERS, Vocabulary

MAX_LETTERS = 40  # letters of a word, and of a row of single letters
MAX_MASKED = 3  # masked letters of a word
MAX_HIDDEN = 4  # letters that one mark may hide
MAX_READINGS = 32  # combinations of what a word's digits, symbols or stretches may stand for
USUAL = 1_000  # `*hit` is emphasis
COMMON = 10_000  # `f@ck` is not `fack`: a word this frequent goes before a rude word with a masked letter
LEET = {
    **{"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s"},
    **{"!": "il", "|": "il", "+": "t", "€": "e", "£": "l", "¢": "c", "¥": "y", "(": "c", "<": "c"},
}
COUNTED = re.compile(r"\d+[a-z]{1,2}|[a-z]+\d+")  # 3rd, 5k, 10am, mp3: a number with letters
SIGNS = "*#@$(<!"
STRETCH = re.compile(r"(.)\1{2,}")
DOUBLE = re.compile(r"(.)\1+")
FLAG_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]{3,}")
NO_SEPARATORS = str.maketrans("", "", "._-*+~|/=")


def latin(text: str, vocabulary: Vocabulary) -> str:
    """The text, as long as before, with letters that look like Latin ones replaced in words that are Latin then.

    Such a word has a Latin letter already, or it is a known one: most Russian or Greek words stay as they are.
    """
    if text.isascii():
        return text
    text = re.sub(r"[^\W\d_]+", lambda match: _latin_word(match[0], vocabulary), text)
    return FLAG_LETTERS.sub(lambda match: _flags(match[0], vocabulary), text)


def _latin_word(word: str, vocabulary: Vocabulary) -> str:
    if word.isascii():
        return word
    if not set(word).isdisjoint(TURNED):
        turned = word.lower()[::-1].translate(UPRIGHT)
        if turned.isascii() and vocabulary.knows(turned):
            return turned
    plain = word.translate(LATIN)
    if not plain.isascii():
        return word
    mixed = any(c.isascii() for c in word)
    return plain if mixed or vocabulary.best([plain.lower()], common=COMMON if len(plain) > 3 else 0) else word


def _flags(text: str, vocabulary: Vocabulary) -> str:
    """Regional indicators as letters where they spell a word; two of them are a flag."""
    letters = "".join(chr(ord(c) - 0x1F1E6 + ord("A")) for c in text)
    return letters if vocabulary.knows(letters.lower()) else text


def undone(text: str, vocabulary: Vocabulary) -> str | None:
    """The known word that a text of letters, digits and symbols stands for."""
    lower = re.sub(r"[^\w\x00-\x7f€£¢¥]", "#", text.lower())
    parts = re.findall(r"[^\W\d_]+", lower)
    if (not parts and not {"@", "$"} <= set(lower)) or lower.isalpha() or not "".join(parts).isascii():
        return None
    if COUNTED.fullmatch(lower) and sum(map(len, parts)) == 1:
        return None
    known = all(len(part) > 1 and vocabulary.knows(part) for part in parts)  # then only a rude word is a reading
    common = 0 if known or lower[0] == "@" or COUNTED.fullmatch(lower) else COMMON
    readings = [lower, *_unstretched(lower)[:8]]
    word = vocabulary.best((word for reading in readings for word in _leet(reading)), common=common)
    word = word or vocabulary.best(_masked(lower, vocabulary), common=common)
    word = word or vocabulary.best(_masked(readings[-1], vocabulary), common=0)
    if word:
        return cased(word, text)
    joined = (
        vocabulary.best(_unstretched("".join(parts)), common=0) if lower.translate(NO_SEPARATORS).isalpha() else None
    )
    return cased(joined, text) if joined else None


def _leet(text: str) -> Iterator[str]:
    """The readings of a text with its digits and symbols as letters."""
    pattern = [LEET.get(c, c) for c in text]
    if all("a" <= c <= "z" for letters in pattern for c in letters):
        yield from map("".join, islice(product(*pattern), MAX_READINGS))


def _masked(text: str, vocabulary: Vocabulary) -> list[str]:
    """The known words that a masked text may be: rude ones, and common ones where `*` hides one letter.

    Marks in one place may hide up to `MAX_HIDDEN` letters (`f*ing`), marks in several places as many as they are.
    """
    letters = sum(c.isalpha() for c in text)
    runs = [len(run) for run in re.findall(r"[\W_]+", text)]
    strong = all(c.isalnum() or c in SIGNS + "_" for c in text)  # a dot or a hyphen is seldom a mask
    if (
        "'" in text
        or text[0] == "@"
        or letters < (1 if strong else 3)
        or not 0 < sum(runs) <= max(MAX_MASKED, letters)
    ):
        return []
    if _emphasis(text, letters, vocabulary):
        return []
    pattern = [c if c.isalpha() else LETTERS if not c.isalnum() else LEET.get(c, "") for c in text]
    place = next(i for i, c in enumerate(text) if not c.isalnum())
    found = vocabulary.rude_words(pattern)
    exact = letters > 2 and any(vocabulary.rank(word) is not None for word in found)
    if len(runs) == 1 and not exact and ((place > 0 and text[place] == "*") or text[1] == "-"):
        for more in range(1, MAX_HIDDEN + 1 - runs[0]):
            found += vocabulary.rude_words(pattern[:place] + [LETTERS] * more + pattern[place:])
    if not found and runs == [1] and letters > 2 and "*" in text:
        found = [text.replace("*", c) for c in LETTERS]
    return found


def _emphasis(text: str, letters: int, vocabulary: Vocabulary) -> bool:
    """Whether signs at the edge stand around a word or mark it, rather than hide a letter of it."""
    inside = text.strip(SIGNS)
    if inside == text:
        return False
    if text[0].isalnum():
        return len(inside) > 2 and vocabulary.knows(inside)
    rank = vocabulary.rank(inside)
    return letters < 3 or inside[-1] != text[-1] or (rank is not None and rank < USUAL)


def straight(word: str, vocabulary: Vocabulary) -> str:
    """A plain word without stretches and without letters that stand for others."""
    lower = word.lower()
    if not lower.isalpha() or not lower.isascii() or vocabulary.knows(lower) or len(word) < 4:
        return word
    readings = _unstretched(lower)
    swapped = [lower.replace(a, b) for a, b in (("v", "u"), ("ph", "f"), ("z", "s"), ("vv", "w"), ("kk", "ck"))]
    stretched = STRETCH.search(lower) is not None
    known = vocabulary.best(readings, common=None if stretched else 0, letters=2)
    known = known or vocabulary.best((name for swap in swapped for name in _unstretched(swap)), common=0)
    return cased(known, word) if known else STRETCH.sub(r"\1\1", word)


def _unstretched(text: str) -> list[str]:
    """A text with each repeated character once or twice, the longest forms first."""
    runs = list(DOUBLE.finditer(text))[:5]
    ends = [0, *(run.end() for run in runs)]
    readings = []
    for sizes in product((2, 1), repeat=len(runs)):
        parts = [
            text[ends[i] : run.start()] + run[1] * size for i, (run, size) in enumerate(zip(runs, sizes, strict=True))
        ]
        readings.append("".join(parts) + text[ends[-1] :])
    return readings


def spelled(letters: str, vocabulary: Vocabulary) -> list[str] | None:
    """The words that letters spell, as few and as frequent as possible; None where there is none of three letters.

    The lengths of the words sum to the number of letters; a letter of no word stands alone.
    """
    lower = "".join(c if c.isalpha() else LEET.get(c, c)[0] for c in letters.lower())
    if not lower.isalpha() and (whole := _same_size(letters, vocabulary)):
        return [cased(whole, letters)]
    costs, steps = [0.0], [0]
    for end in range(1, len(lower) + 1):
        costs.append(float("inf"))
        steps.append(0)
        for size in range(1, min(end, MAX_LETTERS // 2) + 1):
            cost = costs[end - size] + _cost(lower[end - size : end], vocabulary)
            if cost < costs[end]:
                costs[end], steps[end] = cost, size
    found: list[str] = []
    end = len(lower)
    while end:
        word, raw = lower[end - steps[end] : end], letters[end - steps[end] : end]
        found.insert(0, cased(word, raw) if len(word) > 1 else raw)
        end -= steps[end]
    return found if any(len(word) > 2 for word in found) else None


def _same_size(letters: str, vocabulary: Vocabulary) -> str | None:
    """The word that letters with masked ones among them stand for, letter by letter."""
    return vocabulary.best(word for word in _masked(letters.lower(), vocabulary) if len(word) == len(letters))


def _cost(word: str, vocabulary: Vocabulary) -> float:
    """How unlikely a word is in a row of letters; infinite for an unknown one of two letters and more."""
    rank = vocabulary.rank(word)
    if len(word) == 1:
        return 6.0 if word in ("a", "i", "u") else 12.0
    if vocabulary.is_rude(word):
        return 6.0
    return float("inf") if rank is None else 4.0 + log(rank + 2)


def cased(word: str, like: str) -> str:
    """A lower-case word in the case of the text it stands for."""
    letters = [c for c in like if c.isalpha()]
    if len(letters) > 1 and all(map(str.isupper, letters)):
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
