"""`nlf perplexity`: how likely another model finds completions, given their prompts, without tags.

What is measured is written into the generations file, under the name of the model and its weights, so that it is never
measured twice, and never stands beside other text or weights.

Where the measuring model's vocabulary is the one that sampled, the sampled ids are measured, EOS included. Elsewhere
prompt and completion are tokenised as text, as the published script does it, without EOS: NLL(prompt + completion) -
NLL(prompt), over as many tokens as the prompt grows by. Where a token spans the seam that is no sum over the
completion's own tokens, and where the prompt does not grow the completion has no tokens.

Nothing is dropped; what the published script drops unsaid (completions without tokens, prompts of one token, values of
1e4 and more) is counted. `--published` gives its number beside ours, from text whatever the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from nlf.data.generations import LineFormat, annotate, files_of, measured, read
from nlf.data.progress import progress_bar
from nlf.errors import UserError
from nlf.evaluation import intervals, metrics
from nlf.evaluation.systems import load_for_commands
from nlf.method import published
from nlf.models.encoder import PromptEncoder
from nlf.models.identity import revision_of, vocabulary_digest
from nlf.models.likelihoods import conditional_nll

KIND = "likelihoods"
AS_TEXT = "/text"  # stands after a model's label where texts are tokenised whatever the vocabulary
BLOCK = 16  # lines measured, and written, at a time: what a killed command may have to do again

Progress = Callable[[int], None]


def perplexity_command(options) -> str:
    """`nlf perplexity`: measure the files and return a table of them.

    Args:
        options: The fields of `config.PerplexityOptions`.

    Raises:
        UserError: no generations there, a model that cannot be loaded or has no EOS, or a prompt that does not fit it.
    """
    files = files_of(options.path)
    judge = load_for_commands(options.eval_model, options)
    label, rows = model_label(options.eval_model, judge.model), []
    for path in files:
        if next(read(path), None) is None:
            raise UserError(f"{path}: no generations in it; run the `nlf sample` that writes it again")
        for as_text in (False, True)[: 1 + options.published]:
            measure_file(
                path, options.eval_model, judge.model, judge.tokenizer,
                batch_tokens=options.batch_tokens, added_ids=judge.added_token_ids, as_text=as_text,
            )  # fmt: skip
        rows.append({"generations": path.name, **summary(read(path), label)})
        if options.published:
            rows[-1] |= published_columns(read(path), label + AS_TEXT)
    return f"{markdown(rows)}\n\n{NOTE.format(label=label)}{PUBLISHED_NOTE if options.published else ''}"


def model_label(name: str, model: nn.Module) -> str:
    """What a model's measurements are kept under: its name, its weights, and their type where it is not float32."""
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{name}@{revision_of(model)[:12]}" + ("" if dtype == "float32" else f"/{dtype}")


# ---- measuring ----------------------------------------------------------------------------------------------------


def measure_file(
    path: Path,
    name: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    added_ids: Sequence[int] = (),
    as_text: bool = False,
) -> int:
    """Add to each line of a generations file what `model` finds of its completions, unless it stands there already.

    `row["likelihoods"][model_label(name, model)]` then holds, beside the digest of the texts, `nll` (nats, summed over a
    completion) and `tokens`, each for n completions, `prompt_tokens`, and `from`: "ids" or "text". Killed anywhere and
    run again, it goes on with the block of lines it was at.

    Args:
        progress: Called with the number of completions that are done; None shows a bar.
        added_ids: Tokens that tags added to the measuring tokenizer: they do not make it another vocabulary.
        as_text: Tokenise texts whatever the vocabulary, under the label with `AS_TEXT`.

    Returns:
        The number of lines that were measured now or by a killed command: 0 means the file is as it was.

    Raises:
        UserError: the file cannot be read or written, or holds a prompt that the model cannot read.
    """
    label, vocabulary = model_label(name, model), vocabulary_digest(tokenizer, added_ids)
    total = sum(len(row["completions"]) for row in read(path))
    within, after = _two_grains(progress or progress_bar(f"perplexity of {path.name}", total))

    def measure(rows: list[dict]) -> list[dict]:
        known = [_known_from_text(row, label) if as_text else None for row in rows]
        todo = [row for row, found in zip(rows, known, strict=True) if found is None]
        asked = [
            _from_ids(row) if _vocabulary(row) == vocabulary and not as_text else _from_text(row, tokenizer)
            for row in todo
        ]
        names = [f"{path}, prompt {row['prompt_id']} ({str(row['prompt'])[:40]!r})" for row in todo]
        new = iter(_answers(model, asked, names, batch_tokens, within))
        return [next(new) if found is None else found for found in known]

    return annotate(
        path, KIND, label + AS_TEXT * as_text, measure, lines=LineFormat(read), block=BLOCK, progress=after
    )


def _known_from_text(row: dict, label: str) -> dict | None:
    """What was measured of a line from text already, because its ids are of another vocabulary."""
    found = measured(row, KIND, label, row["completions"]) or {}
    return {name: value for name, value in found.items() if name != "of"} if found.get("from") == "text" else None


def _vocabulary(row: dict) -> str | None:
    return (row.get("settings") or {}).get("vocabulary")


def _two_grains(progress: Progress) -> tuple[Progress, Progress]:
    """`progress` for work within a block, and for blocks that are done: those count what has not been counted."""
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
    """What to find of one line: each completion's nll is the first term's, less the second's where there is one."""

    source: str
    prompt_tokens: int
    terms: list[list[tuple[list[int], list[int]]]]  # for each completion, (what is read before, what is measured)
    tokens: list[int]


def _from_ids(row: dict) -> Asked:
    ids = row["completion_ids"]
    if len(ids) != len(row["completions"]):
        raise UserError(
            f"prompt {row['prompt_id']}: {len(row['completions'])} completions but ids of {len(ids)}; sample it again"
        )
    return Asked("ids", len(row["prompt_ids"]), [[(row["prompt_ids"], each)] for each in ids], [*map(len, ids)])


def _from_text(row: dict, tokenizer: PreTrainedTokenizerBase) -> Asked:
    start, bos = row["prompt"], PromptEncoder(tokenizer, None).bos
    if not isinstance(start, str):
        if not tokenizer.chat_template:
            raise UserError(
                f"prompt {row['prompt_id']} is a conversation, which the measuring model has no chat template for; "
                "measure with a chat model"
            )
        start, bos = tokenizer.apply_chat_template(start, add_generation_prompt=True, tokenize=False), []
    texts = [start, *(start + completion for completion in row["completions"])]
    prompt, *joined = [bos + ids for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    grown = [max(len(ids) - len(prompt), 0) for ids in joined]
    terms = [_terms(prompt, ids) if len(ids) > len(prompt) else [] for ids in joined]
    return Asked("text", len(prompt), terms, grown)


def _terms(prompt: list[int], joined: list[int]) -> list[tuple[list[int], list[int]]]:
    """NLL(joined) - NLL(prompt), from where they part; the first token of a text has no likelihood."""
    common = max(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, joined, strict=False))), 1)
    if common == len(prompt) and joined[:common] == prompt:
        return [(prompt, joined[common:])]
    return [(each[:common], each[common:]) for each in (joined, prompt)]


def _answers(
    model: nn.Module, asked: Sequence[Asked], names: Sequence[str], batch_tokens: int | None, progress: Progress
) -> Iterator[dict]:
    """What stands in the lines; all terms are measured together."""
    flat = [(name, *term) for name, each in zip(names, asked, strict=True) for terms in each.terms for term in terms]
    found = conditional_nll(
        model, [before for _, before, _ in flat], [[ids] for _, _, ids in flat],
        batch_tokens=batch_tokens, progress=progress, names=[name for name, _, _ in flat],
    )  # fmt: skip
    sums = iter(float(each[0]) for each in found)
    for each in asked:
        nll = [sum(sign * next(sums) for sign, _ in zip((1, -1), terms, strict=False)) for terms in each.terms]
        yield {"nll": nll, "tokens": each.tokens, "prompt_tokens": each.prompt_tokens, "from": each.source}


# ---- the table ----------------------------------------------------------------------------------------------------

NOTE = """\
Under {label}, given the prompts without tags. Perplexity: exp of all nats over all tokens; mean of completions: each \
one's own perplexity, those without tokens left out; in brackets 95 % intervals over prompts. Nothing else is left out: \
the columns after them count what is unusual. On ids: the sampled ids, end-of-text included; on text: tokenised again \
by the measuring model, without end-of-text."""
PUBLISHED_NOTE = """
Published: mean of completions, on text, without those in the column beside it: no tokens, prompts of one token, values \
of 1e4 and more."""


def summary(rows: Iterable[dict], label: str) -> dict[str, str]:
    """The cells of a file's row: perplexity in two ways with intervals, and counts of what is unusual."""
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


def published_columns(rows: Iterable[dict], label: str) -> dict[str, str]:
    """The published number and how many completions it leaves out."""
    values, lengths = [], []
    for row in rows:
        found = row[KIND][label]
        values += metrics.completion_perplexity(np.array(found["nll"]), np.array(found["tokens"])).tolist()
        lengths += [found["prompt_tokens"]] * len(found["nll"])
    kept = (np.array(values) < metrics.HIGH_PERPLEXITY) & (np.array(lengths) > 1)
    number = f"{published.perplexity(values, lengths):.6g}" if kept.any() else "none"
    return {"published": number, "left out of it": str((~kept).sum())}


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows of the same columns as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
