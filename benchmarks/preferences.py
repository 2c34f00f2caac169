"""Pairs of answers: the tag margin of nlf against the implicit reward of TRL's DPO, on held-out pairs.

    python benchmarks/preferences.py --model FOLDER --feedback ../shared/data/hh-rlhf-harmless

Both train the same model on the same pairs for the same steps of the same size: 60 steps of 8 pairs, whose prompts keep their
last 64 tokens and whose answers keep their first 64. The figure is the share of held-out pairs in which the method ranks the
chosen answer first: nlf by log p(x | best tag) - log p(x | worst tag), DPO by log p(x) - log p of the start. The start itself
ranks by log p(x). Intervals are over pairs. Finished models are reused. `--learning_rates` and `--dpo_learning_rates` give a
row each; choose by the pairs that `--validation_pairs` keeps out, not by the figure.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nlf import ALTConfig, ALTTrainer
from nlf.data.logged import understand
from nlf.data.markdown import markdown_table
from nlf.evaluation.intervals import intervals, over_prompts
from nlf.models.encoder import pad
from nlf.models.policy import Policy, load_model, load_policy

TOKENS = 64  # of a prompt, and of an answer
PASS = 8  # texts in a forward pass


class Pair(NamedTuple):
    """A prompt with two answers, as text; the first is the better one."""

    prompt: str
    chosen: str
    rejected: str


def pairs_of(feedback: Sequence[str], tokenizer: Any) -> list[Pair]:
    """The pairs, cut to `TOKENS` tokens of the prompt and of each answer; pairs that are equal after it are left out."""

    def cut(text: str, part: slice) -> str:
        return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][part])

    found = []
    for each in understand(feedback, None).files:
        if len(each.rows) == 2 and isinstance(each.rows[0].prompt, str):
            answers = [cut(row.completion, slice(TOKENS)) for row in each.rows]
            if answers[0] != answers[1]:
                found.append(Pair(cut(each.rows[0].prompt, slice(-TOKENS, None)), *answers))
    return found


def arguments(options: argparse.Namespace, learning_rate: float, rows: int) -> dict[str, Any]:
    """What both trainers share, for a step of `rows` examples."""
    return {
        **{"max_steps": options.steps, "learning_rate": learning_rate, "seed": options.seed, "report_to": "none"},
        **{"per_device_train_batch_size": rows // options.micro_batches, "warmup_steps": options.steps // 10},
        **{"gradient_accumulation_steps": options.micro_batches, "lr_scheduler_type": "cosine", "logging_steps": 10},
        **{"bf16": options.bf16, "eval_strategy": "no", "use_cpu": options.use_cpu, "max_grad_norm": 1.0},
    }


def train_nlf(folder: Path, options: argparse.Namespace, pairs: Path, learning_rate: float) -> None:
    model, tokenizer = load_model(options.model)
    args = ALTConfig(
        output_dir=str(folder), feedback=[str(pairs)], max_completion_length=2 * TOKENS, beta=options.beta,
        num_train_epochs=0, **arguments(options, learning_rate, 2 * options.pairs_per_step),
    )  # fmt: skip
    ALTTrainer(model, args=args, processing_class=tokenizer).train(resume_from_checkpoint=True)


def train_dpo(folder: Path, options: argparse.Namespace, pairs: Path, learning_rate: float) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load_model(options.model)
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    args = DPOConfig(
        output_dir=str(folder / "checkpoints"), save_strategy="no", beta=options.dpo_beta, max_length=None,
        gradient_checkpointing=False, **arguments(options, learning_rate, options.pairs_per_step),
    )  # fmt: skip
    trainer = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def log_probs(policy: Policy, pairs: Sequence[Pair], tag: str | None) -> np.ndarray:
    """log p of the answers after their prompts under a tag, `(P, 2)`, chosen first, EOS left out."""
    encoder, found = policy.encoder(), []
    texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    for start in range(0, len(texts), PASS):
        rows, lengths = [], []
        for prompt, answer in texts[start : start + PASS]:
            ids = encoder.completion_ids(answer)
            rows.append([*encoder.query_ids(tag, encoder.prompt_ids(prompt), prompt), *ids])
            lengths.append(len(ids))
        batch = pad(rows, 0, "right").to(policy.model.device)  # (B, T); causal models never attend to the padding
        logp = policy.model(batch[:, :-1]).logits.float().log_softmax(-1).gather(-1, batch[:, 1:, None])[..., 0]
        ends = [len(row) - 1 for row in rows]
        found += [float(logp[i, end - n : end].sum()) for i, (end, n) in enumerate(zip(ends, lengths, strict=True))]
    return np.array(found).reshape(-1, 2)


def first_is_first(values: np.ndarray) -> np.ndarray:
    """`(P,)` 1 where the chosen answer is ranked first, 1/2 for a tie; values `(P, 2)`."""
    return (1 + np.sign(values[:, 0] - values[:, 1])) / 2


def ranked(
    name: str, folder: Path, options: argparse.Namespace, pairs: Sequence[Pair], start: np.ndarray
) -> np.ndarray:
    """How a trained model ranks the pairs, `(P,)`.

    Args:
        start: log p of the answers under the start, `(P, 2)`.
    """
    policy = load_policy(str(folder), digest=False)
    if name == "DPO":
        return first_is_first(log_probs(policy, pairs, None) - start)
    assert policy.scheme is not None  # nlf trained it with tags
    best, worst = (log_probs(policy, pairs, tag) for tag in (policy.scheme.best, policy.scheme.worst))
    return first_is_first(best - worst)


def compare(options: argparse.Namespace) -> str:
    """Train what is not there yet, rank the held-out pairs, and return the table."""
    _, tokenizer = load_model(options.model)
    pairs = pairs_of(options.feedback, tokenizer)
    order = np.random.default_rng(0).permutation(len(pairs))
    held = {"validation": options.validation_pairs, "test": options.test_pairs}
    kept, parts = len(pairs) - sum(held.values()), {}
    for split, count in held.items():
        parts[split] = [pairs[i] for i in order[kept : kept + count]]
        order = np.concatenate([order[:kept], order[kept + count :]])
    train = options.output_dir / "pairs.jsonl"
    train.parent.mkdir(parents=True, exist_ok=True)
    train.write_text("".join(json.dumps(pairs[i]._asdict()) + "\n" for i in order), encoding="utf-8")
    policy = load_policy(options.model, digest=False)
    starts = {split: log_probs(policy, each, None) for split, each in parts.items()}
    del policy
    rows = [row_of("start, log p", {split: first_is_first(values) for split, values in starts.items()})]
    runs = [("nlf", train_nlf, rate) for rate in options.learning_rates]
    for name, fit, rate in [*runs, *(("DPO", train_dpo, rate) for rate in options.dpo_learning_rates)]:
        folder = options.output_dir / f"{name}-{rate:g}"
        if not (folder / "config.json").is_file():
            fit(folder, options, train, rate)
        scores = {split: ranked(name, folder, options, each, starts[split]) for split, each in parts.items()}
        rows.append(row_of(f"{name}, learning rate {rate:g}", scores))
    heads = [f"{split} ({len(each)} pairs)" for split, each in parts.items()]
    return markdown_table(["ranks the chosen answer first", *heads], rows)


def row_of(name: str, scores: dict[str, np.ndarray]) -> list[str]:
    """A row of the table: the share of each split with its 95 % interval."""
    cells = []
    for values in scores.values():
        _, low, high = intervals({"share": over_prompts(values)})["share"]
        cells.append(f"{values.mean():.3f} [{low:.3f}, {high:.3f}]")
    return [name, *cells]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="embedded")
    made.add_argument("--feedback", nargs="+", required=True)
    made.add_argument("--steps", type=int, default=60)
    made.add_argument("--pairs_per_step", type=int, default=8)
    made.add_argument("--micro_batches", type=int, default=1)
    made.add_argument("--validation_pairs", type=int, default=200)
    made.add_argument("--test_pairs", type=int, default=400)
    made.add_argument("--learning_rates", type=float, nargs="+", default=[2e-5])
    made.add_argument("--dpo_learning_rates", type=float, nargs="+", default=[2e-5])
    made.add_argument("--beta", type=float, default=2 * TOKENS / 20, help="weight of the KL of nlf")
    made.add_argument("--dpo_beta", type=float, default=0.1)
    made.add_argument("--bf16", action="store_true")
    made.add_argument("--use_cpu", action="store_true")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output_dir", type=Path, default=Path("runs/preferences"))
    return made


if __name__ == "__main__":
    chosen = parser().parse_args()
    text = compare(chosen)
    (chosen.output_dir / "table.md").write_text(text + "\n")
    print(text)
