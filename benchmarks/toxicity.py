"""Make the toxicity table of docs/results.md: train a recipe with several seeds, evaluate the models, print means.

    python benchmarks/toxicity.py --recipe toxicity-embedded-contrastive --seeds 0 1 2 --output_dir runs/table

All rows share prompts and sampling (top-p .9, 25 completions of a prompt). Perplexity is token-weighted under the base
model. dist-2 is computed over the completions of a prompt. Finished runs are reused.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nlf.data.markdown import markdown_table
from nlf.evaluation.evaluate import title

COLUMNS = {
    "toxicity_probability@25": "probability",
    "expected_max_toxicity@25": "expected max",
    "toxicity": "mean",
    "perplexity": "perplexity",
    "dist-2": "dist-2",
    "completion_length": "tokens",
}


def nlf(*words: object) -> None:
    """Run an nlf command."""
    subprocess.run([sys.executable, "-m", "nlf", *map(str, words)], check=True)


def train(recipe: str, seed: int, folder: Path, flags: list[str]) -> float:
    """Train unless the run is finished, and return its seconds."""
    took = folder / "seconds.txt"
    if not took.exists():
        start = time.perf_counter()
        nlf(
            "train", "--config", recipe, "--seed", seed, "--output_dir", folder, "--resume_from_checkpoint", "true",
            *flags,
        )  # fmt: skip
        took.write_text(f"{time.perf_counter() - start:.0f}")
    return float(took.read_text())


def evaluate(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Evaluate a run unless it is evaluated, and return its systems."""
    results = folder / "evaluation" / "results.json"
    if not results.exists():
        nlf(
            "evaluate", "--model", folder, "--prompts", options.test_dataset, "--max_prompts", options.num_prompts,
            "--sweep_tags", "--guidance_scale", options.guidance_scale, "--output_dir", folder / "evaluation",
        )  # fmt: skip
    return json.loads(results.read_text())["systems"]


def table(runs: list[list[dict]], seconds: list[float]) -> str:
    """A Markdown table of means over seeds, ± the standard deviation between seeds."""
    rows = []
    for systems in zip(*runs, strict=True):
        cells = []
        for key in COLUMNS:
            values = [system["metrics"][key] for system in systems]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3g} ± {spread:.2g}")
        rows.append([title(systems[0]), systems[0]["n_samples"]["effective"], *cells])
    shown = markdown_table(["system", "prompts", *COLUMNS.values()], rows)
    return f"{shown}\n\nTraining: {statistics.mean(seconds):.0f} s a run (mean)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="toxicity-embedded-contrastive")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/table"))
    parser.add_argument(
        "--test_dataset", default="embedded", help="prompts of the evaluation; further flags go to nlf train"
    )
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    options, flags = parser.parse_known_args()
    runs, seconds = [], []
    for seed in options.seeds:
        folder = options.output_dir / f"seed-{seed}"
        seconds.append(train(options.recipe, seed, folder, flags))
        runs.append(evaluate(folder, options))
    text = table(runs, seconds)
    (options.output_dir / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
