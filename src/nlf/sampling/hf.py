"""Sample in this process: a decode loop over any Hugging Face causal LM and its cache.

Why not `generate`: it reads a prompt again for each of its n completions, pads the batch to its longest prompt, keeps
finished rows, sorts the vocabulary at every step and draws from the global random state. Here prompts of similar length
share a batch, a prompt is read once, finished rows leave the batch, and the random number of token t of completion j is a
pure function of (seed, iteration, request key, j, t). So a completion depends neither on its batch nor on the number of
processes, up to float ties, and the global random state does not change.

The sampling rule is transformers': bans, temperature, top-k, top-p, in this order (`draw.py`). Guidance
(`losses.guided_log_probs`) comes before them and leaves EOS unchanged.

Letters in shapes: B branches (2 with guidance), P prompts, R rows = completions, L prompt tokens, V vocabulary.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nlf.config import SamplingOptions
from nlf.errors import UserError
from nlf.models.cache import Rows, WholeRows, cached_forward, read_prompts
from nlf.models.encoder import group_by_length, pad, pass_tokens
from nlf.models.memory import BATCH_TOKENS, NO_ROOM, halved
from nlf.models.packed_weights import packed_weights
from nlf.models.reading import (
    check_reads,
    equal_but_for_rounding,
    eval_mode,
    last_logits,
    named,
    vocabulary_size,
)
from nlf.sampling import Completions, Progress, Request, Requests, check_known, check_lengths, context_of
from nlf.sampling.draw import drawn, scores_of, uniforms
from nlf.sampling.shared import SharedRows, configs_with_sdpa
from nlf.sampling.static import Compiled, StaticRows

logger = logging.getLogger(__name__)

CPU_CACHE = 2**30  # most bytes of keys and values on a CPU, where the process would not survive running out of memory


RowsKind = partial[Any]  # a partial of a `Rows` class, with its first arguments
Branches = tuple[tuple[int, ...], ...]  # the ids that the B branches read of one prompt


class HFSampler:
    """Samples from the current weights of `model`.

    Args:
        model: Any causal LM of transformers, or a peft model of one. Its train/eval state is restored afterwards.
        eos_token_ids: Ids that end a completion, which keeps its EOS.
        banned_token_ids: Ids that are never sampled; ids beyond the model's vocabulary are ignored.
        token_budget: Most tokens in a batch: completions x (longest prompt + max_completion_length), over both branches.
            The sampler halves it when memory runs out.
        compile: Decode under `torch.compile`, with keys and values at fixed addresses (`static.py`).
    """

    label = "hf"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        token_budget: int | None = None,
        compile: bool = False,
    ):
        self.model = model
        self.device = next(model.parameters()).device
        self.eos, self.banned = sorted(eos_token_ids), sorted(banned_token_ids)
        self.token_budget = token_budget or default_budget(model, self.device)
        self._forward = cached_forward(model)
        self.pass_tokens = pass_tokens(self.device, alone=True)
        self.compile = compile
        self.rows: RowsKind | None = None  # the kind of rows that fits the model, found before the first batch
        self.compiled: Compiled | None = None  # the compiled pass of that kind, if it has one

    def sample(
        self, requests: Requests, options: SamplingOptions, *, seed: int, iteration: int, progress: Progress = None
    ) -> Completions:
        """See `nlf.sampling.Sampler`.

        Raises:
            UserError: a prompt is empty, does not fit the context or has tokens that the model lacks, the model's scores
                are not finite, or see `check_reads`.
        """
        n, new = options.num_generations, options.max_completion_length
        prefixes = _prefixes(requests, options)
        check_lengths(prefixes, new, context_of(self.model.config))
        check_known(prefixes, vocabulary_size(self.model))
        cost = [len(prefix) * (max(map(len, prefix)) + new) for prefix in prefixes]  # tokens of one completion
        order = sorted(range(len(requests)), key=lambda i: -cost[i])
        rows = [(i, j) for i in order for j in range(n)]
        results: Completions = [[[] for _ in range(n)] for _ in requests]
        start, budget = 0, self.token_budget
        with eval_mode(self.model), self._read_only(len(rows) * new):
            while start < len(rows):
                batch = rows[start : start + batch_size(rows, start, cost, budget)]
                prompts = {i: place for place, i in enumerate(dict.fromkeys(i for i, _ in batch))}
                owner = [prompts[i] for i, _ in batch]
                keys = [requests[i].key for i, _ in batch]
                noise = uniforms(seed, iteration, keys, [j for _, j in batch], new)
                ids = self._try([prefixes[i] for i in prompts], owner, noise, options)
                if ids is None:  # out of memory: everything from here on in batches half as large
                    budget = halved(len(batch), 1, "completions") * cost[batch[0][0]]
                    continue
                for (i, j), completion in zip(batch, ids, strict=True):
                    results[i][j] = completion
                start += len(batch)
                if progress:
                    progress(len(batch))
        return results

    def close(self) -> None:
        """Free the memory of compiled decoding; nothing else is kept between calls."""
        if self.compiled:
            self.rows = self.compiled = None

    @contextlib.contextmanager
    def _read_only(self, tokens: int) -> Iterator[None]:
        """Inside the `with` block, gradients are off and, unless decoding is compiled, weights are packed."""
        try:
            with torch.no_grad():
                self.rows = self.rows or self._best_rows()
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(NO_ROOM) from error
        if self.compiled:
            try:
                with torch.no_grad():
                    yield
            except BaseException:
                self.close()  # the buffers may hold NaN, which the next batch would read
                raise
        else:
            with torch.inference_mode(), packed_weights(self.model, tokens):
                yield

    def _try(
        self, prefixes: list[Branches], owner: list[int], noise: np.ndarray, options: SamplingOptions
    ) -> list[list[int]] | None:
        """The batch's completions, or None if it did not fit the memory of the device."""
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            draw_on = "cpu" if self.device.type == "mps" else self.device  # no float64 on mps
            return self._decode(
                prefixes, torch.tensor(owner).to(self.device), torch.tensor(noise).to(draw_on), options
            )
        if self.compiled:
            self.compiled.clear()  # frees the memory that the failed batch took
        return None

    def _decode(
        self, prefixes: list[Branches], owner: Tensor, noise: Tensor, options: SamplingOptions
    ) -> list[list[int]]:
        """P prefixes of B branches each, owner (R,) in 0..P-1, noise (R, T) → R completions."""
        branches, steps = len(prefixes[0]), options.max_completion_length
        read = [p[b] for b in range(branches) for p in prefixes]  # BP
        take = _in_branches(owner, branches, len(prefixes))  # (BR,): the prefix in `read` that each row continues
        assert self.rows is not None  # `_read_only` has found them
        logits, ahead = self._prefill(self.rows, read, take, steps)  # (BR, V), BR rows
        eos = torch.tensor(self.eos, dtype=torch.long, device=self.device)
        out = torch.full(noise.shape, -1, device=self.device)  # (R, T)
        live = torch.arange(len(owner), device=self.device)  # (R,): the row of `out` that each row of the batch writes
        going = torch.ones_like(live, dtype=torch.bool)  # (R,): no EOS yet
        for step in range(steps):
            u = noise[live.to(noise.device), step]  # (R,)
            token = self._next(logits.unflatten(0, (branches, -1)), u, step, options)  # (R,)
            out[live[going], step] = token[going]
            going = going & ~torch.isin(token, eos)
            left = int(going.sum())
            if not left or step + 1 == steps:
                break
            if ahead.shrinks(branches * left):
                stay = going.nonzero()[:, 0]
                ahead.keep(_in_branches(stay, branches, len(live)))
                live, token, going = live[stay], token[stay], going[stay]
            logits = ahead.step(token.repeat(branches))  # (BR, V)
        return [[t for t in row if t >= 0] for row in out.tolist()]

    def _prefill(
        self, kind: RowsKind, prompts: Sequence[Sequence[int]], take: Tensor, room: int
    ) -> tuple[Tensor, Rows]:
        """Read BP prompts, in groups of similar length if their caches can be joined.

        Args:
            take: (N,), the prompt that each row continues.
            room: Most new tokens of a row.

        Returns:
            Logits (N, V) after the rows' prompts, and the rows.
        """
        lengths = [len(ids) for ids in prompts]
        groups = group_by_length(lengths, None if kind.func in (Rows, WholeRows) else self.pass_tokens)
        reader = self._read_whole if kind.func is WholeRows else self._read
        read = [reader([prompts[i] for i in group]) for group in groups]
        logits = torch.cat([each for each, _ in read])  # (BP, V), group by group
        order = torch.tensor([i for group in groups for i in group], device=self.device)
        sizes = torch.tensor(lengths, device=self.device)
        return logits[order.argsort()[take]], kind([cache for _, cache in read], order, sizes, take, room)

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """P prompts → logits of the last position (P, V), and the cache."""
        return read_prompts(self._forward, prompts, self.device)

    def _read_whole(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """P prompts, right padded to L → logits of their last tokens (P, V), and their ids (P, L)."""
        ids = pad(prompts, 0, "right").to(self.device)
        return last_logits(self.model, ids, torch.tensor([len(ids) for ids in prompts], device=self.device)), ids

    def _best_rows(self) -> RowsKind:
        """The fastest kind of rows that gives the logits of plain passes over the whole text.

        Raises:
            UserError: see `check_reads`.
        """
        check_reads(self.model)
        whole, plain = partial(WholeRows, partial(last_logits, self.model)), partial(Rows, self._forward)
        expected = self._trial(whole)
        reason = self._objection(plain, expected)
        if reason is not None:
            _warn_once(
                f"sampling is slow: {type(self.model).__name__} reads the whole text again for each token, since its cache "
                f"cannot be used ({reason})"
            )
            return whole
        return self._faster_rows(plain, expected)

    def _faster_rows(self, plain: RowsKind, expected: Tensor) -> RowsKind:
        """Compiled rows if asked for, rows that share their prompts if the model allows, else plain rows."""
        if self.compile:
            compiled = Compiled(self._forward, self.device)
            static = partial(StaticRows, compiled)
            reason = self._objection(static, expected)
            if reason is None:
                self.compiled = compiled
                return static
            logger.warning("sampling continues without compiled decoding: %s", reason)
        shared = partial(SharedRows, configs_with_sdpa(self.model), self._forward)
        reason = self._objection(shared, expected)
        if reason is None:
            return shared
        logger.info("sampling continues without shared prompts: %s", reason)
        return plain

    def _trial(self, kind: RowsKind) -> Tensor:
        """Logits (2R, V) of R rows after their prompts, and after one more token."""
        take = torch.tensor([0, 1, 0], device=self.device)
        logits, ahead = self._prefill(kind, [(1, 2), (2,)], take, 1)
        return torch.cat([logits, ahead.step(torch.ones_like(take))])

    def _objection(self, kind: RowsKind, expected: Tensor) -> str | None:
        """The reason why this kind of rows cannot be used; None if a trial gives the expected logits."""
        try:
            if kind.func is not Rows and not self._only_plain_attention():
                return "its attention is not sdpa over all tokens in every layer"
            got = self._trial(kind)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no cache, another kind of cache, special attention, no compiler
            return named(error)
        return None if equal_but_for_rounding(got, expected) else "its logits differ"

    def _only_plain_attention(self) -> bool:
        _, cache = self._read([(1, 2)])
        return bool(configs_with_sdpa(self.model)) and all(type(layer) is DynamicLayer for layer in cache.layers)

    def _next(self, logits: Tensor, u: Tensor, step: int, options: SamplingOptions) -> Tensor:
        """Logits (B, R, V), uniforms (R,) → token ids (R,)."""
        banned = self.banned + (self.eos if step < options.min_completion_length else [])
        scores = scores_of(logits.float().to(u.device), options.guidance_scale, self.eos, banned)
        return drawn(scores, u, options).to(self.device)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _prefixes(requests: Sequence[Request], options: SamplingOptions) -> list[Branches]:
    """For each prompt the ids that its branches read: one branch, or two with guidance."""
    guided = bool(options.guidance_scale) and any(r.negative_ids is not None for r in requests)
    return [(r.input_ids, r.negative_ids or ()) if guided else (r.input_ids,) for r in requests]


def default_budget(model: PreTrainedModel, device: torch.device) -> int:
    """The default token budget for the device."""
    if device.type != "cpu":
        return BATCH_TOKENS.accelerator
    config = model.config.get_text_config()
    size = next(model.parameters()).element_size()
    token_bytes = 2 * config.num_hidden_layers * config.hidden_size * size  # at most
    return max(1, min(BATCH_TOKENS.cpu, CPU_CACHE // token_bytes))


def batch_size(rows: Sequence[tuple[int, int]], start: int, cost: Sequence[int], budget: int) -> int:
    """The number of rows in the batch that starts at rows[start].

    The batch holds as many rows as the budget allows at the first row's length, and no row that padding would more than
    double. It holds all completions of a prompt or none, so that the prompt is read once, unless one prompt alone is over
    the budget.

    Args:
        rows: (request, index) pairs, longest first.
        cost: Tokens of one completion of each request, its prompt included.
    """
    widest = cost[rows[start][0]]
    stop = min(start + max(1, budget // widest), len(rows))
    stop = next((r for r in range(start, stop) if 2 * cost[rows[r][0]] < widest), stop)
    if stop < len(rows) and (whole := stop - rows[stop][1]) > start:
        stop = whole
    return stop - start


def _in_branches(index: Tensor, branches: int, size: int) -> Tensor:
    """Rows of one branch (R,) → the rows in all branches (BR,), where branches are `size` rows apart."""
    return torch.cat([index + b * size for b in range(branches)])
