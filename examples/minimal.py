"""The whole method on one page, in plain torch and transformers: sample -> score every prefix -> credit -> train.

A reward judges a whole completion. What did each token earn of it? A scorer of text can score every prefix, a regression says
what that score is worth at the end, and the change that a token makes is its credit (docs/method.md, "Credit"). The policy
gradient with this credit, and a KL to the start, train a plain model. Only the embedded model, prompts and toxicity scorer
come from nlf. Departures from `nlf train --plain only`: no resume, no LoRA, no second process, prefixes of every length
are scored, and the evaluation is a mean over a few completions. `minimal_tags.py` has the method with tags.

    python examples/minimal.py      # about a minute
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
KNOBS = {
    **{"iterations": 10, "prompts": 64, "generations": 4, "length": 20},  # prompts per iteration, of 20 new tokens
    **{"steps": 4, "batch": 64, "lr": 2e-4, "beta": 0.1, "decay": 0.5},  # steps per iteration; decay is lambda
    **{"test_prompts": 40, "seed": 0},
}


# ---- the formulas ---------------------------------------------------------------------------------------------------


def credits(scores, lengths, rewards, groups, prompts, decay: float) -> torch.Tensor:
    """What each token earned: sums of changes in the value of the prefix, V = E[reward | prefix], by ridge regression.

    scores: (N, T), of the prefixes of t tokens, NaN = unscored; lengths, rewards: (N,), tokens without EOS, final rewards
    groups: (N,), equal for completions of one prompt in one iteration; prompts: (N,), each half predicts the other
    """
    group, half = groups.unique(return_inverse=True)[1], prompts.unique(return_inverse=True)[1] % 2
    sums, counts = torch.bincount(group, rewards)[group], torch.bincount(group)[group]
    others = torch.where(counts > 1, (sums - rewards) / (counts - 1).clamp(min=1), rewards.mean())
    v = F.pad(scores, (1, 0), value=rewards.mean().item())  # (N, 1 + T): first the bare prompt
    for t in range(1, v.shape[1]):
        v[:, t] = torch.where(v[:, t].isnan(), v[:, t - 1], v[:, t])
    v[:, 0] = 0
    place = torch.arange(v.shape[1]).expand_as(v)
    u, o, y = place / scores.shape[1], others[:, None].expand_as(v), rewards[:, None].expand_as(v)
    x = torch.stack([v**0, v, u, v * u, u**2, v * u**2, v**2, o, o * u, (place == 0) + 0.0 * v], -1)  # (N, 1 + T, 10)
    inner, value = place < lengths[:, None], y.clone()  # at the end, the value is the reward
    ridge = torch.diag(torch.tensor([1e-9] + [0.01] * 9, dtype=x.dtype))
    for own in (0, 1):
        taught = inner & (half != own)[:, None]
        weights = torch.linalg.solve(x[taught].T @ x[taught] + ridge, x[taught].T @ y[taught])
        value = torch.where(inner & (half == own)[:, None], x @ weights, value)
    found = value.diff(dim=1)  # (N, T); 0 after the end
    for t in reversed(range(found.shape[1] - 1)):
        found[:, t] += decay * found[:, t + 1]
    return found


def kl_from(ref: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(ref‖policy) over the whole vocabulary at each place."""
    log_q, log_p = F.log_softmax(ref, -1), F.log_softmax(logits, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)  # (B, T)


def going_on(logits: torch.Tensor, labels: torch.Tensor, eos: int) -> torch.Tensor:
    """Log-probability of each token among those that do not end the completion: stopping is neither learned nor unlearned."""
    others = torch.cat([logits[..., :eos], logits[..., eos + 1 :]], -1).logsumexp(-1)
    return logits.gather(-1, labels[..., None])[..., 0] - others  # (B, T)


def loss_of(logits, ref, labels, mask, credit, eos: int, beta: float) -> torch.Tensor:
    """The policy gradient with credit, + beta · KL, each a mean over tokens.

    logits, ref: (B, T, V), of the policy and of the frozen start; credit: (B, T), of each token, 0 at eos
    labels, mask: (B, T), the completions' token ids, and True where there is a token
    """
    return (beta * kl_from(ref, logits) - credit * going_on(logits, labels, eos))[mask].mean()


# ---- model in, tokens in, logits and completions out ----------------------------------------------------------------


def read_prompts(split: str) -> list[tuple[int, str]]:
    lines = (ASSETS / "prompts" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(number, json.loads(line)["prompt"]) for number, line in enumerate(lines)]


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
def sample(model, queries: list[list[int]], length: int, eos: int) -> list[list[int]]:
    """One completion per query, as token ids; with EOS, where the model wrote one."""
    ids, mask = pad(queries, "left")
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}  # the default of top_k may be 50
    out = model.generate(ids, attention_mask=mask.long(), max_new_tokens=length, pad_token_id=eos, **plain)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


# ---- the loop -------------------------------------------------------------------------------------------------------


def collect(model, tokenizer, scorer, prompts: list[tuple[int, str]], args, chunk: int = 256) -> list[tuple]:
    """Rollouts: (number of the prompt, its ids, completion ids, reward, rewards of its prefixes)."""
    jobs = sorted((p for p in prompts for _ in range(args.generations)), key=lambda job: len(job[1]))  # little padding
    queries, eos = [tokenizer(text, add_special_tokens=False).input_ids for _, text in jobs], tokenizer.eos_token_id
    chunks = (queries[i : i + chunk] for i in range(0, len(queries), chunk))
    ids = [row for each in chunks for row in sample(model, each, args.length, eos)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    words = [row[:-1] if row[-1] == eos else row for row in ids]
    starts = [tokenizer.batch_decode([row[:t] for t in range(1, len(row) + 1)]) for row in words]
    ends = [[len(start.rstrip("\ufffd")) for start in own] for own in starts]  # a character counts once it is whole
    rewards = [reward or 0.0 for reward in scorer([], texts)]  # what cannot be scored counts as the worst
    scores = scorer.prefix_rewards(texts, ends)
    return list(zip((n for n, _ in jobs), queries, ids, rewards, scores, strict=True))


def credit_of(history: list[list[tuple]], args) -> torch.Tensor:
    """(N, length): the credit of the newest rollouts; those of the last iterations teach the values of prefixes."""
    rows = [(number, i * 10**6 + number, *rest) for i, part in enumerate(history) for number, _, _, *rest in part]
    prompts, groups, rewards, scores = zip(*rows, strict=True)
    padded = torch.full((len(rows), args.length), torch.nan, dtype=torch.float64)
    for i, row in enumerate(scores):
        padded[i, : len(row)] = torch.from_numpy(row)
    lengths, own = torch.tensor([len(row) for row in scores]), torch.tensor(rewards, dtype=torch.float64)
    return credits(padded, lengths, own, torch.tensor(groups), torch.tensor(prompts), args.decay)[-len(history[-1]) :]


def train(
    policy, reference, optimizer, scheduler, rollouts: list[tuple], credit: torch.Tensor, eos: int, args
) -> None:
    """Take `args.steps` steps on the newest rollouts, each in turn."""
    for rows in torch.cat([torch.randperm(len(rollouts)) for _ in range(args.steps)]).split(args.batch)[: args.steps]:
        queries, (ids, mask) = [rollouts[i][1] for i in rows], pad([rollouts[i][2] for i in rows], "right")
        with torch.no_grad():
            ref = completion_logits(reference, queries, ids, mask)
        logits = completion_logits(policy, queries, ids, mask)
        loss = loss_of(logits, ref, ids, mask, credit[rows, : ids.shape[1]], eos, args.beta)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in KNOBS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "lm"))
    policy = AutoModelForCausalLM.from_pretrained(str(ASSETS / "lm"), dtype=torch.float32).eval()  # without dropout
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer, total = torch.optim.Adam(policy.parameters(), lr=args.lr), args.iterations * args.steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 3, 1 - t / total))  # three of warm-up
    prompts, scorer = {split: read_prompts(split) for split in ("train", "test")}, LocalToxicity()

    history, scale = [], None
    for iteration in range(args.iterations):
        newest = collect(policy, tokenizer, scorer, random.sample(prompts["train"], args.prompts), args)
        history = [*history[-3:], newest]
        credit = credit_of(history, args)
        scale = scale or credit[credit != 0].square().mean().sqrt()  # that of the first iteration, so the push fades
        train(policy, reference, optimizer, scheduler, newest, (credit / scale).float(), tokenizer.eos_token_id, args)
        print(f"iteration {iteration}: mean reward {sum(row[3] for row in newest) / len(newest):.3f}")

    for name, model in {"before": reference, "after": policy}.items():
        rollouts = collect(model, tokenizer, scorer, prompts["test"][: args.test_prompts], args)
        print(f"mean toxicity {name}: {sum(1 - row[3] for row in rollouts) / len(rollouts):.3f}")


if __name__ == "__main__":
    main()
