"""How many GPUs, how much memory and how many hours a run takes: arithmetic, nothing is measured.

    python benchmarks/sizing.py        # the table of docs/scaling.md, which explains each term

Every number that is not arithmetic is a constant below, with where it comes from.
"""

from dataclasses import dataclass

GB = 1e9
CARD = 80 * GB  # memory of an H100 (vendor)
USABLE = 0.9  # assumed: the rest is the allocator's and NCCL's
PEAK = 989e12  # bf16 FLOP/s of an H100 SXM without sparsity (vendor)
BANDWIDTH = 3.35e12  # bytes/s of its memory (vendor)
TRAIN_SHARE = 0.3  # ASSUMED share of PEAK that training reaches; nobody has measured it here
DECODE_SHARE = 0.2  # ASSUMED share of PEAK that decoding in large batches reaches
LAYER_SECONDS = 0.5e-3  # ASSUMED: time to launch one layer's kernels from Python, the floor of a decode step
ACTIVATION = 34  # bytes a token, layer and hidden unit: Korthikanti et al., arXiv 2205.05198, without attention scores
LOGIT = 14  # bytes a logit: bf16, float32, its log-softmax, its gradient

PROMPT, NEW = 28, 20  # tokens: prompt with its tag (assumed mean), completion (recipe)
MICRO_BATCH = 32  # completions on one GPU at once
DECODE_TOKENS, CACHE = (
    65_536,
    8 * GB,
)  # completions x (PROMPT + NEW) at once (`sampling_batch_tokens`), fewer if their cache is over CACHE
ITERATIONS, PROMPTS = 16, 85_000  # recipes/toxicity-gpt2-large.yaml on RealToxicityPrompts' training prompts
STEPS, BATCH = 32_000, 32


@dataclass(frozen=True)
class Model:
    """Shapes from its public configuration."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    parameters: float

    @property
    def embeddings(self) -> float:
        """Input and output rows, tied or not: an upper bound."""
        return 2 * self.vocabulary * self.hidden

    @property
    def cached(self) -> float:
        """Bytes of a token's keys and values: bf16, each head its own."""
        return 2 * 2 * self.layers * self.hidden

    @property
    def rows(self) -> int:
        """Completions that are sampled at once."""
        return int(min(DECODE_TOKENS, CACHE / self.cached) // (PROMPT + NEW))


MODELS = [
    Model("GPT-2", 768, 12, 50_257, 0.124e9),
    Model("GPT-2-large", 1280, 36, 50_257, 0.774e9),
    Model("GPT-2-XL", 1600, 48, 50_257, 1.56e9),
    Model("Llama-2-7B", 4096, 32, 32_000, 6.74e9),
    Model("Llama-2-13B", 5120, 40, 32_000, 13.0e9),
    Model("Llama-2-70B", 8192, 80, 32_000, 69.0e9),
]


def states(model: Model, gpus: int, sharded: bool, lora: bool) -> float:
    """Bytes a GPU holds all the time: float32 weights, gradients and two moments of Adam, float32 reference.

    LoRA trains next to nothing and is its own reference. Unsharded: bf16 copies of the weights (autocast), and DDP's
    buckets, as large as the gradients, where there are several GPUs.
    """
    trained = 0 if lora else 4 + 8  # gradients, moments
    reference = 0 if lora else 4
    each = 4 + trained + reference
    if sharded:
        return each * model.parameters / gpus
    return (each + 2 + (4 if gpus > 1 and not lora else 0)) * model.parameters


def training(model: Model, sharded: bool, branches: int) -> float:
    """Bytes that come on top in a training step: activations, logits, and what is gathered for the layers in hand."""
    activations = MICRO_BATCH * branches * (PROMPT + NEW) * model.layers * model.hidden * ACTIVATION
    logits = MICRO_BATCH * (branches + 1) * NEW * model.vocabulary * LOGIT
    layer = (model.parameters - model.embeddings) / model.layers
    gathered = 2 * 2 * (model.embeddings + 2 * layer) if sharded else 0  # bf16 weights and gradients
    return activations + logits + max(gathered, 0)


def sampling(model: Model, sharded: bool, copies: int = 1) -> float:
    """Bytes on top while it samples: gathered bf16 weights (two copies in an evaluation), the cache, logits."""
    each = model.cached * (PROMPT + NEW) + 4 * model.vocabulary  # of a completion: its cache, its logits
    return (2 * copies * model.parameters if sharded else 0) + model.rows * each


def memory(model: Model, gpus: int, sharded: bool, lora: bool = False, branches: int = 2) -> dict[str, float]:
    """Bytes on each GPU: the states, and the most that each phase needs with them."""
    base = states(model, gpus, sharded, lora)
    phases = {
        "training": training(model, sharded, branches),
        "sampling": sampling(model, sharded),
        "evaluating": sampling(model, sharded, 1 if lora else 2),
    }
    return {"states": base} | {name: base + more for name, more in phases.items()}


def smallest(model: Model, lora: bool = False) -> tuple[int, bool] | None:
    """The fewest GPUs that hold a run, and whether they have to shard; None = one GPU cannot hold the sampled copy."""
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        if max(memory(model, gpus, gpus > 1, lora).values()) <= USABLE * CARD:
            return gpus, gpus > 1
    return None


def hours(model: Model, gpus: int, branches: int = 1) -> tuple[float, float]:
    """(sampling, training) hours of the published toxicity run; scoring and evaluation are not in it."""
    compute, reading = 2 * model.parameters * model.rows / (PEAK * DECODE_SHARE), 2 * model.parameters / BANDWIDTH
    token = max(compute, reading, model.layers * LAYER_SECONDS)
    sampled = ITERATIONS * PROMPTS / (model.rows * gpus) * NEW * token
    flop = (6 * branches + 2) * model.parameters * (PROMPT + NEW)  # of a completion: forward and backward; reference
    step = max(
        BATCH * flop / (PEAK * TRAIN_SHARE * gpus), 4 * model.layers * LAYER_SECONDS
    )  # a backward is two forwards
    return sampled / 3600, STEPS * step / 3600


def row(model: Model, lora: bool) -> str:
    """A line of the table."""
    found = smallest(model, lora)
    name = f"{model.name}{', LoRA' if lora else ''} | {model.parameters / 1e9:.3g}"
    if found is None:
        return f"| {name} | none | – | – | – | – | – |"
    gpus, sharded = found
    need = memory(model, gpus, sharded, lora)
    figures = " | ".join(f"{need[phase] / GB:.0f}" for phase in ("states", "training", "sampling", "evaluating"))
    config = "fsdp2" if sharded else "none"
    return f"| {name} | {gpus}, {config} | {figures} | {' + '.join(f'{h:.2f}' for h in hours(model, gpus))} |"


def table() -> str:
    """The table of docs/scaling.md."""
    head = [
        "| model | parameters, 10⁹ | GPUs of 80 GB, config | states, GB | training | sampling | evaluating | hours: sampling + training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(head + [row(model, lora) for model in MODELS for lora in (False, True)])


if __name__ == "__main__":
    print(table())
