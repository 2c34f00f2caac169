"""The training texts of the two embedded toxicity scorers, which share no data set.

`local` learns from `local_texts`, beside the texts with recorded Perspective scores that build_scorer.py reads. The
auditor `audit` learns from `audit_texts` alone. Both yield rows of (document, text, targets); `split_of(document)` gives
the split of a row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from scorer_net import Row, read
from split import text_document


def local_texts(data: Path) -> Iterator[Row]:
    """Yield the human labels and word lists from which `local` learns, each set under a target of its own."""
    for row in read(data / "labelled-edos-sexism/edos.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"edos": float(row["label_sexist"] == "sexist")}
    for row in read(data / "labelled-hatemojibuild/hatemojibuild.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"emoji": float(row["label_hateful"])}
    for row in read(data / "labelled-fox-news-comments/fox.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"fox": float(row["hateful"])}
    for row in read(data / "labelled-toxic-spans/comments_16k.jsonl.gz"):
        share = 1 - row["said_not_toxic"] / max(row["annotators"], 1)
        yield text_document(row["text"]), row["text"], {"civil": share}
    for row in read(data / "labelled-toxic-spans/semeval2021_spans.jsonl.gz"):
        yield from spans(row)
    for row in read(data / "sentiment-sentence-polarity/sentence_polarity.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"sentiment": float(row["label"] == "pos")}
    yield from lexicons(data / "word-lists")


def spans(row: dict) -> Iterator[Row]:
    """Yield the marked toxic words of a post, and the post without them."""
    left, last, document = "", 0, text_document(row["text"])
    for begin, end in row["toxic_char_ranges"]:
        left, last = left + row["text"][last:begin], end
        yield document, row["text"][begin:end], {"span": 1.0}
    yield document, left + row["text"][last:], {"span": 0.0}


def lexicons(folder: Path) -> Iterator[Row]:
    """Yield the words of the profanity lists and of VADER, with severity, valence and whether a list names them."""
    listed: dict[str, dict[str, float]] = {}
    with open(folder / "surge_profanity_en.csv", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            listed[row["text"].lower()] = {"severity": (float(row["severity_rating"]) - 1) / 2}
    for line in (folder / "ldnoobw_en.txt").read_text(encoding="utf-8").splitlines():
        listed.setdefault(line.strip().lower(), {})
    for line in (folder / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, mean = line.split("\t")[:2]
        yield "lexicon", word, {"valence": (float(mean) + 4) / 8, "listed": float(word.lower() in listed)}
    yield from (("lexicon", text, {**targets, "listed": 1.0}) for text, targets in listed.items())


def audit_texts(data: Path) -> Iterator[Row]:
    """Yield the texts from which the auditor learns, with one target named after their source."""
    groups = {
        row["filename"]: row["group"]
        for name in ("rtp-scored", "rtp-rescored-2023")
        for row in read(data / name / "train.jsonl.gz")
    }
    for row in read(data / "wikipedia-context-toxicity/train.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"wikipedia": row["toxicity"]}
    for row in read(data / "decodingtrust-scored-generations/train.jsonl.gz"):  # in the split of its prompt
        origin = row["source_prompt_filename"]
        yield groups.get(origin, origin), row["text"], {"generated": row["toxicity"]}
    for row in read(data / "labelled-davidson-tweets/davidson.jsonl.gz"):
        share = 1 - row["votes"]["neither"] / sum(row["votes"].values())
        yield text_document(row["text"]), row["text"], {"tweets": share}
    for row in read(data / "labelled-toxichat-reddit/toxichat.jsonl.gz"):
        turns = [*row["reddit_thread"], row["final_dgpt_response"], row["final_gpt3_response"]]
        for turn in turns:
            if turn and turn["offense_label"] in ("Safe", "Offensive"):
                yield text_document(turn["text"]), turn["text"], {"threads": float(turn["offense_label"] != "Safe")}
    for row in read(data / "labelled-diasafety/diasafety.jsonl.gz"):
        if row["category"] == "Offending User":
            yield text_document(row["response"]), row["response"], {"replies": float(row["label"] != "Safe")}
    for row in read(data / "labelled-vicomtech-stormfront/vicomtech.jsonl.gz"):
        if row["label"] in ("hate", "noHate"):
            yield text_document(row["text"]), row["text"], {"forum": float(row["label"] == "hate")}
    for row in read(data / "labelled-toxigen-human/toxigen_human.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"implicit": float(row["label"] == "hate")}
