"""Relate a model's speed to the machine's: the matrix products it needs, over its seconds, beside a plain matmul.

    python benchmarks/roofline.py [--threads 1] [--device cuda]

Only necessary operations count, so padding and repeated work lower the share. Reading a token costs two operations for
each of the N parameters outside embedding tables and output layer. The logits of a token cost two operations for each of
the H numbers in the output layer. With gradients both cost three times as much: one forward pass, and a backward pass that
costs two. Attention between tokens, norms, softmaxes and drawing do not count: at these lengths they are a few per cent of
the operations, but a larger share of the time.

    sampling   2 N (prompt tokens, once for each prompt + completion tokens - 1 for each completion)
               + 2 H (completion tokens)
    training   3 (2 N (tokens of each branch) + 2 H (completion tokens of each branch))
               + 2 N (tokens of the reference) + 2 H (completion tokens),
               without the last layer's feed-forward part at tokens that predict no completion token

The machine's rate is the best of a few products of square matrices: float32 on a processor, bfloat16 on an accelerator.
There the bandwidth of a copy (bytes read and written) is printed too, since it bounds decoding.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from nlf.models.reading import last_mlp

MATRIX = {"cpu": 1_536, "cuda": 8_192}


def best_seconds(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    """The shortest of several runs, after a warm-up."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def matmul_rate(device: str = "cpu") -> float:
    """Operations a second in products of square matrices, with torch's current number of threads."""
    kind = torch.device(device).type
    size, dtype = MATRIX[kind], torch.float32 if kind == "cpu" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, kind)


def copy_rate(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / best_seconds(lambda: target.copy_(source), torch.device(device).type)


def forward_flops(model: nn.Module, tokens: float, logits: float) -> float:
    """Operations of reading `tokens` tokens and computing the logits of `logits` tokens."""
    head = model.get_output_embeddings().weight
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    return 2.0 * (body * tokens + head.numel() * logits)


def sampling_flops(model: nn.Module, prompt_tokens: float, completions: float, completion_tokens: float) -> float:
    """Operations of sampling: each prompt is read once, the last token of a completion never."""
    return forward_flops(model, prompt_tokens + completion_tokens - completions, completion_tokens)


def training_flops(model: nn.Module, tokens: float, logits: float, ref_tokens: float, ref_logits: float) -> float:
    """Operations of a step: tokens and logits of all branches with gradient, and of the reference without."""
    last = last_mlp(model)
    spared = 2.0 * sum(p.numel() for p in last.parameters()) if last else 0.0  # operations of a token without logits

    def forward(tokens: float, logits: float) -> float:
        return forward_flops(model, tokens, logits) - spared * (tokens - logits)

    return 3 * forward(tokens, logits) + forward(ref_tokens, ref_logits)


def line(device: str, shares: dict[str, float]) -> str:
    """One line with the machine's matmul rate and the share of it that each rate (operations a second) reaches."""
    rate = matmul_rate(device)
    parts = [f"{name} {each / 1e9:,.1f} GFLOP/s, {each / rate:.0%}" for name, each in shares.items()]
    bandwidth = "" if device == "cpu" else f", copies {copy_rate(device) / 1e9:,.0f} GB/s"
    return f"roofline: matmul {rate / 1e9:,.1f} GFLOP/s{bandwidth}" + "".join(f"; {part}" for part in parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(line(args.device, {}))
