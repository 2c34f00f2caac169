"""Texts of requests: plain text out of HTML, sentences, and places as the protocol counts them."""

import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser

BLOCKS = frozenset(
    "address article aside blockquote br dd div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol "
    "p pre section table td th tr ul".split()
)  # elements whose ends separate words
HIDDEN = ("script", "style")
MOST_SPANS = 500  # of a text; the last one reaches to the end
END_MARKS, CLOSING = ".!?…。", "\"'”’)]»"
WORD = re.compile(r"\S+")

Span = tuple[int, int]  # begin and end, in characters


class _Plain(HTMLParser):
    """Collects the visible characters of HTML, each with its place in the source."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=False)
        self.source, self.hidden = source, 0
        self.lines = [0, *(i + 1 for i, character in enumerate(source) if character == "\n")]
        self.characters: list[str] = []
        self.places: list[Span] = []
        self.feed(source)
        self.close()

    def _begin(self) -> int:
        line, column = self.getpos()
        return self.lines[line - 1] + column

    def _add(self, text: str, places: Sequence[Span]) -> None:
        if not self.hidden:
            self.characters += text
            self.places += places

    def handle_data(self, data: str) -> None:
        begin = self._begin()
        self._add(data, [(i, i + 1) for i in range(begin, begin + len(data))])

    def _reference(self, written: str) -> None:
        begin = self._begin()
        end = begin + len(written)
        text = html.unescape(f"{written};")
        self._add(text, [(begin, end + self.source.startswith(";", end))] * len(text))

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name}")

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in BLOCKS:
            self._add("\n", [(self._begin(), self._begin())])
        self.hidden += tag in HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(self.hidden - (tag in HIDDEN), 0)
        if tag in BLOCKS:
            self._add("\n", [(self._begin(), self._begin())])

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        if tag in BLOCKS:
            self._add("\n", [(self._begin(), self._begin())])


def plain_text(source: str) -> tuple[str, list[Span]]:
    """The visible text of HTML, and the place in the source of each of its characters.

    Elements such as `<p>` end a line; tags inside a line leave nothing, so that they cannot cut a word in two.
    """
    found = _Plain(source)
    return "".join(found.characters), found.places


def sentences(text: str) -> list[Span]:
    """The places of the sentences, without the white space around them.

    A sentence ends with its line, or where a word ends with one of `.!?…` and perhaps closing quotes. So "Mr. Smith" is cut.
    """
    found: list[list[int]] = []
    ended = True
    for word in WORD.finditer(text):
        begin, end = word.span()
        if (ended or "\n" in text[found[-1][1] : begin]) and len(found) < MOST_SPANS:
            found.append([begin, end])
        found[-1][1] = end
        ended = word[0].rstrip(CLOSING).endswith(tuple(END_MARKS))
    return [(begin, end) for begin, end in found]


def utf16_length(text: str) -> int:
    """The length of a text in UTF-16 code units, in which the protocol counts places: an emoji has two."""
    return len(text) + sum(character > "\uffff" for character in text)
