"""Training texts for `local@2` that no data set has: sentences of our own, respelled texts, texts that say nothing, and
fragments of ordinary text that a teacher scores.

They teach what recorded scores do not: that a group's name is no insult, that "not" matters, that hidden spelling hides
nothing, and that a policy gains nothing by one word over and over. The fragments keep the net close to Perspective on
ordinary text meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from attacks import ATTACKS, attacked
from scorer_net import Row
from sentences import filled, read_sentences

SENTENCES = Path(__file__).parent / "training_sentences.yaml"
# First parts of the targets' names, which tell build_scorer.py how much a text weighs.
SENTENCE, RESPELLED, BEGINNING, NOTHING, TAUGHT = "sentence:", "respelled:", "beginning:", "nothing:", "taught:"
RUDE = (
    "profanity-joy",
    "profanity-things",
    "profanity-beside-identity",
)  # kinds that are toxic on Perspective's scale
LINE, HARMLESS = 0.5, 0.2  # what is toxic, and the highest target of a harmless sentence
CLEAN, EMPTY = 0.15, 0.3  # highest recorded toxicity of a clean text; the toxicity of a text that says nothing
PLAIN = {"the", "a", "an", "with", "of", "people", "person", "man", "men", "guy"}  # words of names that name no group
Teacher = Callable[[Sequence[str]], Mapping[str, np.ndarray]]  # attributes of texts


def sentences(rng: np.random.Generator, per_template: int, teacher: Teacher) -> list[Row]:
    """Filled sentences of `training_sentences.yaml`, with the targets nearest to the teacher's scores on the right side.

    A harmless sentence keeps the teacher's score up to HARMLESS, and a toxic one keeps it if it is higher than the file's
    target. So the order of texts changes as little as it can.
    """
    file = read_sentences(SENTENCES)
    kinds = [kind for kind in file.kinds if kind.name not in RUDE]
    made = [
        (kind, text) for kind in kinds for text in filled(kind, file.slots, rng, per_template * len(kind.templates))
    ]
    said = teacher([text for _, text in made])

    def nearest(target: float, score: float) -> float:
        return max(target, score if target >= LINE else min(score, HARMLESS))

    return [
        (
            "sentences",
            text,
            {SENTENCE + name: nearest(value, float(said[name][i])) for name, value in kind.targets.items()},
        )
        for i, (kind, text) in enumerate(made)
    ]


def fragments(texts: Sequence[str], rng: np.random.Generator, count: int, teacher: Teacher) -> list[Row]:
    """Parts of 3 to 21 words of ordinary texts, as the teacher scores them.

    A part that names a group is left out: there the teacher repeats Perspective's faults.
    """
    slots = read_sentences(SENTENCES).slots
    names = {word.lower() for slot in ("adj", "one", "group") for name in slots[slot] for word in name.split()} - PLAIN
    made = []
    for i in rng.integers(len(texts), size=count):
        words = texts[i].split()
        size = int(rng.integers(3, 22))
        begin = int(rng.integers(max(len(words) - size, 1)))
        part = " " * int(rng.integers(2)) + " ".join(words[begin : begin + size])
        if part.strip() and names.isdisjoint(re.findall("[a-z']+", part.lower())):
            made.append(part)
    said = teacher(made)
    return [("taught", text, {TAUGHT + name: float(said[name][i]) for name in said}) for i, text in enumerate(made)]


def respelled(rows: Sequence[Row], rng: np.random.Generator, count: int) -> Iterator[Row]:
    """Yield texts of the 2020 scale in which half of the longer words are respelled; their scores stay."""
    attacks = [*ATTACKS.values()]
    for i in rng.permutation(len(rows))[:count]:
        document, text, targets = rows[i]
        changed = attacked(text, attacks[rng.integers(len(attacks))], rng, share=0.5)
        yield document, changed, _renamed(targets, RESPELLED)


def beginnings(rows: Sequence[Row], rng: np.random.Generator, count: int) -> Iterator[Row]:
    """Yield beginnings of clean texts, which are as clean as the text."""
    clean = [row for row in rows if row[2]["2020:toxicity"] <= CLEAN]
    for i in rng.integers(len(clean), size=count):
        document, text, targets = clean[i]
        yield document, " ".join(text.split(" ")[: int(rng.integers(1, 8))]), _renamed(targets, BEGINNING)


def nothing(frequent: Sequence[str], rng: np.random.Generator, count: int) -> Iterator[Row]:
    """Yield one word, two or three over and over.

    Args:
        frequent: Harmless words, the most frequent first.
    """
    for _ in range(count):
        few = [frequent[int(i)] for i in len(frequent) ** rng.random(size=rng.integers(1, 4)) - 1]
        yield "nothing", " ".join((few * 40)[: int(rng.integers(2, 40))]), {NOTHING + "toxicity": EMPTY}


def _renamed(targets: Mapping[str, float], name: str) -> dict[str, float]:
    return {
        name + key.partition(":")[2]: value
        for key, value in targets.items()
        if key.startswith("2020:") and key != "2020:flirtation"
    }
