"""Estimate the GPUs, memory and hours of a run by arithmetic, without measuring anything.

    python benchmarks/sizing.py        # the table of docs/scaling.md, which explains each term

The constants below name their sources.
"""

from dataclasses import dataclass

from nlf.data.markdown import markdown_table

GB = 1e9
CARD = 80 * GB  # memory of an H100 (vendor)
USABLE = 0.9  # assumed share for the run; allocator and NCCL take the rest
PEAK = 989e12  # bf16 FLOP/s of an H100 SXM without sparsity (vendor)
BANDWIDTH = 3.35e12  # bytes/s of its memory (vendor)
TRAIN_SHARE = 0.3  # ASSUMED share of PEAK that training reaches, not measured
DECODE_SHARE = 0.2  # ASSUMED share of PEAK that decoding in large batches reaches, not measured
LAYER_SECONDS = 0.5e-3  # ASSUMED: time to launch one layer's kernels from Python, the floor of a decode step
ACTIVATION = 34  # bytes a token, layer and hidden unit: Korthikanti et al., arXiv 2205.05198, without attention scores
LOGIT = 14  # bytes a logit: bf16, float32, its log-softmax, its gradient

PROMPT, NEW = 28, 20  # tokens: prompt with its tag (assumed mean), completion (recipe)
MICRO_BATCH = 32  # completions on one GPU at once
DECODE_TOKENS = 65_536  # completions sampled at once × (PROMPT + NEW): `sampling_batch_tokens`
CACHE = 8 * GB  # most memory of their keys and values; fewer completions are sampled at once where it is not enough
ITERATIONS, PROMPTS = 16, 85_000  # the recipe toxicity-gpt2-large on RealToxicityPrompts' training prompts
STEPS, BATCH = 32_000, 32


@dataclass(frozen=True)
class Model:
    """Shapes from a model's public configuration."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    parameters: float
    cached_width: int | None = None  # hidden units of a token's keys, where heads share them; None = all

    @property
    def embeddings(self) -> float:
        """Parameters of input and output embeddings as if untied: an upper bound."""
        return 2 * self.vocabulary * self.hidden

    @property
    def cached(self) -> float:
        """Bytes of a token's keys and values, in bf16."""
        return 2 * 2 * self.layers * (self.cached_width or self.hidden)

    @property
    def rows(self) -> int:
        """Completions sampled at once."""
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
    """Bytes that a GPU always holds: weights, gradients, two moments of Adam and the reference, all float32.

    LoRA trains few parameters, and its base is the reference. Unsharded runs add bf16 copies of the weights (autocast),
    and on several GPUs DDP's buckets, which are as large as the gradients.
    """
    trained = 0 if lora else 4 + 8  # gradients, moments
    reference = 0 if lora else 4
    each = 4 + trained + reference
    if sharded:
        return each * model.parameters / gpus
    return (each + 2 + (4 if gpus > 1 and not lora else 0)) * model.parameters


def training(model: Model, sharded: bool, branches: int) -> float:
    """Bytes that a training step adds: activations, logits, and the gathered weights of the current layers."""
    activations = MICRO_BATCH * branches * (PROMPT + NEW) * model.layers * model.hidden * ACTIVATION
    logits = MICRO_BATCH * (branches + 1) * NEW * model.vocabulary * LOGIT
    layer = (model.parameters - model.embeddings) / model.layers
    gathered = 2 * 2 * (model.embeddings + 2 * layer) if sharded else 0  # bf16 weights and gradients
    return activations + logits + max(gathered, 0)


def sampling(model: Model, sharded: bool, copies: int = 1) -> float:
    """Bytes that sampling adds: gathered bf16 weights (two copies in an evaluation), the cache and logits."""
    each = model.cached * (PROMPT + NEW) + 4 * model.vocabulary  # of a completion: its cache, its logits
    return (2 * copies * model.parameters if sharded else 0) + model.rows * each


def memory(model: Model, gpus: int, sharded: bool, lora: bool = False, branches: int = 2) -> dict[str, float]:
    """Bytes on each GPU: the states alone, and the peak of each phase, states included."""
    base = states(model, gpus, sharded, lora)
    phases = {
        "training": training(model, sharded, branches),
        "sampling": sampling(model, sharded),
        "evaluating": sampling(model, sharded, 1 if lora else 2),
    }
    return {"states": base} | {name: base + more for name, more in phases.items()}


def smallest(model: Model, lora: bool = False) -> tuple[int, bool] | None:
    """The fewest GPUs that hold a run, and whether they shard; None if 64 GPUs do not hold it."""
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        if max(memory(model, gpus, gpus > 1, lora).values()) <= USABLE * CARD:
            return gpus, gpus > 1
    return None


def hours(model: Model, gpus: int, branches: int = 1) -> tuple[float, float]:
    """(sampling, training) hours of the published toxicity run, without scoring and evaluation."""
    compute, reading = 2 * model.parameters * model.rows / (PEAK * DECODE_SHARE), 2 * model.parameters / BANDWIDTH
    token = max(compute, reading, model.layers * LAYER_SECONDS)
    sampled = ITERATIONS * PROMPTS / (model.rows * gpus) * NEW * token
    # Of a completion: forward and backward passes of the branches (a backward costs two forwards), and the reference.
    flop = (6 * branches + 2) * model.parameters * (PROMPT + NEW)
    step = max(BATCH * flop / (PEAK * TRAIN_SHARE * gpus), 4 * model.layers * LAYER_SECONDS)
    return sampled / 3600, STEPS * step / 3600


HEADINGS = [
    *("model", "parameters, 10⁹", "GPUs of 80 GB, config", "states, GB", "training", "sampling", "evaluating"),
    "hours: sampling + training",
]


def row(model: Model, lora: bool) -> list[str]:
    """A row of the table."""
    found = smallest(model, lora)
    name = [f"{model.name}{', LoRA' if lora else ''}", f"{model.parameters / 1e9:.3g}"]
    if found is None:
        return [*name, "none", *["–"] * 5]
    gpus, sharded = found
    need = memory(model, gpus, sharded, lora)
    figures = [f"{need[phase] / GB:.0f}" for phase in ("states", "training", "sampling", "evaluating")]
    took = " + ".join(f"{each:.2f}" for each in hours(model, gpus))
    return [*name, f"{gpus}, {'fsdp2' if sharded else 'none'}", *figures, took]


def table() -> str:
    """The table of docs/scaling.md."""
    return markdown_table(HEADINGS, [row(model, lora) for model in MODELS for lora in (False, True)])


# ---- one card, the recipe toxicity-7b-lora ---------------------------------------------------------------------------

QWEN = Model("Qwen2.5-7B", 3584, 28, 152_064, 7.616e9, cached_width=4 * 128)
ADAPTERS = 40.4e6  # parameters of LoRA with r 16 on every linear layer of QWEN
SHORT_ITERATIONS, SHORT_STEPS, SHORT_BATCH, SHORT_ROWS = 5, 20, 64, 256  # of the recipe; rows are sampled at once


@dataclass(frozen=True)
class Card:
    """A GPU, by its vendor's figures."""

    name: str
    memory: float  # bytes
    peak: float  # bf16 FLOP/s without sparsity
    bandwidth: float  # bytes/s
    micro_batch: int  # completions at once in training


CARDS = [Card("RTX 4090", 24 * GB, 165e12, 1.008e12, 8), Card("H100", 80 * GB, PEAK, BANDWIDTH, 64)]


def card_memory(card: Card) -> dict[str, float]:
    """Bytes of the recipe on a card: the base in bf16; adapters, their gradients and moments in float32, and bf16 copies.

    Gradient checkpointing keeps each layer's input, and computes one layer's activations at a time. ACTIVATION is of layers
    with 12 hidden² weights, and grows with the weights of the layer.
    """
    base = 2 * QWEN.parameters + (4 + 4 + 8 + 2) * ADAPTERS
    tokens = card.micro_batch * 2 * (PROMPT + NEW)  # two branches
    layer = (QWEN.parameters - QWEN.embeddings) / QWEN.layers / (12 * QWEN.hidden**2)
    kept = tokens * QWEN.hidden * (2 * QWEN.layers + ACTIVATION * layer)
    logits = card.micro_batch * 3 * NEW * QWEN.vocabulary * LOGIT
    sampled = SHORT_ROWS * (QWEN.cached * (PROMPT + NEW) + 4 * QWEN.vocabulary)
    return {"states": base, "training": base + kept + logits, "sampling": base + sampled}


def card_minutes(card: Card) -> tuple[float, float]:
    """(sampling, training) minutes of the recipe on a card, without loading, scoring and evaluation."""
    compute, reading = (
        2 * QWEN.parameters * SHORT_ROWS / (card.peak * DECODE_SHARE),
        2 * QWEN.parameters / card.bandwidth,
    )
    token = max(compute, reading, QWEN.layers * LAYER_SECONDS)
    # Of a completion: two branches forward, again in the backward pass, and their gradients (an upper bound, as the base
    # needs none for its weights); the reference.
    flop = (2 * (2 + 2 + 4) + 2) * QWEN.parameters * (PROMPT + NEW)
    micro_batches = SHORT_BATCH // card.micro_batch
    step = max(SHORT_BATCH * flop / (card.peak * TRAIN_SHARE), micro_batches * 4 * QWEN.layers * LAYER_SECONDS)
    return SHORT_ITERATIONS * NEW * token / 60, SHORT_STEPS * step / 60


def card_table() -> str:
    """The table of docs/scaling.md for the recipe toxicity-7b-lora."""
    headings = ["card", "completions at once", "states, GB", "training", "sampling", "minutes: sampling + training"]
    rows = []
    for card in CARDS:
        need = [f"{size / GB:.1f}" for size in card_memory(card).values()]
        took = " + ".join(f"{minutes:.1f}" for minutes in card_minutes(card))
        rows.append([f"{card.name}, {card.memory / GB:.0f} GB", f"{card.micro_batch}", *need, took])
    return markdown_table(headings, rows)


if __name__ == "__main__":
    print(table(), card_table(), sep="\n\n")
