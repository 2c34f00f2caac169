"""One optimizer step against the naive one: full logits of every pass, padded as the batch comes, autograd's own softmaxes.

    python benchmarks/training.py                                    # the embedded model's size, contrastive
    python benchmarks/training.py --objective published
    python benchmarks/training.py --width 768 --layers 12 --vocabulary 50257 --batch 8 --repeats 3
    python benchmarks/training.py --against compiled                 # ours, with the policy through torch.compile

Both take the same steps of the same drawn rollouts from the same random weights: right branch, wrong branch (contrastive)
and reference, loss, backward, Adam (fused, which is Trainer's default). The naive step has GPT-2 as it comes, ours as
`nlf train` prepares it. Queries have the lengths of the embedded prompts with their tags, completions end
early as the embedded model's do. The two alternate within one process after a warm-up each; memory is the peak of a
process of its own, above that of the two models and Adam. The losses are compared.
"""

import argparse
import copy
import gc
import random
import statistics

import torch
from paired import Side, alternate, ratio_line, table
from processes import in_fresh_process, peak_megabytes
from roofline import line, training_flops
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from nlf.method.losses import Coefficients, StepTotals, alt_loss
from nlf.models.encoder import pad, pass_tokens
from nlf.models.fast_gelu import use_fast_gelu
from nlf.models.reading import LogitsPlan, last_mlp
from nlf.training.batches import Example, Group, collate
from nlf.training.objective import completion_stats, loss_of_groups

COEFS = {
    "contrastive": {"nll_coef": 0.0, "contrast_coef": 1.0, "beta": 2.0, "entropy_coef": 0.0},
    "published": {"nll_coef": 1.0, "contrast_coef": 0.0, "beta": 0.05, "entropy_coef": 0.06},
}


def build(args: argparse.Namespace, side: str):
    """Policy, reference and Adam; nlf's own with the activation that `load_model` gives every model."""
    torch.manual_seed(0)
    shape = {"n_embd": args.width, "n_layer": args.layers, "n_head": args.width // 64, "n_positions": 256}
    config = GPT2Config(vocab_size=args.vocabulary, bos_token_id=None, eos_token_id=None, pad_token_id=0, **shape)
    policy = AutoModelForCausalLM.from_config(config).to(args.device).eval()
    if side != "naive":
        use_fast_gelu(policy)
    reference = copy.deepcopy(policy).requires_grad_(False)
    if side == "compiled":
        policy = torch.compile(policy, dynamic=True)
    return policy, reference, torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)


def examples(args: argparse.Namespace, step: int) -> list[Example]:
    """A step of rollouts: prompts of 3 to 25 tokens, tags of 4 to 6, completions of 20 or, two in five, fewer."""
    drawn = random.Random(step)
    numbers = range(1, args.vocabulary)

    def ids(length: int) -> list[int]:
        return drawn.choices(numbers, k=length)

    rows = [
        (ids(drawn.randint(3, 25)), ids(20 if drawn.random() < 0.6 else drawn.randint(1, 19)))
        for _ in range(args.batch)
    ]
    tokens = sum(len(completion) for _, completion in rows)
    wrong = args.objective == "contrastive"
    return [
        Example(ids(drawn.randint(4, 6)) + p, ids(drawn.randint(4, 6)) + p if wrong else None, p, c, tokens, len(rows))
        for p, c in rows
    ]


def ours(policy, reference, batch: list[Example], args: argparse.Namespace) -> Tensor:
    plan = LogitsPlan(True, last_mlp(policy), last_mlp(reference), args.most_logits)  # made once, as in training

    def group_loss(group: Group) -> Tensor:
        branches = completion_stats(policy, reference, group, plan)
        return alt_loss(
            branches[0], group["completion_mask"], branches[1] if branches[1:] else None,
            totals=StepTotals(group["num_tokens"], group["num_completions"]),
            coefficients=Coefficients(**COEFS[args.objective]),
        )[0]  # fmt: skip

    groups = collate(batch, 0, pass_tokens(torch.device(args.device), True))["groups"]
    loss = loss_of_groups(moved(groups, args.device), group_loss, Tensor.backward)
    loss.backward()
    return loss


def moved(value, device: str):
    """Tensors in lists and dicts on a device, as Trainer moves them."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    return [moved(each, device) for each in value] if isinstance(value, list) else value.to(device)


def naive(policy, reference, batch: list[Example], args: argparse.Namespace) -> Tensor:
    """The textbook: a full pass for each of right, wrong and reference, and what the loss says, in autograd."""
    labels = pad([e.completion for e in batch], 0, "right").to(args.device)  # (B, T)
    mask = pad([[1] * len(e.completion) for e in batch], 0, "right").bool().to(args.device)

    def log_probs(model, queries: list[list[int]]) -> Tensor:
        left, seen = (
            pad(queries, 0, "left").to(args.device),
            pad([[1] * len(q) for q in queries], 0, "left").to(args.device),
        )
        ids, attention = torch.cat([left, labels], 1), torch.cat([seen, mask.long()], 1)
        position = (attention.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=False).logits
        return logits.log_softmax(-1)[:, left.shape[1] - 1 : -1]  # (B, T, V)

    coefs = COEFS[args.objective]
    with torch.no_grad():
        ref = log_probs(reference, [e.prompt for e in batch])
    queries = [[e.right for e in batch], [e.wrong for e in batch]][: 2 if batch[0].wrong else 1]
    branches = [log_probs(policy, each) for each in queries]
    own = [each.gather(-1, labels[..., None])[..., 0] for each in branches]
    kl = sum((ref.exp() * (ref - each)).sum(-1)[mask].sum() for each in branches)
    entropy = -(branches[0].exp() * branches[0]).sum(-1)[mask].sum()
    loss = (coefs["nll_coef"] * -own[0][mask].sum() + coefs["beta"] * kl - coefs["entropy_coef"] * entropy) / batch[
        0
    ].num_tokens
    if own[1:]:
        margin = ((own[0] - own[1]) * mask).sum(-1)
        loss = loss - coefs["contrast_coef"] * torch.nn.functional.logsigmoid(margin).sum() / batch[0].num_completions
    loss.backward()
    return loss


SIDES = {"nlf": ours, "naive": naive, "compiled": ours}


def side(name: str, args: argparse.Namespace, batches: list[list[Example]], losses: list[float]) -> Side:
    """A step with one of the batches a call; the loss goes to `losses`."""
    policy, reference, optimizer = build(args, name)

    def step(number: int) -> int:
        loss = SIDES[name](policy, reference, batches[number], args)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        return args.batch

    return step


def memory(name: str, args: argparse.Namespace, results) -> None:
    """Peak megabytes of a side's steps above what the models and Adam take."""
    torch.set_num_threads(args.threads)
    small = argparse.Namespace(**vars(args) | {"batch": 1})
    step = side(name, args, [examples(small, 0), examples(args, 0), examples(args, 1)], [])
    step(0)
    gc.collect()
    before = peak_megabytes()
    step(1), step(2)
    results.put(peak_megabytes() - before)


def needed(model, batch: list[Example]) -> float:
    """Operations of a step, as benchmarks/roofline.py counts them."""
    completions = sum(len(e.completion) for e in batch)
    branches = [[e.right for e in batch], [e.wrong for e in batch]][: 2 if batch[0].wrong else 1]
    read = sum(len(query) for queries in branches for query in queries) + completions * len(branches)
    ref_read = sum(len(e.prompt) for e in batch) + completions
    return training_flops(model, read, completions * len(branches), ref_read, completions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"width": 256, "layers": 4, "vocabulary": 5120, "batch": 64, "repeats": 7, "threads": 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--objective", choices=list(COEFS), default="contrastive")
    parser.add_argument("--against", choices=["naive", "compiled"], default="naive")
    parser.add_argument("--most_logits", type=int, help="logits computed at a time; default: by the device")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = ["nlf", args.against]
    # Before this process is large: a child counts that.
    peaks = {name: in_fresh_process(memory, name, args) for name in sides}
    batches = [examples(args, number) for number in range(args.repeats + 1)]
    losses: dict[str, list[float]] = {name: [] for name in sides}
    taken = alternate({name: side(name, args, batches, losses[name]) for name in sides}, args.repeats)
    for ours, theirs in zip(*losses.values(), strict=True):
        assert abs(ours - theirs) < 1e-3 * max(1, abs(theirs)), f"losses differ: {ours} and {theirs}"
    print(table(taken, "samples", 1))
    shape = f"{args.layers} layers of {args.width}, vocabulary {args.vocabulary:,}, {args.batch} a step"
    print(f"\n{args.objective}, {shape}: {ratio_line(taken)}")
    print(f"peak memory: {', '.join(f'{name} {each:,.0f} MB' for name, each in peaks.items())}", end="")
    print(f": {peaks['nlf'] / peaks[args.against]:.2f} ×")
    model = build(args, "naive")[0]
    rates = [needed(model, batch) / row.seconds for batch, row in zip(batches[1:], taken["nlf"], strict=True)]
    print(line(args.device, {"training": statistics.median(rates)}))


if __name__ == "__main__":
    main()
