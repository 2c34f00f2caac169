"""Train the embedded language model (src/nlf/assets/lm) from scratch: a small GPT-2 with its own byte-level BPE.

    python tools/build_lm.py --data ../shared/data --work build/lm --minutes 75 --compile

The demo needs a base model that writes recognisable English in several registers, rude ones included: alignment needs
toxic completions to unlearn. lm_sources.py lists the corpora and their shares. "test" documents are left out, and
"validation" documents give the perplexity on the card (lm_card.py). Documents end with <|endoftext|>. Muon trains the
hidden matrices, AdamW the rest, with a warm-up, a plateau and a linear decay. Everything is seeded, but with --minutes
the schedule follows the clock: only --steps gives the same weights twice (same machine, same threads). An interrupted
run resumes from its checkpoint; --export_only writes the assets from it.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from lm_card import write_card
from lm_sources import SOURCES, documents

EOS = "<|endoftext|>"
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 5120, 192, 4, 3, 256
WINDOW, BATCH, SEED = 128, 32, 1
MUON_LR, ADAM_LR, WARMUP, DECAY = 5e-3, 3e-3, 0.02, 0.4
ASSETS = Path(__file__).parents[1] / "src/nlf/assets/lm"
# Replaces the file of save_pretrained, which names a class of transformers 5 only, and the local path.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS, "pad_token": EOS,
    "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False,
}  # fmt: skip
log = logging.getLogger("build_lm")


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with GPT-2's pre-tokenisation; <|endoftext|>, id 0, is BOS, EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"special_tokens": [EOS], "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, **options))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=EOS, model_max_length=CONTEXT
    )


def tokenizer_texts(data: Path, characters: int = 12_000_000) -> Iterator[str]:
    """Yield texts of every source in about its share, so that rude words get tokens too."""
    for source in SOURCES:
        left = characters * source.weight
        for text in documents(source, data, "train"):
            yield text[:20_000]
            left -= min(len(text), 20_000)
            if left < 0:
                break


def pack(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write all token ids of a source as one uint16 array; <|endoftext|> closes each document."""
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts))
    closed = [np.array([*encoding.ids, tokenizer.eos_token_id], np.uint16) for encoding in encodings]
    flat = np.concatenate(closed or [np.zeros(0, np.uint16)])
    with open(path.with_suffix(".tmp"), "wb") as file:
        np.save(file, flat)
    os.replace(path.with_suffix(".tmp"), path)


def prepare(data: Path, work: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer and pack all sources, as far as their files are missing."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer/tokenizer.json").exists():
        train_tokenizer(tokenizer_texts(data), vocabulary).save_pretrained(work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    for source in SOURCES:
        for part in ("train", "validation"):
            if not (path := work / f"{source.name}.{part}.npy").exists():
                pack(documents(source, data, part), tokenizer, path)
    return tokenizer


def load_tokens(work: Path, part: str) -> dict[str, np.ndarray]:
    """Sources with at least one window of tokens in this part, memory-mapped."""
    arrays = {source.name: np.load(work / f"{source.name}.{part}.npy", mmap_mode="r") for source in SOURCES}
    return {name: array for name, array in arrays.items() if len(array) > WINDOW + 1}


def draw_batch(tokens: dict[str, np.ndarray], starts: dict[str, np.ndarray], step: int) -> torch.Tensor:
    """Draw the (B, WINDOW + 1) windows of a step, a function of (seed, step).

    A window comes from a source drawn by weight. One in two starts at any offset, the others at the start of a document,
    where prompts start too.
    """
    rng = np.random.default_rng((SEED, step))
    weights = np.array([source.weight for source in SOURCES if source.name in tokens])
    rows = []
    for name in rng.choice(list(tokens), size=BATCH, p=weights / weights.sum()):
        array, limit = tokens[name], len(tokens[name]) - WINDOW - 1
        offset = int(rng.choice(starts[name])) if rng.random() < 0.5 else int(rng.integers(limit + 1))
        rows.append(array[(offset := min(offset, limit)) : offset + WINDOW + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def build_model(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(SEED)
    # gelu_pytorch_tanh is gelu_new in one kernel. No dropout: 3 M weights do not overfit in two or three epochs.
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def build_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".h." in name and p.ndim == 2)]
    muon = torch.optim.Muon(hidden, lr=MUON_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)]


def token_loss(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of ids[:, 1:], (B, T); CPUs with bfloat16 do its matrix products twice as fast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.transformer(ids[:, :-1]).last_hidden_state  # (B, T, width)
        logits = F.linear(hidden, model.transformer.wte.weight)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def schedule(done: float) -> float:
    """The learning-rate factor at a fraction of the budget: warm-up, plateau, linear decay to zero."""
    return max(0.0, min(1.0, done / WARMUP, (1 - done) / DECAY))


@torch.no_grad()
def validate(model: GPT2LMHeadModel, tokens: dict[str, np.ndarray], windows: int = 96) -> dict[str, float]:
    """Perplexity of each source over evenly spaced windows; "all" weighs the sources like training."""
    losses = {}
    for name, array in tokens.items():
        offsets = np.linspace(0, len(array) - WINDOW - 1, min(windows, len(array) // WINDOW), dtype=int)
        ids = torch.from_numpy(np.stack([array[o : o + WINDOW + 1] for o in offsets]).astype(np.int64))
        losses[name] = sum(float(token_loss(model, batch)) * len(batch) for batch in ids.split(BATCH)) / len(ids)
    mixed = np.average(list(losses.values()), weights=[s.weight for s in SOURCES if s.name in losses])
    return {name: math.exp(loss) for name, loss in {**losses, "all": float(mixed)}.items()}


def save_checkpoint(path: Path, **state: object) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train(args: argparse.Namespace, model: GPT2LMHeadModel) -> dict:
    """Train until the budget is spent: steps, else minutes without pauses between runs. Return step and elapsed."""
    tokens, optimizers = load_tokens(args.work, "train"), build_optimizers(model)
    starts = {name: np.flatnonzero(np.concatenate([[0], array[:-1]]) == 0) for name, array in tokens.items()}
    loss_of = torch.compile(token_loss) if args.compile else token_loss
    path, step, before = args.work / "checkpoint.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, before = state["step"], state["elapsed"]
    began = last_save = time.monotonic()
    running, done = None, 0.0
    while True:
        elapsed = before + time.monotonic() - began
        done = step / args.steps if args.steps else elapsed / (60 * args.minutes)
        if done >= 1 or time.monotonic() - last_save > 60 * args.save_minutes:
            states = [optimizer.state_dict() for optimizer in optimizers]
            save_checkpoint(path, model=model.state_dict(), optimizers=states, step=step, elapsed=elapsed)
            last_save = time.monotonic()
            if done >= 1:
                return {"step": step, "elapsed": elapsed}
        loss = loss_of(model, draw_batch(tokens, starts, step))
        loss.backward()
        for optimizer, peak in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(done)
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 100 == 0:
            log.info("step %d  done %.3f  loss %.3f  elapsed %.0f s", step, done, running, elapsed)


def export(args: argparse.Namespace, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, done: dict) -> None:
    """Write half-precision weights, tokenizer and card; each file is replaced atomically."""
    perplexity = validate(model, load_tokens(args.work, "validation"))
    log.info("validation perplexity %s", {name: round(value, 1) for name, value in perplexity.items()})
    staging = args.work / "export"
    model.half().save_pretrained(staging)
    model.float().config.dtype = torch.float32  # float16 on disk, float32 in memory unless a dtype is given
    model.config.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n", encoding="utf-8")
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, do_sample=True).save_pretrained(staging)
    run = {"steps": done["step"], "minutes": done["elapsed"] / 60, "seed": SEED}
    run |= {"data": args.data, "batch": BATCH, "window": WINDOW, "note": args.note}
    write_card(staging / "README.md", model, tokenizer, perplexity, **run)
    args.out.mkdir(parents=True, exist_ok=True)
    for file in staging.iterdir():
        file.chmod(0o644)
        os.replace(file, args.out / file.name)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for packed tokens and the checkpoint")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where the assets go")
    parser.add_argument("--minutes", type=float, default=75, help="training time, unless --steps is given")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of a time: reproducible")
    parser.add_argument("--save_minutes", type=float, default=4, help="time between checkpoints")
    parser.add_argument("--note", default="", help="a sentence on this run for the card")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a third faster, needs a C++ compiler")
    parser.add_argument("--export_only", action="store_true", help="write the checkpoint as assets, without training")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    tokenizer = prepare(args.data, args.work, args.vocabulary)
    model = build_model(len(tokenizer))
    log.info("%d parameters, vocabulary %d", sum(p.numel() for p in model.parameters()), len(tokenizer))
    if args.export_only:
        progress = torch.load(args.work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(progress["model"])
    else:
        progress = train(args, model)
    export(args, model, tokenizer, progress)


if __name__ == "__main__":
    main()
