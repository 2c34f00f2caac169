"""Sample prompts into a table of rollouts, for training, evaluation and every command."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from nlf.config import SamplingOptions
from nlf.data.prompts import NumberedPrompt
from nlf.data.rollouts import SCHEMA
from nlf.method.credit import places
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.sampling import Request, Sampler, request_key
from nlf.sampling.text import UNFINISHED, completion_texts, decoded, seam_of

# How tokens that begin a word begin, in the vocabularies of transformers: byte-level BPE, SentencePiece, byte fallback.
WORD_STARTS = ("Ġ", "Ċ", "ĉ", "▁", " ", "\n", "\t", "<0x0A>", "<0x09>")


@dataclass
class _Decoding:
    """How far a completion is decoded.

    Attributes:
        ids: The end of the prompt, then the completion.
        start: Tokens before the completion.
        begin, end: `ids[begin:end]` are the last tokens that are decoded to the end; what follows is decoded with them.
        characters: Characters of the completion up to `end`.
        ends: Those up to each place.
    """

    ids: list[int]
    start: int
    begin: int = 0
    end: int = -1
    characters: int = 0
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = self.start

    @property
    def known(self) -> list[int]:
        return self.ids[self.begin : self.end]

    def up_to(self, tokens: int) -> list[int]:
        """The ids that are decoded again, and those up to the place after so many tokens of the completion."""
        return self.ids[self.begin : self.start + tokens]

    def move(self, tokens: int, more: int, finished: bool) -> None:
        """Note that the completion has `more` characters up to this place; `finished`: its last character is whole."""
        self.ends.append(max(self.characters + more, self.ends[-1] if self.ends else 0))
        if finished and more > 0:
            self.begin, self.end, self.characters = self.end, self.start + tokens, self.ends[-1]


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
        encoded = self._encoded(prompts)
        requests = [self._request(*each) for each in zip(prompts, encoded, feedback, strict=True)]
        sampled = self.sampler.sample(requests, self.options, seed=self.seed, iteration=iteration, progress=progress)
        return self._table(prompts, encoded, feedback, sampled)

    def requests(self, prompts: Sequence[NumberedPrompt], feedback: Sequence[str | None]) -> list[Request]:
        """The prompts, each with its feedback, as the sampler reads them."""
        return [self._request(*each) for each in zip(prompts, self._encoded(prompts), feedback, strict=True)]

    def _encoded(self, prompts: Sequence[NumberedPrompt]) -> list[list[int]]:
        return [self.encoder.prompt_ids(prompt.row["prompt"]) for prompt in prompts]

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
        tokens = self.policy.tokenizer.convert_ids_to_tokens(list(own))  # None = an id beyond the vocabulary
        return places([str(token or "").startswith(WORD_STARTS) for token in tokens])

    def _prefix_ends(
        self,
        prompts: Sequence[NumberedPrompt],
        encoded: Sequence[list[int]],
        flat: Sequence[tuple[int, int, list[int]]],
        columns: Mapping[str, Sequence],
    ) -> list[list[int]]:
        """Where each prefix ends in the text of its completion, in characters, never falling.

        A character of several tokens counts once its last token is there. The text after a place is decoded with the tokens
        since the place before it, so that the time is linear in the tokens.
        """
        before = self._seams(prompts, encoded)
        under_way = [_Decoding([*before[i], *ids], len(before[i])) for i, _, ids in flat]
        tokens = columns["prefix_tokens"]
        for k in range(max(map(len, tokens), default=0)):
            rows = [row for row, own in enumerate(tokens) if len(own) > k]
            known = self._decoded([under_way[row].known for row in rows])
            longer = self._decoded([under_way[row].up_to(tokens[row][k]) for row in rows])
            for row, old, new in zip(rows, known, longer, strict=True):
                under_way[row].move(
                    tokens[row][k], len(new.rstrip(UNFINISHED)) - len(old), not new.endswith(UNFINISHED)
                )
        wholes = map(len, columns["completion"])
        return [
            [*(min(end, whole) for end in each.ends[:-1]), *([whole] if each.ends else [])]
            for each, whole in zip(under_way, wholes, strict=True)
        ]

    def _seams(self, prompts: Sequence[NumberedPrompt], encoded: Sequence[list[int]]) -> list[list[int]]:
        """The last tokens of each prompt whose text the completion continues; none where it is a message of its own."""
        return [seam_of(p.row["prompt"], ids) for p, ids in zip(prompts, encoded, strict=True)]

    def _decoded(self, ids: list[list[int]]) -> list[str]:
        """The text of each list of token ids, without special tokens."""
        return decoded(self.policy.tokenizer, ids)

    def _texts(
        self,
        prompts: Sequence[NumberedPrompt],
        encoded: Sequence[list[int]],
        flat: Sequence[tuple[int, int, list[int]]],
    ) -> list[str]:
        """The text of each completion, as it continues its prompt."""
        seams = self._seams(prompts, encoded)
        return completion_texts(self.policy.tokenizer, [seams[i] for i, _, _ in flat], [ids for _, _, ids in flat])
