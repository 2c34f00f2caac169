"""Sample prompts into a table of rollouts, for training, evaluation and every command."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from nlf.config import SamplingOptions
from nlf.data.prompts import NumberedPrompt
from nlf.data.rollouts import SCHEMA
from nlf.method.credit import places
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.sampling import Request, Sampler, request_key

WORD_STARTS = (" ", "Ġ", "▁", "Ċ", "\n")  # how tokens that begin a word begin, in the vocabularies of transformers
UNFINISHED = "\ufffd"  # what an incomplete character is decoded as
SEAM = 8  # last tokens of a prompt that are decoded with a completion, to find the text between them


@dataclass(frozen=True)
class PromptSampler:
    """Samples completions of prompts: encodes each prompt with its feedback, draws token ids, decodes them.

    Attributes:
        policy: Its tokenizer decodes, and its EOS ids end a completion; `sampler` holds the weights.
        sampler: Draws the token ids.
        options: The sampling rule.
        seed: Together with the iteration, the prompt and its occurrence it fixes every random number.
        prefixes: Record where the prefixes of completions end, for rewards that score them.
    """

    policy: Policy
    encoder: PromptEncoder
    sampler: Sampler
    options: SamplingOptions
    seed: int
    prefixes: bool = False

    @property
    def negative(self) -> str | None:
        """The words that guidance moves away from, the worst tag unless the options name another; None = no guidance."""
        if not self.options.guidance_scale:
            return None
        return self.options.negative_tag or (self.policy.scheme.worst if self.policy.scheme else None)

    def table(
        self,
        prompts: Sequence[NumberedPrompt],
        feedback: Sequence[str | None],
        *,
        iteration: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Sample `options.num_generations` completions of each prompt; the columns of rewards stay null.

        Args:
            feedback: The words before each prompt; None = the bare prompt.
            progress: Called with the number of completions finished since the last call.

        Returns:
            Rows with the columns of `data.rollouts.SCHEMA`; the completions of one prompt are consecutive.

        Raises:
            UserError: see `Sampler.sample`.
        """
        encoded = [self.encoder.prompt_ids(prompt.row["prompt"]) for prompt in prompts]
        requests = [self._request(*each) for each in zip(prompts, encoded, feedback, strict=True)]
        sampled = self.sampler.sample(requests, self.options, seed=self.seed, iteration=iteration, progress=progress)
        return self._table(prompts, encoded, feedback, sampled)

    def _request(self, prompt: NumberedPrompt, ids: list[int], words: str | None) -> Request:
        def query(words: str | None) -> tuple[int, ...]:
            return tuple(self.encoder.query_ids(words, ids, prompt.row["prompt"]))

        key = request_key(prompt.row["prompt_id"], prompt.occurrence)
        return Request(query(words), key, None if self.negative is None else query(self.negative))

    def _table(
        self,
        prompts: Sequence[NumberedPrompt],
        encoded: Sequence[list[int]],
        feedback: Sequence[str | None],
        sampled: Sequence[Sequence[list[int]]],
    ) -> pa.Table:
        rows = [prompt.row for prompt in prompts]
        texts = [row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]) for row in rows]
        flat = [(i, n, ids) for i, completions in enumerate(sampled) for n, ids in enumerate(completions)]
        stop = set(self.policy.eos_token_ids)
        columns: dict[str, Sequence] = {
            "prompt_id": [rows[i]["prompt_id"] for i, _, _ in flat],
            "prompt": [texts[i] for i, _, _ in flat],
            "prompt_ids": [encoded[i] for i, _, _ in flat],
            "completion": self._texts(prompts, encoded, flat),
            "completion_ids": [ids for _, _, ids in flat],
            "generation": [n for _, n, _ in flat],
            "ended": [bool(ids) and ids[-1] in stop for _, _, ids in flat],
            "feedback": [feedback[i] for i, _, _ in flat],
        }
        if self.prefixes:
            columns["prefix_tokens"] = [self._places(ids) for _, _, ids in flat]
            columns["prefix_ends"] = self._prefix_ends(prompts, encoded, flat, columns)
        nothing = [None] * len(flat)
        return pa.table({f.name: pa.array(columns.get(f.name, nothing), f.type) for f in SCHEMA}, schema=SCHEMA)

    def _places(self, ids: Sequence[int]) -> list[int]:
        """The numbers of tokens at which the prefixes of a completion are scored; EOS is in none of them."""
        stop = set(self.policy.eos_token_ids)
        own = ids[:-1] if ids and ids[-1] in stop else ids
        return places([token[:1] in WORD_STARTS for token in self.policy.tokenizer.convert_ids_to_tokens(list(own))])

    def _prefix_ends(
        self,
        prompts: Sequence[NumberedPrompt],
        encoded: Sequence[list[int]],
        flat: Sequence[tuple[int, int, list[int]]],
        columns: Mapping[str, Sequence],
    ) -> list[list[int]]:
        """Where each prefix ends in the text of its completion, in characters, never falling.

        A character of several tokens counts once its last token is there.
        """
        cut = [
            (i, n, ids[:end]) for (i, n, ids), ends in zip(flat, columns["prefix_tokens"], strict=True) for end in ends
        ]
        texts = iter(self._texts(prompts, encoded, cut))
        found = []
        for whole, ends in zip(columns["completion"], columns["prefix_tokens"], strict=True):
            lengths = [len(next(texts).rstrip(UNFINISHED)) for _ in ends]
            rising = np.maximum.accumulate(np.minimum(lengths, len(whole))).tolist() if ends else []
            found.append([*rising[:-1], len(whole)] if ends else [])
        return found

    def _texts(
        self,
        prompts: Sequence[NumberedPrompt],
        encoded: Sequence[list[int]],
        flat: Sequence[tuple[int, int, list[int]]],
    ) -> list[str]:
        """The text of each completion: after a text prompt, the text that continues it.

        Tokenizers such as Llama 2's leave out the space before the first word of a text, so a completion that is decoded
        alone would be glued to its prompt.
        """
        decode = partial(self.policy.tokenizer.batch_decode, skip_special_tokens=True)
        ends = [
            ids[-SEAM:] if isinstance(p.row["prompt"], str) else [] for p, ids in zip(prompts, encoded, strict=True)
        ]
        alone, before = decode([ids for _, _, ids in flat]), decode(ends)
        joined = decode([ends[i] + ids for i, _, ids in flat])
        return [
            whole.removeprefix(before[i]) if before[i] and whole.startswith(before[i]) else text
            for (i, _, _), text, whole in zip(flat, alone, joined, strict=True)
        ]
