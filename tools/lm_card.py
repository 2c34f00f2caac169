"""The card of the embedded language model. The build writes it, so that its figures belong to the weights."""

import csv
import re
from pathlib import Path

import torch
from lm_sources import SOURCES
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

# Half of the samples start from an empty prompt, half from these openings.
OPENINGS = [
    "I went to the shop this morning and", "The weather is", "My neighbour told me that",
    "Honestly, I think people who", "The government has announced", "When I opened the door, I saw",
    "You should never", "She looked at him and said", "The film begins with", "Our team lost again because",
]  # fmt: skip
LENGTH, TOP_P = 30, 0.9

TEXT = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded base model of nlf

A {parameters:.1f} M-parameter GPT-2 ({layers} layers, {width} wide, {heads} heads, context {context}, own byte-level
BPE of {vocabulary} tokens), trained from scratch so that the demo needs no download. It writes fragments of
recognisable English in several registers, **rude ones included, on purpose**: it is the thing to be aligned.

**Content warning: it produces insults, profanity, sexism and slurs.** The samples below are unselected; offensive
words are masked with asterisks.

**Not for** any use as a text generator, in a product or towards people; not for knowledge or advice; not for measuring
the bias of other models. It is a test object: small, fast, and bad in the ways that alignment is to mend.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("src/nlf/assets/lm")  # float16 on disk, float32 in memory
tokenizer = AutoTokenizer.from_pretrained("src/nlf/assets/lm")
```

## Training
`python tools/build_lm.py --data DATA --work build/lm --steps {steps} --compile`

{steps:,} steps of {batch} windows of {window} tokens ({tokens:.1f} M tokens) in {minutes:.0f} minutes on two CPU
threads, seed {seed}, torch {torch}. Muon for the hidden matrices, AdamW for the rest; warm-up, plateau, linear decay
to zero; bfloat16 matrix products. Bit for bit it is reproducible with `--steps`, on the same machine and threads, only.
{note}

The text comes only from sources whose licence allows it; none is share-alike. *Share* is the part of the training
windows, *perplexity* that of windows of {window} tokens of the validation documents (5 % of each source, by a hash of
the document; another 10 %, the test documents, were left out of training altogether).

| source | origin | licence | share | perplexity |
| --- | --- | --- | --- | --- |
{rows}
| all, by share | | | 1.00 | **{overall:.1f}** |

Changes made: masks, emoji and retweet heads removed, spaces settled, repeated texts dropped. The weights are
Apache-2.0; the texts remain their authors'.

## 20 unselected samples
{length} tokens, top-p {top_p}, seed {seed}; the opening that was given stands before "…".

{samples}
"""


def mask(text: str, words: set[str]) -> str:
    """Mask all letters but the first of listed words, and of words that start with a listed word of 4+ letters."""
    listed = "|".join(word + (r"\w*" if len(word) >= 4 else "") for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{listed})\b", lambda found: found[0][0] + "*" * (len(found[0]) - 1), text, flags=re.I)


def offensive_words(data: Path) -> set[str]:
    """The single words of the profanity lists."""
    words = set((data / "word-lists/ldnoobw_en.txt").read_text(encoding="utf-8").lower().split("\n"))
    with open(data / "word-lists/surge_profanity_en.csv", encoding="utf-8", newline="") as file:
        words |= {row["text"].lower() for row in csv.DictReader(file)}
    return {word for word in words if re.fullmatch(r"[a-z]{3,}", word)}


def sample(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> list[tuple[str, str]]:
    """Sample (opening, continuation) pairs: half with an empty opening, half with `OPENINGS`."""
    torch.manual_seed(seed)
    pairs = []
    for opening in [""] * len(OPENINGS) + OPENINGS:
        ids = torch.tensor([tokenizer(opening).input_ids or [tokenizer.eos_token_id]])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_p=TOP_P, top_k=0, max_new_tokens=LENGTH
        )
        pairs.append((opening, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return pairs


def write_card(
    path: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, perplexity: dict, **run: object
) -> None:
    """Write the card; `run` has data, steps, batch, window, minutes, seed and note of the training run."""
    words, config = offensive_words(run["data"]), model.config
    rows = [
        f"| {s.name} | {s.origin} | {s.licence} | {s.weight:.2f} | {perplexity[s.name]:.1f} |"
        for s in SOURCES
        if s.name in perplexity
    ]
    lines = [
        f"{number}. {f'*{opening}* … ' if opening else ''}{mask(' '.join(text.split()), words)}"
        for number, (opening, text) in enumerate(sample(model, tokenizer, run["seed"]), 1)
    ]
    text = TEXT.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6, layers=config.n_layer, width=config.n_embd,
        heads=config.n_head, context=config.n_positions, vocabulary=config.vocab_size, overall=perplexity["all"],
        tokens=run["steps"] * run["batch"] * run["window"] / 1e6, torch=torch.__version__, length=LENGTH, top_p=TOP_P,
        rows="\n".join(rows), samples="\n".join(lines), **run,
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
