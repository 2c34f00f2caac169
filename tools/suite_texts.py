"""The texts on which scorer_suite.py tests a scorer of toxicity; all of our own writing but `recorded` and `rude_words`.

They come from suite_sentences.yaml (kinds of hate and of harmless text), suite_texts.yaml and identity_sentences.txt.
Texts drawn by chance are equal for equal seeds.
"""

from __future__ import annotations

import csv
import gzip
import json
import string
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sentences import filled, read_sentences
from split import split_of

from nlf.data.files import ASSETS
from nlf.data.yaml_files import read_mapping
from nlf.errors import UserError

FOLDER = Path(__file__).resolve().parent
SENTENCES = FOLDER / "suite_sentences.yaml"
TEXTS = FOLDER / "suite_texts.yaml"
IDENTITY = FOLDER / "identity_sentences.txt"
VOCABULARY = ASSETS / "lm" / "tokenizer.json"
TIMES = (2, 5, 20, 100, 500)  # how often a token is repeated
COPIES = (1, 10, 100, 1000)  # of the kind sentence
AROUND = (10, 100, 400)  # kind sentences around an insult, within the 20,000 characters that scorers read


class Functionality(NamedTuple):
    """Sentences of one kind, which are all hateful or all not."""

    name: str
    hateful: bool
    texts: list[str]


def functionalities(count: int = 50, seed: int = 0) -> list[Functionality]:
    """`count` distinct sentences of every kind of the suite."""
    suite, rng = read_sentences(SENTENCES), np.random.default_rng(seed)
    return [Functionality(kind.name, kind.hateful, filled(kind, suite.slots, rng, count)) for kind in suite.kinds]


@cache
def own() -> dict[str, Any]:
    """The lists of suite_texts.yaml."""
    return read_mapping(TEXTS, "suite texts ")


def neutral() -> dict[str, list[str]]:
    """For each identity term, every neutral template filled with it."""

    def fill(template: str, one: str, many: str) -> str:
        capital = {name.capitalize(): term[0].upper() + term[1:] for name, term in (("one", one), ("many", many))}
        return template.format(one=one, many=many, **capital)

    return {term: [fill(each, *forms) for each in own()["neutral"]] for term, forms in own()["terms"].items()}


def identity_sentences() -> list[str]:
    """The neutral sentences of identity_sentences.txt, which name groups in many ways."""
    return IDENTITY.read_text(encoding="utf-8").splitlines()


# ---- texts that say nothing --------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """The words that the embedded language model writes as one token."""
    tokens = json.loads(VOCABULARY.read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted({token[1:] for token in tokens if token[:1] == "Ġ" and token[1:].isascii() and token[1:].isalpha()})


def repeated(tokens: Iterable[str]) -> list[str]:
    """Every token 2 to 500 times in a row."""
    return [" ".join([token] * times) for token in tokens for times in TIMES]


def degenerate(seed: int = 0) -> dict[str, list[str]]:
    """Families of texts that say nothing; none should count as less toxic than clean text."""
    rng, words = np.random.default_rng(seed), vocabulary()
    common, letters = own()["common"].split(), np.array(list(string.ascii_lowercase))
    marks, numbers = [*string.punctuation, *"…—“”«»¿"], [*map(str, range(10)), "10", "100", "2026", "3.14"]
    drawn = [str(word) for word in rng.choice(words, 40, replace=False)]
    pairs = [rng.choice(words, 2, replace=False) for _ in range(60)]
    return {
        "one word": words,
        "one punctuation mark": marks,
        "one number": numbers,
        "one emoji": own()["emoji"],
        "a token 2 to 500 times": repeated([*drawn, *marks[:12], *numbers[:4], *own()["emoji"][:6]]),
        "common words shuffled": [" ".join(rng.choice(common, n)) for n in rng.integers(5, 41, 200)],
        "two words in turn": [" ".join([*pair] * times) for pair in pairs for times in (3, 30)],
        "random letters": [
            " ".join("".join(rng.choice(letters, size)) for size in rng.integers(1, 10, n))
            for n in rng.integers(1, 30, 100)
        ],
        "no letters, 20,000 characters": ["#" * 20_000, "!?" * 10_000, "7" * 20_000],
        "empty": ["", " ", "\n\n"],
    }


def long_texts() -> dict[str, str]:
    """A kind sentence again and again, and an insult within such a text."""
    kind, insult = own()["kind"], own()["insult"]
    texts = {f"a kind sentence × {n:,}": " ".join([kind] * n) for n in COPIES} | {"an insult": insult}
    for n in AROUND:
        for place, at in {"before": 0, "amid": n // 2, "after": n}.items():
            texts[f"an insult {place} {n} kind sentences"] = " ".join([kind] * at + [insult] + [kind] * (n - at))
    return texts


# ---- from data sets ----------------------------------------------------------------------------------------------


def recorded(data: Path, split: str, count: int = 400, seed: int = 0) -> tuple[list[str], list[str]]:
    """Prompts and continuations of RealToxicityPrompts in held-out documents, at most `count` of each sort.

    Returns:
        The toxic texts, recorded at .5 or more, and the clean ones, recorded below .1.
    """
    with gzip.open(existing(data / "rtp-scored/train.jsonl.gz"), "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if split_of(row["group"]) == split]
    parts = {row[part]["text"]: row[part]["toxicity"] for row in rows for part in ("prompt", "continuation")}
    rng = np.random.default_rng(seed)

    def some(texts: list[str]) -> list[str]:
        return [texts[i] for i in np.sort(rng.permutation(len(texts))[:count])]

    known = {text: score for text, score in parts.items() if score is not None and text.strip()}
    toxic = [text for text, score in known.items() if score >= 0.5]
    return some(toxic), some([text for text, score in known.items() if score < 0.1])


def rude_words(data: Path) -> frozenset[str]:
    """The single words, in lower case, of the profanity lists."""
    folder = data / "word-lists"
    with open(existing(folder / "surge_profanity_en.csv"), encoding="utf-8") as lines:
        listed = [row["text"] for row in csv.DictReader(lines)]
    listed += existing(folder / "ldnoobw_en.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word.strip().lower() for word in listed if " " not in word.strip())


def existing(path: Path) -> Path:
    """The path of a file that exists.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"--data: no file {path}; give the folder that holds rtp-scored and word-lists")
    return path
