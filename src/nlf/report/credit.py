"""Credit on the page: a few rollouts of the first and the last iteration, each token coloured by what it earned.

Training writes `credit.parquet` beside an iteration's rollouts: for each rollout a list with a number for each token, in
standard deviations of the first iteration's credit. A run without these files has no such section.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from nlf.data.pool import read_iteration
from nlf.data.rollouts import iteration_dir, parsed, part_bytes
from nlf.errors import UserError
from nlf.report.reading import Run
from nlf.report.samples import MAX_PROMPT, veils
from nlf.report.wording import clip, number

FILE = "credit.parquet"
TOKENIZER = "tokenizer.json"
STAGES = ("", "plain")  # folders of a run that hold rollouts
COLUMNS = ("prompt", "prompt_ids", "completion", "completion_ids", "feedback", "reward", "attributes")
SHADES = (0.25, 0.75, 1.5, 3.0)  # sizes of credit from which a token has the first, second, … shade
RANKS = ("best", "median", "worst")
MOST_TOKENS = 400  # shown of a completion
SEAM = 8  # last tokens of a prompt that are decoded with its completion, for the space between them
UNFINISHED = "\ufffd"  # what an incomplete character is decoded as

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Token:
    """A token, or the tokens of one character."""

    text: str
    credit: str  # as text; of several tokens the sum
    shade: str  # CSS class: up1 … up4 for positive credit, down1 … down4 for negative; empty for little credit


@dataclass(frozen=True)
class Rollout:
    """A completion of an iteration with the credit of its tokens."""

    rank: str  # best, median or worst of the iteration by reward
    reward: float
    feedback: str  # what stood before the prompt; may be empty
    prompt: str
    tokens: list[Token]
    more: int  # tokens that are not shown
    veiled: bool


@dataclass(frozen=True)
class Credited:
    """The rollouts that are shown of an iteration."""

    name: str
    rollouts: list[Rollout]


def credited(run: Run) -> list[Credited]:
    """The first and the last iteration with credit; files that cannot be read are noted in `run.missing`."""
    home, found = run.home, []
    for stage in STAGES:
        numbers = sorted(_number(path) for path in (home / stage / "rollouts").glob(f"iteration-*/{FILE}"))
        for iteration in dict.fromkeys(numbers[:1] + numbers[-1:]):
            name = f"{stage} iteration {iteration + 1}".strip().capitalize()
            try:
                found.append(Credited(name, _rollouts(home / stage, iteration)))
            except UserError as error:
                run.missing.append(f"credit of {name.lower()}: {str(error).replace(f'{home}/', '')}")
    return [each for each in found if each.rollouts]


def _number(path: Path) -> int:
    digits = path.parent.name.removeprefix("iteration-")
    return int(digits) if digits.isdecimal() else 0


def _rollouts(folder: Path, iteration: int) -> list[Rollout]:
    """The best, the median and the worst rollout of an iteration by reward, among those that are scored.

    Raises:
        UserError: A file is missing or broken, or the credit is not that of the rollouts.
    """
    table, path = read_iteration(folder, iteration, COLUMNS), iteration_dir(folder, iteration) / FILE
    kept = parsed(part_bytes(path), ["credit"])
    if kept is None or "credit" not in kept.column_names:
        raise UserError(f"{path}: cannot be read")
    if len(kept) != len(table):
        raise UserError(f"{path}: credit of {len(kept)} rollouts, and there are {len(table)}")
    rewards = table["reward"].to_pylist()
    order = sorted((i for i, reward in enumerate(rewards) if reward is not None), key=lambda i: -rewards[i])
    if not order:
        return []
    chosen: dict[int, str] = {}
    for i, rank in zip((order[0], order[len(order) // 2], order[-1]), RANKS, strict=True):
        chosen.setdefault(i, rank)  # with one or two rollouts some ranks fall together
    decode = _decoder(folder)
    return [
        _rollout(table.slice(i, 1).to_pylist()[0], kept["credit"][i].as_py() or [], rank, decode, path)
        for i, rank in chosen.items()
    ]


def _decoder(folder: Path) -> Decode:
    """Decodes token ids with the run's tokenizer, without special tokens such as EOS.

    Raises:
        UserError: The run's folder and its checkpoints hold no tokenizer.json.
    """
    from tokenizers import Tokenizer

    found = [
        path for path in (folder / TOKENIZER, *sorted(folder.glob(f"checkpoint-*/{TOKENIZER}"))) if path.is_file()
    ]
    if not found:
        raise UserError(f"{folder / TOKENIZER}: no such file; its tokens cannot be told apart")
    try:
        return Tokenizer.from_file(str(found[0])).decode
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{found[0]}: cannot be read ({error})") from error


def _rollout(row: dict[str, Any], credit: Sequence[float], rank: str, decode: Decode, path: Path) -> Rollout:
    ids = row["completion_ids"]
    if len(credit) != len(ids):
        raise UserError(f"{path}: credit of {len(credit)} tokens for a completion of {len(ids)}")
    shown = ids[:MOST_TOKENS]
    seam = row["prompt_ids"][-SEAM:]
    texts = list(pieces(shown, decode, seam))
    if "".join(text for text, _ in texts) != row["completion"][: sum(len(text) for text, _ in texts)]:
        texts = list(pieces(shown, decode))  # after a chat's prompt, the completion is decoded alone
    toxicity = dict(row["attributes"] or ()).get("toxicity")
    return Rollout(
        rank, row["reward"], row["feedback"] or "", clip(_prompt(row["prompt"]), MAX_PROMPT),
        tokens(texts, credit), len(ids) - len(shown), veils(toxicity),
    )  # fmt: skip


def pieces(ids: Sequence[int], decode: Decode, before: Sequence[int] = ()) -> Iterator[tuple[str, int]]:
    """The text of each token and a 1, or of several tokens and their number where they only together make a character.

    A token that adds no text (EOS) belongs to the text before it. The texts joined are the text of all tokens.

    Args:
        decode: From token ids to text.
        before: Tokens before the completion.
    """
    done, waiting, ready = decode(list(before)), 0, ""
    pending: tuple[str, int] | None = None  # a text that further tokens without text may join
    for end in range(1, len(ids) + 1):
        waiting, ready = waiting + 1, decode([*before, *ids[:end]])
        if ready == done and pending:
            pending, waiting = (pending[0], pending[1] + waiting), 0
        elif ready.startswith(done) and ready != done and not ready.endswith(UNFINISHED):
            if pending:
                yield pending
            pending, done, waiting = (ready[len(done) :], waiting), ready, 0
    if pending:
        yield pending
    if waiting and ready != done:
        yield ready[len(done) :] if ready.startswith(done) else ready, waiting


def tokens(texts: Sequence[tuple[str, int]], credit: Sequence[float]) -> list[Token]:
    """Each text with its credit: the sum over the number of tokens that make it."""
    ends = [0, *accumulate(count for _, count in texts)]
    sums = [sum(credit[begin:end]) for begin, end in pairwise(ends)]
    return [Token(text, number(value, sign=True), shade(value)) for (text, _), value in zip(texts, sums, strict=True)]


def shade(credit: float) -> str:
    """The CSS class of a credit's colour: by its sign, and by how many of `SHADES` its size reaches."""
    step = bisect_right(SHADES, abs(credit))
    return f"{'up' if credit > 0 else 'down'}{step}" if step else ""


def _prompt(text: str) -> str:
    """A prompt as it is shown; messages are JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, list) and found and all(isinstance(each, dict) and "role" in each for each in found):
        return "\n".join(f"{each['role']}: {each.get('content')}" for each in found)
    return text
