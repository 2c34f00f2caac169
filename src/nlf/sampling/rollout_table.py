"""Prompts → completions → scores, as tables of rollouts: what training, evaluation and every command share."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from nlf.config import SamplingOptions
from nlf.data.rollouts import SCHEMA
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.sampling import Request, Sampler, request_key
from nlf.sampling.factory import sampler_of

if TYPE_CHECKING:
    pass


def sample_table(
    policy: Policy,
    encoder: PromptEncoder,
    rows: Sequence[dict],
    occurrences: Sequence[int],
    feedback: str | Sequence[str | None] | None,
    options: SamplingOptions,
    *,
    negative: str | None = None,
    seed: int,
    iteration: int = 0,
    sampler: Sampler | None = None,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Sample `num_generations` completions of each prompt row; rewards are left null.

    Args:
        occurrences: How often each row's prompt has come before; with (seed, iteration) it fixes the random numbers.
        feedback: What is put before the prompt, the same for all or one for each row; None = the bare prompt.
        negative: The other feedback of tag-contrast guidance, used where `options.guidance_scale` is not 0.
        sampler: What draws them; None = this process.
    """
    words = [feedback] * len(rows) if feedback is None or isinstance(feedback, str) else feedback
    prompts = [encoder.prompt_ids(row["prompt"]) for row in rows]
    texts = [row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]) for row in rows]

    def query(i: int, words: str | None) -> tuple[int, ...]:
        return tuple(encoder.query_ids(words, prompts[i], rows[i]["prompt"]))

    guided = options.guidance_scale != 0 and negative is not None
    requests = [
        Request(
            query(i, words[i]),
            request_key(rows[i]["prompt_id"], occurrences[i]),
            query(i, negative) if guided else None,
        )
        for i in range(len(rows))
    ]
    sampler = sampler or sampler_of(policy)
    sampled = sampler.sample(requests, options, seed=seed, iteration=iteration, progress=progress)
    flat = [(i, n, ids) for i, completions in enumerate(sampled) for n, ids in enumerate(completions)]
    stop = set(policy.eos_token_ids)
    columns = {
        "prompt_id": [rows[i]["prompt_id"] for i, _, _ in flat],
        "prompt": [texts[i] for i, _, _ in flat],
        "prompt_ids": [prompts[i] for i, _, _ in flat],
        "completion": policy.tokenizer.batch_decode([ids for _, _, ids in flat], skip_special_tokens=True),
        "completion_ids": [ids for _, _, ids in flat],
        "generation": [n for _, n, _ in flat],
        "ended": [bool(ids) and ids[-1] in stop for _, _, ids in flat],
        "feedback": [words[i] for i, _, _ in flat],
    }
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * len(flat)), f.type) for f in SCHEMA}, schema=SCHEMA)
