"""Compare the trade-off of nlf with what one would use instead: one start, one reward, one machine.

    python benchmarks/frontier.py --seeds 0 1 2                    # make frontier
    python benchmarks/frontier.py --quick                          # one seed, fewer settings: 20 minutes on 2 slow cores
    python benchmarks/frontier.py --quick --model FOLDER           # another model: make frontier MODEL=FOLDER FLAGS=--quick
    python benchmarks/frontier.py --quick --model FOLDER --prompts train.jsonl --eval_prompts test.jsonl \
        --systems prompting steering dpo sft                       # adds the others to the same folder and table

It compares (`--systems` chooses; `--quick` leaves out all but the first three and GRPO)
- the start, and the best of its n completions by the reward;
- plain models trained directly by credit, with several stops;
- models with tags trained by credit, with guidance;
- the start after a text that asks for what the reward rewards, and the start with a steering vector;
- nlf's contrastive and published recipes with guidance, and the contrastive recipe over fewer and more iterations;
- the contrastive recipe distilled to a plain model, and to a model with its five tags;
- TRL's GRPOTrainer over a small grid, with several stops;
- TRL's SFTTrainer on the best of n, and its DPOTrainer on the best and the worst of the same n.

All points share prompts, sampling rule and random numbers. Both the reward and an auditor, which no training sees,
score them, and the start measures their perplexity. What the flags leave open follows the size of the model (`FULL`,
`QUICK` and their `LARGER` forms below). On a GPU all trainings are in bf16.

GRPO, SFT and DPO keep TRL's defaults except for the grid, the length and the precision. Their learning rates decay linearly
to the last stop.

Seconds run in one process from loading the model to the stop. They include sampling, scoring and steps, but no
evaluation; nor saving stops, except for plain models. Finished models, samples and points under --output_dir are reused. A killed training
starts again from its first step, so that its seconds are complete. Several processes may share the folder, each with other
`--systems` (`tools/real_gpu.sh`): a part that one of them makes is waited for. All points of the folder by the same prompts and
scorers give `frontier.json`, `frontier.md`, the plots and `frontier.html`, the page with all of these. The table
grows with each training, plots and page come at the end, and `points.jsonl` has a line for each point as it comes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import frontier_measuring as measuring
import frontier_points as points
import frontier_systems as systems
import frontier_training as training
import torch
from frontier_page import RESULTS, write_page
from frontier_plots import write_plots

from nlf.data.environment import describe, git_revision
from nlf.data.files import ASSETS, write_text
from nlf.data.prompts import load_prompts
from nlf.errors import UserError
from nlf.evaluation.systems import slug

SMALL = 20_000_000  # most parameters of a model that the first two tables are for; the embedded one has 3 million
FULL = {
    "seeds": [0, 1, 2],
    "num_prompts": 100,
    "free_generations": 16,
    "best_of": [2, 4, 8],
    "per_device_train_batch_size": 64,
    "systems": list(systems.SYSTEMS),
    "num_train_epochs": 15,
    "plains": list(systems.PLAINS),
    "plain_stops": [1 / 3, 2 / 3, 1.0],
    "dials": list(systems.DIALS),
    "dial_guidance": [0.0, 1.0, 3.0],
    "dial_tags": [2, 3, 4, 5],
    "steering_strengths": [1.0, 2.0, 4.0],
    "published_iterations": 7,
    "students": list(systems.STUDENTS),
    "iterations": [1, 12],
    "grpo_learning_rates": [1e-6, 1e-4, 3e-4],  # 1e-6 is TRL's default
    "grpo_betas": [0.04, 0.2],
    "grpo_batches": [64, 128],
    "grpo_stops": [10, 16, 23, 30, 38, 47, 60, 80],
    "sft_learning_rates": [3e-4, 1e-3],
    "sft_stops": [16, 48, 96],
    "dpo_learning_rates": [1e-5, 1e-4],
    "dpo_stops": [16, 48],
}
QUICK = {
    "seeds": [0],
    "num_prompts": 60,
    "systems": ["plain", "dial", "grpo"],
    "published_iterations": 1,
    "students": ["distilled", "five-tags"],
    "iterations": [1],
    "grpo_learning_rates": [1e-4, 3e-4],
    "grpo_betas": [0.04],
    "grpo_batches": [64],
    "grpo_stops": [10, 20, 34, 50],
    "sft_learning_rates": [1e-3],
    "sft_stops": [48],
    "dpo_learning_rates": [1e-4],
    "dpo_stops": [16, 48],
}
# Adam moves each weight by about the learning rate a step, whatever the weight's size. The larger the model, the more weights move
# each output, so its rates are lower: GRPO on SmolLM2-135M learns at 5e-5, and Gemma 3 270M collapses at 3e-5 in 40 steps.
LARGER_FULL = {
    "grpo_learning_rates": [1e-6, 1e-5, 5e-5],
    "sft_learning_rates": [1e-5, 5e-5],
    "dpo_learning_rates": [1e-6, 1e-5],
}
LARGER_QUICK = {
    "num_prompts": 50,
    "free_generations": 8,
    "best_of": [4],
    "num_train_epochs": 5,
    "plains": ["plain"],
    "plain_stops": [2 / 3, 1.0],
    "dial_guidance": [0.0, 1.0],
    "dial_tags": [5],
    "grpo_learning_rates": [5e-5],
    "grpo_stops": [10, 20],
    "sft_learning_rates": [5e-5],
    "sft_stops": [16],
    "dpo_learning_rates": [1e-5],
    "dpo_stops": [16],
}
CPU_BATCH = 16  # completions of a larger model that pass it at once on a CPU: 4 to 5 GB
HELP = {
    "free_generations": "completions of a prompt at temperature 1, for the reward and the KL there",
    "num_train_epochs": "iterations of the plain models and dials",
    "plain_stops": "shares of a plain model's iterations; each is a point",
    "dial_guidance": "guidance from the best tag",
    "dial_tags": "tags that are measured without guidance; 1 is the best",
    "per_device_train_batch_size": "completions of a step that pass the model at once; the step stays the same",
}
RECIPES = ASSETS / "recipes"
CHOICES = {
    **{"systems": systems.SYSTEMS, "plains": list(systems.PLAINS), "dials": list(systems.DIALS)},
    **{"students": list(systems.STUDENTS), "per_device_train_batch_size": [1, 2, 4, 8, 16, 32, 64]},
    **{"dial_tags": [1, 2, 3, 4, 5]},
}
START = "start"  # folder of the untrained model's points, which all seeds share


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; those of `FULL` that are not given are None until `settled`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer settings, stops and prompts")
    for name, value in FULL.items():
        kind = {"type": type(value[0]), "nargs": "*"} if isinstance(value, list) else {"type": type(value)}
        kind |= {"choices": CHOICES[name]} if name in CHOICES else {}
        parser.add_argument(f"--{name}", help=HELP.get(name), **kind)
    parser.add_argument("--model", default="embedded", help="the model from which all methods start")
    parser.add_argument("--reward", default="local", help="the scorer that all methods train on")
    parser.add_argument("--auditor", default="audit", help="a scorer that no training sees, or none")
    parser.add_argument("--prompts", "--dataset", dest="dataset", default="embedded", help="prompts to train on")
    parser.add_argument(
        "--eval_prompts", "--test_dataset", dest="test_dataset", default="embedded", help="prompts that measure"
    )
    parser.add_argument(
        "--neutral_text", default="embedded:sentiment-neutral", help="lines on which the loss is measured, or none"
    )
    parser.add_argument("--learning_rate", type=float, help="of the plain models and dials; default: that of each")
    parser.add_argument("--recipe", default=str(RECIPES / "toxicity-embedded-contrastive.yaml"))
    parser.add_argument("--published_recipe", default=str(RECIPES / "toxicity-embedded-published.yaml"))
    parser.add_argument("--output_dir", type=Path, help="default: runs/frontier, or runs/frontier-MODEL")
    options = parser.parse_args(argv)
    name = "frontier" if options.model == "embedded" else f"frontier-{slug(options.model)}"
    options.output_dir = options.output_dir or Path("runs", name)
    return options


def settled(options: argparse.Namespace, parameters: int, gpu: bool = False) -> argparse.Namespace:
    """The options with a value for each flag of `FULL`: as given, else by `--quick` and the model's size."""
    larger = parameters > SMALL
    values = FULL | (LARGER_FULL if larger else {}) | (QUICK if options.quick else {})
    values |= LARGER_QUICK if larger and options.quick else {}
    values |= {"per_device_train_batch_size": CPU_BATCH} if larger and not gpu else {}
    given = {name: value for name, value in vars(options).items() if value is not None}
    return argparse.Namespace(**{**vars(options), **values, **given})


def remaining(runs: Sequence[training.Run], options: argparse.Namespace) -> float:
    """Estimate the seconds of the unfinished trainings and points of the embedded model on 2 slow cores."""
    start = [] if (options.output_dir / START / "points").is_dir() else systems.start_settings(options)
    seconds = sum(systems.measuring_seconds(each, options) for each in start)
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        seconds += sum(run.seconds for run in runs if not (folder / run.name / training.DONE).exists())
        settings = [each for run in runs for each in run.settings]
        waiting = [each for each in settings if not (folder / "points" / f"{each.id}.json").exists()]
        seconds += sum(systems.measuring_seconds(each, options) for each in waiting)
    return seconds


def announce(runs: Sequence[training.Run], options: argparse.Namespace, parameters: int) -> None:
    """Say what comes; and how long it takes on a CPU, by the embedded model's speed."""
    told = f"{parameters / 1e6:.0f} M parameters, {len(options.seeds)} seeds × {len(runs)} trainings"
    if training.best_device().type == "cpu":
        scale = parameters / systems.COST_PARAMETERS
        about = "" if parameters <= SMALL else ", a rough guess: as if time grew with the parameters"
        told += f": about {remaining(runs, options) * scale / 60:.0f} minutes on 2 slow cores{about}"
    print(told, flush=True)


def prepared(options: argparse.Namespace) -> tuple[argparse.Namespace, list[training.Run], measuring.Yardstick]:
    """The options with those that the size settles, the trainings, and the yardstick before it has measured the start.

    Raises:
        UserError: A model, scorer or text cannot be read, or a finished training had other settings.
    """
    base = training.load(options.model)
    gpu, parameters = base.model.device.type == "cuda", base.model.num_parameters()
    options = settled(options, parameters, gpu)
    runs = systems.runs(options, bf16=gpu and torch.cuda.is_bf16_supported())
    for seed in options.seeds:
        for run in runs:
            training.finished(run, options.output_dir / f"seed-{seed}")  # raises before anything is done
    load_prompts(options.dataset)
    yardstick = measuring.yardstick_of(options, base, options.test_dataset)
    yardstick = replace(yardstick, most=max([1, *options.best_of]))
    if options.neutral_text != "none":
        yardstick = measuring.with_neutral_text(yardstick, options.neutral_text)
    announce(runs, options, parameters)
    return options, runs, yardstick


def measure_all(options: argparse.Namespace) -> str:
    """Measure every point of every seed, unless it is finished; return the text of the table."""
    options, runs, yardstick = prepared(options)
    for seed in options.seeds:
        for run in runs:
            with training.alone(options.output_dir / f"seed-{seed}" / run.name):
                yardstick = measure_run(run, seed, options, yardstick)
            publish(options, yardstick, plots=False)
    return publish(options, measure_start(options, yardstick), plots=True)


def publish(options: argparse.Namespace, yardstick: measuring.Yardstick, plots: bool) -> str:
    """Write the outputs for all points of the folder so far; return the text of the table."""
    with training.alone(options.output_dir / RESULTS):
        return write_outputs(measuring.points_of(options.output_dir, yardstick), options, plots)


def measure_start(options: argparse.Namespace, yardstick: measuring.Yardstick) -> measuring.Yardstick:
    """Measure the points of the start, and return the yardstick with what it says of the base."""
    if yardstick.best is not None:
        return yardstick
    folder, settings = options.output_dir / START, systems.start_settings(options)
    with training.alone(folder):
        best = measuring.base_curve(folder, yardstick)
        nats = measuring.neutral_nats(settings[0], yardstick.base, yardstick.neutral)
        yardstick = replace(yardstick, best=best, neutral_nats=nats)
        for each in settings:
            measuring.point(each, folder, options.model, 0.0, None, yardstick)
    return yardstick


def measure_run(
    run: training.Run, seed: int, options: argparse.Namespace, yardstick: measuring.Yardstick
) -> measuring.Yardstick:
    """Train and measure the points; the start is measured after the first training, so that processes side by side all train."""
    folder = options.output_dir / f"seed-{seed}"
    seconds = training.trained(run, folder, seed)
    yardstick = measure_start(options, yardstick)
    for each in run.settings:
        measuring.point(each, folder, str(folder / run.name / each.model), seconds[each.model], seed, yardstick)
    return yardstick


def write_outputs(found: Sequence[dict], options: argparse.Namespace, plots: bool = True) -> str:
    """Write the JSON, the table and, if asked, the plots and the page; return the text of the table."""
    found = points.in_order(found)
    rows = points.summarise(found)
    ours, stops = ([row for row in rows if row["group"] in groups] for groups in (points.OURS, (points.GRPO,)))
    verdicts = points.compare(ours, stops, next(row for row in rows if row["id"] == "base"))
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    results = {"config": config, "git_hash": git_revision(), "environment": describe(), "summary": rows}
    results |= {"aim": verdicts, "points": list(found)}
    text = points.markdown(rows, verdicts)
    write_text(options.output_dir / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(options.output_dir / "frontier.md", text)
    if plots:
        write_plots(rows, options.output_dir)
        write_page(options.output_dir)
    return text


def main() -> None:
    try:
        print(measure_all(parse()))
    except UserError as error:
        raise SystemExit(f"frontier: {error}") from error


if __name__ == "__main__":
    main()
