"""Test scorers of toxicity beside each other: hate and what looks like it, identity terms, respelled words, empty text.

    python tools/scorer_suite.py --reward_funcs local audit              # on texts of our own
    python tools/scorer_suite.py --reward_funcs local audit --data DIR   # also on held-out texts with recorded scores
    python tools/scorer_suite.py --reward_funcs local --tables suite identity

It takes every scorer with the attribute `toxicity`, by its name in `nlf score --list` or its dotted path. A text that a
scorer cannot score counts as not toxic; "unscored" is the share of such texts. Brackets hold 95 % intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import suite_figures as figures
import suite_texts as texts
from attacks import long_word
from suite_figures import Scorer, Share

from nlf.data.markdown import markdown_table, printable
from nlf.errors import UserError
from nlf.rewards.contract import Reward
from nlf.rewards.registry import resolve_reward

Scorers = Mapping[str, Scorer]
SHOWN = 40  # characters of a text in a table


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{markdown_table(headings, rows)}", flush=True)


def columns(heads: Sequence[str], scorers: Iterable[str]) -> list[str]:
    """Every heading for every scorer."""
    return [f"{name}: {head}" for name in scorers for head in heads]


def without(share: Share) -> str:
    """The share that cannot be scored."""
    return f"{share.unscored / share.of:.2f}" if share.of else "–"


def suites(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print the accuracy on every functionality, then balanced accuracy and AUC."""
    kinds = texts.functionalities(args.count)
    found = {name: figures.suite(scorer, kinds) for name, scorer in scorers.items()}
    parts = {
        f"{name}, {attribute}": suite for name, attributes in found.items() for attribute, suite in attributes.items()
    }

    def cells(kind: texts.Functionality) -> list[object]:
        figured = (
            cell
            for suite in parts.values()
            for cell in (suite.accuracies[kind.name], without(suite.shares[kind.name]))
        )
        return [kind.name, "yes" if kind.hateful else "no", len(kind.texts), *figured]

    print("\nAccuracy at .5: the share flagged of hateful sentences, and the share not flagged of others.")
    table(["functionality", "hateful", "n", *columns(["accuracy", "unscored"], parts)], map(cells, kinds))

    def total(suite: figures.Suite, hateful: bool) -> Share:
        return _sum(suite.shares[kind.name] for kind in kinds if kind.hateful == hateful)

    rows = [
        (name, total(suite, True), total(suite, False), suite.balanced, suite.auc) for name, suite in parts.items()
    ]
    heads = ["scorer", "hateful sentences flagged", "others flagged", "balanced accuracy", "AUC"]
    table(heads, rows)


def _sum(shares: Iterable[Share]) -> Share:
    return Share(*map(sum, zip(*shares, strict=True)))


def identities(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print the false positives of every identity term, the worst term of the first scorer first."""
    sentences = texts.neutral()
    found = {name: figures.identity(scorer, sentences) for name, scorer in scorers.items()}
    rows = [
        (term, len(sentences[term]), *(cell for each in found.values() for cell in _identity_cells(each, term)))
        for term in next(iter(found.values())).ordered
    ]
    print("\nFalse positives: the share flagged of neutral sentences that name a group.")
    table(["term", "n", *columns(["flagged", "mean score", "unscored"], found)], rows)
    other = texts.identity_sentences()
    rows = []
    for name, each in found.items():
        scores = np.asarray(scorers[name].attributes(other)["toxicity"])
        worst, best = each.ordered[0], each.ordered[-1]
        rows.append(
            (
                name,
                _sum(each.shares.values()),
                f"{worst} {each.shares[worst].value:.2f}",
                f"{best} {each.shares[best].value:.2f}",
                each.gap,
                f"{figures.flagged(scores)}, mean {figures.mean(scores):.2f}",
            )
        )
    listed = f"flagged of the {len(other)} lines of identity_sentences.txt"
    table(["scorer", "flagged of all", "worst term", "best term", "gap", listed], rows)


def _identity_cells(found: figures.Identity, term: str) -> tuple[object, ...]:
    return found.shares[term], f"{found.means[term]:.3f}", without(found.shares[term])


def attacks(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print the share of toxic texts still flagged after each attack, for own insults and recorded texts."""
    sets = {"own insults": texts.own()["insults"]}
    words: dict[str, Callable[[str], bool]] = {"every word of 4 letters or more": long_word}
    if args.data:
        sets[f"recorded at .5 or more, {args.split}"] = texts.recorded(args.data, args.split)[0]
        rude = texts.rude_words(args.data)
        words["the words of profanity lists"] = lambda word: word.lower() in rude
    for name, each in sets.items():
        for which, chosen in words.items():
            found = [figures.survivors(scorer, each, chosen) for scorer in scorers.values()]
            rows = [
                (
                    attack,
                    *(
                        cell
                        for shares in found
                        for cell in (shares[attack], shares[attack].of, without(shares[attack]))
                    ),
                )
                for attack in found[0]
            ]
            print(f"\nStill flagged after respelling {which}: {name}; n texts are flagged as they are.")
            table(["attack", *columns(["still flagged", "n", "unscored"], scorers)], rows)


def empty(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print how low texts that say nothing score, beside clean texts."""
    sets = {"own clean texts": texts.own()["clean"]}
    if args.data:
        sets[f"texts recorded below .1, {args.split}"] = texts.recorded(args.data, args.split)[1]
    families = texts.degenerate()
    for name, clean in sets.items():
        print(f"\nTexts that say nothing, beside {len(clean)} {name}.")
        for scorer_name, scorer in scorers.items():
            (low, median), found = figures.degenerate(scorer, families, clean)
            rows = [
                (
                    family,
                    each.below_low.of,
                    f"{each.lowest:.3f}",
                    _code(each.text),
                    each.below_low,
                    each.below_median,
                    without(each.below_low),
                )
                for family, each in found.items()
            ]
            below = [f"below the 5th percentile ({low:.3f})", f"below the median ({median:.3f})"]
            table([scorer_name, "n", "lowest score", "of", *below, "unscored"], rows)


def _code(text: str) -> str:
    """The beginning of a text within a cell of Markdown."""
    shown = printable(text).replace("|", "¦").replace("`", "'")
    return f"`{shown[:SHOWN]}{'…' if len(shown) > SHOWN else ''}`"


def long(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print the scores of long texts."""
    named = texts.long_texts()
    scores = [np.asarray(scorer.attributes(list(named.values()))["toxicity"]) for scorer in scorers.values()]
    rows = [(name, *(f"{each[i]:.3f}" for each in scores)) for i, name in enumerate(named)]
    table(["long text", *scorers], rows)


def languages(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print how many texts in other languages, of no text and in English the scorer says it cannot score."""
    own = texts.own()
    sets = {f"in {name}": each for name, each in own["languages"].items()} | own["no_text"]
    sets["clean, in English"], sets["insults, in English"] = own["clean"], own["insults"]
    sets["suite, in English"] = [text for kind in texts.functionalities(args.count) for text in kind.texts]
    if args.data:
        sets[f"recorded, {args.split}, in English"] = [
            t for part in texts.recorded(args.data, args.split) for t in part
        ]
    found = [figures.unscored(scorer, sets) for scorer in scorers.values()]
    for shares in found:
        shares["all other languages"] = _sum(shares[f"in {name}"] for name in own["languages"])
        shares["all no text"] = _sum(shares[name] for name in own["no_text"])
    heads = [f"{name}: cannot be scored" for name in scorers]
    table(
        ["texts", "n", *heads], [(name, found[0][name].of, *(_few(each[name]) for each in found)) for name in found[0]]
    )


def _few(share: Share) -> str:
    """A share, or the count where an interval of so few texts would say nothing."""
    return str(share) if share.of >= 10 else f"{share.hits} of {share.of}"


def speed(scorers: Scorers, args: argparse.Namespace) -> None:
    """Print sentences a second of CPU time for fresh scorers, and the time of one long text without spaces."""
    sentences = [text for kind in texts.functionalities(100, seed=1) for text in kind.texts]
    rows = []
    for spec, name in zip(args.reward_funcs, scorers, strict=True):
        fresh = resolve_reward(spec)
        fresh.attributes(["A first text loads what is loaded late."])
        rate = len(sentences) / figures.seconds(fresh, sentences)
        hashes = figures.seconds(fresh, ["#" * 20_000])
        rows.append((name, len(sentences), f"{rate:,.0f}", f"{hashes:.3f}"))
    table(["scorer", "n", "sentences a second of CPU time", "seconds for 20,000 × #"], rows)


TABLES: dict[str, Callable[[Scorers, Any], None]] = {
    "suite": suites,
    "identity": identities,
    "attacks": attacks,
    "empty": empty,
    "long": long,
    "languages": languages,
    "speed": speed,
}


def resolved(names: Sequence[str]) -> dict[str, Reward]:
    """The scorers by their label (name@version).

    Raises:
        UserError: a name is no scorer, or its scorer has no attribute toxicity, or two are the same.
    """
    scorers: dict[str, Reward] = {}
    for name in names:
        reward = resolve_reward(name)
        if "toxicity" not in (known := reward.attributes(["A short text."])):
            given = ", ".join(known) or "none"
            raise UserError(f"--reward_funcs {name}: the attribute toxicity was expected; its attributes: {given}")
        if reward.label in scorers:
            raise UserError(f"--reward_funcs {name}: {reward.label} is given twice; name each scorer once")
        scorers[reward.label] = reward
    return scorers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward_funcs", nargs="+", default=["local", "audit"], help="scorers of toxicity")
    parser.add_argument("--data", type=Path, help="folder of the data sets rtp-scored and word-lists")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--count", type=int, default=50, help="sentences of each functionality")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    args = parser.parse_args()
    try:
        if args.count < 1:
            raise UserError(f"--count {args.count}: at least 1 was expected")
        scorers = resolved(args.reward_funcs)
        if args.data:
            texts.rude_words(args.data), texts.recorded(args.data, args.split, 1)
        for name in args.tables:
            TABLES[name](scorers, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
