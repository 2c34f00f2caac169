"""How likely models find completions: their NLL given prompts, KL to a reference, entropy.

Why not one forward pass a completion, as the published perplexity script does it: that reads a prompt again for each of
its n completions, and makes logits for it that nobody needs. Here prompts of like length are read together, each once;
its completions, sorted by length and each distinct one once, read on from its cache in batches cut by a token budget.
Logits are made at completion positions only and reduced a few rows at a time, so that no second copy of them in full is
made. Results depend on the batches by float rounding only.

A cache can be shared where all its layers hold keys and values (full or sliding-window attention): left padding is then
masked out of it. With any other (recurrent states, or none that the model would take back) `Reader` reads prompt and
completion whole, padded on the right, once for each completion.

Letters in shapes: P prompts, R rows = completions of a batch, T tokens of the longest, V vocabulary.
"""

import contextlib
import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nlf.errors import UserError
from nlf.method.losses import token_stats
from nlf.models.cache import select_with_room
from nlf.models.encoder import pad
from nlf.models.packed_weights import packed_weights
from nlf.models.reading import eval_mode, forward_parameters

logger = logging.getLogger(__name__)

CPU_TOKENS, DEVICE_TOKENS = 8_192, 65_536  # default token budgets
CPU_LOGITS, DEVICE_LOGITS = 2**24, 2**29  # no default budget makes more at a time
CPU_CHUNK, DEVICE_CHUNK = 2**20, 2**26  # logits reduced at a time: those of a processor's cache

Ids = tuple[int, ...]
Prefixes = tuple[Ids, ...]  # what each of the models reads before a prompt's completions
Measure = Callable[[Sequence[Tensor], Tensor], Tensor]  # logits (R, T, V) of each model, labels (R, T) → (R, T, K)


def conditional_nll(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
    names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """-log p(completion | prompt) of every completion under `model`, in nats.

    Args:
        model: Any causal LM of transformers, peft ones too. Its train/eval state is restored after.
        prompts: P lists of ids, at least one id each.
        completions: For each prompt, n lists of ids (n may differ, and may be 0).
        batch_tokens: Most tokens in a batch: completions x (longest prompt + longest completion). Halved when memory runs
            out; None suits the device.
        progress: Called with the number of completions that are done.
        names: What each prompt is called in errors; default: its number.

    Returns:
        For each prompt `(n,)` float64, summed over the completion's tokens; 0.0 for an empty one.

    Raises:
        UserError: a prompt that is empty, does not fit the context with its completion, or has ids the model does not
            know; likelihoods that are not finite; no memory for a single completion.
    """
    found = _measure(
        (model,),
        [(p,) for p in prompts],
        completions,
        _nll,
        1,
        batch_tokens=batch_tokens,
        progress=progress,
        names=names,
    )
    return [sums[:, 0] for sums in found]


def divergence(
    policy_model: nn.Module,
    reference: nn.Module,
    queries: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    excluded_ids: Sequence[int] = (),
    batch_tokens: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
    names: Sequence[str] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """KL(reference(.|prompt) || policy(.|query)) and the policy's entropy along every completion, in nats.

    Args:
        queries: What the policy reads: prompts with their feedback.
        prompts: What the reference reads.
        excluded_ids: Left out of the KL, as in `losses.token_stats`: tokens that tags added.

    Returns:
        (kl, entropy): for each prompt `(n,)` float64, summed over the completion's tokens; 0.0 for an empty one.

    Raises:
        UserError: as `conditional_nll`.
    """

    def kl_and_entropy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        stats = token_stats(logits[0], labels, logits[1], excluded_ids)
        return torch.stack([stats.kl, stats.entropy], dim=-1)

    prefixes = list(zip(queries, prompts, strict=True))
    found = _measure(
        (policy_model, reference), prefixes, completions, kl_and_entropy, 2,
        batch_tokens=batch_tokens, progress=progress, names=names,
    )  # fmt: skip
    return [sums[:, 0] for sums in found], [sums[:, 1] for sums in found]


def _nll(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    return -logits[0].float().log_softmax(-1).gather(-1, labels.unsqueeze(-1))  # (R, T, 1)


# ---- batches ------------------------------------------------------------------------------------------------------


def _measure(
    models: Sequence[nn.Module],
    prefixes: Sequence[Sequence[Sequence[int]]],
    completions: Sequence[Sequence[Sequence[int]]],
    measure: Measure,
    width: int,
    *,
    batch_tokens: int | None,
    progress: Callable[[int], None],
    names: Sequence[str] | None,
) -> list[np.ndarray]:
    """Sums of `measure` over the tokens of each completion: for each prompt `(n, width)` float64."""
    names = names or [f"prompt {i + 1} of {len(prefixes)}" for i in range(len(prefixes))]
    places: dict[Prefixes, dict[Ids, list]] = defaultdict(lambda: defaultdict(list))
    for i, (before, rows) in enumerate(zip(prefixes, completions, strict=True)):
        _check(models, before, rows, names[i])
        for j, ids in enumerate(rows):
            places[tuple(map(tuple, before))][tuple(ids)].append((i, j))
    found = [np.zeros((len(rows), width)) for rows in completions]
    progress(sum(len(rows.pop((), ())) for rows in places.values()))  # empty ones are done
    budget = (batch_tokens or _default_budget(models)) // len(models)
    tokens = sum(len(ids) for rows in completions for ids in rows)
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(eval_mode(model))
            stack.enter_context(packed_weights(model, tokens))
        stack.enter_context(torch.inference_mode())
        for before, ids, sums in _sums(models, {key: set(rows) for key, rows in places.items()}, measure, budget):
            for i, j in places[before][ids]:
                if not np.isfinite(sums).all():
                    raise UserError(
                        f"{names[i]}: the model gave a likelihood that is not finite; load it in float32 or bfloat16, "
                        "and see that its training did not diverge"
                    )
                found[i][j] = sums
            progress(len(places[before][ids]))
    return found


def _check(models: Sequence[nn.Module], before: Sequence[Sequence[int]], rows: Sequence, name: str) -> None:
    longest = max(map(len, rows), default=0)
    for model, prefix in zip(models, before, strict=True):
        known = _vocabulary(model)
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if not prefix:
            raise UserError(f"{name} has no tokens, so there is nothing to continue; remove the prompt")
        if context and len(prefix) + longest > context:
            raise UserError(
                f"{name} has {len(prefix)} tokens, {len(prefix) + longest} with its longest completion: over the "
                f"measuring model's context of {context}; shorten it, or measure with another model"
            )
        if max(max(ids, default=0) for ids in (prefix, *rows)) >= known:
            raise UserError(
                f"{name} has token ids of {known} or more, which the measuring model does not know; "
                "measure with a model of the same vocabulary"
            )


def _vocabulary(model: nn.Module) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _default_budget(models: Sequence[nn.Module]) -> int:
    tokens, logits = (CPU_TOKENS, CPU_LOGITS) if _device(models[0]).type == "cpu" else (DEVICE_TOKENS, DEVICE_LOGITS)
    return min(tokens, logits // max(map(_vocabulary, models)))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sums(
    models: Sequence[nn.Module], left: dict[Prefixes, set[Ids]], measure: Measure, budget: int
) -> Iterator[tuple[Prefixes, Ids, np.ndarray]]:
    """(prefixes, completion, sums (K,)) of all that is `left`, in the order they are done: longest prefixes first."""
    left = {before: left[before] for before in sorted(left, key=_longest, reverse=True) if left[before]}
    while left:
        group = list(islice(left, _fitting(map(_longest, left), 0, budget)))
        smallest = _longest(group[0]) + max(len(ids) for before in group for ids in left[before])
        with contextlib.suppress(torch.OutOfMemoryError):
            for before, ids, sums in _group_sums(models, {key: left[key] for key in group}, measure, budget):
                left[before].remove(ids)
                yield before, ids, sums
        if any(left[before] for before in group):
            budget = _halved(budget, smallest)
        for before in group:
            if not left[before]:
                del left[before]


def _group_sums(
    models: Sequence[nn.Module], group: dict[Prefixes, set[Ids]], measure: Measure, budget: int
) -> Iterator[tuple[Prefixes, Ids, np.ndarray]]:
    """Read the prompts of a group together, then their completions in batches, longest first."""
    keys = list(group)
    readers = [Reader(model, prompts) for model, prompts in zip(models, zip(*keys, strict=True), strict=True)]
    rows = sorted(((k, ids) for k, key in enumerate(keys) for ids in group[key]), key=lambda row: -len(row[1]))
    while rows:
        count = _fitting((len(ids) for _, ids in rows), _longest(keys[0]), budget)
        batch, rows = rows[:count], rows[count:]
        for (k, ids), sums in zip(batch, _batch_sums(readers, batch, measure), strict=True):
            yield keys[k], ids, sums


def _longest(before: Prefixes) -> int:
    return max(map(len, before))


def _fitting(lengths: Iterator[int], extra: int, budget: int) -> int:
    """How many of these, longest first, go together: as many as the budget holds with `extra` tokens each, and none that
    would be padded to over twice its length; at least one.
    """
    widest = next(lengths)
    most = budget // (extra + widest)
    return 1 + sum(1 for _ in takewhile(lambda length: 2 * length >= widest, islice(lengths, max(most - 1, 0))))


def _halved(budget: int, smallest: int) -> int:
    if budget <= smallest:
        raise UserError("out of memory with a single completion in the batch; use a smaller model or fewer tokens")
    torch.cuda.empty_cache()
    logger.warning("out of memory with %d tokens in a batch; going on with half as many", budget)
    return budget // 2


def _batch_sums(readers: Sequence["Reader"], batch: Sequence[tuple[int, Ids]], measure: Measure) -> np.ndarray:
    """(prompt, completion) of R rows → sums (R, K)."""
    owner, completions = torch.tensor([k for k, _ in batch]), [ids for _, ids in batch]
    labels, mask = pad(completions, 0, "right"), _mask(completions, "right")  # (R, T)
    pieces = zip(*(reader.logits(owner, completions) for reader in readers), strict=True)
    values, start = [], 0
    for logits in pieces:  # of the first token, then of the others
        stop = start + logits[0].shape[1]
        values.append(_in_chunks(measure, logits, labels[:, start:stop].to(logits[0].device)))
        start = stop
    each = torch.cat(values, dim=1).cpu().double()  # (R, T, K)
    return torch.where(mask.bool()[..., None], each, 0).sum(1).numpy()


def _in_chunks(measure: Measure, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """`measure` of (R, T, V), a few rows at a time: (R, T, K)."""
    most = CPU_CHUNK if labels.device.type == "cpu" else DEVICE_CHUNK
    rows = max(1, most // max(1, logits[0][0].numel()))
    parts = range(0, len(labels), rows)
    return torch.cat([measure([each[i : i + rows] for each in logits], labels[i : i + rows]) for i in parts])


# ---- reading prompts once -----------------------------------------------------------------------------------------


class Reader:
    """P prompts that a model has read, to be continued by any of their completions, any number of times."""

    def __init__(self, model: nn.Module, prompts: Sequence[Ids]):
        self.model, self.prompts, self.device = model, prompts, _device(model)
        self.accepted = forward_parameters(model)
        self.cache = self.first = self.mask = None
        if "past_key_values" in self.accepted:
            self.mask = _mask(prompts, "left")  # (P, S)
            out = self._forward(pad(prompts, 0, "left"), self.mask, logits_to_keep=1, use_cache=True)
            if shareable(getattr(out, "past_key_values", None)):
                self.cache, self.first = out.past_key_values, out.logits[:, -1:]  # (P, 1, V)

    def logits(self, owner: Tensor, completions: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Of each completion's first token (R, 1, V), and of its others (R, T - 1, V); `owner` (R,) is in 0..P-1."""
        if self.cache is None:
            whole = self._without_cache(owner, completions)
            return whole[:, :1], whole[:, 1:]
        first = self.first[owner]  # (R, 1, V)
        read = [ids[:-1] for ids in completions]  # nothing is asked after the last
        ids = pad(read, 0, "right")  # (R, T - 1)
        if not ids.shape[1]:
            return first, first[:, :0]
        mask = torch.cat([self.mask[owner], _mask(read, "right")], dim=1)  # (R, S + T - 1)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        select_with_room(cache, owner, ids.shape[1])
        return first, self._forward(ids, mask, past_key_values=cache, use_cache=True).logits

    def _without_cache(self, owner: Tensor, completions: Sequence[Ids]) -> Tensor:
        rows = [(*self.prompts[k], *ids[:-1]) for k, ids in zip(owner.tolist(), completions, strict=True)]
        starts = torch.tensor([len(self.prompts[k]) - 1 for k in owner.tolist()])  # (R,): where the first is foretold
        ids, skipped = pad(rows, 0, "right"), int(starts.min())
        kept = ids.shape[1] - skipped
        logits = self._forward(ids, _mask(rows, "right"), logits_to_keep=kept, use_cache=False).logits[:, -kept:]
        columns = (starts[:, None] - skipped + torch.arange(max(map(len, completions)))).clamp(max=kept - 1)  # (R, T)
        return logits.take_along_dim(columns[..., None].to(logits.device), dim=1)  # (R, T, V)

    def _forward(self, ids: Tensor, mask: Tensor, **options):
        """Read (R, N) on; `mask` (R, S + N) is also over what the cache holds."""
        position = mask.cumsum(-1).sub(1).clamp(min=0)[:, -ids.shape[1] :]  # (R, N); padding stays in the context
        options = {"position_ids": position.to(self.device), **options}
        known = {name: value for name, value in options.items() if name in self.accepted}
        return self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), **known)


def shareable(cache: object) -> bool:
    """Whether rows of this cache can be repeated for a prompt's completions, its left padding masked out."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, Cache) and all(type(layer) in kinds for layer in cache.layers)


def _mask(rows: Sequence[Ids], side: str) -> Tensor:
    return pad([[1] * len(row) for row in rows], 0, side)
