"""Measure models beside the base they were trained from: one row each, ending in efficiency against best of n.

    python benchmarks/efficiency.py --models runs/a runs/a/checkpoint-20                     # plain models
    python benchmarks/efficiency.py --models runs/tagged --tag best --guidance 0 1 3         # a tagged one, three rows

*efficiency* is the KL that best of n needs for the model's reward, by the base's own curve, over the KL that the model
spent; both at temperature 1. The other figures are those of `frontier.py`: top-p .9, 25 completions of a prompt. Samples are
kept under --output_dir, in files named for the weights, so a repeated command only draws what is missing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import frontier_measuring as measuring
from frontier_points import BASE, Setting
from frontier_training import load

from nlf.data.files import write_text
from nlf.data.markdown import markdown_table
from nlf.errors import UserError
from nlf.evaluation.systems import chosen_tag, slug
from nlf.models.policy import Policy

COLUMNS = {  # key: (heading, digits)
    "toxicity_probability": ("prob", 3),
    "toxicity": ("mean", 3),
    "auditor_toxicity_probability": ("auditor, prob", 3),
    "auditor_toxicity": ("auditor, mean", 3),
    "perplexity": ("perplexity", 1),
    "dist-2": ("dist-2", 3),
    "self_bleu": ("self-BLEU", 3),
    "completion_length": ("tokens", 1),
    "unfiltered_reward": ("reward, T = 1", 3),
    "kl_per_completion": ("KL", 2),
    "efficiency": ("efficiency", 2),
}
DIGEST = 10  # hexadecimal digits of the weights' digest in the name of a file


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="embedded", help="the model that training started from")
    parser.add_argument("--models", nargs="*", default=[], help="folders of models; checkpoints of a run too")
    parser.add_argument("--tag", default="none", help="best, middle, worst, none or the words of a tag")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[0.0], help="a row for each, away from the worst tag"
    )
    parser.add_argument("--prompts", default="embedded", help="prompts that no training saw")
    parser.add_argument("--num_prompts", type=int, default=60)
    parser.add_argument("--reward", default="local")
    parser.add_argument("--auditor", default="audit", help="a scorer that no training sees, or none")
    parser.add_argument("--free_generations", type=int, default=16, help="completions of a prompt at temperature 1")
    parser.add_argument("--base_generations", type=int, default=64, help="the same of the base: the greatest known n")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/efficiency"))
    return parser.parse_args(argv)


def quantile(policy: Policy, tag: str) -> int | None:
    """The place of the tag among the policy's tags; None = no tag."""
    words = chosen_tag(policy, policy.scheme.worst if tag == "worst" and policy.scheme else tag)
    return None if words is None else policy.scheme.quantile_of(words)


def plain_within(model: str) -> str:
    """The folder of a model: `plain` in the folder of a run that trained nothing else."""
    inner = Path(model, "plain")
    return str(inner) if (inner / "config.json").is_file() and not Path(model, "config.json").is_file() else model


def setting_of(model: str, tag: str, guidance: float) -> Setting:
    """A row to measure. Its id, which names its files, depends on the weights, the tag and the guidance."""
    label, model = model, plain_within(model)
    policy = load(model)
    place = quantile(policy, tag)
    if guidance and place is None:
        raise UserError(
            f"guidance {guidance:g} moves away from a tag: give --tag, for a model with tags; {model} has none"
        )
    words = f", tag {tag}, guidance {guidance:g}" if place is not None else ""
    name = f"{slug(model)}-{str(policy.revision)[:DIGEST]}" + (f"-tag{place}-g{guidance:g}" if words else "")
    return Setting(name, BASE, label, label + words, model, place, guidance)


def seconds_of(model: Path) -> float | None:
    """The seconds of training: of a run, as its log says; of a checkpoint, its share of them by steps; None = unknown."""
    run = model if (model / "metrics.jsonl").is_file() else model.parent
    if not (run / "metrics.jsonl").is_file():
        return None
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = [row for row in rows if "train_runtime" in row]
    if not ends:
        return None
    _, _, step = model.name.rpartition("checkpoint-")
    share = int(step) / ends[-1]["step"] if run != model and step.isdigit() else 1.0
    return ends[-1]["train_runtime"] * share


def measure(options: argparse.Namespace) -> list[dict]:
    """A row for the base, and one for each model and guidance."""
    rows = [setting_of(options.base, "none", 0.0)]
    rows += [setting_of(model, options.tag, scale) for model in options.models for scale in options.guidance]
    yardstick = measuring.yardstick_of(options, load(options.base), options.prompts)
    drawing = replace(measuring.FREE, num_generations=options.base_generations)
    best = measuring.base_curve(options.output_dir, yardstick, drawing, rows[0].id)
    yardstick, found = replace(yardstick, best=best), []
    for row in rows:
        print(f"measuring {row.label}", flush=True)
        values = measuring.measured(row, options.output_dir, row.model, yardstick)
        found.append({"label": row.label, "seconds": seconds_of(Path(row.model)), "metrics": values})
    return found


def table(found: Sequence[dict]) -> str:
    """A Markdown table, with the standard error over prompts of what training changes."""
    names = [name for name in COLUMNS if any(name in row["metrics"] for row in found)]
    cells = [
        [row["label"], *(cell(row["metrics"], name) for name in names), shown(row["seconds"], 0)] for row in found
    ]
    return markdown_table(["system", *(COLUMNS[name][0] for name in names), "seconds"], cells)


def cell(metrics: dict, name: str) -> str:
    digits = COLUMNS[name][1]
    spread = metrics.get(f"{name}_stderr")
    told = name in ("unfiltered_reward", "kl_per_completion", "efficiency") and spread
    return shown(metrics.get(name), digits) + (f" ± {spread:.{digits}f}" if told else "")


def shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # without the sign of -0


def main() -> None:
    options = parse()
    try:
        found = measure(options)
    except UserError as error:
        raise SystemExit(f"efficiency: {error}") from error
    text = table(found)
    write_text(options.output_dir / "efficiency.json", json.dumps(found, indent=1))
    write_text(options.output_dir / "efficiency.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
