"""`nlf sample`: sample completions of prompts under a tag into `generations.jsonl`, part by part.

The command samples a part of the prompts, then appends their lines in one write. A repeated command continues after the
lines in the file if the same weights and settings made them. It refuses any other file, so samples are never mixed or
overwritten.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from nlf import __version__
from nlf.config import SampleOptions, SamplerOptions, SamplingOptions, sampler_options, sampling_options
from nlf.data.generations import FILE, Generation, append, keep_lines, mend, read, refuse_other_lines
from nlf.data.locks import locked_files, locked_folder
from nlf.data.progress import progress_bar
from nlf.data.prompts import NumberedPrompt, PromptRow, numbered, other_columns
from nlf.data.run_folder import model_folder
from nlf.errors import UserError
from nlf.evaluation.run_defaults import with_length, with_prompts
from nlf.evaluation.systems import PromptSet, chosen_tag, load_for_commands, negative_tag, prompt_sets, slug, with_tags
from nlf.models.identity import vocabulary_digest
from nlf.models.policy import Policy
from nlf.sampling.factory import sampler_of
from nlf.sampling.rollout_table import PromptSampler

logger = logging.getLogger(__name__)

EVALUATION = -1  # the iteration in the random numbers of samples that no training sees


def sample_command(options: SampleOptions) -> str:
    """`nlf sample`: sample every source of prompts into a file, and return one line about each file."""
    options = replace(options, model=model_folder(options.model))
    folder = Path(options.output_dir)
    options = with_prompts(options, options.model)
    with locked_folder(folder):
        sets = prompt_sets(options, options.prompts or [])
        options = with_length(options, options.model, [prompts.rows for prompts in sets])
        names = [FILE if len(sets) == 1 else f"generations-{slug(prompts.source)}.jsonl" for prompts in sets]
        for name in names:
            refuse_other_lines(folder / name)
        return _sample([(folder / name, prompts) for name, prompts in zip(names, sets, strict=True)], options)


def _sample(sources: Sequence[tuple[Path, PromptSet]], options: SampleOptions) -> str:
    """Sample the prompts of each source into its file, and return one line about each file."""
    policy = load_for_commands(options.model, options, "cpu" if options.sampler != "hf" else None)
    policy = with_tags(policy, options.tags, [row for _, prompts in sources for row in prompts.rows])
    tag, sampling = chosen_tag(policy, options.tag), sampling_options(options)
    negative = negative_tag(policy, options.negative_tag) if sampling.guidance_scale else None
    sampling = replace(sampling, negative_tag=negative)
    for _, prompts in sources:
        policy.encoder().check(prompts.rows)
    for path, prompts in sources:
        with prompt_sampler(
            policy, sampling, seed=options.seed, sampler=sampler_options(options),
            token_budget=options.sampling_batch_tokens,
        ) as sampler:  # fmt: skip
            sample_file(path, sampler, prompts.rows, tag, part=options.prompts_per_part, what=prompts.source)
    words = f"after {tag!r}" if tag else "without a tag"
    return "\n".join(f"{sampling.num_generations} completions of each prompt, {words}: {path}" for path, _ in sources)


@contextmanager
def prompt_sampler(
    policy: Policy,
    sampling: SamplingOptions,
    *,
    seed: int = 0,
    sampler: SamplerOptions | None = None,
    token_budget: int | None = None,
    max_prompt_length: int | None = None,
) -> Iterator[PromptSampler]:
    """Open a sampler of prompts, and close it at the end of the `with` block.

    Args:
        sampling: The sampling rule; `negative_tag` is the tag that guidance moves away from.
        sampler: The options of the sampler; None = in this process.
        token_budget: Most tokens in a batch of this process; None suits the device.
        max_prompt_length: Most tokens of a prompt; a longer one keeps its end. None refuses prompts that do not fit.

    Raises:
        UserError: see `sampler_of`.
    """
    with closing(sampler_of(policy, sampler, token_budget)) as drawing:
        yield PromptSampler(policy, policy.encoder(max_prompt_length), drawing, sampling, seed)


def sample_file(
    path: Path,
    sampler: PromptSampler,
    rows: Sequence[PromptRow],
    tag: str | None,
    *,
    part: int = 64,
    what: str = "prompts",
) -> None:
    """Append the missing completions of these prompts to a generations file.

    Args:
        tag: The words before each prompt; None = the bare prompt.
        part: Prompts sampled and written at a time.
        what: The text after "sampling" before the progress bar.

    Raises:
        UserError: the file holds other samples, is being written by another command or cannot be written; a prompt does not
            fit the model; or the sampler fails.
    """
    settings, prompts, n = settings_of(sampler, tag), numbered(rows), sampler.options.num_generations
    with locked_files(path):
        done = done_already(path, rows, tag, settings, part)
        advance = progress_bar(f"sampling {what}", len(rows) * n, done * n)
        while done < len(rows):
            stop = min((done // part + 1) * part, len(rows))
            append(path, sample_lines(sampler, prompts[done:stop], tag, settings, advance))
            done = stop


def settings_of(sampler: PromptSampler, tag: str | None) -> dict:
    """The `settings` of a line: everything that its completions depend on, except the prompt and the tag."""
    policy = sampler.policy
    position = policy.scheme.feedback_position if policy.scheme else None
    return {
        "model": policy.identity.name,
        "model_revision": policy.revision,
        "vocabulary": vocabulary_digest(policy.tokenizer, policy.added_token_ids),
        "template": policy.scheme.template if policy.scheme and tag else None,
        "chat_template_kwargs": policy.chat_template_kwargs,
        "feedback_position": position if tag and position != "system" else None,  # older files do not name it
        **asdict(sampler.options),
        "sampler": sampler.sampler.label,
        "seed": sampler.seed,
        "nlf_version": __version__,
    }


def done_already(path: Path, rows: Sequence[PromptRow], tag: str | None, settings: dict, part: int) -> int:
    """Count the prompts whose samples the file holds. An unfinished last line is removed, with its part.

    Raises:
        UserError: the file holds samples of other prompts, settings or weights.
    """
    refuse_other_lines(path)
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
                    "continue with the old settings, or choose another --output_dir"
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
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Sample prompts under one tag and return a line of `generations.jsonl` for each prompt."""
    table = sampler.table(prompts, [tag] * len(prompts), iteration=EVALUATION, progress=progress)
    n = sampler.options.num_generations
    return [_line(*prompt, table.slice(i * n, n), settings) for i, prompt in enumerate(prompts)]


def _line(row: PromptRow, occurrence: int, samples: pa.Table, settings: dict) -> Generation:
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
