"""Continuous batching: completions that join and leave a batch between two tokens, each with settings of its own.

`HFSampler` gets all prompts at once and decodes them batch by batch. A server gets them one after the other. Here the rows
of all requests share each pass, and a row's tokens are drawn by its own rule and its own random numbers, which are those of
`HFSampler`: so a completion depends only on its own request, up to float ties, and equals that of `nlf sample`.

Letters in shapes: N slots, R rows drawn together, B branches (2 with guidance), V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nlf.config import SamplingOptions
from nlf.models.cache import COMPACT_AT, cached_forward
from nlf.models.encoder import pass_tokens
from nlf.models.reading import check_reads, equal_but_for_rounding, named, vocabulary_size
from nlf.sampling import Request, check_known, check_lengths, context_of
from nlf.sampling.draw import drawn, scores_of, uniforms
from nlf.sampling.hf import default_budget
from nlf.sampling.slots import AnySlots, Slots, WholeSlots

logger = logging.getLogger(__name__)

MOST_ROWS = 64  # completions that are decoded at the same time


class LogProbs(NamedTuple):
    """Log-probabilities of a token at temperature 1: with guidance, before top-k and top-p.

    Attributes:
        chosen: Of the token.
        best: The likeliest ids, the likeliest first, with theirs.
    """

    chosen: float
    best: list[tuple[int, float]]


@dataclass(eq=False)
class Row:
    """One completion.

    Attributes:
        ids: What the branches read: the prompt, and with guidance the prompt after the negative tag.
        noise: The random number of each token.
        top: Number of likeliest tokens to tell with each token; None = no log-probabilities.
        out: The tokens so far, EOS included.
        log_probs: Of each token, if `top` asks for them.
        reason: Why no token follows: "stop" = EOS, "length" = there are as many as the row may have, "cancelled".
    """

    ids: tuple[tuple[int, ...], ...]
    options: SamplingOptions
    noise: np.ndarray
    top: int | None = None
    out: list[int] = field(default_factory=list)
    log_probs: list[LogProbs] = field(default_factory=list)
    reason: str | None = None
    slots: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Most tokens of the row, its prompt included."""
        return max(map(len, self.ids)) + self.options.max_completion_length

    @property
    def rule(self) -> tuple:
        """Rows with the same rule are drawn together."""
        o = self.options
        early = len(self.out) < o.min_completion_length
        return len(self.ids), o.guidance_scale, o.temperature, o.top_k, o.top_p, early

    def cancel(self) -> None:
        """Take the row out of its batch, from any thread. At most the token that is being drawn follows."""
        self.reason = "cancelled"


def rows_of(
    request: Request, options: SamplingOptions, *, seed: int, iteration: int, top: int | None = None
) -> list[Row]:
    """The completions of a request, each with its random numbers."""
    count, guided = options.num_generations, bool(options.guidance_scale) and request.negative_ids is not None
    ids = (request.input_ids, request.negative_ids or ()) if guided else (request.input_ids,)
    noise = uniforms(seed, iteration, [request.key] * count, range(count), options.max_completion_length)
    return [Row(ids, options, own, top) for own in noise]


class Decoder:
    """Decodes rows of one model. Use it from one thread.

    Args:
        eos: Ids that end a completion, which keeps its EOS.
        banned: Ids that are never sampled.
        most_rows: Most completions that are decoded at the same time.
        token_budget: Most tokens of keys and values; a single row may have more. None suits the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos: Sequence[int],
        banned: Sequence[int] = (),
        most_rows: int = MOST_ROWS,
        token_budget: int | None = None,
    ):
        self.model, self.device = model, next(model.parameters()).device
        self.eos, self.banned, self.most_rows = sorted(eos), sorted(banned), most_rows
        self.token_budget = token_budget or default_budget(model, self.device)
        self.draw_on = torch.device("cpu") if self.device.type == "mps" else self.device  # no float64 on mps
        self.context, self.known = context_of(model.config), vocabulary_size(model)
        with torch.inference_mode():
            self.whole = self._needs_whole()
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.waiting: deque[Row] = deque()
        self.live: list[Row] = []
        self.slots: AnySlots = self._slots(self.whole)
        self.free: list[int] = []
        self.logits: Tensor | None = None  # (N, V), after the last token of each slot

    def check(self, rows: Iterable[Row]) -> None:
        """Refuse rows that the model cannot read.

        Raises:
            UserError: a prompt is empty, does not fit the context or has tokens that the model lacks.
        """
        for row in rows:
            check_lengths([row.ids], row.options.max_completion_length, self.context)
            check_known([row.ids], self.known)

    def add(self, rows: Iterable[Row]) -> None:
        """Let checked rows wait for a place in the batch."""
        self.waiting.extend(rows)

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting)

    def step(self, admit: bool = True) -> list[Row]:
        """Draw the next token of each row in the batch, and return these rows.

        Args:
            admit: Let waiting rows join first.

        Raises:
            UserError: the model's scores are not finite.
        """
        with torch.inference_mode():
            self._leave()
            if self.live:
                self._read_last_tokens()
            if admit or not self.live:
                self._join()
            return self._draw()

    # ---- rows join and leave ------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Free the slots of ended rows, and drop free slots once they are many and no row waits for them."""
        self.free += [slot for row in self.live if row.reason for slot in row.slots]
        self.live = [row for row in self.live if not row.reason]
        if self.free and not self.waiting and self.slots.size - len(self.free) <= COMPACT_AT * self.slots.size:
            kept = [slot for row in self.live for slot in row.slots]
            places = iter(range(len(kept)))
            for row in self.live:
                row.slots = [next(places) for _ in row.slots]
            self.slots.arrange(kept, len(kept))
            self.free = []

    def _join(self) -> None:
        rows = self._next_rows()
        if not rows:
            return
        lacking = sum(len(row.ids) for row in rows) - len(self.free)
        if lacking > 0:
            old = self.slots.size
            self.slots.arrange(range(old), old + lacking)
            self.free += range(old, old + lacking)
        places: dict[tuple[int, ...], list[int]] = {}  # equal prompts are read once
        for row in rows:
            row.slots = [self.free.pop() for _ in row.ids]
            for ids, slot in zip(row.ids, row.slots, strict=True):
                places.setdefault(ids, []).append(slot)
        found = self.slots.read(list(places), list(places.values()))  # (P, V)
        logits = found.new_zeros(self.slots.size, found.shape[1])
        if self.logits is not None:
            logits[: len(self.logits)] = self.logits[: self.slots.size]
        for k, slots in enumerate(places.values()):
            logits[slots] = found[k]
        self.logits, self.live = logits, self.live + rows

    def _next_rows(self) -> list[Row]:
        """The waiting rows that join now, in their order."""
        rows: list[Row] = []
        used = sum(len(row.ids) for row in self.live)
        longest = max((row.length for row in self.live), default=0)
        while self.waiting:
            row = self.waiting[0]
            if not row.reason:
                used, longest = used + len(row.ids), max(longest, row.length)
                others = len(self.live) + len(rows)
                if others and (others >= self.most_rows or used * longest > self.token_budget):
                    break
                rows.append(row)
            self.waiting.popleft()
        return rows

    # ---- tokens -------------------------------------------------------------------------------------------------

    def _read_last_tokens(self) -> None:
        tokens = [0] * self.slots.size
        for row in self.live:
            for slot in row.slots:
                tokens[slot] = row.out[-1]
        live = [slot for row in self.live for slot in row.slots]
        self.logits = self.slots.step(torch.tensor(tokens, device=self.device), live)

    def _draw(self) -> list[Row]:
        groups: dict[tuple, list[Row]] = {}
        for row in self.live:
            groups.setdefault(row.rule, []).append(row)
        return [each for rows in groups.values() for each in self._drawn(rows)]

    def _drawn(self, rows: list[Row]) -> list[Row]:
        """Draw the next token of R rows with the same rule."""
        assert self.logits is not None  # rows have been read
        options, steps = rows[0].options, [len(row.out) for row in rows]
        slots = torch.tensor([row.slots for row in rows], device=self.device).T  # (B, R)
        banned = self.banned + (self.eos if steps[0] < options.min_completion_length else [])
        scores = scores_of(self.logits[slots].float().to(self.draw_on), options.guidance_scale, self.eos, banned)
        u = torch.tensor([row.noise[step] for row, step in zip(rows, steps, strict=True)], device=self.draw_on)
        tokens = drawn(scores, u, options).tolist()
        for row, token, own in zip(rows, tokens, scores, strict=True):
            if row.top is not None:
                row.log_probs.append(log_probs_of(own, token, row.top))
            row.out.append(token)
            if token in self.eos or len(row.out) == row.options.max_completion_length:
                row.reason = "stop" if token in self.eos else "length"
        return rows

    # ---- the kind of slots --------------------------------------------------------------------------------------

    def _slots(self, whole: bool) -> AnySlots:
        if whole:
            return WholeSlots(self.model, self.device)
        return Slots(cached_forward(self.model), self.device, pass_tokens(self.device, alone=True))

    def _needs_whole(self) -> bool:
        """Whether the model's cache cannot be used, by a trial.

        Raises:
            UserError: see `check_reads`.
        """
        check_reads(self.model)
        expected = trial(self._slots(whole=True))
        try:
            reason = None if equal_but_for_rounding(trial(self._slots(whole=False)), expected) else "its logits differ"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no cache, or another kind of cache
            reason = named(error)
        if reason:
            logger.warning(
                "decoding is slow: %s reads the whole text again for each token, since its cache cannot be shared by rows that "
                "join at different times (%s)",
                type(self.model).__name__,
                reason,
            )
        return reason is not None


def log_probs_of(scores: Tensor, token: int, top: int) -> LogProbs:
    """The log-probabilities of a token and of the likeliest ones, from scores (V,)."""
    log_p = scores.log_softmax(-1)
    best = log_p.topk(min(top, len(log_p)))
    return LogProbs(float(log_p[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def trial(slots: AnySlots) -> Tensor:
    """Logits of rows that join and leave at different times, of which the later prompt is the longer one."""
    slots.arrange([], 2)
    found = [slots.read([(1, 2), (2,)], [[1], [0]])]
    found.append(slots.step(torch.tensor([1, 2], device=slots.device), [0, 1]))
    slots.arrange([0, 1], 3)
    found.append(slots.read([(2, 1, 2, 1, 1)], [[2]]))
    found.append(slots.step(torch.tensor([2, 1, 2], device=slots.device), [0, 1, 2]))
    found.append(slots.read([(1, 1)], [[0]]))
    found.append(slots.step(torch.tensor([1, 1, 1], device=slots.device), [0, 2])[[0, 2]])
    slots.arrange([2, 0], 2)
    found.append(slots.step(torch.tensor([2, 2], device=slots.device), [0, 1]))
    return torch.cat(found)
