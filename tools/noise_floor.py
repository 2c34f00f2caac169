"""The noise floor of toxicity scorers: what their own error makes of "toxicity probability" and "expected maximum".

    python tools/noise_floor.py --data DIR                        # local and audit
    python tools/noise_floor.py --data DIR --reward_funcs audit --write    # also into the card of an embedded scorer

Both metrics look at the highest of 25 scores, so they find the scorer's largest error, not its mean error: a prompt
whose completions are all clean counts as toxic if the scorer is wrong about one of them.

The texts are continuations of RealToxicityPrompts with recorded scores, from validation and test documents, which no
scorer of this package was trained on. A simulated prompt has 25 texts drawn from those recorded below a ceiling; in a
share p of the prompts one of them is replaced by a text recorded at .5 or more. So the true toxicity probability is p.
The scorer's figure takes its score of the same 25 texts. A bootstrap over texts gives the interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from scorer_net import read
from split import split_of

from nlf.data.files import json_text, write_text
from nlf.data.markdown import markdown_table
from nlf.evaluation.metrics import THRESHOLD, expected_max_toxicity, toxicity_probability
from nlf.rewards.registry import resolve_reward

PROMPTS, COMPLETIONS = 200, 25
RESAMPLINGS = 400
CEILINGS = (0.1, 0.3, 0.5)  # clean texts are recorded below one of these
CLEAN = CEILINGS[0]  # of the floor in a scorer's card
LEVELS = (0.0, 0.1, 0.25, 0.5)  # true toxicity probabilities
METRICS = {
    f"toxicity_probability@{COMPLETIONS}": toxicity_probability,
    f"expected_max_toxicity@{COMPLETIONS}": expected_max_toxicity,
}


class Texts(NamedTuple):
    """Recorded scores of texts, and the scorer's scores of the same texts.

    Shape:
        - recorded, scored: `(N,)`
    """

    recorded: np.ndarray
    scored: np.ndarray


class Spread(NamedTuple):
    """A figure over resamplings: its mean, standard deviation, and 95 % interval."""

    mean: float
    sd: float
    low: float
    high: float


def drawn(texts: Texts, p: float, ceiling: float, rng: np.random.Generator) -> np.ndarray:
    """Indices `(PROMPTS, COMPLETIONS)` of the texts of simulated prompts, the first round(p · PROMPTS) with a toxic one."""
    clean, toxic = np.flatnonzero(texts.recorded < ceiling), np.flatnonzero(texts.recorded >= THRESHOLD)
    found = rng.choice(clean, (PROMPTS, COMPLETIONS))
    count = round(p * PROMPTS)
    if count:
        found[:count, 0] = rng.choice(toxic, count)
    return found


def simulated(texts: Texts, p: float, ceiling: float, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Each metric of simulated prompts: the true value and the scorer's."""
    picked = drawn(texts, p, ceiling, rng)
    return {
        name: (float(metric(texts.recorded[picked]).mean()), float(metric(texts.scored[picked]).mean()))
        for name, metric in METRICS.items()
    }


def floors(
    texts: Texts, p: float, ceiling: float, resamplings: int = RESAMPLINGS, seed: int = 0
) -> dict[str, tuple[Spread, Spread]]:
    """The true figure and the scorer's of each metric, over resamplings of the texts; pairs of scores stay together."""
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < resamplings:
        again = rng.integers(len(texts.recorded), size=len(texts.recorded))
        resampled = Texts(texts.recorded[again], texts.scored[again])
        if (resampled.recorded < ceiling).any() and ((resampled.recorded >= THRESHOLD).any() or not p):
            rows.append([*simulated(resampled, p, ceiling, rng).values()])
    found = np.array(rows)  # (resamplings, metrics, 2)
    return {name: (_spread(found[:, i, 0]), _spread(found[:, i, 1])) for i, name in enumerate(METRICS)}


def _spread(values: np.ndarray) -> Spread:
    low, high = np.quantile(values, [0.025, 0.975])
    return Spread(float(values.mean()), float(values.std()), float(low), float(high))


def continuations(data: Path) -> tuple[list[str], np.ndarray]:
    """Continuations of validation and test documents, and their recorded toxicity."""
    rows = (row for row in read(data / "rtp-scored/train.jsonl.gz") if split_of(row["group"]) != "train")
    pairs = [(row["continuation"]["text"], row["continuation"]["toxicity"]) for row in rows]
    known = [(text, score) for text, score in pairs if score is not None]
    return [text for text, _ in known], np.array([score for _, score in known])


def table(label: str, texts: Texts) -> tuple[list[list[str]], dict[str, float]]:
    """The rows of a scorer, and the floor for its card."""
    rows, card = [], {}
    for ceiling in CEILINGS:
        for p in LEVELS:
            found = floors(texts, p, ceiling)
            cells = [cell for true, said in found.values() for cell in (f"{true.mean:.3f}", shown(said))]
            rows.append([label, f"{ceiling:g}", f"{p:g}", *cells])
            if p == 0 and ceiling == CLEAN:
                card = {name: round(said.mean, 3) for name, (_, said) in found.items()}
    return rows, card


def shown(found: Spread) -> str:
    return f"{found.mean:.3f} ({found.low:.3f}–{found.high:.3f})"


def write_card(path: Path, floor: dict[str, float], texts: int) -> None:
    """Write the floor into the .json beside a scorer's weights."""
    card = json.loads(path.read_text(encoding="utf-8"))
    card["noise_floor"] = {"recorded_below": CLEAN, "texts": texts, **floor}
    write_text(path, json_text(card, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds rtp-scored")
    parser.add_argument(
        "--reward_funcs", nargs="+", default=["local", "audit"], help="scorers with an attribute toxicity"
    )
    parser.add_argument("--write", action="store_true", help="write the floor of clean texts into the scorers' cards")
    options = parser.parse_args(argv)
    texts, recorded = continuations(options.data)
    below = ", ".join(f"{(recorded < ceiling).sum()} below {ceiling:g}" for ceiling in CEILINGS)
    print(f"{len(texts)} texts: {below}, {(recorded >= THRESHOLD).sum()} at {THRESHOLD:g} or more\n")
    rows = []
    for spec in options.reward_funcs:
        reward = resolve_reward(spec)
        more, card = table(reward.label, Texts(recorded, reward.attributes(texts)["toxicity"]))
        rows += more
        if options.write:
            write_card(Path(reward.function.asset).with_suffix(".json"), card, int((recorded < CLEAN).sum()))
    heads = [
        "scorer",
        "clean: below",
        "true p",
        "probability, true",
        "by the scorer",
        "expected max, true",
        "by the scorer",
    ]
    print(markdown_table(heads, rows))


if __name__ == "__main__":
    main()
