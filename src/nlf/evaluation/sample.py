"""`nlf sample`: completions of prompts under a tag, into `generations.jsonl`, part by part.

A part of the prompts is sampled, then appended in one write. Run again, the command goes on after what is there, if that
came from the same weights and settings; anything else is refused, never mixed and never overwritten.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from nlf import __version__
from nlf.config import SamplerOptions, SamplingOptions, sampler_options, sampling_options
from nlf.data.generations import FILE, append, keep_lines, mend, read
from nlf.data.progress import progress_bar
from nlf.data.prompts import NumberedPrompt, numbered
from nlf.errors import UserError
from nlf.evaluation.systems import chosen_tag, load_for_commands, negative_tag, prompt_sets, slug, with_tags
from nlf.models.encoder import PromptEncoder
from nlf.models.identity import vocabulary_digest
from nlf.models.policy import Policy
from nlf.rewards.tables import other_columns
from nlf.sampling.factory import sampler_of
from nlf.sampling.rollout_table import PromptSampler

logger = logging.getLogger(__name__)

EVALUATION = -1  # stands for the iteration in the random numbers of samples that are not trained on


def sample_command(options) -> str:
    """`nlf sample`: write the files and say where they are.

    Args:
        options: The fields of `config.COMMAND_GROUPS["sample"]`.
    """
    policy = load_for_commands(options.model, options, "cpu" if options.sampler != "hf" else None)
    policy = with_tags(policy, options.tags)
    tag, sampling = chosen_tag(policy, options.tag), sampling_options(options)
    negative = negative_tag(policy, options.negative_tag) if sampling.guidance_scale else None
    paths = []
    for source, rows in prompt_sets(options, options.prompts):
        name = FILE if len(options.prompts) == 1 else f"generations-{slug(source)}.jsonl"
        paths.append(Path(options.output_dir, name))
        sample_file(
            paths[-1], policy, rows, tag, sampling, negative=negative, seed=options.seed,
            part=options.prompts_per_part, token_budget=options.sampling_batch_tokens, sampler=sampler_options(options),
            what=source,
        )  # fmt: skip
    words = f"after {tag!r}" if tag else "without a tag"
    return "\n".join(f"{sampling.num_generations} completions of each prompt, {words}: {path}" for path in paths)


# ---- what is sampled ----------------------------------------------------------------------------------------------


# ---- sampling into a file -----------------------------------------------------------------------------------------


def sample_file(
    path: Path,
    policy: Policy,
    rows: Sequence[dict],
    tag: str | None,
    options: SamplingOptions,
    *,
    negative: str | None = None,
    seed: int = 0,
    part: int = 64,
    token_budget: int | None = None,
    sampler: SamplerOptions | None = None,
    max_prompt_length: int | None = None,
    what: str = "sampling",
) -> None:
    """Append what is missing of these prompts' completions to a generations file.

    Args:
        negative: The tag that guidance moves away from.
        part: Prompts sampled, and written, at a time.
        sampler: What samples; None = this process.

    Raises:
        UserError: the file holds something else, a prompt does not fit the model, the file cannot be written, or as the
            sampler.
    """
    encoder = PromptEncoder(policy.tokenizer, policy.scheme, max_prompt_length)
    drawing = sampler_of(policy, sampler, token_budget)
    settings = settings_of(policy, tag, negative, options, seed, drawing.label)
    prompts, sampler = numbered(rows), PromptSampler(policy, encoder, drawing, options, seed)
    done = done_already(path, rows, tag, settings, part)
    advance = progress_bar(what, len(rows) * options.num_generations, done * options.num_generations)
    with closing(drawing):
        while done < len(rows):
            stop = min((done // part + 1) * part, len(rows))
            append(path, sample_lines(sampler, prompts[done:stop], tag, settings, negative, advance))
            done = stop


def settings_of(
    policy: Policy, tag: str | None, negative: str | None, options: SamplingOptions, seed: int, sampler: str = "hf"
) -> dict:
    """What samples depend on, beside their prompts: the `settings` of a line."""
    return {
        "model": policy.identity.name,
        "model_revision": policy.revision,
        "vocabulary": vocabulary_digest(policy.tokenizer, policy.added_token_ids),
        "template": policy.scheme.template if policy.scheme and tag else None,
        **asdict(options),
        "sampler": sampler,
        "negative_tag": negative,
        "seed": seed,
        "nlf_version": __version__,
    }


def done_already(path: Path, rows: Sequence[dict], tag: str | None, settings: dict, part: int) -> int:
    """How many of the prompts a file holds, after a line that was cut off in writing is removed, and its part with it.

    Raises:
        UserError: the file holds samples of other prompts, settings or weights.
    """
    torn = mend(path)
    if not path.is_file():
        return 0
    count = 0
    for count, line in enumerate(read(path), 1):
        if count > len(rows):
            break
        given = {"prompt": line["prompt_id"], "feedback": line["feedback"], "sampler": "hf"} | line.get("settings", {})
        wanted = {"prompt": rows[count - 1]["prompt_id"], "feedback": tag, **settings}
        for name in [each for each in wanted if each not in ("nlf_version", "model")]:
            if given.get(name) != wanted[name]:
                raise UserError(
                    f"{path}:{count}: sampled with {name}={given.get(name)!r}, now it is {wanted[name]!r}; "
                    "go on with the old settings, or choose another --output_dir"
                )
    if torn:
        count -= count % part
        keep_lines(path, count)
    return min(count, len(rows))


def sample_lines(
    sampler: PromptSampler,
    prompts: Sequence[NumberedPrompt],
    tag: str | None,
    settings: dict,
    negative: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict]:
    """Sample prompts under one tag: a line of `generations.jsonl` for each."""
    words = [tag] * len(prompts)
    table = sampler.table(prompts, words, negative=negative, iteration=EVALUATION, progress=progress)
    n = sampler.options.num_generations
    return [_line(*prompt, table.slice(i * n, n), settings) for i, prompt in enumerate(prompts)]


def _line(row: dict, occurrence: int, samples: pa.Table, settings: dict) -> dict:
    return {
        "prompt": row["prompt"],
        "prompt_id": row["prompt_id"],
        "occurrence": occurrence,
        "prompt_ids": samples["prompt_ids"][0].as_py(),
        "feedback": samples["feedback"][0].as_py(),
        "completions": samples["completion"].to_pylist(),
        "completion_ids": samples["completion_ids"].to_pylist(),
        "ended": samples["ended"].to_pylist(),
        "columns": other_columns(row),
        "settings": settings,
    }
