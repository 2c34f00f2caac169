"""The dial that logged feedback gives, against the dial of the iteration that sampled it.

    python benchmarks/logged.py --seeds 0 1 2      # the embedded model; about 10 minutes a seed on two cores

For each seed: one iteration of a run (512 prompts × 4 completions, 40 steps of the contrast) trains the first model. Its
rollouts are read back with `--feedback` as texts with rewards, and train the second model with the same steps, without
sampling. Both are sampled on held-out prompts under the best and the worst tag, with the same random numbers. Finished
runs and samples are reused.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlf.data.generations import FILE, read
from nlf.data.markdown import markdown_table
from nlf.evaluation.intervals import intervals, over_prompts
from nlf.method.tags import DEFAULT_TAGS

SAMPLED, LOGGED = "sampled", "logged"
STEPS = [
    "--contrast_coef",
    1,
    "--beta",
    2,
    "--learning_rate",
    5e-4,
    "--lr_scheduler_type",
    "cosine",
    "--warmup_steps",
    5,
]
STEPS += ["--max_completion_length", 20, "--eval_strategy", "no", "--tags", *DEFAULT_TAGS]


class Dial(NamedTuple):
    """Mean toxicity of each prompt's completions under a tag, `(P,)`."""

    best: np.ndarray
    worst: np.ndarray


def nlf(*words: object) -> None:
    """Run an nlf command."""
    subprocess.run([sys.executable, "-m", "nlf", *map(str, words)], check=True)


def train(folder: Path, seed: int, steps: int, prompts: int, flags: list[str]) -> None:
    """Train both models of a seed."""
    common = [*STEPS, "--steps_per_iteration", steps, "--seed", seed, "--resume_from_checkpoint", "true", *flags]
    nlf(
        "train", *common, "--num_train_epochs", 1, "--prompts_per_iteration", prompts, "--output_dir", folder / SAMPLED
    )
    rollouts = folder / SAMPLED / "rollouts" / "iteration-0000"
    once = ["--feedback", rollouts, "--num_train_epochs", 0, "--feedback_epochs", 1]
    nlf("train", *common, *once, "--output_dir", folder / LOGGED)


def dial(model: Path, count: int, completions: int) -> Dial:
    """Sample a model under both ends of its tags, and score the samples."""
    means = []
    for name, tag in (("best", DEFAULT_TAGS[0]), ("worst", DEFAULT_TAGS[-1])):
        folder = model / "dial" / name
        sizes = ["--max_prompts", count, "--num_generations", completions]
        nlf("sample", "--model", model, "--tag", tag, "--prompts", "embedded:test", *sizes, "--output_dir", folder)
        nlf("score", folder, "--reward_funcs", "local")
        lines = read(folder / FILE)
        toxicity = [next(iter(line["scores"].values()))["attributes"]["toxicity"] for line in lines]
        means.append(np.array([np.mean(values) for values in toxicity]))
    return Dial(*means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=512, help="prompts that are sampled and trained on")
    parser.add_argument("--test_prompts", type=int, default=100)
    parser.add_argument("--completions", type=int, default=25, help="of each held-out prompt")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/logged"), help="further flags go to nlf train")
    options, flags = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        train(folder, seed, options.steps, options.prompts, flags)
        dials = {name: dial(folder / name, options.test_prompts, options.completions) for name in (SAMPLED, LOGGED)}
        for end in Dial._fields:
            one, other = (getattr(dials[name], end) for name in (SAMPLED, LOGGED))
            _, low, high = intervals({end: over_prompts(other - one)})[end]
            rows.append(
                [
                    seed,
                    end,
                    f"{one.mean():.4f}",
                    f"{other.mean():.4f}",
                    f"{(other - one).mean():+.4f} [{low:+.4f}, {high:+.4f}]",
                ]
            )
    text = markdown_table(["seed", "tag", SAMPLED, LOGGED, "difference [95 %, over prompts]"], rows)
    (options.output_dir / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
