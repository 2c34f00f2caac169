"""Compare the trade-off of nlf with GRPO, supervised training and best of n: one start, one reward, one machine.

    python benchmarks/frontier.py --seeds 0 1 2                    # make frontier
    python benchmarks/frontier.py --quick                          # one seed, fewer settings: 20 minutes on 2 slow cores
    python benchmarks/frontier.py --quick --model FOLDER --prompts train.jsonl --eval_prompts test.jsonl \
        --per_device_train_batch_size 16 --learning_rate 4e-5 --grpo_learning_rates 1e-5 5e-5      # another model

It compares (`--systems` chooses; `--quick` leaves out all but the first three and GRPO)
- the start, and the best of its n completions by the reward;
- plain models trained directly by credit, with several stops;
- models with tags trained by credit, with guidance;
- nlf's contrastive and published recipes with guidance, and the contrastive recipe over fewer and more iterations;
- the contrastive recipe distilled to a plain model, and to a model with its five tags;
- TRL's GRPOTrainer over a small grid, with several stops;
- TRL's SFTTrainer on the best of n.

All points share prompts, sampling rule and random numbers. Both the reward and an auditor, which no training sees,
score them, and the start measures their perplexity.

GRPO keeps its defaults except for the grid, the length and float32. Its learning rate decays linearly to the last stop.

Seconds run in one process from loading the model to the stop. They include sampling, scoring and steps, but no
evaluation; nor saving stops, except for plain models. Finished models, samples and points under --output_dir are reused. A killed training
starts again from its first step, so that its seconds are complete. The points give `frontier.json`, `frontier.md`, the
plots and `frontier.html`, the page with all of these.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import frontier_points as points
import frontier_systems as systems
from frontier_page import RESULTS, write_page
from frontier_plots import write_plots

from nlf.data.environment import describe, git_revision
from nlf.data.files import ASSETS, write_text
from nlf.errors import UserError

DEFAULTS = {
    "seeds": [0, 1, 2],
    "num_prompts": 100,
    "systems": list(systems.SYSTEMS),
    "plains": list(systems.PLAINS),
    "dials": list(systems.DIALS),
    "published_iterations": 7,
    "students": list(systems.STUDENTS),
    "iterations": [1, 12],
    "grpo_learning_rates": [1e-4, 3e-4],
    "grpo_betas": [0.04, 0.2],
    "grpo_batches": [64, 128],
    "grpo_stops": [10, 16, 23, 30, 38, 47, 60, 80],
    "sft_learning_rates": [3e-4, 1e-3],
    "sft_stops": [16, 48, 96],
}
QUICK = {
    "seeds": [0],
    "num_prompts": 60,
    "systems": ["plain", "dial", "grpo"],
    "plains": ["plain", "plain-far"],
    "dials": ["dial"],
    "published_iterations": 1,
    "students": ["distilled", "five-tags"],
    "iterations": [1],
    "grpo_learning_rates": [1e-4, 3e-4],
    "grpo_betas": [0.04],
    "grpo_batches": [64],
    "grpo_stops": [10, 20, 34, 50],
    "sft_learning_rates": [1e-3],
    "sft_stops": [48],
}
FREE_HELP = "completions of a prompt at temperature 1, for the reward and the KL there"
RECIPES = ASSETS / "recipes"
CHOICES = {
    **{"systems": systems.SYSTEMS, "plains": list(systems.PLAINS), "dials": list(systems.DIALS)},
    **{"students": list(systems.STUDENTS)},
}
START = "start"  # folder of the untrained model's points, which all seeds share


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `--quick` changes the defaults of the flags that are not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer settings, stops and prompts")
    for name, default in DEFAULTS.items():
        kind = {"type": type(default[0]), "nargs": "*"} if isinstance(default, list) else {"type": type(default)}
        kind |= {"choices": CHOICES[name]} if name in CHOICES else {}
        parser.add_argument(f"--{name}", default=default, **kind)
    parser.add_argument("--model", default="embedded", help="the model from which all methods start")
    parser.add_argument("--reward", default="local", help="the scorer that all methods train on")
    parser.add_argument("--auditor", default="audit", help="a scorer that no training sees, or none")
    parser.add_argument("--prompts", "--dataset", dest="dataset", default="embedded", help="prompts to train on")
    parser.add_argument(
        "--eval_prompts", "--test_dataset", dest="test_dataset", default="embedded", help="prompts that measure"
    )
    parser.add_argument("--learning_rate", type=float, help="of the plain models and dials; default: that of each")
    parser.add_argument("--num_train_epochs", type=int, help="iterations of the plain models and dials; default: 15")
    parser.add_argument(
        "--per_device_train_batch_size", type=int, choices=[1, 2, 4, 8, 16, 32, 64], default=systems.STEP,
        help="completions of a step that pass the model at once; the step stays the same",
    )  # fmt: skip
    parser.add_argument("--free_generations", type=int, default=systems.FREE.num_generations, help=FREE_HELP)
    parser.add_argument("--recipe", default=str(RECIPES / "toxicity-embedded-contrastive.yaml"))
    parser.add_argument("--published_recipe", default=str(RECIPES / "toxicity-embedded-published.yaml"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/frontier"))
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def remaining(runs: Sequence[systems.Run], options: argparse.Namespace) -> float:
    """Estimate the seconds of the unfinished trainings and points on 2 slow cores."""
    start = [] if (options.output_dir / START / "points").is_dir() else systems.start_settings()
    seconds = sum(systems.measuring_seconds(each, options.num_prompts) for each in start)
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        seconds += sum(run.seconds for run in runs if not (folder / run.name / systems.DONE).exists())
        settings = [each for run in runs for each in run.settings]
        waiting = [each for each in settings if not (folder / "points" / f"{each.id}.json").exists()]
        seconds += sum(systems.measuring_seconds(each, options.num_prompts) for each in waiting)
    return seconds


def measure_all(options: argparse.Namespace) -> list[dict]:
    """Measure every point of every seed; finished points are read from disk."""
    runs = systems.runs(options)
    minutes = remaining(runs, options) / 60
    print(
        f"{len(options.seeds)} seeds × {len(runs)} trainings: about {minutes:.0f} minutes on 2 slow cores", flush=True
    )
    yardstick = systems.yardstick_of(options, options.model, options.test_dataset)
    folder = options.output_dir / START
    yardstick = replace(yardstick, best=systems.base_curve(folder, yardstick))
    found = [systems.point(each, folder, options.model, 0.0, None, yardstick) for each in systems.start_settings()]
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        for run in runs:
            seconds = systems.trained(run, folder, seed)
            for each in run.settings:
                model = folder / run.name / each.model
                found.append(systems.point(each, folder, str(model), seconds[each.model], seed, yardstick))
        write_outputs(found, options)
    return found


def write_outputs(found: Sequence[dict], options: argparse.Namespace) -> str:
    """Write the JSON, the table, the plots and the page; return the text of the table."""
    rows = points.summarise(found)
    ours, stops = ([row for row in rows if row["group"] in groups] for groups in (points.OURS, (points.GRPO,)))
    verdicts = points.compare(ours, stops, next(row for row in rows if row["id"] == "base"))
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    results = {"config": config, "git_hash": git_revision(), "environment": describe(), "summary": rows}
    results |= {"aim": verdicts, "points": list(found)}
    write_text(options.output_dir / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    text = points.markdown(rows, verdicts)
    write_text(options.output_dir / "frontier.md", text)
    write_plots(rows, options.output_dir)
    write_page(options.output_dir)
    return text


def main() -> None:
    options = parse()
    try:
        found = measure_all(options)
    except UserError as error:
        raise SystemExit(f"frontier: {error}") from error
    print(write_outputs(found, options))


if __name__ == "__main__":
    main()
