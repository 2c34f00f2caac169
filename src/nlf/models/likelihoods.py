"""Likelihoods of completions under models: NLL given prompts, KL to a reference, entropy.

The published perplexity script makes one forward pass per completion. It reads a prompt again for each of its n
completions and computes the logits of prompt tokens, which nothing uses. Here each prompt is read once, in groups of
similar length. The distinct completions, sorted by length, continue from the prompts' cache, in batches cut by a token
budget. Logits are computed at completion positions only and reduced a few rows at a time, so that they are never
copied in full. Results depend on the batches by float rounding only.

A cache can be shared if all its layers hold keys and values (full or sliding-window attention): its left padding is
then masked out, which a trial checks. Other models (with recurrent states, without `past_key_values`, or with positions
that count padding) read prompt and completion together, once per completion.

Letters in shapes: P prompts, R rows = completions of a batch, T tokens of the longest, S of the longest prompt, V vocabulary,
K values measured per token.
"""

import contextlib
import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nlf.errors import UserError
from nlf.method.losses import token_stats
from nlf.models.cache import select_with_room
from nlf.models.encoder import pad
from nlf.models.memory import BATCH_TOKENS, Limit, chunks, halved
from nlf.models.packed_weights import packed_weights
from nlf.models.reading import check_reads, equal_but_for_rounding, eval_mode, forward_parameters, vocabulary_size

BATCH_LOGITS = Limit(2**24, 2**29)  # most logits in a batch of the default budget
CHUNK_LOGITS = Limit(2**20, 2**26)  # logits reduced at a time: as many as fit the cache of a CPU

Ids = tuple[int, ...]
Prefixes = tuple[Ids, ...]  # ids that each of the models reads before a prompt's completions
Measure = Callable[[Sequence[Tensor], Tensor], Tensor]  # logits (R, T, V) of each model, labels (R, T) → (R, T, K)
Reader = Callable[[Sequence[Ids]], "ReadPrompts"]
Progress = Callable[[int], None]  # called with the number of completions that are done


class Conditioned(NamedTuple):
    """A model, and the ids that it reads before the completions of each of P prompts."""

    model: nn.Module
    prefixes: Sequence[Sequence[int]]


def conditional_nll(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    batch_tokens: int | None = None,
    progress: Progress = lambda n: None,
    names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """-log p(completion | prompt) of every completion under `model`, in nats.

    Args:
        model: Any causal LM of transformers or peft. Its train/eval state is restored afterwards.
        prompts: P lists of ids, at least one id each.
        completions: For each prompt, n lists of ids (n may differ, and may be 0).
        batch_tokens: Most tokens in a batch: completions × (longest prompt + longest completion). Halved when memory runs
            out; None suits the device.
        progress: Called with the number of completions that are done.
        names: Names of the prompts, for errors; None numbers them.

    Returns:
        For each prompt `(n,)` float64, summed over the completion's tokens; 0.0 for an empty completion.

    Raises:
        UserError: a prompt is empty, does not fit the context with its completion, or has ids that the model does not
            know; a likelihood is not finite; or the memory does not hold a single completion.
    """
    found = _measure(
        [Conditioned(model, prompts)], completions, _nll, 1, batch_tokens=batch_tokens, progress=progress, names=names
    )
    return [sums[:, 0] for sums in found]


def divergence(
    policy: Conditioned,
    reference: Conditioned,
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    excluded_ids: Sequence[int] = (),
    batch_tokens: int | None = None,
    progress: Progress = lambda n: None,
    names: Sequence[str] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """KL(reference(.|prompt) || policy(.|query)) and the policy's entropy along every completion, in nats.

    Args:
        policy: The policy, and queries (prompts with their feedback).
        reference: The reference, and the bare prompts.
        excluded_ids: Ids of tokens that tags added; the KL leaves them out (see `losses.token_stats`).
        completions, batch_tokens, progress, names: See `conditional_nll`.

    Returns:
        (kl, entropy): for each prompt `(n,)` float64, summed over the completion's tokens; 0.0 for an empty completion.

    Raises:
        UserError: see `conditional_nll`.
    """

    def kl_and_entropy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        stats = token_stats(logits[0], labels, logits[1], excluded_ids)
        return torch.stack([stats.kl, stats.entropy], dim=-1)

    found = _measure(
        [policy, reference], completions, kl_and_entropy, 2, batch_tokens=batch_tokens, progress=progress, names=names
    )
    return [sums[:, 0] for sums in found], [sums[:, 1] for sums in found]


def _nll(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    return -logits[0].float().log_softmax(-1).gather(-1, labels.unsqueeze(-1))  # (R, T, 1)


# ---- batches ------------------------------------------------------------------------------------------------------


def _measure(
    sides: Sequence[Conditioned],
    completions: Sequence[Sequence[Sequence[int]]],
    measure: Measure,
    width: int,
    *,
    batch_tokens: int | None,
    progress: Progress,
    names: Sequence[str] | None,
) -> list[np.ndarray]:
    """Sums of `measure` over the tokens of each completion: for each prompt `(n, K)` float64, with K = `width`."""
    models = [side.model for side in sides]
    prefixes = list(zip(*(side.prefixes for side in sides), strict=True))  # of each prompt
    names = names or [f"prompt {i + 1} of {len(prefixes)}" for i in range(len(prefixes))]
    places: dict[Prefixes, dict[Ids, list]] = defaultdict(lambda: defaultdict(list))
    for i, (before, rows) in enumerate(zip(prefixes, completions, strict=True)):
        _check(models, before, rows, names[i])
        for j, ids in enumerate(rows):
            places[tuple(map(tuple, before))][tuple(ids)].append((i, j))
    found = [np.zeros((len(rows), width)) for rows in completions]
    progress(sum(len(rows.pop((), ())) for rows in places.values()))  # empty completions are done
    budget = (batch_tokens or _default_budget(models)) // len(models)
    tokens = sum(len(ids) for rows in completions for ids in rows)
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(eval_mode(model))
            stack.enter_context(packed_weights(model, tokens))
        stack.enter_context(torch.inference_mode())
        readers = [reader_of(model) for model in models]
        for before, ids, sums in _sums(readers, {key: set(rows) for key, rows in places.items()}, measure, budget):
            for i, j in places[before][ids]:
                _check_finite(sums, names[i])
                found[i][j] = sums
            progress(len(places[before][ids]))
    return found


def _check(models: Sequence[nn.Module], before: Sequence[Sequence[int]], rows: Sequence, name: str) -> None:
    """Refuse a prompt that one of the models cannot read with its completions."""
    longest = max(map(len, rows), default=0)
    for model, prefix in zip(models, before, strict=True):
        known = vocabulary_size(model)
        # nn.Module types an attribute as Tensor or Module
        config = cast(PretrainedConfig, model.config).get_text_config(decoder=True)
        context = getattr(config, "max_position_embeddings", None)
        if not prefix:
            raise UserError(f"{name} has no tokens, so there is nothing to continue; remove the prompt")
        if context and len(prefix) + longest > context:
            raise UserError(
                f"{name} has {len(prefix)} tokens, {len(prefix) + longest} with its longest completion: over the "
                f"reader's context of {context}; shorten it, or measure with another model"
            )
        if max(max(ids, default=0) for ids in (prefix, *rows)) >= known:
            raise UserError(
                f"{name} has token ids of {known} or more, which the reader does not know; "
                "measure with a model of the same vocabulary"
            )


def _check_finite(sums: np.ndarray, name: str) -> None:
    if not np.isfinite(sums).all():
        raise UserError(
            f"{name}: the model gave a likelihood that is not finite; load it in float32 or bfloat16, "
            "and check that its training did not diverge"
        )


def _default_budget(models: Sequence[nn.Module]) -> int:
    device = _device(models[0])
    return min(BATCH_TOKENS.on(device), BATCH_LOGITS.on(device) // max(map(vocabulary_size, models)))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sums(
    readers: Sequence[Reader], left: dict[Prefixes, set[Ids]], measure: Measure, budget: int
) -> Iterator[tuple[Prefixes, Ids, np.ndarray]]:
    """(prefixes, completion, sums (K,)) of all completions `left`, in the order of computation: longest prefixes first."""
    left = {before: left[before] for before in sorted(left, key=_longest, reverse=True) if left[before]}
    while left:
        group = list(islice(left, _fitting(map(_longest, left), 0, budget)))
        smallest = _longest(group[0]) + max(len(ids) for before in group for ids in left[before])
        with contextlib.suppress(torch.OutOfMemoryError):
            for before, ids, sums in _group_sums(readers, {key: left[key] for key in group}, measure, budget):
                left[before].remove(ids)
                yield before, ids, sums
        if any(left[before] for before in group):
            budget = halved(budget, smallest, "tokens")
        for before in group:
            if not left[before]:
                del left[before]


def _group_sums(
    readers: Sequence[Reader], group: dict[Prefixes, set[Ids]], measure: Measure, budget: int
) -> Iterator[tuple[Prefixes, Ids, np.ndarray]]:
    """Read the prompts of a group together, then their completions in batches, longest first."""
    keys = list(group)
    read = [reader(prompts) for reader, prompts in zip(readers, zip(*keys, strict=True), strict=True)]
    rows = sorted(((k, ids) for k, key in enumerate(keys) for ids in group[key]), key=lambda row: -len(row[1]))
    while rows:
        count = _fitting((len(ids) for _, ids in rows), _longest(keys[0]), budget)
        batch, rows = rows[:count], rows[count:]
        for (k, ids), sums in zip(batch, _batch_sums(read, batch, measure), strict=True):
            yield keys[k], ids, sums


def _longest(before: Prefixes) -> int:
    return max(map(len, before))


def _fitting(lengths: Iterator[int], extra: int, budget: int) -> int:
    """How many of these lengths, longest first, form a batch: at least one, and as many as the budget holds when each
    has `extra` more tokens. A length under half the longest starts the next batch.
    """
    widest = next(lengths)
    most = budget // (extra + widest)
    return 1 + sum(1 for _ in takewhile(lambda length: 2 * length >= widest, islice(lengths, max(most - 1, 0))))


def _batch_sums(read: Sequence["ReadPrompts"], batch: Sequence[tuple[int, Ids]], measure: Measure) -> np.ndarray:
    """(prompt, completion) of R rows → sums (R, K)."""
    owner, completions = torch.tensor([k for k, _ in batch]), [ids for _, ids in batch]
    labels, mask = pad(completions, 0, "right"), _mask(completions, "right")  # (R, T)
    pieces = zip(*(each.logits(owner, completions) for each in read), strict=True)
    values, start = [], 0
    for logits in pieces:  # of the first token, then of the other tokens
        stop = start + logits[0].shape[1]
        values.append(_measured_in_chunks(measure, logits, labels[:, start:stop].to(logits[0].device)))
        start = stop
    each = torch.cat(values, dim=1).cpu().double()  # (R, T, K)
    return torch.where(mask.bool()[..., None], each, 0).sum(1).numpy()


def _measured_in_chunks(measure: Measure, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """`measure` of (R, T, V), a few rows at a time: (R, T, K)."""
    rows = max(1, CHUNK_LOGITS.on(labels.device) // max(1, logits[0][0].numel()))
    return torch.cat([measure(chunk[1:], chunk[0]) for chunk in chunks(rows, labels, *logits)])


# ---- prompts read once --------------------------------------------------------------------------------------------


def reader_of(model: nn.Module) -> Reader:
    """Makes `ReadPrompts` of a model; with a cache if a trial gives the same logits as without.

    Raises:
        UserError: see `check_reads`.
    """
    check_reads(model)
    owner, completions = torch.tensor([0, 1, 0]), [(1, 2), (2, 1), (2, 2)]

    def trial(cached: bool) -> Tensor:
        return torch.cat(ReadPrompts(model, [(1, 2), (2,)], cached).logits(owner, completions), dim=1)

    try:
        cached = equal_but_for_rounding(trial(True), trial(False))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no cache, or another kind of cache
        cached = False
    return functools.partial(ReadPrompts, model, cached=cached)


class ReadPrompts:
    """P prompts that a model has read. Any of their completions can continue them, any number of times.

    Args:
        cached: Keep the prompts' keys and values, if the model's cache can be shared.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Ids], cached: bool = True):
        self.model, self.prompts, self.device = model, prompts, _device(model)
        self.accepted = forward_parameters(model)
        self.cache: Cache | None = None  # None: prompts are read again with each completion
        if cached and "past_key_values" in self.accepted:
            mask = _mask(prompts, "left")  # (P, S)
            out = self._forward(pad(prompts, 0, "left"), mask, logits_to_keep=1, use_cache=True)
            cache = getattr(out, "past_key_values", None)
            if shareable(cache):
                self.cache, self.mask, self.first = cache, mask, out.logits[:, -1:]  # first: (P, 1, V)

    def logits(self, owner: Tensor, completions: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Logits of each completion's first token (R, 1, V), and of its other tokens (R, T - 1, V).

        Args:
            owner: (R,), numbers of the completions' prompts.
        """
        if self.cache is None:
            whole = self._without_cache(owner, completions)
            return whole[:, :1], whole[:, 1:]
        first = self.first[owner]  # (R, 1, V)
        read = [ids[:-1] for ids in completions]  # the last token predicts nothing
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
        # (R,), where first tokens are predicted
        starts = torch.tensor([len(self.prompts[k]) - 1 for k in owner.tolist()])
        ids, skipped = pad(rows, 0, "right"), int(starts.min())
        kept = ids.shape[1] - skipped
        logits = self._forward(ids, _mask(rows, "right"), logits_to_keep=kept, use_cache=False).logits[:, -kept:]
        columns = (starts[:, None] - skipped + torch.arange(max(map(len, completions)))).clamp(max=kept - 1)  # (R, T)
        return logits.take_along_dim(columns[..., None].to(logits.device), dim=1)  # (R, T, V)

    def _forward(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        """Read ids (R, N) after the cached tokens; `mask` (R, S + N) covers both."""
        position = mask.cumsum(-1).sub(1).clamp(min=0)[:, -ids.shape[1] :]  # (R, N); padding stays within the context
        options = {"position_ids": position.to(self.device), **options}
        known = {name: value for name, value in options.items() if name in self.accepted}
        return self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), **known)


def shareable(cache: object) -> bool:
    """Whether rows of this cache can be repeated for a prompt's completions, with left padding masked out."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, Cache) and all(type(layer) in kinds for layer in cache.layers)


def _mask(rows: Sequence[Ids], side: Literal["left", "right"]) -> Tensor:
    return pad([[1] * len(row) for row in rows], 0, side)
