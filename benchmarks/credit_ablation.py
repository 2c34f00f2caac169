"""What each part of credit gives: plain models of the embedded model at the same KL budget, each with one part changed.

    python benchmarks/credit_ablation.py --seeds 0 1 2      # a minute and a half for each of 8 variants and each seed

The table of docs/method.md. All variants end at about the same KL per token, so the reward of the samples they learn from
(training prompts, temperature 1, mean of the last 5 iterations) compares them directly. Finished runs are reused.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from nlf import ALTConfig, ALTTrainer
from nlf.data.markdown import markdown_table
from nlf.method import credit, losses

SETTINGS: dict[str, Any] = {
    **{
        "credit_coef": 1.0,
        "kl_budget": 0.1,
        "learning_rate": 2e-4,
        "num_train_epochs": 15,
        "prompts_per_iteration": 64,
    },
    **{"steps_per_iteration": 4, "num_generations": 4, "lr_scheduler_type": "linear", "warmup_steps": 3},
}
LAST = 5  # iterations that the figures are the mean of


@contextlib.contextmanager
def uncalibrated() -> Iterator[None]:
    """A prefix is worth its score; the bare prompt is worth the mean of its other completions."""

    def raw(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return np.where(x[:, 9] > 0, x[:, 7], x[:, 1])  # `credit.features`: empty, others, score

    with mock.patch.object(credit.prefix_values, "__defaults__", (raw,)):
        yield


@contextlib.contextmanager
def scaled_by_batch() -> Iterator[None]:
    """Each iteration's credit has a standard deviation of 1."""
    from nlf.training import trainer

    whole = trainer.credit_of

    def afresh(*args: Any, **kwargs: Any):
        return whole(*args[:3], None, *args[4:], **kwargs)

    with mock.patch.object(trainer, "credit_of", afresh):
        yield


@contextlib.contextmanager
def ending_learned() -> Iterator[None]:
    """Probabilities are those among all tokens, so the probability of ending moves as well."""
    with mock.patch.object(losses, "going_on", lambda stats: stats.logp):
        yield


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[], contextlib.AbstractContextManager]]] = {
    "credit": ({}, contextlib.nullcontext),
    "the whole completion's reward": ({"credit": "completion"}, contextlib.nullcontext),
    "not calibrated": ({}, uncalibrated),
    "scaled by each iteration": ({}, scaled_by_batch),
    "λ 0": ({"credit_lambda": 0.0}, contextlib.nullcontext),
    "λ .9": ({"credit_lambda": 0.9}, contextlib.nullcontext),
    "ending is learned": ({}, ending_learned),
    "β .1 in place of the budget": ({"kl_budget": None, "beta": 0.1}, contextlib.nullcontext),
}


def run(folder: Path, seed: int, settings: dict[str, Any]) -> None:
    config = ALTConfig(
        output_dir=str(folder), plain="only", seed=seed, eval_strategy="no", save_total_limit=1,
        **SETTINGS | settings,
    )  # fmt: skip
    ALTTrainer(args=config).train(resume_from_checkpoint=True)


def figures(folder: Path) -> dict[str, float]:
    """Means over the last iterations: reward, KL in nats a token and a completion, tokens of a completion."""
    lines = [json.loads(line) for line in (folder / "plain" / "metrics.jsonl").read_text().splitlines()]
    rollouts = [line for line in lines if "iteration" in line][-LAST:]
    steps = [line["kl"] for line in lines if "loss" in line]
    kl = float(np.mean(steps[-len(steps) * LAST // len([x for x in lines if "iteration" in x]) :]))
    length = float(np.mean([line["completions/mean_length"] for line in rollouts]))
    reward = float(np.mean([line["reward"] for line in rollouts]))
    return {"reward": reward, "kl": kl, "nats": kl * length, "tokens": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/credit-ablation"))
    args = parser.parse_args()
    rows = []
    for number, name in enumerate(args.variants):
        found = []
        for seed in args.seeds:
            folder = args.output_dir / f"{[*VARIANTS].index(name)}-{seed}"
            settings, patched = VARIANTS[name]
            if not (folder / "plain" / "model.safetensors").is_file():
                with patched():
                    run(folder, seed, settings)
            found.append(figures(folder))
        rows.append([name, *(_cell([each[key] for each in found]) for key in ("reward", "kl", "nats", "tokens"))])
        print(f"{number + 1} of {len(args.variants)}: {' | '.join(map(str, rows[-1]))}", flush=True)
    print(markdown_table(["variant", "reward", "KL a token", "KL a completion", "tokens"], rows))


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
