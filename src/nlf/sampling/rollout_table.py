"""Prompts → completions → scores, as tables of rollouts: what training, evaluation and every command share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from nlf.config import RolloutSamplerOptions, SamplerOptions, SamplingOptions
from nlf.data.rollouts import SCHEMA, by_name
from nlf.errors import UserError
from nlf.method.quantize import total
from nlf.models.policy import Policy, model_path, revision_of
from nlf.rewards import Reward, Scores, check_weights, reward_names, score
from nlf.sampling import Request, Sampler, context_of, request_key
from nlf.sampling.hf import HFSampler
from nlf.training.batches import PromptEncoder

if TYPE_CHECKING:
    from nlf.sampling.vllm import VLLMSampler


def sampler_of(policy: Policy, options: SamplerOptions | None = None, token_budget: int | None = None) -> Sampler:
    """What draws a policy's completions; without options, this process.

    Args:
        token_budget: Tokens in a batch of this process.

    Raises:
        UserError: vLLM is not installed, too few GPUs, or no URL.
    """
    options = options or SamplerOptions()
    return SAMPLERS[options.sampler](policy, options, token_budget)


def _hf(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    return HFSampler(policy.model, **_ends(policy), token_budget=token_budget, compile=options.sampler_compile)


def _vllm(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    path = model_path(policy.model.config._name_or_path)
    return vllm_sampler(policy, options, path, revision=None if Path(path).is_dir() else revision_of(policy.model))


def vllm_sampler(
    policy: Policy,
    options: RolloutSamplerOptions,
    path: str,
    *,
    revision: str | None = None,
    dtype=None,
    device: int | None = None,
) -> "VLLMSampler":
    """vLLM over the policy as it stands in a folder or on the hub.

    Args:
        dtype: torch's, of weights and activations; None = the model's.
        device: As of `VLLMSampler`.

    Raises:
        UserError: vLLM is not installed, or too few GPUs.
    """
    from nlf.sampling.vllm import VLLMSampler

    model = policy.model
    code = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__module__
    return VLLMSampler(
        path,
        revision=revision,
        dtype=str(dtype or model.dtype).removeprefix("torch."),
        trust_remote_code=code.startswith("transformers_modules"),  # then it was for us
        context=context_of(model.config),
        tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        device=device,
        **_ends(policy),
    )


def _server(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    from nlf.sampling.server import ServerSampler

    return ServerSampler(
        options.sampler_url,
        options.sampler_model or policy.model.config._name_or_path,
        policy.tokenizer,
        context=context_of(policy.model.config),
        concurrency=options.sampler_concurrency,
        timeout=options.sampler_timeout,
        **_ends(policy),
    )


def _ends(policy: Policy) -> dict[str, tuple[int, ...]]:
    return {"eos_token_ids": policy.eos_token_ids, "banned_token_ids": policy.banned_token_ids}


SAMPLERS = {"hf": _hf, "vllm": _vllm, "server": _server}


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


def score_table(
    table: pa.Table,
    rows: Sequence[dict],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    allowed: Sequence[Reward] | None = None,
    sentence: Callable[[str], str | None] = str,
    context: dict | None = None,
) -> pa.Table:
    """The table with its rewards; `rows` are the prompt rows it was sampled from, whose other columns the rewards see.

    Args:
        allowed: Those of `rewards` that may be called now; None = all. One whose values are in the table is not called
            again, and the weighted sum is there once all are.
        sentence: How a judge's sentence is kept, None = not at all.
        context: As of `rewards.score`.

    Raises:
        UserError: a reward function returned the wrong number of values, or one that is no finite number.
    """
    check_weights(rewards, weights)
    names = reward_names(rewards)
    each = by_name(table["rewards"].combine_chunks())  # where others were called before
    todo = {
        name: reward
        for name, reward in zip(names, rewards, strict=True)
        if name not in each and (allowed is None or reward in allowed)
    }
    if not todo:
        return table
    copies, rest = divmod(table.num_rows, len(rows))
    if rest:
        raise UserError(
            f"{table.num_rows} completions do not belong to {len(rows)} prompts; remove this part and resume"
        )
    repeated = [row for row in rows for _ in range(copies)]
    scores = score_completions(
        list(todo.values()), None, [row["prompt"] for row in repeated], table["completion"].to_pylist(),
        table["completion_ids"].to_pylist(), [other_columns(row) for row in repeated], context,
    )  # fmt: skip
    each |= dict(zip(todo, scores.per_function.values(), strict=True))
    each = {name: each[name] for name in names if name in each}
    attributes = by_name(table["attributes"].combine_chunks()) | scores.attributes
    judged = zip(table["judged"].to_pylist(), scores.feedback, strict=True)
    filled = {
        "reward": nulls(total(list(each.values()), weights)) if len(each) == len(names) else [None] * len(table),
        "rewards": _pairs(each, len(table)),
        "attributes": _pairs(attributes, len(table)),
        "scorer": [",".join(reward.label for reward in rewards)] * len(table),
        "judged": [old or (new and sentence(new)) or None for old, new in judged],
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
    context: dict | None = None,
) -> Scores:
    """Call rewards as training does: completions of conversations as messages, the other columns by name.

    Args:
        columns: The other columns of each completion's prompt row; one that a row lacks is None.
        context: As of `rewards.score`.

    Raises:
        UserError: as `rewards.score`.
    """
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    names = sorted({name for row in columns for name in row})
    others = {name: [row.get(name) for row in columns] for name in names}
    return score(rewards, weights, prompts, completions, completion_ids, others, context)


def other_columns(row: dict) -> dict:
    """What a prompt row holds beside the prompt."""
    return {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}


def _pairs(columns: dict, length: int) -> list[list[tuple[str, float | None]]]:
    """Arrays by name as one list of (name, value) pairs a row, which is how Arrow takes maps."""
    values = {name: nulls(array) for name, array in columns.items()}
    return [[(name, column[i]) for name, column in values.items()] for i in range(length)]


def nulls(values: np.ndarray) -> list[float | None]:
    """Numbers as files hold them: None where one is NaN."""
    return [None if value != value else value for value in values.tolist()]


def progress_bar(what: str, total: int, done: int = 0, hidden: bool = False) -> Callable[[int], None]:
    """A bar on stderr, as the function that advances it; what was done before counts as done."""
    bar = tqdm(total=total, initial=done, desc=what, unit="completion", leave=False, disable=hidden or done == total)

    def advance(n: int) -> None:
        bar.update(n)
        if bar.n >= total:
            bar.close()

    return advance
