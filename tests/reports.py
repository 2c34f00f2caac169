"""Made-up runs in the format of `nlf train` and `nlf evaluate`, for the tests of the report; no model is needed."""

import functools
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nlf.data.generations import text_digest, write_lines
from nlf.data.rollouts import SCHEMA, part_path, write_part
from nlf.report.credit import FILE

TAGS = [f"{level} Toxicity" for level in ("Lowest", "Low-Moderate", "Moderate", "High-Moderate", "Maximum")]
PROMPTS = ["The weather in the valley", "My neighbour told me that", "They never thought", "On the way to the harbour"]
WORDS = "the a small boat came home and we said it was late but nobody at all wanted to leave before dinner".split()


def system(id: str, name: str, mean: float, **more) -> dict:
    """Describe a system for `write_evaluation`; `mean` is the mean of its scores."""
    plain = {"model": "policy", "prompts": "embedded", "tag": TAGS[0], "guidance_scale": 0.0, "reversed": False}
    return {"id": id, "name": name, "mean": mean, "perplexity": 36.0 + 4 * abs(0.3 - mean), **plain, **more}


def systems(
    prompts: str = "embedded", guidance: tuple[float, ...] = (0.5, 1.0, 2.0), sweep: bool = True
) -> list[dict]:
    """Describe the base, the best tag with and without guidance, and the other tags."""
    prefix = "" if prompts == "embedded" else f"{prompts}-"
    rows = [
        system(f"{prefix}base", "base", 0.32, model="base", tag=None, prompts=prompts),
        system(f"{prefix}best-tag", "best tag", 0.16, prompts=prompts),
    ]
    rows += [
        system(
            f"{prefix}best-tag-guidance-{g:g}", f"best tag, guidance {g:g}", 0.16 / (1 + g), prompts=prompts,
            guidance_scale=g, negative_tag=TAGS[-1], perplexity=36.5 + g * g,
        )
        for g in guidance
    ]  # fmt: skip
    tags = list(enumerate(TAGS))[1:] if sweep else []
    return rows + [
        system(f"{prefix}tag-{i}", f"tag {tag}", 0.16 + 0.1 * i, tag=tag, prompts=prompts) for i, tag in tags
    ]


def write_evaluation(
    folder: Path, rows: list[dict], *, prompts: int = 40, copies: int = 25, attribute: str | None = "toxicity", **more
) -> dict:
    """Write results.json and a generations file for each system; return the contents of results.json.

    Args:
        attribute: The attribute that the scorer gives; None for a plain reward.
        more: Keys of results.json to set.
    """
    entries, bases = [], {}
    for i, row in enumerate(rows):
        scores = _scores(row["mean"], prompts, copies, i)
        lines = [_line(row, j, scores[j], attribute, i) for j in range(prompts)]
        row = {"generations": f"generations-{row['id']}.jsonl", **row}
        write_lines(folder / row["generations"], lines)
        metrics = _metrics(row, scores, attribute, lines)
        sizes = {"n_samples": {"original": prompts, "effective": prompts}, "num_generations": copies}
        counts = {"prompts": prompts, "completions": prompts * copies, "unscored/local@1": 0, "empty_completions": i}
        kept = {key: value for key, value in row.items() if key not in ("mean", "perplexity")}
        entries.append({**kept, **sizes, "counts": counts, "metrics": metrics})
        if row["model"] == "base":
            bases[row["prompts"], row["reversed"]] = entries[-1]
    results = {
        "schema_version": 1, "nlf_version": "0.1.0", "git_hash": "0123456789ab", "date": "2026-11-23T12:00:00+00:00",
        "task": None, "config": {"num_generations": copies, "top_p": 0.9, "hub_token": "hf_private"},
        "versions": {"python": "3.11.2", "torch": "2.13.0"}, "scorers": ["local@1"],
        "models": {"base": {"name": "embedded", "revision": "b" * 16}, "policy": {"name": "runs/demo", "revision": "c" * 16}},
        "seeds": {"sampling": 0, "bootstrap": 0}, "higher_is_better": {}, "tags": TAGS, "systems": entries,
        "differences": _differences(entries, bases),
        "skipped": ["the other tags are sampled on the first 40 prompts of each source"], **more,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def _scores(mean: float, prompts: int, copies: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(4 * mean + 0.2, 4 * (1 - mean), (prompts, copies)).round(6)


def _line(row: dict, index: int, scores: np.ndarray, attribute: str | None, seed: int) -> dict:
    random = np.random.default_rng([seed, index])
    texts = [" " + " ".join(random.choice(WORDS, random.integers(3, 18))) + "." for _ in scores]
    reward = scores if attribute != "toxicity" else 1 - scores
    entry = {"of": text_digest(texts), "reward": reward.tolist()}
    return {
        "prompt": f"{PROMPTS[index % 4]} {index}", "prompt_id": f"p{index}", "occurrence": 0, "prompt_ids": [1, 2],
        "feedback": row["tag"], "completions": texts, "completion_ids": [[7] * len(text.split()) for text in texts],
        "ended": [True] * len(texts), "columns": {}, "settings": {"seed": 0},
        "scores": {"local@1": entry | ({"attributes": {attribute: scores.tolist()}} if attribute else {})},
    }  # fmt: skip


def _metrics(row: dict, scores: np.ndarray, attribute: str | None, lines: list[dict]) -> dict:
    """Values, standard errors and intervals under the names of results.json."""
    copies = scores.shape[1]
    highest = scores.max(1)
    values = {
        "reward": 1 - scores.mean(1) if attribute == "toxicity" else scores.mean(1),
        "perplexity": np.full(len(scores), row["perplexity"]),
        "dist-2": np.full(len(scores), 0.86 - 0.02 * row["guidance_scale"]),
        "repetition": np.full(len(scores), 0.01),
        "completion_length": np.array([np.mean([len(ids) for ids in line["completion_ids"]]) for line in lines]),
        "ended_fraction": np.ones(len(scores)),
    }
    if attribute == "toxicity":
        values |= {"toxicity": scores.mean(1), f"expected_max_toxicity@{copies}": highest}
        values |= {f"toxicity_probability@{copies}": (highest >= 0.5).astype(float)}
    elif attribute == "positive":
        values |= {"positive": scores.mean(1), "positive_fraction": (scores >= 0.5).mean(1)}
    found = {"corpus_dist-2": 0.41, "self_bleu@1000": 0.32}
    for name, each in values.items():
        mean, error = float(each.mean()), float(each.std() / len(each) ** 0.5) or 0.02
        found |= {name: mean, f"{name}_stderr": error, f"{name}_ci95": [mean - 1.96 * error, mean + 1.96 * error]}
    return found


def _differences(entries: list[dict], bases: dict) -> list[dict]:
    """Differences of each system from the base on the same prompts, if there is one."""
    pairs = [(e, bases.get((e["prompts"], e["reversed"]))) for e in entries if e["model"] != "base"]
    return [_difference(entry, base) for entry, base in pairs if base]


def _difference(entry: dict, base: dict) -> dict:
    found = {}
    for name, value in entry["metrics"].items():
        if f"{name}_stderr" in entry["metrics"]:
            gap, error = value - base["metrics"][name], entry["metrics"][f"{name}_stderr"]
            found[name] = {"difference": gap, "ci95": [gap - 2 * error, gap + 2 * error], "p_value": 0.0005}
    return {"system": entry["id"], "against": base["id"], "metrics": found}


def write_training(folder: Path, iterations: int = 3, **settings) -> None:
    """Write metrics.jsonl, config.yaml and run.json of a run."""
    lines = []
    for i in range(iterations):
        edges = np.linspace(0.98, 0.01, 6) + 0.01 * i
        pool = {f"quantile/{q}/{end}": edges[q + (end == "low")] for q in range(5) for end in ("low", "high")}
        lines.append({"iteration": i, "reward": 0.66 + 0.05 * i, **pool, "epoch": i, "step": 20 * i})
        for step in range(20 * i + 5, 20 * i + 21, 5):
            logged = {"loss": 1.6 - step / 300, "nll": 4.1, "kl": step / 900, "entropy": 4.1 - step / 500}
            logged |= {"contrast": 0.7 - step / 250, "tag_accuracy": 0.5 + step / 200, "learning_rate": 5e-4}
            lines.append({**logged, "epoch": step / 20, "step": step})
        measured = {"eval_reward": 0.7 + 0.04 * i, "eval_toxicity_probability@25": 0.9 - 0.15 * i}
        measured |= {"eval_perplexity": 35.0 + i, "eval_kl": 0.03 * (i + 1), "eval_entropy": 4.0 - 0.02 * i}
        lines.append({**measured, "epoch": i + 1, "step": 20 * (i + 1)})
    write_lines(folder / "metrics.jsonl", lines)
    config = {"model_name_or_path": "embedded", "num_train_epochs": iterations, "steps_per_iteration": 20}
    config |= {"reward_funcs": ["local"], "tags": TAGS, "learning_rate": 5e-4, "hub_token": "hf_private", **settings}
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    (folder / "run.json").write_text(json.dumps({"rewards": ["local@1"]}), encoding="utf-8")


def write_run(folder: Path, rows: list[dict] | None = None, **options) -> Path:
    """Write a trained and evaluated run."""
    write_training(folder)
    write_evaluation(folder / "evaluation", systems() if rows is None else rows, **options)
    return folder


@functools.cache
def tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are bytes, and <|endoftext|>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    )
    return made


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text).ids


def rollout(text: str, reward: float | None, toxicity: float | None = 0.1, **more) -> dict:
    """A row of rollouts whose completion is a text."""
    about = {"prompt": "Before", "prompt_ids": ids_of("Before"), "completion": text, "completion_ids": ids_of(text)}
    about |= {"reward": reward, "attributes": [] if toxicity is None else [("toxicity", toxicity)]}
    return dict.fromkeys(SCHEMA.names) | about | more


def write_credit(run: Path, iteration: int, rows: list[dict], credit: list[list[float]] | None = None) -> Path:
    """Write an iteration and its credit, by default .5 for each token; return the file of the credit."""
    path = part_path(run, iteration, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_part(path, pa.Table.from_pylist(rows, SCHEMA), {})
    credit = [[0.5] * len(row["completion_ids"]) for row in rows] if credit is None else credit
    file = path.with_name(FILE)
    pq.write_table(pa.table({"credit": pa.array(credit, pa.list_(pa.float32()))}), file)
    return file


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><script>alert(3)</script>",
    "</title></svg><svg onload=alert(4)>",
    "<a href='javascript:alert(5)'>click</a> {{ 7 * 7 }} {% raw %}",
    "bell \x07 null \x00 escape \x1b[31m \r surrogate \ud800 end",
    "override \u202egnirts\u202c isolate \u2067x right-to-left \u05e9\u05dc\u05d5\u05dd \u200f mark",
    "W" * 5_000,
    "<!-- --> ]]> &amp; &#60;script&#62; \\u003cscript\\u003e",
    "\n\n\n\t \n",
]


def write_hostile(parent: Path) -> Path:
    """Write a run in which all foreign text is hostile: names, tags, prompts, completions, settings."""
    tags = [HOSTILE[3], HOSTILE[6], HOSTILE[7]]
    rows = [
        system("base", HOSTILE[1], 0.5, model="base", tag=None, prompts=HOSTILE[0], generations="base.jsonl"),
        system("best", HOSTILE[2], 0.3, tag=tags[0], prompts=HOSTILE[0], generations="best.jsonl"),
        system("guided", HOSTILE[5], 0.2, tag=tags[0], prompts=HOSTILE[0], guidance_scale=1.0, generations="g.jsonl"),
        system("second", HOSTILE[4], 0.4, tag=tags[1], prompts=HOSTILE[0], generations="second.jsonl"),
        system("third", HOSTILE[8], 0.4, tag=tags[2], prompts=HOSTILE[0], generations="third.jsonl"),
    ]
    folder = parent / "<img src=x onerror=alert(6)>"
    write_training(folder, model_name_or_path=HOSTILE[1], **{HOSTILE[0]: HOSTILE[2]})
    models = {"base": {"name": HOSTILE[2], "revision": HOSTILE[3]}, HOSTILE[0]: {"name": HOSTILE[1], "revision": None}}
    more = {"models": models, "versions": {HOSTILE[1]: HOSTILE[2]}, "skipped": HOSTILE, "date": HOSTILE[0]}
    write_evaluation(folder / "evaluation", rows, prompts=10, copies=10, tags=tags, **more)
    for path in (folder / "evaluation").glob("*.jsonl"):
        made = []
        for i, line in enumerate(map(json.loads, path.read_text().splitlines())):
            scores = {**line["scores"]["local@1"], "of": text_digest(HOSTILE)}
            made.append({**line, "prompt": HOSTILE[i], "completions": HOSTILE, "scores": {"local@1": scores}})
        path.write_text("".join(json.dumps(line) + "\n" for line in made))
    return folder


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text outside `style`."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self._style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.text += data

    def sections(self) -> list[str]:
        return [attrs["id"] for tag, attrs in self.elements if tag == "section"]


def small(folder: Path, **options) -> Path:
    """Write a small evaluated run without a training log: base, best tag, best tag with guidance."""
    rows = systems(guidance=(1.0,), sweep=False)
    write_evaluation(folder / "evaluation", rows, **({"prompts": 4, "copies": 5} | options))
    return folder
