"""`nlf perplexity`: the likelihood of completions under another model, the reader, given their prompts without tags.

The command writes the likelihoods into the generations file, under the name of the reader and the digest of its
weights, with a digest of the texts. So nothing is measured twice, and changed texts or weights are measured again.

If the reader has the vocabulary that the completions were sampled with, the sampled ids are measured, EOS included.
Otherwise prompt and completion are tokenised as text without EOS, as in the published script: NLL(prompt + completion)
- NLL(prompt), over the number of tokens that the completion adds to the prompt. If one token spans the end of the
prompt, this difference is not a sum over tokens of the completion alone. A completion that adds no token counts as a
completion without tokens.

No completion is dropped. The published script drops completions without tokens, prompts of one token and perplexities
of 1e4 and more; here the table counts them. `--published` also shows the published number, always measured from text.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from nlf.config import PerplexityOptions
from nlf.data.generations import GENERATIONS, annotate, files_of, format_of, measured, read
from nlf.data.locks import locked_files
from nlf.data.markdown import markdown_table
from nlf.data.progress import progress_bar
from nlf.errors import UserError
from nlf.evaluation import intervals, metrics
from nlf.evaluation.systems import load_for_commands
from nlf.method import published
from nlf.models.chat import render
from nlf.models.encoder import PromptEncoder
from nlf.models.identity import vocabulary_digest
from nlf.models.likelihoods import conditional_nll
from nlf.models.policy import Policy

KIND = "likelihoods"
AS_TEXT = "/text"  # ends the label of likelihoods that are always measured from text
BLOCK = 16  # lines measured and written at a time: a killed command repeats at most this many

NOTE = """\
Under {label}, given the prompts without tags. Perplexity is exp(nats / tokens) over all completions. The mean of \
completions averages the perplexity of each completion with tokens. Brackets: 95 % intervals over prompts. No other \
completion is left out; the next columns count unusual ones. On ids: the sampled ids, end-of-text included; on text: \
tokenised again by the reader, without end-of-text."""
PUBLISHED_NOTE = """
Published: mean of completions, on text. The next column counts the completions that it leaves out: no tokens, prompts of \
one token, values of 1e4 and more."""

Progress = Callable[[int], None]


def perplexity_command(options: PerplexityOptions) -> str:
    """`nlf perplexity`: measure the files, and return a table with a row for each file.

    Raises:
        UserError: there are no generations, the reader cannot be loaded or has no EOS, or a prompt does not fit it.
    """
    files = files_of(options.path)
    with locked_files(*files):
        return _measured(files, load_for_commands(options.eval_model, options), options)


def _measured(files: Sequence[Path], reader: Policy, options: PerplexityOptions) -> str:
    """Measure the files, and return the table with its notes."""
    label, rows = model_label(reader), []
    for path in files:
        if next(read(path), None) is None:
            raise UserError(f"{path}: no generations in this file; run its `nlf sample` command again")
        for as_text in (False, True)[: 1 + options.published]:
            measure_file(path, reader, batch_tokens=options.batch_tokens, as_text=as_text)
        rows.append({"generations": path.name, **summary(read(path), label)})
        if options.published:
            rows[-1] |= published_columns(read(path), label + AS_TEXT)
    table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
    return f"{table}\n\n{NOTE.format(label=label)}{PUBLISHED_NOTE if options.published else ''}"


def model_label(policy: Policy) -> str:
    """The key of a model's likelihoods in a line: its name, the digest of its weights, and their type unless float32."""
    name, dtype = policy.identity.name, str(policy.model.dtype).removeprefix("torch.")
    return f"{name}@{policy.revision[:12]}" + ("" if dtype == "float32" else f"/{dtype}")


def measure_file(
    path: Path,
    reader: Policy,
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    as_text: bool = False,
) -> int:
    """Add the reader's likelihoods to each line of a generations file that lacks them.

    `row["likelihoods"][model_label(reader)]` then holds `nll` (nats, summed over a completion) and `tokens`, both of n
    completions, `prompt_tokens`, and `from`: "ids" or "text". A killed command continues at its unfinished block.

    Args:
        progress: Called with the number of finished completions; None shows a bar.
        as_text: Always measure from text, under the label with `AS_TEXT`.

    Returns:
        The number of lines that this command or a killed one measured; 0 means that the file did not change.

    Raises:
        UserError: the file cannot be read or written, or holds a prompt that the reader cannot read.
    """
    label, tokenizer = model_label(reader), reader.tokenizer
    vocabulary = vocabulary_digest(tokenizer, reader.added_token_ids)
    total = sum(len(row["completions"]) for row in read(path))
    within, after = _two_grains(progress or progress_bar(f"perplexity of {path.name}", total))

    def measure(rows: list[dict]) -> list[dict]:
        known = [_known_from_text(row, label) if as_text else None for row in rows]
        todo = [row for row, found in zip(rows, known, strict=True) if found is None]
        asked = [
            _from_ids(row)
            if _vocabulary(row) == vocabulary and not as_text
            else _from_text(row, tokenizer, reader.added_token_ids)
            for row in todo
        ]
        names = [f"{path}, prompt {row['prompt_id']} ({str(row['prompt'])[:40]!r})" for row in todo]
        new = iter(_answers(reader.model, asked, names, batch_tokens, within))
        return [next(new) if found is None else found for found in known]

    with locked_files(path):
        lines = format_of(path) or GENERATIONS
        return annotate(path, KIND, label + AS_TEXT * as_text, measure, lines=lines, block=BLOCK, progress=after)


def _known_from_text(row: dict, label: str) -> dict | None:
    """The line's likelihoods if they were measured from text already, because the ids have another vocabulary."""
    found = measured(row, KIND, label, row["completions"]) or {}
    return {name: value for name, value in found.items() if name != "of"} if found.get("from") == "text" else None


def _vocabulary(row: Mapping[str, Any]) -> str | None:
    return (row.get("settings") or {}).get("vocabulary")


def _two_grains(progress: Progress) -> tuple[Progress, Progress]:
    """Two callbacks: one counts completions inside a block, the other a finished block less what the first counted."""
    ahead = 0

    def within(n: int) -> None:
        nonlocal ahead
        ahead += n
        progress(n)

    def after(n: int) -> None:
        nonlocal ahead
        progress(n - ahead)
        ahead = 0

    return within, after


@dataclass(frozen=True)
class Asked:
    """The likelihoods to measure for one line.

    Attributes:
        source: "ids" or "text".
        terms: For each of n completions, one or two pairs of (ids read before, ids measured). A completion's nll is the nll
            of the first pair, less the nll of the second.
        tokens: Tokens of each completion.
    """

    source: str
    prompt_tokens: int
    terms: list[list[tuple[list[int], list[int]]]]
    tokens: list[int]


def _from_ids(row: Mapping[str, Any]) -> Asked:
    ids = row["completion_ids"]
    if len(ids) != len(row["completions"]):
        raise UserError(
            f"prompt {row['prompt_id']}: {len(row['completions'])} completions but ids of {len(ids)}; sample it again"
        )
    return Asked("ids", len(row["prompt_ids"]), [[(row["prompt_ids"], each)] for each in ids], [*map(len, ids)])


def _from_text(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, added: Collection[int] = ()) -> Asked:
    encoder, start = PromptEncoder(tokenizer, None, added=added), row["prompt"]
    prefix: list[int] = []
    if isinstance(start, str):
        prefix = encoder.prefix
    else:
        try:
            start = render(tokenizer, start)
        except UserError as error:
            raise UserError(f"prompt {row['prompt_id']} is a conversation, and of the reader: {error}") from error
    texts = [start, *(start + completion for completion in row["completions"])]
    prompt, *joined = [prefix + encoder.plain_ids(text) for text in texts]
    grown = [max(len(ids) - len(prompt), 0) for ids in joined]
    terms = [_terms(prompt, ids) if len(ids) > len(prompt) else [] for ids in joined]
    return Asked("text", len(prompt), terms, grown)


def _terms(prompt: list[int], joined: list[int]) -> list[tuple[list[int], list[int]]]:
    """The terms of NLL(joined) - NLL(prompt), from the first different token; a text's first token has no likelihood."""
    common = max(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, joined, strict=False))), 1)
    if common == len(prompt) and joined[:common] == prompt:
        return [(prompt, joined[common:])]
    return [(each[:common], each[common:]) for each in (joined, prompt)]


def _answers(
    model: nn.Module, asked: Sequence[Asked], names: Sequence[str], batch_tokens: int | None, progress: Progress
) -> Iterator[dict]:
    """The likelihoods of the lines, all terms measured together; `names` name the lines in errors."""
    flat = [(name, *term) for name, each in zip(names, asked, strict=True) for terms in each.terms for term in terms]
    found = conditional_nll(
        model, [before for _, before, _ in flat], [[ids] for _, _, ids in flat],
        batch_tokens=batch_tokens, progress=progress, names=[name for name, _, _ in flat],
    )  # fmt: skip
    sums = iter(float(each[0]) for each in found)
    for each in asked:
        nll = [sum(sign * next(sums) for sign, _ in zip((1, -1), terms, strict=False)) for terms in each.terms]
        yield {"nll": nll, "tokens": each.tokens, "prompt_tokens": each.prompt_tokens, "from": each.source}


def summary(rows: Iterable[Mapping[str, Any]], label: str) -> dict[str, str]:
    """The cells of a file's row in the table: two kinds of perplexity with intervals, and counts of unusual completions.

    Args:
        rows: Lines with likelihoods under `label`.
    """
    sums, sources, counts = [], set(), np.zeros(5, dtype=int)
    for row in rows:
        found = row[KIND][label]
        tokens = np.array(found["tokens"])
        each = metrics.completion_perplexity(np.array(found["nll"]), tokens)
        sums.append((sum(found["nll"]), tokens.sum(), np.nansum(each), (tokens > 0).sum()))
        high = (each >= metrics.HIGH_PERPLEXITY).sum()
        empty = sum(not text for text in row["completions"])
        counts += (1, len(tokens), empty, found["prompt_tokens"] == 1, high)
        sources.add(found["from"])
    nats, tokens, perplexities, measured_ones = np.array(sums, dtype=np.float64).reshape(-1, 4).T
    ratios = {
        "perplexity": intervals.Ratio(nats, tokens, exp=True),
        "mean of completions": intervals.Ratio(perplexities, measured_ones),
    }
    names = ("prompts", "completions", "empty completions", "one-token prompts", "1e4 or more")
    shown = {
        name: f"{ratios[name].value:.2f} ({low:.2f} to {high:.2f})"
        for name, (_, low, high) in intervals.intervals(ratios).items()
    }
    return {**shown, **dict(zip(names, map(str, counts), strict=True)), "on": " and ".join(sorted(sources))}


def published_columns(rows: Iterable[Mapping[str, Any]], label: str) -> dict[str, str]:
    """The published number, and the number of completions that it leaves out."""
    values, lengths = [], []
    for row in rows:
        found = row[KIND][label]
        values += metrics.completion_perplexity(np.array(found["nll"]), np.array(found["tokens"])).tolist()
        lengths += [found["prompt_tokens"]] * len(found["nll"])
    perplexities, prompt_lengths = np.array(values), np.array(lengths)
    kept = (perplexities < metrics.HIGH_PERPLEXITY) & (prompt_lengths > 1)
    number = f"{published.perplexity(perplexities, prompt_lengths):.6g}" if kept.any() else "none"
    return {"published": number, "left out of it": str((~kept).sum())}
