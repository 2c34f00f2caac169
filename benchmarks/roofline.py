"""How near to what the machine can do: the matrix products a model needs, over the time taken, beside a plain matmul.

    python benchmarks/roofline.py [--threads 1] [--device cuda]

What is needed is counted, not what was done, so padding and repeated work lower the share. A token read costs two
operations for each parameter that is no embedding table and no output layer; a token's logits cost two for each number in
the output layer. Where gradients are taken both cost three times that: the forward pass, and two in the backward pass.
Attention between tokens, norms, softmaxes and drawing are not counted: at these lengths they are a few per cent of the
operations, and more of the time.

    sampling   2 N (prompt tokens, once per prompt + completion tokens - 1 each) + 2 H (completion tokens)
    training   3 (2 N (tokens of each branch) + 2 H (completion tokens of each branch)) + the same once for the reference,
               less what the last layer's feed-forward part would do at tokens that predict none of the completion

The rate is the best of a few products of square matrices: float32 on a processor, bfloat16 on an accelerator, where the
bandwidth is told too (a copy, bytes read and written), since decoding is bound by it there.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from nlf.models.reading import last_mlp

MATRIX = {"cpu": 1_536, "cuda": 8_192}


def best_seconds(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    found = []
    for _ in range(repeats + 1):  # the first is the warm-up
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def matmul_rate(device: str = "cpu") -> float:
    """Operations a second in products of square matrices, with the threads that are set."""
    kind = torch.device(device).type
    size, dtype = MATRIX[kind], torch.float32 if kind == "cpu" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, kind)


def copy_rate(device: str) -> float:
    """Bytes read and written in a second by a large copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / best_seconds(lambda: target.copy_(source), torch.device(device).type)


def forward_flops(model: nn.Module, tokens: float, logits: float) -> float:
    """Operations of reading so many tokens and making the logits of so many."""
    head = model.get_output_embeddings().weight
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    return 2.0 * (body * tokens + head.numel() * logits)


def sampling_flops(model: nn.Module, prompt_tokens: float, completions: float, completion_tokens: float) -> float:
    """Operations of sampling: each prompt read once, the last token of a completion never."""
    return forward_flops(model, prompt_tokens + completion_tokens - completions, completion_tokens)


def training_flops(model: nn.Module, tokens: float, logits: float, ref_tokens: float, ref_logits: float) -> float:
    """Operations of a step: tokens and logits of all branches with gradient, those of the reference without."""
    last = last_mlp(model)
    spared = 2.0 * sum(p.numel() for p in last.parameters()) if last else 0.0  # for each token without logits

    def forward(tokens: float, logits: float) -> float:
        return forward_flops(model, tokens, logits) - spared * (tokens - logits)

    return 3 * forward(tokens, logits) + forward(ref_tokens, ref_logits)


def line(device: str, shares: dict[str, float]) -> str:
    """What the machine does in a matmul, and what part of that each of these rates (operations a second) is."""
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
