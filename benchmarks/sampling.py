"""Tokens per second of `nlf.sampling.hf` against transformers' `generate`: same model, prompts and sampling rule.

Random weights, no EOS (so that both do the same work). The two alternate within one run, after one warm-up each; the
table gives medians, their spread and the median of the paired ratios.

    python benchmarks/sampling.py                                     # the embedded model's size, 4 prompts x 25
    python benchmarks/sampling.py --width 768 --layers 12 --vocabulary 50257 --repeats 3
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nlf.activations import use_fast_gelu
from nlf.config import SamplingOptions
from nlf.sampling import Request
from nlf.sampling.hf import HFSampler


def build(args: argparse.Namespace) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_embd": args.width, "n_layer": args.layers, "n_head": args.width // 64, "n_positions": 256}
    config = GPT2Config(vocab_size=args.vocabulary, bos_token_id=None, eos_token_id=None, pad_token_id=0, **shape)
    return AutoModelForCausalLM.from_config(config).to(args.device).eval()


def ours(model: GPT2LMHeadModel, prompts: list[list[int]], args: argparse.Namespace) -> Callable[[int], int]:
    model = copy.deepcopy(model)
    use_fast_gelu(model)  # as `load_model` does
    options = SamplingOptions(
        num_generations=args.generations, max_completion_length=args.new, top_k=args.top_k, top_p=args.top_p
    )
    sampler = HFSampler(model, eos_token_ids=(), token_budget=args.token_budget)
    requests = [Request(tuple(ids), key) for key, ids in enumerate(prompts)]
    return lambda seed: sum(
        len(ids) for rows in sampler.sample(requests, options, seed=seed, iteration=0) for ids in rows
    )


def theirs(model: GPT2LMHeadModel, prompts: list[list[int]], args: argparse.Namespace) -> Callable[[int], int]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=args.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=args.device)
    rule = {"do_sample": True, "top_k": args.top_k, "top_p": args.top_p, "max_new_tokens": args.new}

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(ids, attention_mask=mask, num_return_sequences=args.generations, **rule)
        return out[:, width:].numel()

    return run


def tokens_per_second(run: Callable[[int], int], seed: int) -> float:
    start = time.perf_counter()
    return run(seed) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"width": 256, "layers": 4, "vocabulary": 5120, "prompts": 4, "generations": 25, "new": 20, "repeats": 7}
    for name, default in {**numbers, "top_k": 50, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--token_budget", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args)
    lengths = [6 + 3 * (i % 5) for i in range(args.prompts)]
    prompts = [torch.randint(1, args.vocabulary, (length,)).tolist() for length in lengths]
    runs = {"nlf": ours(model, prompts, args), "generate": theirs(model, prompts, args)}
    speeds = {name: [] for name in runs}
    for seed in range(args.repeats + 1):
        for name, run in runs.items():
            speeds[name].append(tokens_per_second(run, seed))
    speeds = {name: values[1:] for name, values in speeds.items()}  # the first is the warm-up
    print("| sampler | tokens/s, median | least | most |\n| --- | --- | --- | --- |")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} |")
    ratios = [a / b for a, b in zip(speeds["nlf"], speeds["generate"], strict=True)]
    print(f"\nratio, median of {args.repeats} pairs: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
