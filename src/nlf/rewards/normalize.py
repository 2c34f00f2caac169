"""Text as normalised words with their places, so that a spelling trick (`i.d.i.o.t`, `1d10t`) reads like the plain word.

Characters come first: compatibility forms, accents, invisible characters and control characters. Then each piece without
white space is read by itself: look-alike letters, separators, digits and symbols for letters, masks and stretched letters
are undone where that gives a known word. A row of single letters (`i d i o t`) is read as one. Nothing looks further
ahead, so all prefixes of a text are read with it (`prefix_words`), and the time is linear in the text's length.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from nlf.rewards.characters import MAX_CHARACTERS, Source, source_of
from nlf.rewards.spelling import MAX_LETTERS, SIGNS, latin, spelled, straight, undone
from nlf.rewards.vocabulary import Vocabulary

MAX_PLACE = 1 << 62
MAX_CACHE = 50_000  # pieces whose words are remembered
MASKS = r"*#@$%^&?!+~=_\-.|"
# Characters that are read at once: up to white space; a longer piece is cut at a separator, or after 64 characters.
PIECE = re.compile(r"\S{32}[^\s\-_/.,:;]{0,32}|\S{1,31}")
ORDINARY = re.compile(r"[\"'(\[]*[A-Za-z]{2,}(?:[/,.'][A-Za-z]{2,})*[.,!?;:)\"'\]-]*")  # words that no symbol is in
SINGLE = re.compile(r"[\"(\[]?([^\W_]|[@$*#!])[.,!?;:)\]\"]{0,8}")  # one letter of a row
GAP = 4  # white space between two letters of a row
PLAIN = re.compile(rf"[^\W_]{{1,{MAX_LETTERS}}}(?:'[^\W_]{{1,{MAX_LETTERS}}})*|_+|[^\w\s]")
SPAN = re.compile(rf"(?:[\w'{MASKS}(<]|[^\x00-\x7f])+|[^\w\s]")
LINK = re.compile(r"(?:[a-z]{3,6}://|www\.)|\S+@\w+\.\w+$", re.IGNORECASE)
EDGE = "!?.-_~=+%&^|'\\"  # marks at the edge of a span that hide no letter there
SEPARATED = re.compile(r"[^\W_](?:[._\-*+~|·/]+[^\W_]){2,}")


class Word(NamedTuple):
    """A normalised word, its case kept, and its place in the original text: characters `start` to `end`."""

    text: str
    start: int
    end: int


def words(text: str, vocabulary: Vocabulary) -> list[Word]:
    """The normalised words, punctuation marks and emoji of a text's first `MAX_CHARACTERS` characters."""
    source = source_of(text)
    return _placed(_read(source.plain, vocabulary), source, len(text))


def prefix_words(
    text: str, ends: Iterable[int], vocabulary: Vocabulary
) -> tuple[list[Word], list[tuple[int, list[Word]]]]:
    """The words of a text and of all its prefixes, in about the time of the whole text.

    Args:
        ends: Lengths of the prefixes in characters, in any order.

    Returns:
        `words(text)`; and for each end a pair (n, tail), such that `words(text[:end]) == words(text)[:n] + tail`.
    """
    source = source_of(text)
    anchors: list[tuple[int, int, int]] = []
    whole = _placed(_read(source.plain, vocabulary, anchors=anchors), source, len(text))
    starts = [start for start, _, _ in anchors]
    found = []
    for end in ends:
        place = source.place(end := max(min(end, MAX_CHARACTERS), 0))
        anchor = bisect_left(starts, place) - 1
        if anchor < 0:
            found.append((0, list[Word]()))
            continue
        start, count, stop = anchors[anchor]
        if place >= stop and (source.ends is None or end >= source.ends[stop - 1]):  # after a whole piece
            found.append((anchors[anchor + 1][1] if anchor + 1 < len(anchors) else len(whole), []))
            continue
        tail = _placed(_read(source.plain, vocabulary, start, place), source, end)
        same = 0
        while same < len(tail) and count + same < len(whole) and tail[same] == whole[count + same]:
            same += 1
        found.append((count + same, tail[same:]))
    return whole, found


def _placed(found: list[Word], source: Source, end: int) -> list[Word]:
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
    anchors: list[tuple[int, int, int]] | None = None,
) -> list[Word]:
    """The words of `plain[start:end]`.

    Args:
        anchors: Gets the places at which reading may start: (place, number of words before it, end of the piece there,
            or `MAX_PLACE` where a row of letters begins, which may go on).
    """
    found: list[Word] = []
    row: list[re.Match] = []  # pieces of one letter each
    for match in PIECE.finditer(plain, start, len(plain) if end is None else end):
        begin, stop = match.span()
        if row and (begin - row[-1].end() > GAP or len(row) == MAX_LETTERS):
            found += _read_row(row, vocabulary)
            row = []
        single = stop - begin < 11 and SINGLE.fullmatch(match[0])
        if anchors is not None and not row:
            anchors.append((begin, len(found), MAX_PLACE if single else stop))
        if single:
            row.append(match)
            continue
        if row:
            found += _read_row(row, vocabulary)
            row = []
        found += [Word(text, begin + a, begin + b) for text, a, b in _piece(match[0], vocabulary)]
    return found + _read_row(row, vocabulary) if row else found


def _read_row(row: list[re.Match], vocabulary: Vocabulary) -> list[Word]:
    """The words of a row of single letters: whole words where the letters spell some, else the letters."""
    singles = [(match.start() + single.start(1), single[1]) for match in row if (single := SINGLE.fullmatch(match[0]))]
    places = [place for place, _ in singles]
    names = None
    if len(row) > 2:
        names = _spelled_out("".join(letter for _, letter in singles), places, vocabulary)
    if names is None:
        return [Word(text, m.start() + a, m.start() + b) for m in row for text, a, b in _piece(m[0], vocabulary)]
    text, start, end = row[0].string, row[0].start(), places[-1] + 1
    return [*_plain(text[start : places[0]], start), *names, *_plain(text[end : row[-1].end()], end)]


def _spelled_out(letters: str, places: list[int], vocabulary: Vocabulary) -> list[Word] | None:
    """The words that single letters at the places spell, if any."""
    if sum(map(str.isalpha, letters)) < 2:
        return None
    found, i = [], 0
    for name in spelled(latin(letters, vocabulary), vocabulary) or []:
        found.append(Word(name, places[i], places[i + len(name) - 1] + 1))
        i += len(name)
    return found or None


# ── one piece ─────────────────────────────────────────────────────────────────────────────────────


def _piece(text: str, vocabulary: Vocabulary) -> tuple[Word, ...]:
    """The words of a text without white space, read once."""
    found = vocabulary.pieces.get(text)
    if found is None:
        if len(vocabulary.pieces) >= MAX_CACHE:
            vocabulary.pieces.clear()
        found = vocabulary.pieces[text] = tuple(_read_piece(text, vocabulary))
    return found


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
    found = []
    for span in SPAN.finditer(latin(text, vocabulary)):
        found += _read_span(span[0], span.start(), vocabulary)
    return found


def _read_span(text: str, start: int, vocabulary: Vocabulary) -> list[Word]:
    """The words of letters, digits and symbols in one: as a whole, else its parts, else as they are."""
    plain = _plain(text, start)
    if all(vocabulary.knows(word.text.lower()) for word in plain if word.text[0].isalpha()) and not _odd(text):
        return plain
    core = text.rstrip(EDGE).lstrip(EDGE.replace("!", ""))
    start_of_core = text.find(core)
    if SEPARATED.fullmatch(core) and ("*" not in core or not undone(core, vocabulary)):
        places = [start_of_core + match.start() for match in re.finditer(r"[^\W_]", core)]
        names = _spelled_out("".join(text[i] for i in places), places, vocabulary)
        if names:
            return _between(text, names, start)
    for hidden in dict.fromkeys((core, core.rstrip(SIGNS), core.lstrip(SIGNS), core.strip(SIGNS), core.split("'")[0])):
        if word := undone(hidden, vocabulary):
            begin = text.find(hidden)
            return _between(text, [Word(word, begin, begin + len(hidden))], start)
    parts = list(re.finditer(r"[._\-=~]+|[^._\-=~]+", text))
    if len(parts) > 1:
        return [word for part in parts for word in _read_span(part[0], start + part.start(), vocabulary)]
    return [Word(straight(word.text, vocabulary), word.start, word.end) for word in plain]


def _between(text: str, found: list[Word], start: int) -> list[Word]:
    """Words of a text with the plain marks before and after them; the text lies at `start`."""
    begin, end = found[0].start, found[-1].end
    placed = [Word(name, start + a, start + b) for name, a, b in found]
    return [*_plain(text[:begin], start), *placed, *_plain(text[end:], start + end)]


def _odd(text: str) -> bool:
    """Whether a symbol or digit touches a letter in a way that may hide a word."""
    return bool(re.search(r"[^\W\d_][^\w']+[^\W\d_]|[^\W\d_][@$*#\d]|[@$*\d][^\W\d_]|_|@\$", text))
