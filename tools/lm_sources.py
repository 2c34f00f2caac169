"""The corpora of the embedded language model: their origin and licence, and how a row becomes text.

`Source.weight` is a source's share of the training windows, whatever its size. Short rude comments weigh far more than
their size, and books weigh little, or the model turns archaic. Share-alike corpora are left out, because the weights ship.
"""

import gzip
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from split import split_of, text_document


def raw_text(row: dict) -> str:
    """The unchanged text of a row, which names a document without an id in the split."""
    return row.get("text") or row.get("chosen") or row["prompt"]["text"]


@dataclass(frozen=True)
class Source:
    """A corpus: its files (a glob under the data folder), share, licence, origin, and functions of a row."""

    name: str
    files: str
    weight: float
    licence: str
    origin: str
    text: Callable[[dict], str]
    key: Callable[[dict], str] = lambda row: text_document(raw_text(row))


def plain(row: dict) -> str:
    return row["text"]


def titled(row: dict) -> str:
    return f"{row['title']}\n\n{row['text']}"


def summarised(row: dict) -> str:
    return f"{row['title']}\n\n{row['post']}\n\nTL;DR: {row['summary']}"


def joined(row: dict) -> str:
    """Prompt and continuation; continuations of RealToxicityPrompts start with their own space, sentiment ones do not."""
    prompt, rest = row["prompt"]["text"], row["continuation"]["text"]
    return prompt + rest if rest[:1] == " " or "filename" in row else f"{prompt} {rest}"


def untokenised(row: dict) -> str:
    """Remove the spaces around punctuation in tokenised corpora."""
    text = raw_text(row).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" (n't\b|'\w{1,2}\b|[.,!?;:)]+)", r"\1", text).replace("( ", "(")


def by_id(row: dict) -> str:
    return row["id"]


def by_title(row: dict) -> str:
    return row["title"]


def by_group(row: dict) -> str:
    return str(row["group"])


REDDIT = "umbrae/reddit-top-2.5-million"
SOURCES = [
    Source("reddit-general", "lm-reddit-posts/general.jsonl.gz", 0.24, "ODC PDDL-1.0", REDDIT, titled, by_id),
    Source("reddit-rude", "lm-reddit-posts/rude.jsonl.gz", 0.16, "ODC PDDL-1.0", REDDIT, titled, by_id),
    Source("tldr-reddit", "tldr-reddit/*.jsonl.gz", 0.10, "ODC PDDL-1.0", REDDIT, summarised, by_id),
    Source(
        "classic-books", "lm-classic-books/*.jsonl.gz", 0.06, "public domain", "mlschmitt/classic-books-markdown",
        plain, by_title,
    ),
    Source(
        "rtp-scored", "rtp-scored/*.jsonl.gz", 0.09, "Apache-2.0", "RealToxicityPrompts (Gehman et al. 2020)",
        joined, by_group,
    ),
    Source(
        "toxic-spans", "labelled-toxic-spans/*.jsonl.gz", 0.12, "CC0-1.0",
        "ipavlopoulos/toxic_spans (Civil Comments)", plain,
    ),
    Source("edos-sexism", "labelled-edos-sexism/*.jsonl.gz", 0.06, "CC0-1.0", "rewire-online/edos", plain),
    Source(
        "davidson-tweets", "labelled-davidson-tweets/*.jsonl.gz", 0.05, "MIT",
        "t-davidson/hate-speech-and-offensive-language", plain,
    ),
    Source(
        "hh-rlhf-harmless", "hh-rlhf-harmless/*.jsonl.gz", 0.03, "MIT", "anthropics/hh-rlhf",
        lambda row: row["chosen"].strip(),
    ),
    Source(
        "movie-reviews", "sentiment-movie-reviews/*.jsonl.gz", 0.03, "CC-BY-4.0",
        "Pang and Lee 2004, through nltk_data", untokenised, by_id,
    ),
    Source(
        "sentence-polarity", "sentiment-sentence-polarity/*.jsonl.gz", 0.01, "CC-BY-4.0",
        "Pang and Lee 2005, through nltk_data", untokenised,
    ),
    Source(
        "pros-cons", "sentiment-pros-cons/*.jsonl.gz", 0.01, "CC-BY-4.0", "Liu 2008, through nltk_data", plain,
    ),
    Source(
        "sentiment-prompts", "sentiment-prompts-owt/*.jsonl.gz", 0.02, "MIT; text of OpenWebText, CC0",
        "DExperts' prompts, through Glaciohound/LM-Steer", joined, lambda row: row["md5_hash"],
    ),
    Source(
        "writing-prompts", "writing-prompts-ood/*.jsonl.gz", 0.02, "MIT",
        "r/WritingPrompts (Fan et al. 2018), through sauc-abadal/ALT", untokenised,
    ),
]  # fmt: skip


def clean(text: str) -> str:
    """Drop masks, retweet heads and emoji, which cost a small vocabulary much, and normalise white space."""
    text = re.sub(r"\[(URL|USER|EMAIL|NUM)\]|\bRT @USER:?|@USER:?|\bURL\b", "", html.unescape(text))
    text = re.sub(r"[^\n\x20-\x7e\xa0-\u017f\u2010-\u2027\u20ac]", "", text.replace("\t", " ").lstrip(' "!:\n'))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))).strip()


def documents(source: Source, data: Path, part: str) -> Iterator[str]:
    """Yield the cleaned, distinct texts of a source in one part of the split."""
    seen = set()
    for path in sorted(data.glob(source.files)):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                text = clean(source.text(row))
                digest = hashlib.sha256(text.encode()).hexdigest()
                if text and digest not in seen and split_of(source.key(row)) == part:
                    seen.add(digest)
                    yield text
