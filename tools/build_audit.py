"""Build and evaluate `audit`, the auditor (src/nlf/assets/scorers/audit): a toxicity scorer that no training sees.

    python tools/build_audit.py --data DIR                                      # fit, calibrate, write the asset (CPU minutes)
    python tools/build_audit.py --data DIR --evaluate --split test              # the tables of the scorer's card
    python tools/build_audit.py --data DIR --leave_out threads --out x.safetensors  # what a source is worth

The auditor shares no data set with `local`, and has linear weights of n-grams instead of a net. It has two views of a text,
the peak of its words and the mean of its n-grams, fitted by three logistic regressions. The peak view and half of the mean
view learn from texts that Perspective scored. The other half of the mean view also learns from human labels, so that it
does not mistake the style of a source for toxicity: the texts of one source, the generated ones, are all rude, and all
sources share one bias.

A third view corrects the two where a text names a group of people, all of which are one word (audit_groups.txt). It learns
from sentences of our own (audit_sentences.yaml) and from the texts of all sources that name a group.

Choices and the curve rest on RealToxicityPrompts continuations of training and validation documents, from which no weight
learns. Only `--evaluate` reads test documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from english_words import frequent_words
from labelled_texts import audit_texts, local_texts
from scorer_evaluation import fidelity, show, speed
from scorer_net import Row, calibration, read
from sentences import filled, read_sentences
from split import split_of, text_document

from nlf.rewards import audit
from nlf.rewards.audit import ASSET, BITS, GROUP, KINDS, PHRASE_BITS, AuditToxicity, AuditToxicity1, Reader
from nlf.rewards.local import LocalToxicity
from nlf.rewards.vocabulary import Vocabulary

SCORED = ("wikipedia", "generated")  # sources scored by Perspective; people labelled the other sources
SHOWN = (
    "wikipedia",
    "tweets",
    "threads",
    "replies",
    "forum",
    "implicit",
    "edos",
    "emoji",
    "fox",
)  # sources with both classes
RIDGE = {"all": 3.0, "scored": 1.5, "peak": 0.1, "phrases": 4.0}
ITERATIONS = 60  # of L-BFGS: stopping early also regularises
OWN = 300  # sentences of our own of each kind
SURE = {True: 0.9, False: 0.05}  # targets of hateful sentences of our own, and of the others
FLOOR = 0.12  # share of clean continuations that share the lowest score, so that no empty text scores lower
TOOLS = Path(__file__).resolve().parent


def continuations(data: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Read RealToxicityPrompts continuations of a split with their recorded toxicity."""
    rows = (row for row in read(data / "rtp-scored/train.jsonl.gz") if split_of(row["group"]) == split)
    pairs = [(row["continuation"]["text"], row["continuation"]["toxicity"]) for row in rows]
    texts, scores = zip(*[(text, score) for text, score in pairs if score is not None], strict=True)
    return list(texts), np.array(scores)


def training_rows(data: Path) -> list[Row]:
    """Read one row for each distinct text of training documents, without texts that a held-out document repeats."""
    rows = list(audit_texts(data))
    held = {text_document(text) for document, text, _ in rows if split_of(document) != "train"}
    first = {text_document(text): (document, text, targets) for document, text, targets in reversed(rows)}
    return [row for name, row in reversed(first.items()) if name not in held and split_of(row[0]) == "train"]


def groups() -> list[str]:
    """The names of groups of people, in lower case."""
    return (TOOLS / "audit_groups.txt").read_text(encoding="utf-8").split()


def own_sentences(reader: Reader) -> tuple[list[str], np.ndarray]:
    """Our own sentences about groups as the words that the scorer reads, and their targets."""
    sentences, rng = read_sentences(TOOLS / "audit_sentences.yaml"), np.random.default_rng(0)
    pairs = [(text, kind.hateful) for kind in sentences.kinds for text in filled(kind, sentences.slots, rng, OWN)]
    pairs += 2 * [pair for pair in pairs if not pair[1]]  # a false alarm about a group is worse than a miss
    return [reader.read(text)[0] for text, _ in pairs], np.array([SURE[hateful] for _, hateful in pairs])


def features(read: Sequence[str], *, by_word: bool) -> tuple[sp.csr_matrix, np.ndarray]:
    """Weigh n-grams of items, which are words or whole texts; a whole text counts each n-gram once.

    Returns:
        (items, 2^BITS) factors over the divisor of the item's number of n-grams, and (items,) the text of each item.
    """
    kinds, owners = audit.ngrams(read)
    if not by_word:
        place, rows, factor = audit.distinct(kinds, owners)
        return counted(place, rows, factor, len(read), 1 << BITS), np.arange(len(read))
    items, rows = (np.concatenate(each) for each in zip(*((words, rows) for rows, words in kinds), strict=True))
    factor = np.repeat(np.array(KINDS), [len(words) for _, words in kinds])
    size = np.bincount(items, minlength=len(owners))
    values = (factor / np.sqrt(size)[items]).astype(np.float32)
    return sp.csr_matrix((values, (items, rows)), shape=(len(owners), 1 << BITS)), owners


def phrase_features(read: Sequence[str]) -> sp.csr_matrix:
    """The phrases around the groups that texts name, `(texts, 2^PHRASE_BITS)`."""
    place, rows = audit.phrases(*audit.ngrams(read))
    return counted(place, rows, np.ones(len(rows)), len(read), 1 << PHRASE_BITS)


def counted(place: np.ndarray, rows: np.ndarray, factor: np.ndarray, texts: int, width: int) -> sp.csr_matrix:
    """The factors of the different n-grams of each text over the divisor of their number."""
    over = audit.divisor(np.bincount(place, minlength=texts))
    return sp.csr_matrix(((factor / over[place]).astype(np.float32), (place, rows)), shape=(texts, width))


def fit(
    found: sp.csr_matrix,
    owners: np.ndarray,
    target: np.ndarray,
    ridge: float,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Fit a logistic regression on soft targets, in which a text's logit is the soft maximum of its items' logits.

    Args:
        known: (texts,) logits to which the items add a correction without a bias; all n-grams then count alike.

    Returns:
        (columns of `found`,) weights and the bias.
    """
    seen = np.bincount(found.indices, minlength=found.shape[1])
    used = np.flatnonzero(seen > 1)
    rarity = (
        np.log(found.shape[0] / seen[used]).astype(np.float32) if known is None else np.ones(len(used), np.float32)
    )
    found = (found[:, used] @ sp.diags(rarity)).tocsr()
    back, texts = found.T.tocsr(), len(target)
    words = np.bincount(owners, minlength=texts)

    def surprise(at: np.ndarray) -> tuple[float, np.ndarray]:
        values = found @ at[1:].astype(np.float32)
        pooled = audit.soft_maximum(values, owners, texts)
        share = np.exp(values - pooled[owners]) / words[owners]
        logits = pooled + (at[0] if known is None else known)
        slope = expit(logits) - target
        gradient = back @ (share * slope[owners]).astype(np.float32) + ridge * at[1:]
        loss = (np.logaddexp(0, logits) - target * logits).sum() + ridge / 2 * float(at[1:] @ at[1:])
        return loss, np.concatenate([[slope.sum() if known is None else 0.0], gradient])

    start = np.zeros(1 + len(used))
    start[0] = logit(target.mean()) if known is None else 0.0
    at = minimize(surprise, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "maxcor": 5}).x
    weights = np.zeros(len(seen))
    weights[used] = at[1:] * rarity
    return weights, at[0]


def roots(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Signed roots of weights in eight bits, and the scale by which their squares are multiplied."""
    scale = np.abs(weights).max() / 127**2
    return np.round(np.sign(weights) * np.sqrt(np.abs(weights) / scale)).astype(np.int8), scale


class Fits(NamedTuple):
    """What is fitted: the weights of the three views, and the sum of the biases of the three fits."""

    mean: np.ndarray
    peak: np.ndarray
    phrases: np.ndarray
    bias: float

    def write(self, knots: np.ndarray, vocabulary: Vocabulary, path: Path, card: dict) -> None:
        """Write the asset, and a .json with the card and the sha256."""
        (mean, *scales), (peak, second), (phrases, third) = map(roots, self[:3])
        arrays = {
            "table": np.stack([mean, peak], axis=1),
            "phrases": phrases,
            "scale": np.array([*scales, second, third]),
        }
        arrays |= {"bias": np.array([self.bias]), "calibration": knots}
        arrays |= {"vocabulary": vocabulary.words, "rude": vocabulary.rude}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path)
        path.chmod(0o644)  # safetensors writes for the owner alone
        stamp = {"table_scale": 1.0, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(card | stamp, indent=1) + "\n")


def fits(read: Sequence[str], target: np.ndarray, scored: np.ndarray, own: tuple[list[str], np.ndarray]) -> Fits:
    """Fit all views.

    Args:
        read: The words of the training texts.
        scored: The indices of the texts that Perspective scored.
        own: Sentences of our own and their targets.
    """
    found, owners = features(read, by_word=False)
    everything, bias = fit(found, owners, target, RIDGE["all"])
    only, bias_only = fit(found[scored], np.arange(len(scored)), target[scored], RIDGE["scored"])
    found, owners = features([read[i] for i in scored], by_word=True)
    peak, bias_peak = fit(found, owners, target[scored], RIDGE["peak"])
    both = Fits(
        everything + only,
        peak,
        np.zeros(1 << PHRASE_BITS),
        bias + bias_only + bias_peak,
    )
    naming = [i for i, text in enumerate(read) if GROUP in text]
    texts, targets = [*own[0], *(read[i] for i in naming)], np.concatenate([own[1], target[naming]])
    found = phrase_features(texts)
    said, _ = fit(found, np.arange(len(texts)), targets, RIDGE["phrases"], known=logits(both, texts))
    return both._replace(phrases=said)


def logits(views: Fits, read: Sequence[str]) -> np.ndarray:
    """The logits of texts by the mean and the peak view."""
    mean, _ = features(read, by_word=False)
    words, owners = features(read, by_word=True)
    peak = audit.soft_maximum(words @ views.peak, owners, len(read))
    return (mean @ views.mean + peak + views.bias) / 3


def curve(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The knots of a monotone map to the recorded scores, in which a share FLOOR of the clean texts has the lowest value."""
    known = ~np.isnan(scores)
    knots = calibration(scores[known], truth[known])
    low = np.quantile(scores[known & (truth < 0.5)], FLOOR)
    lowest = np.interp(low, *knots)
    return np.concatenate([[[0, low], [lowest, lowest]], knots[:, knots[0] > low]], axis=1).astype(np.float32)


def build(args: argparse.Namespace) -> None:
    """Fit, calibrate and write the asset."""
    rows = [row for row in training_rows(args.data) if args.leave_out not in row[2]]
    vocabulary = Vocabulary.of(*frequent_words(args.data))
    reader = Reader(vocabulary, groups())
    names, target = zip(*[item for *_, targets in rows for item in targets.items()], strict=True)
    print(f"{len(rows)} training texts: {dict(Counter(names))}", flush=True)
    read = [reader.read(text)[0] for _, text, _ in rows]
    scored = np.flatnonzero(np.isin(names, SCORED))
    found = fits(read, np.array(target, dtype=float), scored, own_sentences(reader))
    card = {"name": "audit", "version": 2, "scale": "Perspective TOXICITY, 2020 (RealToxicityPrompts)"}
    card |= {"attributes": ["toxicity"], "texts_per_source": dict(Counter(names)), "groups": groups()}
    found.write(np.array([[0, 1], [0, 1]], dtype=np.float32), vocabulary, args.out, card)
    held, truth = zip(*(continuations(args.data, split) for split in ("validation", "train")), strict=True)
    scores = [AuditToxicity(args.out).attributes(texts)["toxicity"] for texts in held]
    for split, each, true in zip(("validation", "train"), scores, truth, strict=True):
        print(f"{split}, before calibration: {fidelity(each[~np.isnan(each)], true[~np.isnan(each)])}")
    found.write(curve(np.concatenate(scores), np.concatenate(truth)), vocabulary, args.out, card)


def evaluate(args: argparse.Namespace) -> None:
    """Print the tables of the asset, on the texts that both scorers can score."""
    scorer, local = AuditToxicity(args.out), LocalToxicity()
    texts, truth = continuations(args.data, args.split)
    ours, first, theirs = (each.attributes(texts)["toxicity"] for each in (scorer, AuditToxicity1(), local))
    known = ~np.isnan(ours) & ~np.isnan(theirs)
    print(f"split {args.split}, RealToxicityPrompts continuations")
    print(f"audit cannot score {np.isnan(ours).sum()} of {len(texts)}, local {np.isnan(theirs).sum()}")
    ours, first, theirs, truth = (each[known] for each in (ours, first, theirs, truth))
    scorers = {"audit": ours, "audit@1": first, "local": theirs, "mean of audit and local": (ours + theirs) / 2}
    found = {name: fidelity(scores, truth) for name, scores in scorers.items()}
    show(["scorer", "n", "Spearman", "Pearson", "AUC", "MAE"], found)
    correlations(ours, theirs, truth)
    people(scorer, local, args)
    speed(AuditToxicity(args.out), [f"{text} {i}" for i in range(10) for text in texts])


def correlations(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> None:
    """Print rank correlations of both scorers and of their errors, with 95 % bootstrap intervals."""

    def ranks(i: np.ndarray | slice) -> list[float]:
        errors = rankdata(ours[i]) - rankdata(truth[i]), rankdata(theirs[i]) - rankdata(truth[i])
        pairs = (ours[i], truth[i]), (ours[i], theirs[i]), (ours[i] - truth[i], theirs[i] - truth[i]), errors
        return [spearmanr(*pair)[0] for pair in pairs]

    draws = np.random.default_rng(0).integers(len(truth), size=(1000, len(truth)))
    bounds = np.quantile([ranks(draw) for draw in draws], [0.025, 0.975], axis=0).T
    names = ("audit and Perspective", "audit and local", "their errors", "their errors in rank")
    rows = {
        name: {"value": round(value, 3), "low": round(low, 3), "high": round(high, 3)}
        for name, value, (low, high) in zip(names, ranks(slice(None)), bounds, strict=True)
    }
    show(["rank correlation", "value", "2.5 %", "97.5 %"], rows)


def people(scorer: AuditToxicity, local: LocalToxicity, args: argparse.Namespace) -> None:
    """Print the AUC of both scorers on held-out documents: first the auditor's sources, then those of `local`."""
    held: dict[str, list[tuple[str, float]]] = {}
    for document, text, targets in (*audit_texts(args.data), *local_texts(args.data)):
        name, value = next(iter(targets.items()))
        if split_of(document) == args.split and name in SHOWN:
            held.setdefault(name, []).append((text, value))
    found = {}
    for name, pairs in held.items():
        texts, values = zip(*pairs, strict=True)
        scores = [each.attributes(texts)["toxicity"] for each in (scorer, local)]
        known, toxic = ~np.isnan(scores).any(axis=0), np.array(values) >= 0.5
        aucs = [round(roc_auc_score(toxic[known], each[known]), 3) for each in scores]
        found[name] = {"n": int(known.sum()), "audit": aucs[0], "local": aucs[1]}
    show(["held-out documents", "n", "AUC", "AUC of local"], found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--leave_out", help="a source of training texts, to see what it is worth; give --out, too")
    parser.add_argument("--evaluate", action="store_true", help="only print the tables of the asset")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    args = parser.parse_args()
    if args.leave_out and args.out == ASSET:
        parser.error("--leave_out needs --out, another file than the scorer's")
    evaluate(args) if args.evaluate else build(args)


if __name__ == "__main__":
    main()
