"""Compare `nlf.models.likelihoods` with one transformers call for each completion: same model, threads and ids.

The other side does what perplexity scripts do: `model(input_ids, labels=...)` on prompt and completion, with the prompt
masked out of the loss. Ids and weights are random (except `--model embedded`). The two sides alternate in one run after a
warm-up. For each prompt length the table has median speeds and the median of the paired ratios.

Arithmetic bounds the gain where one sequence already fills the processor: sharing a prompt of L tokens makes a
completion of T tokens at most (L + T) / T times cheaper, and batching speeds up the matrix products. The ratio is much
larger on an accelerator and with prompts longer than completions.

    python benchmarks/perplexity.py                                   # 4 layers, 256 wide, vocabulary 8192
    python benchmarks/perplexity.py --model embedded
    python benchmarks/perplexity.py --model small --prompts 1 --repeats 3     # GPT-2-small's shape
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from nlf.data.markdown import markdown_table
from nlf.models.likelihoods import conditional_nll
from nlf.models.policy import load_model

SHAPES = {"tiny": (256, 4, 8192), "small": (768, 12, 50257)}  # width, layers, vocabulary


def build(name: str) -> PreTrainedModel:
    if name == "embedded":
        return load_model(name)[0].eval()
    torch.manual_seed(0)
    width, layers, vocabulary = SHAPES[name]
    shape = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 1024, "vocab_size": vocabulary}
    config = GPT2Config(**shape, bos_token_id=None, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def one_at_a_time(model: PreTrainedModel, prompts: list[list[int]], completions: list) -> list[list[float]]:
    """Nats of each completion, one call for each."""
    found = []
    for prompt, rows in zip(prompts, completions, strict=True):
        found.append([])
        for ids in rows:
            input_ids = torch.tensor([prompt + ids], device=model.device)
            labels = torch.tensor([[-100] * len(prompt) + ids], device=model.device)
            found[-1].append(model(input_ids=input_ids, labels=labels).loss.item() * len(ids))
    return found


def seconds(run: Callable, *args) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    found = run(*args)
    return time.perf_counter() - start, np.array(found)


def compare(model: PreTrainedModel, length: int, args: argparse.Namespace) -> list[str]:
    """Measure both sides on prompts of one length: a row of the table."""
    generator, size = torch.Generator().manual_seed(length), model.config.vocab_size
    prompts = torch.randint(1, size, (args.prompts, length), generator=generator).tolist()
    completions = torch.randint(1, size, (args.prompts, args.generations, args.new), generator=generator).tolist()
    ours, theirs = [], []
    for _ in range(args.repeats + 1):
        took, found = seconds(conditional_nll, model, prompts, completions)
        ours.append(took)
        took, expected = seconds(one_at_a_time, model, prompts, completions)
        theirs.append(took)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    ours, theirs = ours[1:], theirs[1:]  # the first is the warm-up
    speeds = [args.prompts * args.generations / statistics.median(each) for each in (ours, theirs)]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    return [str(length), f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", spread]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"prompts": 4, "generations": 25, "new": 20, "repeats": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", choices=[*SHAPES, "embedded"], default="tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64, 128, 200])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.model).to(args.device)
    print(f"{args.model}, {args.threads} threads, {args.generations} completions of {args.new} tokens a prompt\n")
    headings = ["prompt tokens", "nlf, completions/s", "one at a time", "ratio (least to most)"]
    print(markdown_table(headings, [compare(model, length, args) for length in args.lengths]))


if __name__ == "__main__":
    main()
