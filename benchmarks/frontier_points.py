"""Points of the frontier: means over seeds, which point dominates which, and the Markdown table. Pure functions."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nlf.data.markdown import markdown_table

BASE, PLAIN, DIAL = "base", "nlf plain", "nlf dial"
CONTRASTIVE, PUBLISHED, DISTILLED, TAGS = "nlf contrastive", "nlf published", "nlf distilled", "nlf tags"
GRPO, SFT, DPO = "GRPO", "SFT on best of 8", "DPO"
PROMPTING, STEERING = "prompting", "steering vector"
OURS = (PLAIN, DIAL, CONTRASTIVE, PUBLISHED, DISTILLED, TAGS)
GROUPS = (BASE, PROMPTING, STEERING, PLAIN, DIAL, CONTRASTIVE, DISTILLED, TAGS, PUBLISHED, GRPO, SFT, DPO)

METRICS = {  # key: (heading, digits); the auditor's figures stand before those of the reward
    "auditor_toxicity_probability": ("probability by auditor", 3),
    "toxicity_probability": ("probability", 3),
    "auditor_expected_max_toxicity": ("expected max by auditor", 3),
    "expected_max_toxicity": ("expected max", 3),
    "auditor_toxicity": ("mean by auditor", 3),
    "toxicity": ("mean", 3),
    "unscored_fraction": ("unscored", 3),
    "auditor_unscored_fraction": ("unscored, auditor", 3),
    "perplexity": ("perplexity", 1),
    "dist-2": ("dist-2", 3),
    "self_bleu": ("self-BLEU", 3),
    "repetition": ("repetition", 3),
    "completion_length": ("tokens", 1),
    "unfiltered_reward": ("reward, T = 1", 3),
    "kl_per_completion": ("KL", 2),
    "efficiency": ("efficiency", 2),
    "neutral_ratio": ("neutral text, × base", 3),
}
WITH_INTERVAL = {  # columns of the table that show intervals over prompts; frontier.json and the page have all
    *("auditor_toxicity_probability", "toxicity_probability", "auditor_toxicity", "toxicity", "perplexity"),
    *("unfiltered_reward", "kl_per_completion", "efficiency", "neutral_ratio"),
}
TOXICITIES = ("toxicity", "auditor_toxicity")
QUALITIES = {"perplexity": 1, "dist-2": -1}  # sign: 1 = lower is better
KEPT = ("id", "group", "series", "label", "cost")


@dataclass(frozen=True)
class Setting:
    """A point to measure: a model, what is done to it, and the cost of its sampling."""

    id: str  # file name
    group: str
    series: str  # plots join its points in order
    label: str
    model: str = "."  # folder within the training's folder
    quantile: int | None = None  # of the tag; None = no tag
    guidance: float = 0.0
    best_of: int = 0  # 0 = all completions, none chosen
    prefix: str = ""  # text before each prompt
    strength: float = 0.0  # of the steering vector

    @property
    def cost(self) -> int:
        """Forward passes a token; plain sampling has 1."""
        return (self.best_of or 1) * (2 if self.guidance else 1)


# ---- points -------------------------------------------------------------------------------------------------------


def best_of(row: dict, n: int, count: int, label: str) -> dict:
    """Keep the best of every n completions of a line of generations, by the rewards of the scorer `label`.

    The returned line has `count` completions. A reward of None ranks last.
    """
    rewards = row["scores"][label]["reward"][: n * count]
    known = [float("-inf") if reward is None else reward for reward in rewards]
    picked = [max(range(i, i + n), key=known.__getitem__) for i in range(0, n * count, n)]
    chosen = {name: [row[name][i] for i in picked] for name in ("completions", "completion_ids", "ended")}
    rest = {name: value for name, value in row.items() if name not in ("scores", "likelihoods")}
    return {**rest, **chosen, "settings": {**row["settings"], "best_of": n}}


def extremes(row: dict, label: str) -> tuple[int, int] | None:
    """The places of the best and the worst completion of a line by the scorer `label`; None where no two rewards differ."""
    known = {i: reward for i, reward in enumerate(row["scores"][label]["reward"]) if reward is not None}
    if len(set(known.values())) < 2:
        return None
    return max(known, key=known.__getitem__), min(known, key=known.__getitem__)


def in_order(found: Sequence[dict]) -> list[dict]:
    """Points by seed, group and series, and in a series by the numbers of their ids: stops, guidance, n."""

    def place(point: dict) -> tuple:
        numbers = [float(each) for each in re.findall(r"\d+\.?\d*(?:e-?\d+)?", point["id"])]
        seed = -1 if point["seed"] is None else point["seed"]
        return seed, GROUPS.index(point["group"]), point["series"], numbers

    return sorted(found, key=place)


def plain_names(values: dict) -> dict:
    """Strip the number of completions from the names of metrics: `self_bleu@1000` becomes `self_bleu`."""
    return {re.sub(r"@\d+", "", name): value for name, value in values.items()}


def auditor_names(values: dict) -> dict:
    """Rename the keys of older files: `judge` and `judge_toxicity` become `auditor` and `auditor_toxicity`."""
    return {re.sub(r"^judge(?=_|$)", "auditor", name): value for name, value in values.items()}


def summarise(points: Sequence[dict]) -> list[dict]:
    """One row for each setting: every metric and the seconds as means over seeds, with `_sd`, their deviation.

    A setting of one seed has `_ci95` instead, the intervals over prompts.
    """
    rows: dict[str, list[dict]] = {}
    for point in points:
        rows.setdefault(point["id"], []).append(point)
    return [{name: same[0][name] for name in KEPT} | {"seeds": len(same)} | _means(same) for same in rows.values()]


def _means(points: Sequence[dict]) -> dict:
    found = {}
    for name in ("seconds", *METRICS):
        values = [point["seconds"] if name == "seconds" else point["metrics"].get(name) for point in points]
        if None not in values:
            found[name] = statistics.mean(values)
            found[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
            interval = points[0]["metrics"].get(f"{name}_ci95")
            if len(points) == 1 and interval and None not in interval:
                found[f"{name}_ci95"] = interval
    return found


# ---- the aim ------------------------------------------------------------------------------------------------------


def _shared(names: Sequence[str], *rows: dict) -> list[str]:
    """The names that all rows have: the auditor is optional."""
    return [name for name in names if all(name in row for row in rows)]


def dominates(a: dict, b: dict) -> bool:
    """Whether a is nowhere worse than b and somewhere better, in toxicities, perplexity, dist-2 and seconds.

    A setting that could not be scored dominates none.
    """
    if "toxicity" not in a:
        return False
    signs = {**dict.fromkeys(_shared(TOXICITIES, a, b), 1), **QUALITIES, "seconds": 1}
    differences = [sign * (a[name] - b[name]) for name, sign in signs.items()]
    return max(differences) <= 0 and min(differences) < 0


def dominated(points: Sequence[dict]) -> list[bool]:
    """For each point, whether another point dominates it."""
    return [any(dominates(other, point) for other in points) for point in points]


def missed(ours: dict, stop: dict, base: dict) -> list[str]:
    """The metrics in which a setting fails to beat a GRPO stop; empty where it beats the stop.

    A setting beats a stop if it is no more toxic by reward and by auditor, worse in neither perplexity nor dist-2, and
    better in one of them. Where the stop's probability is at most .1 × the base's, it must also take no more seconds.
    """
    lacking = [name for name in _shared(TOXICITIES, ours, stop) if ours[name] > stop[name]]
    lacking += [] if "toxicity" in ours else ["toxicity"]  # it could not be scored
    gains = {name: sign * (stop[name] - ours[name]) for name, sign in QUALITIES.items()}
    lacking += [name for name, gain in gains.items() if gain < 0]
    if max(gains.values()) <= 0 and not any(name in lacking for name in QUALITIES):
        lacking.append("neither perplexity nor dist-2 better")
    hurried = stop["toxicity_probability"] <= 0.1 * base["toxicity_probability"]
    return lacking + (["seconds"] if hurried and ours["seconds"] > stop["seconds"] else [])


def compare(ours: Sequence[dict], stops: Sequence[dict], base: dict) -> list[dict]:
    """Compare our settings with every GRPO stop that no other stop dominates.

    Only stops with a toxicity probability from .01 to .3 × the base's count.

    Returns:
        For each stop its id `stop`, the ids `beaten_by`, and `nearest`, the setting with the fewest `missing` metrics.
    """
    beaten = dominated(stops)
    high = 0.3 * base["toxicity_probability"]
    found = []
    scored = [(s, b) for s, b in zip(stops, beaten, strict=True) if "toxicity_probability" in s]
    for stop in (s for s, b in scored if not b and 0.01 <= s["toxicity_probability"] <= high):
        lacking = {each["id"]: missed(each, stop, base) for each in ours}
        nearest = min(lacking, key=lambda name: len(lacking[name]), default=None)
        found.append({
            "stop": stop["id"], "beaten_by": [name for name, what in lacking.items() if not what],
            "nearest": nearest, "missing": lacking.get(nearest, []),
        })  # fmt: skip
    return found


# ---- the table ----------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[dict], verdicts: Sequence[dict]) -> str:
    """The table, by group and then by toxicity, and below it the comparison with GRPO."""
    names = [name for name in METRICS if any(name in row for row in rows)]
    headings = ["group", "setting", "seeds", "seconds", "cost", *(METRICS[name][0] for name in names)]
    order = sorted(rows, key=lambda row: (GROUPS.index(row["group"]), row.get("toxicity", math.inf)))
    table = markdown_table(headings, [cells(row, names) for row in order])
    return "\n".join([table, "", NOTE, "", *aim_lines(rows, verdicts), ""])


NOTE = """\
Mean ± standard deviation between seeds; for one seed, brackets hold the 95 % interval over prompts. *cost*: forward passes a token when sampling. *probability*: share of prompts \
with at least one of 25 completions of toxicity .5 or more. *by auditor*: by a scorer that no training sees; the other \
toxicities are 1 - reward, the figure that training and best of n optimise. *unscored*: share of completions that the \
scorer could not score; its figures are over the rest. *perplexity*: under the base. *KL*: to the base, nats a completion \
at temperature 1 without top-p \
(for best of n: log n - (n - 1) / n). *efficiency*: the KL that best of n needs for the same reward at temperature 1, by \
the base's own curve, over the KL spent; – where the reward is beyond the curve. *neutral text*: nats a token on neutral text, \
read as the setting reads a prompt, over the base's; the brackets there are over lines. Prompting is measured as everything is: \
its completions come after the prefix, and the base reads them after the bare prompt, for perplexity and for KL."""


def cells(row: dict, names: Sequence[str]) -> list[str]:
    about = [row["group"], row["label"], str(row["seeds"]), cell(row, "seconds", 0), f"{row['cost']} ×"]
    return about + [cell(row, name, METRICS[name][1]) for name in names]


def cell(row: dict, name: str, digits: int) -> str:
    if name not in row:
        return "–"
    spread, interval = row.get(f"{name}_sd"), row.get(f"{name}_ci95") if name in WITH_INTERVAL else None
    told = f" ± {spread:.{digits}f}" if spread is not None else ""
    told = " [" + ", ".join(f"{end:.{digits}f}" for end in interval) + "]" if interval else told
    return f"{row[name]:.{digits}f}{told}"


def aim_lines(rows: Sequence[dict], verdicts: Sequence[dict]) -> list[str]:
    """The GRPO stops that some setting of ours beats, and what is missing for the others, as a Markdown list."""
    if not verdicts:
        return ["No GRPO stop between .3 × the base's probability and .01: nothing to compare."]
    labels = {row["id"]: row["label"] for row in rows}
    won = [each for each in verdicts if each["beaten_by"]]
    lines = [
        f"GRPO stops between .3 × the base's probability and .01 that no other stop dominates: {len(verdicts)}; "
        f"beaten by some nlf setting: {len(won)}.", "",
    ]  # fmt: skip
    for each in verdicts:
        if each["beaten_by"]:
            told = f"beaten by {'; '.join(labels[name] for name in each['beaten_by'])}"
        else:
            told = f"**not beaten**; nearest: {labels.get(each['nearest'], 'none')}, which misses " + ", ".join(
                METRICS.get(name, (name, 0))[0] for name in each["missing"]
            )
        lines.append(f"- {labels[each['stop']]}: {told}")
    return lines
