"""Characters in plain form, and the letters that look like Latin ones, for `nlf.rewards.normalize`.

`LOOKALIKES` holds the letters of Unicode's confusables.txt (UTS #39, version 13, Unicode licence) whose skeleton is one
Latin letter, from the alphabets in which people write look-alikes, and the looser ones that people use (`я` for R). A
package (`confusables`, `confusable-homoglyphs`) would bring 0.8 to 3 MB, of which this is all that matters here, and
digits and Arabic letters that must stay. What NFKC or the removal of accents makes Latin is not listed.
"""

import re
import unicodedata
from bisect import bisect_left
from typing import NamedTuple

MAX_CHARACTERS = 20_000  # the rest of a text is not read; Perspective takes 20,480 bytes

LOOKALIKES = {
    "a": "ɑΑαАаДдᎪᗄᗅꓮꓯꭺΛλ",
    "b": "ƄΒБВЬвьЪъѢѣҌҍᏏᏴᏼᑲᑳᖯᗷꓐꞴβ",
    "c": "ͽϿСсҪҫԑᏟⲈⲉⲤⲥꓚꮛꮯς",
    "d": "Ɖԁδ∂ᎠᏧᑯᗞᗪꓒꓓꭰ",
    "e": "əΕЕеҽҿЄєЭэεΣәԐᎬᏋⴹⴺꓰꓱꭼɛξ",
    "f": "Ϝքᖴꓝꬵƒ",
    "g": "ƍԌԍցᏀᏳᏻꓖꮐɢɡ",
    "h": "ΗНнћҢңһӇӈӉӊհᎻᏂᏲᕼⲎꓧꚕꮋʜ",
    "i": "ΙІɩιіᎥᵻᵼꙇꭵɪ",
    "j": "ͿϳЈјյᎫᒍꓙꭻ",
    "k": "ΚКкҚҞκᏦⲔꓗ",
    "l": "ƖǀӀӏᏞᒪⲒⳐⳑⵏꓡꓲꮮʟ",
    "m": "ΜϺМмӍӎպᎷᗰⲘꓟ",
    "n": "ͷΝηИиЙйПпπиոռⲚꓠɴ",
    "o": "ɵͻΘΟθοσϽОоѲѳӨөՕօФфφჿᎾᏫᴑⲞⲟⴱⵁⵔꓛꓳꭴꮎꮻ",
    "p": "ΡρРрᏢᑭᴩⲢⲣꓑꮲ",
    "q": "ԛգզᶐⵕ",
    "r": "ƦгяЯГғᎡᏒᖇᴦⲅꓣꭇꭈꭱꮁꮢʀ",
    "s": "ƽЅѕՏᏕᏚꓢꮪ",
    "t": "ΤτТтҬҭᎢᎿⲦꓔꭲ",
    "u": "ɄυЦцμՍսᏌᑌᵾꓴꞟꮜ",
    "v": "νѴѵӅᏙᐯᐱᴧⴷⴸꓥꓦꮩ",
    "w": "ѡѽШшЩщωԜԝաᎳᏔꓪꝡꮃꮇ",
    "x": "ΧχХхЖжҲᕁᕽⲬⵝꓫꞳ",
    "y": "ɣΥγУуҮүҰұЧчყᎩᎽⲨꓬʏ",
    "z": "ΖᏃꓜꮓ",
}
LATIN = str.maketrans(
    {
        look: letter.upper() if look.isupper() else letter
        for letter, looks in LOOKALIKES.items()
        for look in dict.fromkeys(looks)
    }
)

# Upside-down writing is read from its end. The second row stands for each letter of the first.
TURNED = "ɐɔǝɟƃɥᴉɾʞןꞁɯɹʇʌʍʎ"
UPRIGHT = str.maketrans("ɐɔǝɟƃɥᴉıɾʞןꞁɯɹʇʌʍʎunpdbq", "acefghiijkllmrtvwynudpqb")

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


class PlainCharacters(dict):
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


CHARACTERS = PlainCharacters()


class Source(NamedTuple):
    """A text in plain characters, and where each came from; None = at its own place."""

    plain: str
    starts: list[int] | None
    ends: list[int] | None

    def place(self, end: int) -> int:
        """How many plain characters a prefix of `end` original characters has."""
        return min(end, len(self.plain)) if self.starts is None else bisect_left(self.starts, end)


def source_of(text: str) -> Source:
    text = text[:MAX_CHARACTERS]
    odd = [c for c in set(text) if c > "~" or c < " "]
    if not odd:
        return Source(text, None, None)
    if all(len(CHARACTERS[ord(c)]) == 1 for c in odd):
        return Source(text.translate(CHARACTERS), None, None)
    plain, starts, ends = [], [], []
    for i, c in enumerate(text):
        for letter in CHARACTERS[ord(c)]:
            plain.append(letter)
            starts.append(i)
            ends.append(i + 1)
        if ends and not CHARACTERS[ord(c)]:  # what is dropped belongs to the character before it
            ends[-1] = i + 1
    return Source("".join(plain), starts, ends)
