"""Compare whole iterations of sampling, scoring and training: our trainer with TRL's GRPO, or with plain code.

    python benchmarks/iteration.py                    # 8 prompts x 8 completions and one step, beside a step of GRPO
    python benchmarks/iteration.py --against plain    # a twentieth of an iteration of `make demo`

grpo    Ours: an iteration of `ALTTrainer`. It samples 8 x 8, scores, writes, loads the pool, cuts quantiles, tags, and
        takes one step of 64 with contrast and reference (`--objective published`: without contrast).
        Theirs: a step of `GRPOTrainer`. It samples 8 x 8, scores, and takes one step of 64. `--grpo_beta` is that of
        benchmarks/frontier.py, so it has a reference too; TRL's default of 0 has none.
plain   Ours: an iteration of `ALTTrainer` with the demo's settings, cut from 2,048 completions and 40 steps to 104 and 2.
        Theirs: the obvious code. It calls `generate` on prompts in file order with 256 rows at a time, sorts and copies
        a list of dicts, and takes the naive step of benchmarks/training.py, which computes all logits of all passes.

Both sides use the embedded model, prompts and scorer. Each trainer has a thread that pauses while the other works, so
that they alternate in one process, iteration by iteration. The timer runs from the start of an iteration (GRPO: of its
step) to the end of its last optimizer step. It leaves out building, and the checkpoint that ours saves after each
iteration, whose seconds are printed in a line of their own. Evaluation is off. The first iteration is the warm-up.
"""

import argparse
import copy
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from frontier_training import plain_arguments
from paired import Side, alternate, ratio_line, table
from training import COEFS, naive
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging

from nlf.config import TRAINING_DEFAULTS, LoopOptions, TagOptions
from nlf.data.prompts import load_prompts
from nlf.method.quantize import Draws, quantize
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import load_model, prepare_policy
from nlf.models.sources import model_path
from nlf.rewards.registry import resolve_reward
from nlf.training.batches import Example
from nlf.training.config import ALTConfig
from nlf.training.console import Console
from nlf.training.trainer import ALTTrainer

LEARNING_RATE = 1e-5  # small, so that completions hardly change
LENGTH = 20
ROWS = 256  # completions of one `generate` call


class Paced(TrainerCallback):
    """Trains in a thread that runs one iteration a call and pauses in between."""

    def __init__(self, train: Callable[["Paced"], None], begins_with: str, steps: int, amount: int):
        self.train, self.begins_with, self.steps, self.amount = train, begins_with, steps, amount
        self.go, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.between: list[float] = []  # seconds from the end of an iteration to the start of the next
        threading.Thread(target=self._run, daemon=True).start()

    def prepare(self) -> None:
        start = time.perf_counter()
        self._resume()
        self.between.append(time.perf_counter() - start)

    def __call__(self, number: int) -> int:
        self._resume()
        return self.amount

    def _resume(self) -> None:
        self.go.release()
        self.reached.acquire()
        if self.error:
            raise self.error

    def _run(self) -> None:
        self.go.acquire()
        try:
            self.train(self)
        except BaseException as error:  # raised again by the waiting thread
            self.error = error
        self.reached.release()

    def _stand(self) -> None:
        self.reached.release()
        self.go.acquire()

    def on_epoch_begin(self, *args, **kwargs):
        if self.begins_with == "epoch":
            self._stand()

    def on_step_begin(self, *args, **kwargs):
        if self.begins_with == "step":
            self._stand()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self._stand()


def quietly(trainer: Trainer) -> None:
    """Train without printing logs."""
    for callback in (PrinterCallback, Console):
        trainer.remove_callback(callback)
    trainer.train()


def ours(folder: Path, prompts: int, generations: int, steps: int, iterations: int, objective: str) -> Paced:
    settings = ALTConfig(
        output_dir=str(folder), num_train_epochs=iterations, prompts_per_iteration=prompts, steps_per_iteration=steps,
        num_generations=generations, max_completion_length=LENGTH, learning_rate=LEARNING_RATE,
        eval_strategy="no", save_total_limit=1, disable_tqdm=True, report_to="none", **COEFS[objective],
    )  # fmt: skip

    def train(paced: Paced) -> None:
        quietly(ALTTrainer("embedded", "local", settings, load_prompts("embedded"), callbacks=[paced]))

    return Paced(train, "epoch", steps, prompts * generations)


def grpo(folder: Path, prompts: int, generations: int, beta: float, steps: int) -> Paced:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    scorer = resolve_reward("local")

    def score(prompts, completions, completion_ids, **columns):
        return scorer(prompts, completions, completion_ids)

    config = GRPOConfig(
        **plain_arguments(folder, [steps], LEARNING_RATE, seed=42),
        beta=beta,
        per_device_train_batch_size=prompts * generations,
        num_generations=generations,
        max_completion_length=LENGTH,
    )
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in load_prompts("embedded")])

    def train(paced: Paced) -> None:
        quietly(GRPOTrainer(model_path("embedded"), score, args=config, train_dataset=rows, callbacks=[paced]))

    return Paced(train, "step", 1, prompts * generations)


def as_it_comes(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model with transformers' own modules; nlf replaces its GELU."""
    stock = AutoModelForCausalLM.from_config(model.config).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def plain(prompts: int, generations: int, steps: int, objective: str) -> Side:
    """The loop in plain code; a call runs one iteration."""
    model, tokenizer = load_model("embedded")
    scheme = TagScheme(tuple(TagOptions().tags))
    policy = prepare_policy(model, tokenizer, scheme, reference_model=copy.deepcopy(model))
    model, reference = as_it_comes(policy.model), as_it_comes(policy.reference_model).requires_grad_(False)
    reference.resize_token_embeddings(model.get_input_embeddings().num_embeddings, mean_resizing=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)  # Trainer's default
    encoder, scorer, rows = PromptEncoder(tokenizer, scheme), resolve_reward("local"), load_prompts("embedded")
    batch, weights = TRAINING_DEFAULTS["per_device_train_batch_size"], LoopOptions().quantile_weights
    how = argparse.Namespace(device=str(model.device), objective=objective)
    pool: list[dict] = []
    eos = policy.eos_token_ids[0]

    @torch.inference_mode()
    def sample(texts: list[str], tag: str | None) -> list[list[int]]:
        queries = [encoder.query_ids(tag, encoder.prompt_ids(text)) for text in texts]
        width = max(map(len, queries))
        out = model.generate(
            torch.tensor([[eos] * (width - len(q)) + q for q in queries], device=model.device),
            attention_mask=torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in queries], device=model.device),
            num_return_sequences=generations, max_new_tokens=LENGTH, do_sample=True, top_k=0,
            eos_token_id=eos, pad_token_id=eos, suppress_tokens=list(policy.banned_token_ids) or None,
        )  # fmt: skip
        return [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in out[:, width:].tolist()]

    def example(row: dict, tokens: int, i: int) -> Example:
        tags = [scheme.tags[row["quantile"]], scheme.tags[scheme.mirror(row["quantile"], i)]]
        right, wrong = (encoder.query_ids(tag, row["prompt"]) for tag in tags)
        wrong = wrong if objective == "contrastive" else None
        return Example(right, wrong, row["prompt"], row["ids"], tokens, batch)

    def iteration(number: int) -> int:
        chosen = [rows[i % len(rows)]["prompt"] for i in range(number * prompts, (number + 1) * prompts)]
        for start in range(0, prompts, ROWS // generations):
            texts = chosen[start : start + ROWS // generations]
            ids = sample(texts, scheme.best if number else None)
            completions = tokenizer.batch_decode(ids, skip_special_tokens=True)
            repeated = [text for text in texts for _ in range(generations)]
            rewards = scorer(repeated, completions, ids)
            pool.extend(
                {"prompt": encoder.prompt_ids(text), "ids": each, "text": words, "reward": reward}
                for text, each, words, reward in zip(repeated, ids, completions, rewards, strict=True)
            )
        pool.sort(key=lambda row: -row["reward"])
        for place, row in enumerate(pool):
            row["quantile"] = place * len(scheme.tags) // len(pool)
        drawable = copy.deepcopy(pool)
        quantiles = quantize(torch.tensor([-float(row["quantile"]) for row in drawable]).numpy(), len(scheme.tags))
        draws = Draws(quantiles, batch_size=batch, weights=weights, seed=0, iteration=number)
        for step in range(steps):
            drawn = [drawable[draws[i]] for i in range(step * batch, (step + 1) * batch)]
            tokens = sum(len(row["ids"]) for row in drawn)
            naive(model, reference, [example(row, tokens, i) for i, row in enumerate(drawn)], how)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return len(chosen) * generations

    return iteration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=["grpo", "plain"], default="grpo")
    parser.add_argument("--objective", choices=list(COEFS), default="contrastive")
    parser.add_argument("--prompts", type=int, help="prompts of an iteration; default: 8, against plain 26")
    parser.add_argument("--generations", type=int, help="completions of a prompt; default: 8, against plain 4")
    parser.add_argument("--steps", type=int, help="optimizer steps of an iteration; default: 1, against plain 2")
    parser.add_argument("--grpo_beta", type=float, default=0.04)
    parser.add_argument("--repeats", type=int, help="timed pairs; default: 5, against plain 3")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sizes = {"prompts": (8, 26), "generations": (8, 4), "steps": (1, 2), "repeats": (5, 3)}
    prompts, generations, steps, repeats = (
        getattr(args, name) or of[args.against == "plain"] for name, of in sizes.items()
    )
    iterations = repeats + 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        mine = ours(folder / "nlf", prompts, generations, steps, iterations, args.objective)
        if args.against == "grpo":
            other = grpo(folder / "grpo", prompts, generations, args.grpo_beta, iterations)
        else:
            other = plain(prompts, generations, steps, args.objective)
        taken = alternate({"nlf": mine, args.against: other}, repeats)
    print(table(taken, "completions", 1))
    what = f"{args.objective}, {prompts} prompts × {generations}, {steps} step{'s' * (steps > 1)}"
    print(f"\n{what}: {ratio_line(taken)}")
    print(f"ours between iterations (checkpoint and logs), not timed above: at least {min(mine.between[1:]):.2f} s")


if __name__ == "__main__":
    main()
