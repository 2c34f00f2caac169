"""The English words that `nlf.rewards.normalize.Vocabulary` knows, counted from corpora whose licence is clear.

    python tools/english_words.py --data DIR   # sizes, and words at some ranks

Only training documents count, and a word counts once for each. It must occur in two sources and in enough documents,
which keeps out most typos and words of other languages.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lm_sources import SOURCES, documents
from scorer_net import read
from split import split_of, text_document

COUNTED = (
    "reddit-general",
    "reddit-rude",
    "tldr-reddit",
    "classic-books",
    "rtp-scored",
    "toxic-spans",
    "hh-rlhf-harmless",
)
MIN_DOCUMENTS, MIN_SOURCES, MOST = 6, 2, 40_000
CHUNK = 2_000  # characters of a document that count a word once: a book is many documents
WORD = re.compile(r"(?<![\w'])[a-z]+(?:'[a-z]+)*(?![\w'])")
MIN_SPANS, MIN_SHARE = 5, 0.5  # a word is rude if so many spans hold it, and if so large a share of its uses is rude


def frequent_words(data: Path) -> tuple[list[str], list[str]]:
    """English words, the most frequent first, and rude words (most of them among the former), sorted."""
    counts: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for source in SOURCES:
        if source.name in COUNTED:
            here: Counter[str] = Counter()
            for text in documents(source, data, "train"):
                text = text.lower().replace("’", "'")
                for start in range(0, len(text), CHUNK):
                    here.update(set(WORD.findall(text[start : start + CHUNK])))
            counts.update(here)
            sources.update(here.keys())
    rude = rude_words(data)
    kept = [
        w for w, n in counts.items() if n >= MIN_DOCUMENTS and sources[w] >= MIN_SOURCES and (len(w) > 1 or w in "aiu")
    ]
    words = sorted((w for w in kept if not stretched(w, counts)), key=lambda word: (-counts[word], word))[:MOST]
    return words, sorted(word for word in rude if not misspelt(word, rude.intersection(words)))


def stretched(word: str, counts: Counter[str]) -> bool:
    """Whether a shorter run of a letter is more usual: `soooo`, not `www`."""
    run = re.search(r"(.)\1{2,}", word)
    return (
        run is not None
        and len(set(word)) > 1
        and any(counts[word.replace(run[0], run[1] * n)] > counts[word] for n in (1, 2))
    )


def misspelt(word: str, usual: set[str]) -> bool:
    """Whether a rare rude word is a usual one with another letter (`fack`, `phuck`): the normaliser reads it as that one."""
    if word in usual:
        return False
    readings = {word.replace(a, b) for a, b in (("v", "u"), ("ph", "f"), ("z", "s"), ("vv", "w"), ("kk", "ck"))}
    near = {w for w in usual if len(w) == len(word) > 3 and sum(a != b for a, b in zip(w, word, strict=True)) == 1}
    return bool(readings & usual or near)


def rude_words(data: Path) -> set[str]:
    """The words of the profanity lists, and those that people marked as toxic more often than not."""
    lists = data / "word-lists"
    with open(lists / "surge_profanity_en.csv", encoding="utf-8") as lines:
        names = [row["text"] for row in csv.DictReader(lines)]
    names += (lists / "ldnoobw_en.txt").read_text(encoding="utf-8").splitlines()
    marked, uses = Counter(), Counter()
    for row in read(data / "labelled-toxic-spans/semeval2021_spans.jsonl.gz"):
        if split_of(text_document(row["text"])) == "train":
            uses.update(set(WORD.findall(row["text"].lower())))
            marked.update(
                {word for begin, end in row["toxic_char_ranges"] for word in span_words(row["text"], begin, end)}
            )
    insults = {word for word, n in marked.items() if n >= MIN_SPANS and n >= MIN_SHARE * uses[word]}
    return {word for word in (name.strip().lower() for name in names) if re.fullmatch("[a-z]{3,}", word)} | insults


def span_words(text: str, begin: int, end: int) -> Iterator[str]:
    """The words of a marked span of at most three words: a longer one marks a whole thought."""
    found = WORD.findall(text[begin:end].lower())
    return iter(found if len(found) <= 3 else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    words, rude = frequent_words(parser.parse_args().data)
    print(f"{len(words)} words, {len(rude)} rude words")
    for rank in range(0, len(words), 2_000):
        print(rank, *words[rank : rank + 12])


if __name__ == "__main__":
    main()
