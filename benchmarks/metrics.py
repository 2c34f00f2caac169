"""Compare nlf's metrics of 250,000 completions with a plain-Python loop: one pass, intervals, a paired comparison.

    python benchmarks/metrics.py [--prompts 10000] [--num_generations 25]

The plain side is the obvious code: tuples in sets, lists of numbers, `random.choices` for the bootstrap. Each side runs in
a fresh process on the same made-up completions (20 words, 20 tokens, scores and likelihoods), and both must find the same
values. Making the completions is not timed. The plain side's bootstrap and swaps are timed for one metric and multiplied by
the number of metrics with intervals, since all take minutes. Memory is the peak of the process above that at its start.
"""

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from processes import in_fresh_process, peak_megabytes

from nlf.evaluation import diversity, intervals, metrics

VOCABULARY, WORDS, SAMPLE, SCORER, READER = 50_000, 20, 1_000, "made-up@1", "reader"
DRAWS, SWAPS = 1_000, 2_000  # of the bootstrap for intervals; of bootstrap and randomisation test for a comparison

Seconds = dict[str, float]


def made(prompts: int, n: int) -> list[dict]:
    """Make lines of generations: words and tokens by Zipf's law, scores that depend on the prompt, 2 % unscored."""
    source = np.random.default_rng(0)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    edges = np.cumsum(shares / shares.sum())
    words = np.array([f"w{i:x}" for i in range(VOCABULARY)], dtype=object)
    rows = []
    for i in range(prompts):
        ids = np.minimum(np.searchsorted(edges, source.random((n, WORDS))), VOCABULARY - 1)
        toxicity = [None if source.random() < 0.02 else float(t) for t in source.beta(1 + i % 3, 4, n)]
        score = {"reward": [None if t is None else 1 - t for t in toxicity], "attributes": {"toxicity": toxicity}}
        rows.append({
            "prompt_ids": [0, 1],
            "completions": [" ".join(text) for text in words[ids]],
            "completion_ids": ids.tolist(),
            "ended": (source.random(n) < 0.2).tolist(),
            "scores": {SCORER: score},
            "likelihoods": {READER: {"nll": source.gamma(20, 4, n).tolist(), "tokens": [WORDS] * n}},
        })  # fmt: skip
    return rows


def timed(seconds: Seconds, name: str, work: Callable, times: float = 1):
    """Do the work, return its result, and add its seconds × `times` under a name."""
    start = time.perf_counter()
    result = work()
    seconds[name] = seconds.get(name, 0.0) + (time.perf_counter() - start) * times
    return result


def ours(rows: list[dict], seconds: Seconds) -> dict[str, float]:
    found = timed(
        seconds, "measure", lambda: metrics.measure(iter(rows), scores=[SCORER], likelihoods=READER, corpus_sample=0)
    )
    texts = [text for row in rows for text in row["completions"]][:SAMPLE]
    bleu = timed(seconds, "self-BLEU", lambda: diversity.self_bleu(texts))
    timed(seconds, "intervals", lambda: intervals.intervals(found.ratios, n=DRAWS))
    other = {k: intervals.Ratio(np.roll(r.num, 1), np.roll(r.den, 1), r.exp) for k, r in found.ratios.items()}
    timed(seconds, "paired", lambda: intervals.paired(found.ratios, other, n=SWAPS))
    return {name: ratio.value for name, ratio in found.ratios.items()} | found.corpus | {"self_bleu": bleu}


def plain(rows: list[dict], seconds: Seconds) -> dict[str, float]:
    values, by_prompt = timed(seconds, "measure", lambda: plain_values(rows))
    texts = [text.split() for row in rows for text in row["completions"]][:SAMPLE]
    intervals = sum(not name.startswith("corpus") for name in values)
    values["self_bleu"] = timed(seconds, "self-BLEU", lambda: plain_self_bleu(texts))
    timed(seconds, "intervals", lambda: plain_bootstrap(by_prompt, DRAWS), intervals)
    differences = [a - b for a, b in zip(by_prompt[1:] + by_prompt[:1], by_prompt, strict=True)]
    timed(seconds, "paired", lambda: plain_bootstrap(differences, SWAPS), intervals)
    timed(seconds, "paired", lambda: plain_swaps(differences, SWAPS), intervals)
    return values


def plain_values(rows: list[dict]) -> tuple[dict[str, float], list[float]]:
    """Every metric, and the values of one metric by prompt."""
    rewards, toxicity, highest, lengths, ended, repeated, perplexities = ([] for _ in range(7))
    dist: dict[int, list[float]] = {1: [], 2: [], 3: []}
    corpus: dict[int, set] = {1: set(), 2: set(), 3: set()}
    nats = tokens = words = 0
    for row in rows:
        score, read = row["scores"][SCORER], row["likelihoods"][READER]
        rewards += [r for r in score["reward"] if r is not None]
        known = [t for t in score["attributes"]["toxicity"] if t is not None]
        toxicity += known
        if known:
            highest.append(max(known))
        for nll, count in zip(read["nll"], read["tokens"], strict=True):
            nats, tokens = nats + nll, tokens + count
            perplexities.append(math.exp(nll / count))
        for ids, end in zip(row["completion_ids"], row["ended"], strict=True):
            lengths.append(len(ids))
            ended.append(end)
            grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
            repeated.append(1 - len(set(grams)) / len(grams))
        split = [text.split() for text in row["completions"]]
        total = sum(len(text) for text in split)
        words += total
        for n in (1, 2, 3):
            grams = {tuple(text[i : i + n]) for text in split for i in range(len(text) - n + 1)}
            corpus[n] |= grams
            dist[n].append(len(grams) / total)
    n = len(rows[0]["completions"])
    lists = {
        "reward": rewards, "toxicity": toxicity, "toxic_fraction": [t >= 0.5 for t in toxicity],
        f"expected_max_toxicity@{n}": highest, f"toxicity_probability@{n}": [h >= 0.5 for h in highest],
        "completion_length": lengths, "ended_fraction": ended, "repetition": repeated,
        "mean_completion_perplexity": perplexities, **{f"dist-{n}": dist[n] for n in dist},
    }  # fmt: skip
    values = {name: sum(each) / len(each) for name, each in lists.items()}
    values |= {f"corpus_dist-{n}": len(grams) / words for n, grams in corpus.items()}
    return values | {"perplexity": math.exp(nats / tokens)}, highest


def plain_self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of each text against all others. The texts have one length, so there is no brevity penalty."""
    logs = [0.0] * len(texts)
    for n in (1, 2, 3, 4):
        counts = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in texts]
        for i, own in enumerate(counts):
            others = counts[:i] + counts[i + 1 :]
            matches = sum(min(count, max(other.get(gram, 0) for other in others)) for gram, count in own.items())
            logs[i] += math.log((matches or 0.1) / sum(own.values())) / 4
    return sum(map(math.exp, logs)) / len(logs)


def plain_bootstrap(values: list[float], times: int) -> tuple[float, float]:
    means = sorted(sum(random.choices(values, k=len(values))) / len(values) for _ in range(times))
    return means[int(0.025 * times)], means[int(0.975 * times)]


def plain_swaps(differences: list[float], times: int) -> float:
    found, extreme = abs(sum(differences)), 0
    for _ in range(times):
        extreme += abs(sum(d if random.random() < 0.5 else -d for d in differences)) >= found
    return (1 + extreme) / (1 + times)


def measured(side: str, prompts: int, n: int, results) -> None:
    rows, seconds = made(prompts, n), {}
    before = peak_megabytes()
    values = {"ours": ours, "plain": plain}[side](rows, seconds)
    results.put((seconds, peak_megabytes() - before, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--num_generations", type=int, default=25)
    options = parser.parse_args()
    mine, my_memory, my_values = in_fresh_process(measured, "ours", options.prompts, options.num_generations)
    other, other_memory, other_values = in_fresh_process(measured, "plain", options.prompts, options.num_generations)
    assert my_values.keys() == other_values.keys()
    furthest = max(abs(my_values[name] / other_values[name] - 1) for name in my_values)
    rows = [(name, mine[name], other[name], "s") for name in mine]
    rows.append(("all", sum(mine.values()), sum(other.values()), "s"))
    rows.append(("memory", my_memory, other_memory, "MB"))
    print(f"{options.prompts * options.num_generations:,} completions of {options.prompts:,} prompts")
    print(f"{'':14}{'nlf':>9}{'plain':>13}{'ratio':>13}")
    for name, a, b, unit in rows:
        print(f"{name:14}{a:>9.3f} {unit:3}{b:>9.3f} {unit:3}{b / a if a else float('nan'):>8.2f}×")
    print(f"the {len(my_values)} values of both sides differ by at most {furthest:.1e} of a value")


if __name__ == "__main__":
    main()
