"""The tables on the card of the local toxicity scorer that need data sets; scorer_suite.py prints the others.

`build_scorer.py --evaluate` prints them: agreement with recorded scores and human labels, beside the version before and,
where it can be imported, `alt-profanity-check`; which words the scorer points at; scores of prefixes; speed. (That package
is a pickle that runs code when loaded: install it in a folder of its own, with the scikit-learn it names.) A text that one
of the scorers in a table cannot score is counted, and left out of their figures. Brackets hold the intervals of bootstrap.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bootstrap import Figure, auc, cells, pearson, spearman
from labelled_texts import audit_texts, local_texts
from scorer_net import Row, read
from split import split_of, text_document
from suite_figures import Scorer, flagged, seconds

from nlf.data.markdown import markdown_table
from nlf.rewards.contract import Share

Scorers = Mapping[str, Scorer]
SCALES = {"2020": "rtp-scored", "2023": "rtp-rescored-2023", "2018": "wikipedia-2k", "2019": "github-comments"}
OTHER = "alt-profanity-check"
SETS = {
    "wikipedia": "wikipedia-context-toxicity",
    "generated": "decodingtrust-scored-generations",
}  # unseen by `local`
LABELLED = {  # name of a target → (name in the table, whether `local` never trained on the set: then all of it counts)
    "tweets": ("labelled-davidson-tweets", True),
    "replies": ("labelled-diasafety, Offending User", True),
    "edos": ("labelled-edos-sexism", False),
    "fox": ("labelled-fox-news-comments", False),
    "emoji": ("labelled-hatemojibuild", False),
    "civil": ("labelled-toxic-spans", False),
    "threads": ("labelled-toxichat-reddit", True),
    "implicit": ("labelled-toxigen-human", True),
    "forum": ("labelled-vicomtech-stormfront", True),
}
LENGTHS = ((1, 8), (9, 16), (17, 99))  # words; RealToxicityPrompts has no longer texts
FIRST = (1, 2, 3, 5, 8)  # words of a prefix
HALF, CLEAN = 0.5, 0.1  # recorded scores: toxic from HALF on, clean below CLEAN


class ProfanityCheck:
    """`alt-profanity-check`, a linear model over words; its probability of profanity counts as toxicity."""

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        from profanity_check import predict_prob

        return {"toxicity": np.asarray(predict_prob(list(texts)), dtype=float)}


def others() -> dict[str, Scorer]:
    """The other scorers that are installed."""
    return {OTHER: ProfanityCheck()} if importlib.util.find_spec("profanity_check") else {}


# ---- figures ------------------------------------------------------------------------------------------------------

FIDELITY: dict[str, Figure] = {
    "Spearman": spearman,
    "Pearson": pearson,
    "AUC": lambda scores, truth: auc(scores, truth >= HALF),
    "MAE": lambda scores, truth: float(np.abs(scores - truth).mean()),
}


def fidelity(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Agreement with recorded scores; texts without one (NaN) are left out. AUC counts recorded >= .5 as positive."""
    known = ~np.isnan(truth)
    row = {"n": float(known.sum())}
    row |= {name.lower(): figure(scores[known], truth[known]) for name, figure in FIDELITY.items()}
    return {name: round(value, 3) for name, value in row.items()}


def figured(
    figures: Mapping[str, Figure], scores: np.ndarray, truth: np.ndarray, documents: np.ndarray
) -> list[object]:
    """The number of texts that all scorers can score, that of the others, and each figure of every scorer in turn.

    Args:
        scores: `(N, scorers)`
        truth: `(N,)`; what a figure compares a scorer's scores with.
        documents: `(N,)` the name of each text's document.
    """
    scored = ~np.isnan(scores).any(axis=1)
    parts: dict[str, Figure] = {
        f"{name} {i}": lambda scores, truth, figure=figure, i=i: figure(scores[:, i], truth)
        for name, figure in figures.items()
        for i in range(scores.shape[1])
    }
    found = cells(parts, (scores[scored], truth[scored]), documents[scored])
    return [int(scored.sum()), int((~scored).sum()), *found.values()]


# ---- tables -------------------------------------------------------------------------------------------------------


def show(headings: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of named rows of figures; the first heading is that of the names."""
    table(headings, ([name, *(f"{value:g}" for value in row.values())] for name, row in rows.items()))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{markdown_table(headings, rows)}", flush=True)


def headed(figures: Iterable[str], scorers: Iterable[str]) -> list[str]:
    """The headings of `figured`."""
    return ["n", "cannot be scored", *(f"{figure}: {name}" for figure in figures for name in scorers)]


def toxicity(scorers: Scorers, texts: Sequence[str]) -> np.ndarray:
    """`(N, scorers)`"""
    return np.stack([np.asarray(scorer.attributes(texts)["toxicity"]) for scorer in scorers.values()], axis=1)


def recorded(scorer: Scorer, rows: Sequence[Row], split: str) -> None:
    """Print the fidelity on the 2020 scale for each kind and length of text and for each attribute."""
    rows = [row for row in rows if "2020:toxicity" in row[2] and split_of(row[0]) == split]
    scores = scorer.attributes([text for _, text, _ in rows])
    documents, lengths = np.array([row[0] for row in rows]), np.array([len(text.split()) for _, text, _ in rows])
    starts = np.array([text[:1] == " " for _, text, _ in rows])
    parts = {"toxicity": np.ones(len(rows), dtype=bool)}
    parts |= {"toxicity, begins with a space (continuations)": starts}
    parts |= {"toxicity, begins without (prompts, some continuations)": ~starts}
    parts |= {f"toxicity, {low} to {high} words": (lengths >= low) & (lengths <= high) for low, high in LENGTHS}
    parts |= {name: parts["toxicity"] for name in scores if name != "toxicity"}
    found = []
    for name, part in parts.items():
        attribute = name.partition(",")[0]
        truth = np.array([targets.get(f"2020:{attribute}", np.nan) for _, _, targets in rows])
        part = part & ~np.isnan(truth)
        found.append([name, *figured(FIDELITY, scores[attribute][part, None], truth[part], documents[part])])
    table([f"recorded 2020, split {split}", "n", "cannot be scored", *FIDELITY], found)


def beside(scorers: Scorers, rows: Sequence[Row], extra: Sequence[Row], split: str) -> None:
    """Print the figures of all scorers on every set with recorded scores."""
    heads = {name: f"{scale}:toxicity" for scale, name in SCALES.items()} | {shown: key for key, shown in SETS.items()}
    figures = {name: FIDELITY[name] for name in ("Spearman", "AUC", "MAE")}
    found = []
    for name, head in heads.items():
        some = [(d, text, t[head]) for d, text, t in (*rows, *extra) if head in t and split_of(d) == split]
        documents, texts, truth = zip(*some, strict=True)
        row = figured(figures, toxicity(scorers, texts), np.array(truth), np.array(documents))
        found.append([name, sum(value >= HALF for value in truth), *row])
    table([f"recorded, split {split}", ">= .5", *headed(figures, scorers)], found)


def people(data: Path) -> Iterator[tuple[str, bool, Row]]:
    """Yield the set's name, whether all of it counts, and the row with its human label as the only target."""
    for document, text, targets in (*audit_texts(data), *local_texts(data)):
        name, value = next(iter(targets.items()))
        if name in LABELLED:
            yield *LABELLED[name], (document, text, {"label": value})
    for name in ("github-comments-perspective", "wikipedia-context-toxicity"):
        for row in read(data / name / "train.jsonl.gz"):
            label = {"label": float(row["human_toxic"])}
            yield f"{name} (human label)", False, (text_document(row["text"]), row["text"], label)


def human(scorers: Scorers, data: Path, split: str) -> None:
    """Print AUCs on human labels: of all texts in sets that `local` never trained on, else of the split's documents."""
    labelled: dict[str, list[tuple[str, str, bool]]] = {}
    for name, whole, (document, text, targets) in people(data):
        if whole or split_of(document) == split:
            shown = f"{name} ({'all, never trained on' if whole else f'{split} documents'})"
            labelled.setdefault(shown, []).append((document, text, targets["label"] >= HALF))
    found = []
    for name, some in sorted(labelled.items()):
        documents, texts, labels = zip(*some, strict=True)
        row = figured({"AUC": auc}, toxicity(scorers, texts), np.array(labels), np.array(documents))
        found.append([name, sum(labels), *row])
    table(["human labels", "toxic", *headed(["AUC"], scorers)], found)


class Pointed(NamedTuple):
    """How well a scorer's shares of one text point at the marked characters.

    Attributes:
        auc: The probability that a marked word has a higher share than another word of the text.
        top: Whether the word with the highest share is marked.
        marked: The share of marked words, which `top` would have by chance.
        f1: Of the characters of words that raise the score, against the marked ones.
    """

    auc: float
    top: float
    marked: float
    f1: float


def pointed(shares: Sequence[Share], ranges: Sequence[tuple[int, int]], text: str) -> Pointed | None:
    """Compare the words' shares with marked characters; None if all words or no words are marked."""
    marks, raised = np.zeros(len(text), dtype=bool), np.zeros(len(text), dtype=bool)
    for begin, end in ranges:
        marks[begin:end] = True
    for share in shares:
        raised[share.start : share.end] |= share.share > 0
    marked = np.array([marks[share.start : share.end].any() for share in shares])
    if not len(marked) or marked.all() or not marked.any():
        return None
    values = np.array([share.share for share in shares])
    f1 = 2 * (marks & raised).sum() / (marks.sum() + raised.sum())
    return Pointed(auc(values, marked), float(marked[values.argmax()]), float(marked.mean()), float(f1))


def attribution(scorer: Scorer, data: Path, split: str) -> None:
    """Print how well `explain` points at the words that people marked as toxic in news comments."""
    found, documents = [], []
    for row in read(data / "labelled-toxic-spans/semeval2021_spans.jsonl.gz"):
        document = text_document(row["text"])
        if split_of(document) == split:
            each = pointed(scorer.explain(row["text"]), row["toxic_char_ranges"], row["text"])
            if each is not None:
                found.append(each)
                documents.append(document)
    figures: dict[str, Figure] = {name: lambda x, i=i: float(x[:, i].mean()) for i, name in enumerate(Pointed._fields)}
    row = cells(figures, [np.array(found)], np.array(documents))
    names = ["AUC of the shares", "highest word is marked", "marked words", "F1 of the characters by sign"]
    table([f"marked comments, split {split}", *names], [[len(found), *row.values()]])


def ends(text: str) -> list[int]:
    """Where each word between white space ends."""
    return [match.end() for match in re.finditer(r"\S+", text)]


def prefixes(scorer: Scorer, rows: Sequence[Row], split: str) -> None:
    """Print how the first words of recorded texts score beside the whole texts, and what all prefixes cost."""
    recorded = [(text, t["2020:toxicity"]) for d, text, t in rows if "2020:toxicity" in t and split_of(d) == split]
    sides = {"below .1": [text for text, value in recorded if value < CLEAN]}
    sides["at .5 or more"] = [text for text, value in recorded if value >= HALF]
    found = []
    for name, texts in sides.items():
        texts = [text for text in texts if len(ends(text)) > max(FIRST)]
        scores = np.stack(
            [
                scorer.score_prefixes(text, [*(ends(text)[n - 1] for n in FIRST), len(text)])["toxicity"]
                for text in texts
            ]
        )
        for words, each in zip([*FIRST, "all"], scores.T, strict=True):
            low, median, high = (f"{value:.3f}" for value in np.nanquantile(each, [0.05, 0.5, 0.95]))
            found.append(
                [name, words, len(texts), int(np.isnan(each).sum()), f"{median} ({low}–{high})", flagged(each)]
            )
    table(["recorded", "first words", "n", "cannot be scored", "median (5 to 95 %)", "at .5 or more"], found)
    cost(scorer, [text for text, _ in recorded])


def cost(scorer: Scorer, texts: Sequence[str]) -> None:
    """Print what the scores after each word cost, and whether they are those of the prefixes alone."""
    scorer.attributes(texts)  # the vectors of the words are known from here on
    whole = together = largest = 0.0
    for text in texts:
        begin = time.process_time()
        scorer.attributes([text])
        middle = time.process_time()
        found = scorer.score_prefixes(text, ends(text))["toxicity"]
        whole, together = whole + middle - begin, together + time.process_time() - middle
        alone = np.asarray(scorer.attributes([text[:end] for end in ends(text)])["toxicity"])
        same = np.array_equal(np.isnan(alone), np.isnan(found))
        largest = max(largest, float(np.nanmax(np.abs(alone - found), initial=0)) if same else np.inf)
    print(
        f"\nthe score after each word of {len(texts)} texts: {together / whole:.2f} times the CPU time of whole texts"
    )
    print(f"largest difference from the score of the prefix alone: {largest:g}")


def speed(scorer: Scorer, texts: Sequence[str]) -> None:
    """Print texts a second, in CPU time so that other work does not count. Distinct texts keep the word cache cold."""
    short = [" " + " ".join(text.split()[:15]) for text in texts]
    print(f"\n{len(short) / seconds(scorer, short):.0f} texts of at most 15 words a second of CPU time")


def evaluate(args: argparse.Namespace, perspective: Callable[[Path], Iterator[Row]]) -> None:
    """Print all tables; `perspective` yields the texts with recorded scores."""
    from nlf.rewards.convolution import LocalToxicity1
    from nlf.rewards.local import LocalToxicity

    begin = time.perf_counter()
    scorer = LocalToxicity(args.out)
    print(f"loaded in {time.perf_counter() - begin:.2f} s")
    rows = list(perspective(args.data))
    scorers = {"local@2": scorer, "local@1": LocalToxicity1(), **others()}
    recorded(scorer, rows, args.split)
    beside(scorers, rows, list(audit_texts(args.data)), args.split)
    human(scorers, args.data, args.split)
    attribution(scorer, args.data, args.split)
    prefixes(scorer, rows, args.split)
    for name, each in {**scorers, "local@2": LocalToxicity(args.out), "local@1": LocalToxicity1()}.items():
        print(f"\n{name}")
        speed(each, [text for _, text, _ in rows])
