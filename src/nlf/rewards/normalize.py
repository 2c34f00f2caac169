"""Text as normalised words with their places, so that a spelling trick (`ƒ.u.c.k`, `1d10t`) reads like the plain word.

Characters come first: compatibility forms, accents, invisible characters and control characters. Then each piece without
white space is read by itself: look-alike letters, separators, digits and symbols for letters, masks and stretched letters
are undone where that gives a known word. A row of single letters (`i d i o t`) is read as one. Nothing looks further
ahead, so all prefixes of a text are read with it (`prefix_words`), and the time is linear in the text's length.
"""

import re
import unicodedata
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import log
from typing import NamedTuple

import numpy as np

from nlf.rewards.confusables import LATIN, TURNED, UPRIGHT

MAX_CHARACTERS = 20_000  # the rest of a text is not read
MAX_LETTERS = 40  # letters of a word, and of a row of single letters
MAX_CACHE = 50_000  # pieces whose words are remembered
MAX_MASKED = 3  # masked letters of a word
MAX_HIDDEN = 4  # letters that one mark may hide
MAX_READINGS = 32  # combinations of what a word's digits, symbols or stretches may stand for
COMMON = 10_000  # `f@ck` is not `fack`: a word this frequent goes before a rude word with a masked letter

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LEET = {
    **{"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s"},
    **{"!": "il", "|": "il", "+": "t", "€": "e", "£": "l", "¢": "c", "¥": "y", "(": "c", "<": "c"},
}
MASKS = r"*#@$%^&?!+~=_\-.|"
# Characters that are read at once: up to white space; a longer piece is cut at a separator, or after 64 characters.
PIECE = re.compile(r"\S{32}[^\s\-_/.,:;]{0,32}|\S{1,31}")
ORDINARY = re.compile(r"[\"'(\[]*[A-Za-z]{2,}(?:[-/,.'][A-Za-z]{2,})*[.,!?;:)\"'\]-]*")  # words that no symbol is in
SINGLE = re.compile(r"[\"(\[]?([^\W_]|[@$*#!])[.,!?;:)\]\"]{0,8}")  # one letter of a row
GAP = 4  # white space between two letters of a row
PLAIN = re.compile(rf"[^\W_]{{1,{MAX_LETTERS}}}(?:'[^\W_]{{1,{MAX_LETTERS}}})*|_+|[^\w\s]")
SPAN = re.compile(rf"(?:[\w'{MASKS}(<]|[^\x00-\x7f])+|[^\w\s]")
LINK = re.compile(r"(?:[a-z]{3,6}://|www\.)|\S+@\w+\.\w+$", re.IGNORECASE)
COUNTED = re.compile(r"\d+[a-z]{1,2}|[a-z]+\d+")  # 3rd, 5k, 10am, mp3: a number with letters
EDGE = "!?.-_~=+%&^|'\\"  # marks at the edge of a span that hide no letter there
SIGNS = "*#@$(<"
SEPARATED = re.compile(r"[^\W_](?:[._\-*+~|·/]+[^\W_]){2,}")
STRETCH = re.compile(r"(.)\1{2,}")
DOUBLE = re.compile(r"(.)\1+")
FLAG_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]{3,}")
BY_HAND = {
    **dict.fromkeys("‘’‛ʼ´′ʹ", "'"),
    **dict.fromkeys("“”„‟«»″", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict(zip("øØłŁđĐðÐħĦŧŦŋŊıĸ", "oOlLdDdDhHtTnNik", strict=True)),
    **{"þ": "th", "Þ": "Th", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ß": "ss", "⁄": "/", "\u2800": " "},
    **dict.fromkeys("\u115f\u1160\u3164\uffa0", ""),  # fillers: letters that show nothing
    **dict.fromkeys(map(chr, range(0x1F3FB, 0x1F400)), ""),  # skin tones
}
NAMED = re.compile(
    r"LATIN (?:SMALL|CAPITAL|LETTER SMALL CAPITAL)(?: LETTER)? ([A-Z])(?: WITH .*)?$"
    r"|NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER ([A-Z])$"
)


class Word(NamedTuple):
    """A normalised word, its case kept, and its place in the original text: characters `start` to `end`."""

    text: str
    start: int
    end: int


def digest(word: str) -> int:
    """The number that stands for a word in a vocabulary's arrays."""
    return zlib.crc32(word.encode("utf-8", "replace"))


class Vocabulary:
    """Known English words, as hashes, so that no text ships.

    Args:
        words: uint32 `digest`s of lower-case words, the most frequent first.
        rude: uint32 digests of rude words, and of each beginning of one followed by `*`, by which masked words are found
            (`of` makes both arrays).
    """

    def __init__(self, words: np.ndarray, rude: np.ndarray):
        self.words, self.rude = words, rude
        self._ranks = {number: rank for rank, number in reversed(list(enumerate(words.tolist())))}
        self._rude = set(rude.tolist())
        self._next: dict[str, str] = {}
        self._pieces: dict[str, tuple[Word, ...]] = {}

    @classmethod
    def of(cls, words: Iterable[str], rude: Iterable[str]) -> "Vocabulary":
        """A vocabulary of words by frequency and rude words."""
        rude = sorted(set(rude))
        beginnings = sorted({word[:n] + "*" for word in rude for n in range(1, len(word) + 1)})
        arrays = [np.array([digest(word) for word in names], dtype=np.uint32) for names in (words, rude + beginnings)]
        return cls(*arrays)

    def rank(self, word: str) -> int | None:
        """The place of a lower-case word by frequency, 0 = most frequent; None = unknown."""
        return self._ranks.get(digest(word))

    def is_rude(self, word: str) -> bool:
        return digest(word) in self._rude

    def knows(self, word: str) -> bool:
        """A known or rude word, or the possessive of one."""
        return self._has(word) or (word.endswith("'s") and self._has(word[:-2]))

    def _has(self, word: str) -> bool:
        number = digest(word)
        return number in self._ranks or number in self._rude

    def best(self, candidates: Iterable[str], *, common: int | None = None, letters: int = 3) -> str | None:
        """The rude, else the most frequent of the known candidates that have so many letters or more.

        Args:
            common: Words that are neither rude nor among so many most frequent ones do not count.
        """
        found = []
        for word in dict.fromkeys(candidates):
            rank, rude = self.rank(word), self.is_rude(word)
            if len(word) >= letters and (rude or (rank is not None and (common is None or rank < common))):
                found.append((not rude, len(self._ranks) if rank is None else rank, word))
        return min(found)[2] if found else None

    def rude_words(self, pattern: Sequence[str]) -> list[str]:
        """The rude words whose letter at each place is one of that place's letters."""
        found = [""]
        for letters in pattern:
            found = [head + letter for head in found for letter in self._after(head) if letter in letters]
        return [word for word in found if self.is_rude(word)]

    def _after(self, head: str) -> str:
        """The letters that follow a beginning in rude words."""
        if head not in self._next:
            self._next[head] = "".join(c for c in LETTERS if digest(f"{head}{c}*") in self._rude)
        return self._next[head]

    def piece(self, text: str) -> tuple[Word, ...]:
        """The words of a text without white space."""
        found = self._pieces.get(text)
        if found is None:
            if len(self._pieces) >= MAX_CACHE:
                self._pieces.clear()
            found = self._pieces[text] = tuple(_read_piece(text, self))
        return found


# ── characters ────────────────────────────────────────────────────────────────────────────────────


class _Characters(dict):
    """What each character becomes: nothing, a space, or its letters without accents (str.translate's table)."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _plain_character(chr(code))
        return found


def _plain_character(character: str) -> str:
    if character in BY_HAND:
        return BY_HAND[character]
    category = unicodedata.category(character)
    if category == "Cf" or category[0] == "M":
        return ""
    if category in ("Cc", "Cs") or category[0] == "Z":
        return " "
    if character.isascii():
        return character
    decomposed = unicodedata.normalize("NFKD", character)
    plain = unicodedata.normalize("NFC", "".join(c for c in decomposed if unicodedata.category(c)[0] != "M"))
    if not plain or plain[0] == " ":  # a free-standing accent
        return character
    named = NAMED.match(unicodedata.name(plain, "")) if len(plain) == 1 and not plain.isascii() else None
    if named:
        letter = named[1] or named[2]
        return letter if plain.isupper() or named[2] else letter.lower()
    return plain


CHARACTERS = _Characters()


class _Source(NamedTuple):
    """A text in plain characters, and where each came from; None = at its own place."""

    plain: str
    starts: list[int] | None
    ends: list[int] | None

    def place(self, end: int) -> int:
        """How many plain characters a prefix of `end` original characters has."""
        return min(end, len(self.plain)) if self.starts is None else bisect_left(self.starts, end)


def _source(text: str) -> _Source:
    text = text[:MAX_CHARACTERS]
    odd = [c for c in set(text) if c > "~" or c < " "]
    if not odd:
        return _Source(text, None, None)
    if all(len(CHARACTERS[ord(c)]) == 1 for c in odd):
        return _Source(text.translate(CHARACTERS), None, None)
    plain, starts, ends = [], [], []
    for i, c in enumerate(text):
        for letter in CHARACTERS[ord(c)]:
            plain.append(letter)
            starts.append(i)
            ends.append(i + 1)
        if ends and not CHARACTERS[ord(c)]:  # what is dropped belongs to the character before it
            ends[-1] = i + 1
    return _Source("".join(plain), starts, ends)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def words(text: str, vocabulary: Vocabulary) -> list[Word]:
    """The normalised words, punctuation marks and emoji of a text's first `MAX_CHARACTERS` characters."""
    source = _source(text)
    return _placed(_read(source.plain, vocabulary), source, len(text))


def prefix_words(text: str, ends: Iterable[int], vocabulary: Vocabulary) -> list[tuple[int, list[Word]]]:
    """The words of all prefixes of a text, in about the time of the whole text.

    Args:
        ends: Lengths of the prefixes in characters, in any order.

    Returns:
        For each end a pair (n, tail), such that `words(text[:end]) == words(text)[:n] + tail`.
    """
    source = _source(text)
    anchors: list[tuple[int, int]] = []
    whole = _placed(_read(source.plain, vocabulary, anchors=anchors), source, len(text))
    starts = [start for start, _ in anchors]
    found = []
    for end in ends:
        place = source.place(end := max(min(end, MAX_CHARACTERS), 0))
        anchor = bisect_left(starts, place) - 1
        if anchor < 0:
            found.append((0, list[Word]()))
            continue
        start, count = anchors[anchor]
        tail = _placed(_read(source.plain, vocabulary, start, place), source, end)
        same = 0
        while same < len(tail) and count + same < len(whole) and tail[same] == whole[count + same]:
            same += 1
        found.append((count + same, tail[same:]))
    return found


def _placed(found: list[Word], source: _Source, end: int) -> list[Word]:
    """The words with their places in the original text, which ends at `end`."""
    starts, ends = source.starts, source.ends
    if starts is None or ends is None:
        return found
    return [Word(text, starts[a], min(ends[b - 1], end)) for text, a, b in found]


def _read(
    plain: str,
    vocabulary: Vocabulary,
    start: int = 0,
    end: int | None = None,
    anchors: list[tuple[int, int]] | None = None,
) -> list[Word]:
    """The words of `plain[start:end]`.

    Args:
        anchors: Gets pairs (place, number of words before it). Reading may start at each of them.
    """
    found: list[Word] = []
    row: list[re.Match] = []  # pieces of one letter each
    for match in PIECE.finditer(plain, start, len(plain) if end is None else end):
        begin, stop = match.span()
        if row and (begin - row[-1].end() > GAP or len(row) == MAX_LETTERS):
            found += _read_row(row, vocabulary)
            row = []
        if anchors is not None and not row:
            anchors.append((begin, len(found)))
        if stop - begin < 11 and SINGLE.fullmatch(match[0]):
            row.append(match)
            continue
        if row:
            found += _read_row(row, vocabulary)
            row = []
        found += [Word(text, begin + a, begin + b) for text, a, b in vocabulary.piece(match[0])]
    return found + _read_row(row, vocabulary) if row else found


def _read_row(row: list[re.Match], vocabulary: Vocabulary) -> list[Word]:
    """The words of a row of single letters: whole words where the letters spell some, else the letters."""
    singles = [(match.start() + single.start(1), single[1]) for match in row if (single := SINGLE.fullmatch(match[0]))]
    places = [place for place, _ in singles]
    spelled = None
    if len(row) > 2:
        spelled = _spelled_out("".join(letter for _, letter in singles), places, vocabulary)
    if spelled is None:
        return [Word(text, m.start() + a, m.start() + b) for m in row for text, a, b in vocabulary.piece(m[0])]
    text, start, end = row[0].string, row[0].start(), places[-1] + 1
    return [*_plain(text[start : places[0]], start), *spelled, *_plain(text[end : row[-1].end()], end)]


def _spelled_out(letters: str, places: list[int], vocabulary: Vocabulary) -> list[Word] | None:
    """The words that single letters at the places spell, if any."""
    if sum(map(str.isalpha, letters)) < 2:
        return None
    found, i = [], 0
    for name in _spelled(_latin(letters, vocabulary), vocabulary) or []:
        found.append(Word(name, places[i], places[i + len(name) - 1] + 1))
        i += len(name)
    return found or None


def _spelled(letters: str, vocabulary: Vocabulary) -> list[str] | None:
    """The words that letters spell, as few and as frequent as possible; None where there is none of three letters.

    The lengths of the words sum to the number of letters; a letter of no word stands alone.
    """
    lower = "".join(c if c.isalpha() else LEET.get(c, c)[0] for c in letters.lower())
    if not lower.isalpha() and (whole := _same_size(letters, vocabulary)):
        return [_cased(whole, letters)]
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
        found.insert(0, _cased(word, raw) if len(word) > 1 else raw)
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


# ── one piece ─────────────────────────────────────────────────────────────────────────────────────


def _plain(text: str, start: int = 0) -> list[Word]:
    """The words and marks of a text as they are."""
    return [Word(match[0], start + match.start(), start + match.end()) for match in PLAIN.finditer(text)]


def _read_piece(text: str, vocabulary: Vocabulary) -> list[Word]:
    """The words of a text without white space, with tricks undone; places are those in the text."""
    if (text.isascii() and text.isalpha() and vocabulary.knows(text.lower())) or LINK.match(text):
        return _plain(text)
    plain = _plain(text)
    if ORDINARY.fullmatch(text) and all(vocabulary.knows(word.text.lower()) for word in plain if word.text.isalpha()):
        return plain
    latin = text if text.isascii() else _latin(text, vocabulary)
    found = []
    for span in SPAN.finditer(latin):
        found += _read_span(span[0], span.start(), vocabulary)
    return found


def _latin(text: str, vocabulary: Vocabulary) -> str:
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


def _read_span(text: str, start: int, vocabulary: Vocabulary) -> list[Word]:
    """The words of letters, digits and symbols in one: as a whole, else its parts, else as they are."""
    plain = _plain(text, start)
    if all(vocabulary.knows(word.text.lower()) for word in plain if word.text[0].isalpha()) and not _odd(text):
        return plain
    core = text.strip(EDGE)
    start_of_core = text.find(core)
    if SEPARATED.fullmatch(core):
        places = [start_of_core + match.start() for match in re.finditer(r"[^\W_]", core)]
        spelled = _spelled_out("".join(text[i] for i in places), places, vocabulary)
        if spelled:
            return _between(text, spelled, start)
    for core in dict.fromkeys((core, core.rstrip(SIGNS), core.lstrip(SIGNS), core.strip(SIGNS), core.split("'")[0])):
        if word := _undone(core, vocabulary):
            begin = text.find(core)
            return _between(text, [Word(word, begin, begin + len(core))], start)
    parts = list(re.finditer(r"[._\-=~]+|[^._\-=~]+", text))
    if len(parts) > 1:
        return [word for part in parts for word in _read_span(part[0], start + part.start(), vocabulary)]
    return [Word(_straight(word.text, vocabulary), word.start, word.end) for word in plain]


def _between(text: str, found: list[Word], start: int) -> list[Word]:
    """Words of a text with the plain marks before and after them; the text lies at `start`."""
    begin, end = found[0].start, found[-1].end
    placed = [Word(name, start + a, start + b) for name, a, b in found]
    return [*_plain(text[:begin], start), *placed, *_plain(text[end:], start + end)]


def _odd(text: str) -> bool:
    """Whether a symbol or digit touches a letter in a way that may hide a word."""
    return bool(re.search(r"[^\W\d_][^\w']+[^\W\d_]|[^\W\d_][@$*#\d]|[@$*\d][^\W\d_]|_", text))


def _straight(word: str, vocabulary: Vocabulary) -> str:
    """A plain word without stretches and without letters that stand for others."""
    lower = word.lower()
    if not lower.isalpha() or not lower.isascii() or vocabulary.knows(lower) or len(word) < 4:
        return word
    readings = _unstretched(lower)
    swapped = [lower.replace(a, b) for a, b in (("v", "u"), ("ph", "f"), ("z", "s"), ("vv", "w"), ("kk", "ck"))]
    stretched = STRETCH.search(lower) is not None
    known = vocabulary.best(readings, common=None if stretched else 0, letters=2)
    known = known or vocabulary.best((name for swap in swapped for name in _unstretched(swap)), common=0)
    return _cased(known, word) if known else STRETCH.sub(r"\1\1", word)


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


def _undone(text: str, vocabulary: Vocabulary) -> str | None:
    """The known word that a text of letters, digits and symbols stands for."""
    lower = re.sub(r"[^\w\x00-\x7f€£¢¥]", "#", text.lower())
    parts = re.findall(r"[^\W\d_]+", lower)
    if not parts or lower.isalpha() or not "".join(parts).isascii():
        return None
    known = all(len(part) > 1 and vocabulary.knows(part) for part in parts)
    common = 0 if known or lower[0] == "@" or COUNTED.fullmatch(lower) else COMMON
    readings = [lower, *_unstretched(lower)[:8]]
    word = vocabulary.best((word for reading in readings for word in _leet(reading)), common=common)
    word = word or vocabulary.best(_masked(lower, vocabulary), common=common)
    word = word or vocabulary.best(_masked(readings[-1], vocabulary), common=0)
    if word:
        return _cased(word, text)
    joined = (
        vocabulary.best(_unstretched("".join(parts)), common=0) if lower.translate(NO_SEPARATORS).isalpha() else None
    )
    return _cased(joined, text) if joined else None


NO_SEPARATORS = str.maketrans("", "", "._-*+~|/=")


def _leet(text: str) -> Iterator[str]:
    """The readings of a text with its digits and symbols as letters."""
    pattern = [LEET.get(c, c) for c in text]
    if all("a" <= c <= "z" for letters in pattern for c in letters):
        for _, letters in zip(range(MAX_READINGS), product(*pattern)):
            yield "".join(letters)


def _masked(text: str, vocabulary: Vocabulary) -> list[str]:
    """The known words that a masked text may be: rude ones, and common ones where `*` hides one letter.

    Marks in one place may hide up to `MAX_HIDDEN` letters (`f*ing`), marks in several places as many as they are.
    """
    inside = text.strip(SIGNS)
    letters = sum(c.isalpha() for c in text)
    runs = [len(run) for run in re.findall(r"[\W_]+", text)]
    strong = all(c.isalnum() or c in SIGNS for c in text)  # a dot or a hyphen is seldom a mask
    if "'" in text or text[0] == "@" or not 0 < sum(runs) <= MAX_MASKED or letters < (1 if strong else 3):
        return []
    if inside != text and ((len(inside) > 2 and vocabulary.knows(inside)) or (not text[0].isalnum() and letters < 3)):
        return []  # emphasis, a footnote
    pattern = [c if c.isalpha() else LETTERS if not c.isalnum() else LEET.get(c, "") for c in text]
    place = next(i for i, c in enumerate(text) if not c.isalnum())
    elastic = len(runs) == 1 and ((place > 0 and text[place] == "*") or text[1] == "-")
    found = [
        word
        for more in range(MAX_HIDDEN + 1 - runs[0] if elastic else 1)
        for word in vocabulary.rude_words(pattern[:place] + [LETTERS] * more + pattern[place:])
    ]
    if not found and runs == [1] and letters > 2 and "*" in text:
        found = [text.replace("*", c) for c in LETTERS]
    return found


def _cased(word: str, like: str) -> str:
    """A lower-case word in the case of the text it stands for."""
    letters = [c for c in like if c.isalpha()]
    if len(letters) > 1 and all(map(str.isupper, letters)):
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
