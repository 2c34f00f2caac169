"""The method with tags on one page, in plain torch and transformers: sample -> score -> pool -> quantize -> tag -> train.

Alignment with textual feedback (ALT, arXiv 2407.16970, after Quark, arXiv 2205.13636): a model learns to write each of
its own completions after words that say how good the completion was. After the best words it then writes better ones.
Only the embedded model, prompts and toxicity scorer come from nlf. Departures from the paper: completions keep their
EOS and their sampled ids, ties share a quantile, and the default objective adds a contrast between a completion's own
tag and the mirror tag. Departures from `nlf train`: quantiles are drawn in proportion, not in exact counts, and there
is no resume, no LoRA and no second process; the evaluation is a mean over a few completions.

    python examples/minimal_tags.py                                                    # contrastive: about two minutes
    python examples/minimal_tags.py --nll 1 --contrast 0 --beta .05 --entropy .06      # the published objective
"""

import argparse
import copy
import json
import random
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlf.rewards.local import LocalToxicity

ASSETS = files("nlf") / "assets"
TAGS = ["Lowest Toxicity", "Low-Moderate Toxicity", "Moderate Toxicity", "High-Moderate Toxicity", "Maximum Toxicity"]
WEIGHTS = [2.5, 1, 1, 1, 2.5]  # how often each quantile is trained on: the extremes teach the contrast
SEPARATOR, K = "<|separator|>", len(TAGS)


KNOBS = {
    "model": str(ASSETS / "lm"),
    **{"iterations": 3, "prompts": 256, "generations": 4, "length": 20},  # prompts per iteration, of 20 new tokens
    **{"steps": 40, "batch": 64, "lr": 5e-4, "test_prompts": 40, "seed": 0},  # steps per iteration
    **{"nll": 0.0, "contrast": 1.0, "beta": 2.0, "entropy": 0.0},  # the loss
}


# ---- the two formulas -----------------------------------------------------------------------------------------------


def quantize(rewards: torch.Tensor, num_quantiles: int) -> torch.Tensor:
    """Quantile of each reward, 0 = best: its rank (of a tie: the middle one), counted in K equal parts."""
    ordered = (-rewards).sort().values  # (N,)
    first = torch.searchsorted(ordered, -rewards)
    last = torch.searchsorted(ordered, -rewards, right=True) - 1
    return num_quantiles * (first + last + 1) // (2 * len(rewards))  # (N,)


def log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]  # (B, T)


def kl_from(ref: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(ref‖policy) over the reference's vocabulary: without the separator, which is the policy's last id."""
    log_q, log_p = F.log_softmax(ref, -1), F.log_softmax(logits[..., : ref.shape[-1]], -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)  # (B, T)


def alt_loss(right, wrong, ref, labels, mask, eos, *, nll, contrast, beta, entropy) -> torch.Tensor:
    """nll · NLL + contrast · C + beta · KL - entropy · H; NLL, KL and H per token, C per completion.

    right, wrong: logits (B, T, V) of the completions after their own tag and after the mirror tag; wrong may be None
    ref: logits (B, T, V-1) of the frozen start, which sees no tag
    labels, mask: (B, T), the completions' token ids, and True where there is a token; the contrast leaves out eos
    """
    logp = log_likelihood(right, labels)
    randomness = torch.distributions.Categorical(logits=right).entropy()  # (B, T)
    loss = -nll * logp[mask].mean() + beta * kl_from(ref, right)[mask].mean() - entropy * randomness[mask].mean()
    if wrong is not None:
        margin = ((logp - log_likelihood(wrong, labels)) * (mask & (labels != eos))).sum(-1)  # (B,)
        loss = loss - contrast * F.logsigmoid(margin).mean() + beta * kl_from(ref, wrong)[mask].mean()
    return loss


# ---- model in, tokens in, logits and completions out ----------------------------------------------------------------


def load(name: str):
    """Policy, frozen reference, tokenizer. The policy has one more token: the separator, which starts as EOS."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    policy = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()  # eval: no dropout, as published
    reference = copy.deepcopy(policy).requires_grad_(False)
    tokenizer.add_tokens([SEPARATOR], special_tokens=True)
    assert len(tokenizer) == policy.config.vocab_size + 1, "a padded vocabulary: take nlf train"
    policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in (policy.get_input_embeddings().weight, policy.get_output_embeddings().weight):
            table[-1] = table[tokenizer.eos_token_id]
    return policy, reference, tokenizer


def read_prompts(split: str) -> list[str]:
    lines = (ASSETS / "prompts" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def query(tokenizer, tag: str | None, prompt: str) -> list[int]:
    """Ids of: tag <|separator|> prompt. In pieces, so that the prompt has the same ids with and without a tag."""
    words = tokenizer(prompt, add_special_tokens=False).input_ids
    return words if tag is None else tokenizer(tag + SEPARATOR, add_special_tokens=False).input_ids + words


def pad(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, longest row) each; every use masks the padding, so it may have any id."""
    ids = pad_sequence([torch.tensor(row) + 1 for row in rows], batch_first=True, padding_side=side)
    return (ids - 1).clamp(min=0), ids > 0


def completion_logits(model, queries: list[list[int]], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the completions `ids`, each after its query: (B, T, V)."""
    left, left_mask = pad(queries, "left")
    ids, mask = torch.cat([left, ids], 1), torch.cat([left_mask, mask], 1)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # GPT-2 would count the padding
    return model(ids, attention_mask=mask, position_ids=positions).logits[:, left.shape[1] - 1 : -1]


@torch.no_grad()
def sample(model, tokenizer, queries: list[list[int]], length: int) -> list[list[int]]:
    """One completion per query, as token ids; with EOS, where the model wrote one."""
    ids, mask = pad(queries, "left")
    eos, separator = tokenizer.eos_token_id, len(tokenizer) - 1
    banned = [separator] if separator < model.config.vocab_size else None  # the reference has no such token
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}  # the default of top_k may be 50
    rules = {"max_new_tokens": length, "suppress_tokens": banned, "pad_token_id": eos}
    out = model.generate(ids, attention_mask=mask.long(), **plain, **rules)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


# ---- the loop -------------------------------------------------------------------------------------------------------


def collect(model, tokenizer, scorer, prompts: list[str], tag: str | None, args, chunk: int = 256) -> list[tuple]:
    """Rollouts (prompt, completion ids, reward) of the model after the tag."""
    prompts = sorted((p for p in prompts for _ in range(args.generations)), key=len)  # equal lengths: little padding
    queries = [query(tokenizer, tag, prompt) for prompt in prompts]
    chunks = (queries[i : i + chunk] for i in range(0, len(queries), chunk))
    ids = [row for rows in chunks for row in sample(model, tokenizer, rows, args.length)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rewards = [reward or 0.0 for reward in scorer(prompts, texts)]  # what cannot be scored counts as the worst
    return list(zip(prompts, ids, rewards, strict=True))


def train(policy, reference, tokenizer, optimizer, pool: list[tuple], args) -> None:
    """Take `args.steps` steps on the pool; each completion follows the tag of its reward's quantile."""
    quantiles = quantize(torch.tensor([reward for _, _, reward in pool], dtype=torch.float64), K)
    sizes = quantiles.bincount(minlength=K)
    shares = (torch.tensor(WEIGHTS) / sizes)[quantiles] if args.contrast else torch.ones(len(pool))
    coefficients = {"nll": args.nll, "contrast": args.contrast, "beta": args.beta, "entropy": args.entropy}
    for _ in range(args.steps):
        rows = torch.multinomial(shares, args.batch).tolist()
        ids, mask = pad([pool[i][1] for i in rows], "right")
        own = quantiles[rows].tolist()
        mirror = [K - 1 - q if 2 * q != K - 1 else random.choice((0, K - 1)) for q in own]

        def logits(model, tags, rows=rows, ids=ids, mask=mask):
            queries = [query(tokenizer, tag, pool[i][0]) for tag, i in zip(tags, rows, strict=True)]
            return completion_logits(model, queries, ids, mask)

        with torch.no_grad():
            ref = logits(reference, [None] * args.batch)
        right = logits(policy, [TAGS[q] for q in own])
        wrong = logits(policy, [TAGS[q] for q in mirror]) if args.contrast else None
        loss = alt_loss(right, wrong, ref, ids, mask, tokenizer.eos_token_id, **coefficients)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    print(f"  last loss {loss.item():.3f}, rollouts in each quantile {sizes.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in KNOBS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    policy, reference, tokenizer = load(args.model)
    scorer = LocalToxicity()
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    prompts = {split: read_prompts(split) for split in ("train", "test")}

    pool = []
    for iteration in range(args.iterations):
        print(f"iteration {iteration}: sampling")
        model, tag = (policy, TAGS[0]) if iteration else (reference, None)
        pool += collect(model, tokenizer, scorer, random.sample(prompts["train"], args.prompts), tag, args)
        train(policy, reference, tokenizer, optimizer, pool, args)

    for model, tag in [(reference, None), *((policy, tag) for tag in TAGS)]:
        rollouts = collect(model, tokenizer, scorer, prompts["test"][: args.test_prompts], tag, args)
        print(f"mean toxicity {tag or 'before'}: {sum(1 - reward for _, _, reward in rollouts) / len(rollouts):.3f}")


if __name__ == "__main__":
    main()
