"""Compare tokens a second of `nlf.sampling.hf` and transformers' `generate`: same model, prompts and sampling rule.

    python benchmarks/sampling.py                                     # 4 prompts x 25, 4 layers of 256
    python benchmarks/sampling.py --prompts 256 --generations 1       # mixed lengths, `generate` in file order
    python benchmarks/sampling.py --width 768 --layers 12 --vocabulary 50257 --repeats 3

The weights are random. Prompt lengths follow those of real prompts: 6,000 RealToxicityPrompts under GPT-2's tokenizer
have a median of 14 tokens and percentiles of 8 (5th) and 26 (95th), as has exp N(2.66, 0.375) clipped to 5 and 57.
`--length` gives all prompts one length. `generate` gets the prompts in file order, in one batch padded to the longest.

EOS ends a completion, as in the published run. 39 % of the embedded model's completions of real prompts end before their
20th token, with the same chance at every token. `--ends` sets this share through a bias in the output layer, which both
sides have; 0 lets no completion end early. Tokens are counted up to the EOS.

The two sides alternate in one run after a warm-up. benchmarks/roofline.py explains the last line.
"""

import argparse
import copy
import random
import statistics
from collections.abc import Callable

import torch
from paired import alternate, ratio_line, table
from roofline import line, sampling_flops
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nlf.config import SamplingOptions
from nlf.models.fast_gelu import use_fast_gelu
from nlf.sampling import Request
from nlf.sampling.hf import HFSampler

EOS = 0


def build(args: argparse.Namespace) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_embd": args.width, "n_layer": args.layers, "n_head": args.width // 64}
    ids = {"bos_token_id": None, "eos_token_id": EOS if args.ends else None, "pad_token_id": EOS}
    positions = max(256, (args.length or 57) + args.new)
    config = GPT2Config(vocab_size=args.vocabulary, n_positions=positions, **ids, **shape)
    model = AutoModelForCausalLM.from_config(config).to(args.device).eval()
    if args.ends:
        end_early(model, args)
    return model


@torch.no_grad()
def end_early(model: GPT2LMHeadModel, args: argparse.Namespace) -> None:
    """Give EOS the same chance at every token, so that the share `--ends` of completions ends before its last token."""
    chance = 1 - (1 - args.ends) ** (1 / (args.new - 1))
    ids = torch.randint(1, args.vocabulary, (32, 16), device=args.device)
    logits = model(ids).logits.flatten(0, 1)  # (N, V)
    others = logits.topk(args.top_k or args.vocabulary).values.logsumexp(-1).mean() + torch.tensor(args.top_p).log()
    bias = torch.zeros(args.vocabulary, device=args.device)
    bias[EOS] = others + torch.tensor(chance / (1 - chance)).log()
    model.lm_head.bias = nn.Parameter(bias)


def prompts_of(args: argparse.Namespace) -> list[list[int]]:
    drawn = random.Random(0)
    lengths = [min(57, max(5, round(drawn.lognormvariate(2.66, 0.375)))) for _ in range(args.prompts)]
    return [drawn.choices(range(1, args.vocabulary), k=args.length or length) for length in lengths]


def ours(model: GPT2LMHeadModel, prompts: list[list[int]], args: argparse.Namespace) -> Callable[[int], int]:
    model = copy.deepcopy(model)
    use_fast_gelu(model)  # like `load_model`
    options = SamplingOptions(
        num_generations=args.generations, max_completion_length=args.new, top_k=args.top_k, top_p=args.top_p
    )
    ends = (EOS,) if args.ends else ()
    sampler = HFSampler(model, eos_token_ids=ends, token_budget=args.token_budget, compile=args.compile)
    requests = [Request(tuple(ids), key) for key, ids in enumerate(prompts)]
    return lambda seed: sum(
        len(ids) for rows in sampler.sample(requests, options, seed=seed, iteration=0) for ids in rows
    )


def theirs(model: GPT2LMHeadModel, prompts: list[list[int]], args: argparse.Namespace) -> Callable[[int], int]:
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS] * (width - len(p)) + p for p in prompts], device=args.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=args.device)
    rule = {"do_sample": True, "top_k": args.top_k, "top_p": args.top_p, "max_new_tokens": args.new}

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(ids, attention_mask=mask, num_return_sequences=args.generations, **rule)[:, width:]
        if not args.ends:
            return out.numel()
        before = (out == EOS).cumsum(-1) - (out == EOS).long()  # EOS before each token
        return int((before == 0).sum())

    return run


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"width": 256, "layers": 4, "vocabulary": 5120, "prompts": 4, "generations": 25, "new": 20, "repeats": 7}
    for name, default in {**numbers, "top_k": 50, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--length", type=int, help="tokens of every prompt; default: lengths of real prompts")
    parser.add_argument(
        "--ends", type=float, default=0.4, help="share of completions that end before their last token"
    )
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--token_budget", type=int)
    parser.add_argument("--compile", action="store_true", help="sampler_compile for nlf's side")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    model, prompts, completions = build(args), prompts_of(args), args.prompts * args.generations
    taken = alternate({"nlf": ours(model, prompts, args), "generate": theirs(model, prompts, args)}, args.repeats)
    print(table(taken, "tokens"))
    print(f"\n{ratio_line(taken)}")
    kept = {name: statistics.mean(row.amount for row in rows) / completions for name, rows in taken.items()}
    print(f"tokens in a completion: {', '.join(f'{name} {tokens:.1f}' for name, tokens in kept.items())}")
    read = sum(map(len, prompts))
    needed = [sampling_flops(model, read, completions, row.amount) / row.seconds for row in taken["nlf"]]
    print(line(args.device, {"sampling": statistics.median(needed)}))


if __name__ == "__main__":
    main()
