"""Build and evaluate `audit`, the auditor (src/nlf/assets/scorers/audit): a toxicity scorer that no training sees.

    python tools/build_audit.py --data DIR                          # fit, calibrate, write the asset (about a minute, 1 core)
    python tools/build_audit.py --data DIR --evaluate --split test  # the tables of the scorer's card

The auditor shares no data set with `local`, and has linear weights of n-grams instead of a net. It has two views of a text,
the peak of its words and the mean of its n-grams, fitted by three logistic regressions. The peak view and half of the mean
view learn from texts that Perspective scored. The other half of the mean view also learns from human labels, so that it
does not mistake the style of a source for toxicity: the texts of one source, the generated ones, are all rude, and all
sources share one bias. Choices and calibration rest on RealToxicityPrompts continuations of the validation split. Only
`--evaluate` reads test documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from labelled_texts import audit_texts, local_texts
from scorer_evaluation import fidelity, show, speed
from scorer_net import Row, calibration, read
from split import split_of, text_document

from nlf.rewards.audit import ASSET, BITS, KINDS, AuditToxicity, ngrams, soft_maximum
from nlf.rewards.local import LocalToxicity

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
RIDGE = {"all": 3.0, "scored": 1.5, "peak": 0.1}
ITERATIONS = 60  # of L-BFGS: stopping early also regularises


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


def features(texts: Sequence[str], *, by_word: bool) -> tuple[sp.csr_matrix, np.ndarray]:
    """Count n-grams of items, which are words or whole texts.

    Returns:
        (items, 2^BITS) counts over the root of the item's number of n-grams, and (items,) the text of each item.
    """
    kinds, owners = ngrams(texts)
    place = np.arange(len(owners)) if by_word else owners
    items = np.concatenate([place[words] for _, words in kinds])
    rows = np.concatenate([rows for rows, _ in kinds]).astype(np.int32)
    factor = np.repeat(np.array(KINDS, dtype=np.float32), [len(words) for _, words in kinds])
    count = len(owners) if by_word else len(texts)
    size = np.bincount(items, minlength=count)
    found = sp.csr_matrix((factor / np.sqrt(size, dtype=np.float32)[items], (items, rows)), shape=(count, 1 << BITS))
    return found, owners if by_word else np.arange(count)


def fit(found: sp.csr_matrix, owners: np.ndarray, target: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Fit a logistic regression on soft targets, in which a text's logit is the soft maximum of its items' logits.

    Returns:
        (2^BITS,) weights and the bias.
    """
    seen = np.bincount(found.indices, minlength=found.shape[1])
    rarity = np.where(seen > 1, np.log(found.shape[0] / np.maximum(seen, 1)), 0).astype(np.float32)
    found = (found @ sp.diags(rarity)).tocsr()
    found.eliminate_zeros()
    back, texts = found.T.tocsr(), len(target)
    words = np.bincount(owners, minlength=texts)

    def surprise(at: np.ndarray) -> tuple[float, np.ndarray]:
        values = found @ at[1:]
        pooled = soft_maximum(values, owners, texts)
        share = np.exp(values - pooled[owners]) / words[owners]
        logits = pooled + at[0]
        slope = expit(logits) - target
        gradient = back @ (share * slope[owners]).astype(np.float32) + ridge * at[1:]
        loss = (np.logaddexp(0, logits) - target * logits).sum() + ridge / 2 * float(at[1:] @ at[1:])
        return loss, np.concatenate([[slope.sum()], gradient])

    start = np.zeros(1 + found.shape[1])
    start[0] = logit(target.mean())
    at = minimize(surprise, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "maxcor": 5}).x
    return at[1:] * rarity, at[0]


def write(views: Sequence[np.ndarray], bias: float, knots: np.ndarray, path: Path, card: dict) -> None:
    """Write the weights of the views as signed roots in one table, and a .json with the card and the sha256."""
    scale = np.array([np.abs(weights).max() / 127**2 for weights in views])
    roots = [np.sign(weights) * np.sqrt(np.abs(weights) / s) for weights, s in zip(views, scale, strict=True)]
    arrays = {"table": np.round(np.stack(roots, axis=1)).astype(np.int8), "scale": scale}
    arrays |= {"bias": np.array([bias]), "calibration": knots}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
    stamp = {"table_scale": 1.0, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card | stamp, indent=1) + "\n")


def build(args: argparse.Namespace) -> None:
    """Fit, calibrate and write the asset."""
    rows = training_rows(args.data)
    texts = [text for _, text, _ in rows]
    names, target = zip(*[item for *_, targets in rows for item in targets.items()], strict=True)
    target, scored = np.array(target, dtype=float), np.flatnonzero(np.isin(names, SCORED))
    print(f"{len(texts)} training texts: {dict(Counter(names))}", flush=True)
    found, owners = features(texts, by_word=False)
    everything, bias = fit(found, owners, target, RIDGE["all"])
    only, bias_only = fit(found[scored], np.arange(len(scored)), target[scored], RIDGE["scored"])
    found, owners = features([texts[i] for i in scored], by_word=True)
    peak, bias_peak = fit(found, owners, target[scored], RIDGE["peak"])
    card = {"name": "audit", "version": 1, "scale": "Perspective TOXICITY, 2020 (RealToxicityPrompts)"}
    card |= {"attributes": ["toxicity"], "texts_per_source": dict(Counter(names))}
    views, bias = [everything + only, peak], bias + bias_only + bias_peak
    write(views, bias, np.array([[0, 1], [0, 1]], dtype=np.float32), args.out, card)
    held, truth = continuations(args.data, "validation")
    scores = AuditToxicity(args.out).attributes(held)["toxicity"]
    print(f"validation before calibration: {fidelity(scores, truth)}")
    write(views, bias, calibration(scores, truth), args.out, card)


def evaluate(args: argparse.Namespace) -> None:
    """Print the tables of the asset."""
    scorer, local = AuditToxicity(args.out), LocalToxicity()
    texts, truth = continuations(args.data, args.split)
    ours, theirs = (each.attributes(texts)["toxicity"] for each in (scorer, local))
    print(f"split {args.split}, RealToxicityPrompts continuations")
    scorers = {"audit": ours, "local": theirs, "mean of both": (ours + theirs) / 2}
    found = {name: fidelity(scores, truth) for name, scores in scorers.items()}
    show(["scorer", "n", "Spearman", "Pearson", "AUC", "MAE"], found)
    correlations(ours, theirs, truth)
    people(scorer, local, args)
    print(f"a text without words: {scorer.attributes([''])['toxicity'][0]}")
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
        aucs = [round(roc_auc_score(np.array(values) >= 0.5, each), 3) for each in scores]
        found[name] = {"n": len(texts), "audit": aucs[0], "local": aucs[1]}
    show(["held-out documents", "n", "AUC", "AUC of local"], found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--evaluate", action="store_true", help="only print the tables of the asset")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    args = parser.parse_args()
    evaluate(args) if args.evaluate else build(args)


if __name__ == "__main__":
    main()
