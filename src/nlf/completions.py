"""Prompts → completions → scores, as tables of rollouts: what training, evaluation and every command share."""

import json
from collections.abc import Callable, Sequence

import pyarrow as pa
from tqdm.auto import tqdm

from nlf.batches import PromptEncoder
from nlf.config import SamplingOptions
from nlf.errors import UserError
from nlf.policy import Policy
from nlf.rewards import Reward, Scores, score
from nlf.rollouts import SCHEMA
from nlf.sampling import Request, request_key
from nlf.sampling.hf import HFSampler


def sample_table(
    policy: Policy,
    encoder: PromptEncoder,
    rows: Sequence[dict],
    occurrences: Sequence[int],
    feedback: str | None,
    options: SamplingOptions,
    *,
    negative: str | None = None,
    seed: int,
    iteration: int = 0,
    token_budget: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Sample `num_generations` completions of each prompt row; rewards are left null.

    Args:
        occurrences: How often each row's prompt has come before; with (seed, iteration) it fixes the random numbers.
        feedback: What is put before the prompt; None = the bare prompt.
        negative: The other feedback of tag-contrast guidance, used where `options.guidance_scale` is not 0.
    """
    prompts = [encoder.prompt_ids(row["prompt"]) for row in rows]
    texts = [row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]) for row in rows]

    def query(i: int, words: str | None) -> tuple[int, ...]:
        return tuple(encoder.query_ids(words, prompts[i], rows[i]["prompt"]))

    guided = options.guidance_scale != 0 and negative is not None
    requests = [
        Request(
            query(i, feedback),
            request_key(rows[i]["prompt_id"], occurrences[i]),
            query(i, negative) if guided else None,
        )
        for i in range(len(rows))
    ]
    sampler = HFSampler(
        policy.model,
        eos_token_ids=policy.eos_token_ids,
        banned_token_ids=policy.banned_token_ids,
        token_budget=token_budget,
    )
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
        "feedback": [feedback] * len(flat),
    }
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * len(flat)), f.type) for f in SCHEMA}, schema=SCHEMA)


def score_table(
    table: pa.Table, rows: Sequence[dict], rewards: Sequence[Reward], weights: Sequence[float] | None
) -> pa.Table:
    """The table with its rewards; `rows` are the prompt rows it was sampled from, whose other columns the rewards see.

    Raises:
        UserError: a reward function returned the wrong number of values, or one that is no finite number.
    """
    copies, rest = divmod(table.num_rows, len(rows))
    if rest:
        raise UserError(
            f"{table.num_rows} completions do not belong to {len(rows)} prompts; remove this part and resume"
        )
    each = [row for row in rows for _ in range(copies)]
    scores = score_completions(
        rewards, weights, [row["prompt"] for row in each], table["completion"].to_pylist(),
        table["completion_ids"].to_pylist(), [other_columns(row) for row in each],
    )  # fmt: skip
    filled = {
        "reward": [None if value != value else value for value in scores.reward.tolist()],
        "rewards": _by_name(scores.per_function, table.num_rows),
        "attributes": _by_name(scores.attributes, table.num_rows),
        "scorer": [scores.scorer] * table.num_rows,
    }
    for name, values in filled.items():
        table = table.set_column(
            SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )
    return table


def score_completions(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Sequence[dict],
) -> Scores:
    """Call rewards as training does: completions of conversations as messages, the other columns by name.

    Args:
        columns: The other columns of each completion's prompt row; one that a row lacks is None.

    Raises:
        UserError: as `rewards.score`.
    """
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    names = sorted({name for row in columns for name in row})
    by_name = {name: [row.get(name) for row in columns] for name in names}
    return score(rewards, weights, prompts, completions, completion_ids, by_name)


def other_columns(row: dict) -> dict:
    """What a prompt row holds beside the prompt."""
    return {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}


def _by_name(columns: dict, length: int) -> list[list[tuple[str, float | None]]]:
    """Arrays by name as one list of (name, value) pairs a row, which is how Arrow takes maps."""
    values = {name: [None if v != v else v for v in array.tolist()] for name, array in columns.items()}
    return [[(name, column[i]) for name, column in values.items()] for i in range(length)]


def progress_bar(what: str, total: int, done: int = 0, hidden: bool = False) -> Callable[[int], None]:
    """A bar on stderr, as the function that advances it; what was done before counts as done."""
    bar = tqdm(total=total, initial=done, desc=what, unit="completion", leave=False, disable=hidden or done == total)

    def advance(n: int) -> None:
        bar.update(n)
        if bar.n >= total:
            bar.close()

    return advance
