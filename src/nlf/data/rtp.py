"""RealToxicityPrompts' form of generations, which DExperts and Quark share: a prompt a line, its generations with scores.

    {"prompt": {"text": "The river"}, "generations": [{"text": " is wide", "toxicity": 0.03, "threat": 0.01}, …]}

`prompt` is an object with `text` in RealToxicityPrompts and DExperts, and text in Quark's `reward.json`, which may begin
with a token such as `_TREE_TOKEN_00000`. Every number of a generation is a recorded score: Perspective's attributes, or
`label` and `score` of a sentiment classifier (DExperts). `as_generation` reads a record as a line of generations, with
the recorded scores under the scorer `recorded`; `as_record` gives the record back, with what was measured since.
Sources: allenai/real-toxicity-prompts, alisawuffles/DExperts (`collate`), GXimingLu/Quark (`reward.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlf.data.files import digest, finite, prompt_id
from nlf.errors import UserError

RECORDED = "recorded"  # the scorer whose scores the file brought along
MEASURED = ("scores", "likelihoods", "divergence")  # what our commands add to a record
OURS = ("prompt", "generations", "feedback", "scorer", *MEASURED)  # all other fields are columns of the prompt
TREE_TOKEN = re.compile(r"\A\s*(_TREE_TOKEN_(?:\d{5}|ZERO_COMMENTS))\s*")  # Quark's quantile
Row = dict[str, Any]


def is_record(row: Mapping[str, Any]) -> bool:
    """Whether an object is a prompt with its generations in this form."""
    return "generations" in row and "completions" not in row


def as_generation(row: Row, where: str) -> Row:
    """A record as a line of generations. It has no token ids; `record` holds the record itself.

    Args:
        where: The place of the record, for errors.

    Raises:
        UserError: the record lacks its prompt or its generations, or a field has the wrong type.
    """
    if not is_record(row):
        raise UserError(f"{where}: no field 'generations', but the lines before have it; keep the two kinds apart")
    prompt, feedback = _prompt(row, where)
    found = _generations(row, where)
    texts = [each["text"] for each in found]
    scores = {name: each for name, each in _object(row, "scores", where).items() if name != RECORDED}
    recorded = recorded_scores(found, where)
    try:
        columns = {name: finite(value) for name, value in row.items() if name not in OURS}
        known_as = prompt_id(prompt)
    except RecursionError as error:
        raise UserError(f"{where}: a field is nested too deeply; leave it out") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the prompt holds half a character; expected Unicode") from error
    return {
        "prompt": prompt,
        "prompt_id": known_as,
        "occurrence": 0,
        "prompt_ids": [],
        "feedback": feedback,
        "completions": texts,
        "completion_ids": [[] for _ in texts],
        "ended": [False for _ in texts],
        "columns": columns,
        **{name: _object(row, name, where) for name in MEASURED if row.get(name)},
        "scores": scores | ({RECORDED: {"of": digest(texts), **recorded}} if recorded else {}),
        "record": row,
    }


def as_record(line: Row) -> Row:
    """The record that a line was read from, with its measurements; the recorded scores stand in its generations."""
    scores = {name: each for name, each in line["scores"].items() if name != RECORDED}
    measured = {name: line[name] for name in MEASURED if line.get(name)} | {"scores": scores}
    return {**line["record"], **{name: each for name, each in measured.items() if each}}


def _prompt(row: Row, where: str) -> tuple[str, str | None]:
    """The prompt and the words before it, None without any."""
    prompt, feedback = row.get("prompt"), row.get("feedback")
    if isinstance(prompt, dict):
        prompt = prompt.get("text")
    if not isinstance(prompt, str):
        raise UserError(f"{where}: no text in field 'prompt'; expected {{\"text\": …}} or text")
    if feedback is not None and not isinstance(feedback, str):
        raise UserError(f"{where}: field 'feedback' is {type(feedback).__name__}; expected text or null")
    token = TREE_TOKEN.match(prompt)
    return without_token(prompt), token[1] if token and feedback is None else feedback


def without_token(prompt: str) -> str:
    """A prompt without the token of Quark's quantile before it."""
    return TREE_TOKEN.sub("", prompt, count=1)


def _generations(row: Row, where: str) -> list[Row]:
    found = row["generations"]
    if not isinstance(found, list) or not found:
        raise UserError(
            f"{where}: field 'generations' is {'empty' if found == [] else type(found).__name__}; "
            'expected a list of {"text": …}; sample the prompt again, or remove the line'
        )
    for number, each in enumerate(found, 1):
        if not isinstance(each, dict) or not isinstance(each.get("text"), str):
            raise UserError(f'{where}, generation {number}: no text; expected {{"text": "…", "toxicity": 0.1}}')
    return found


def _object(row: Row, name: str, where: str) -> Row:
    found = row.get(name) or {}
    if not isinstance(found, dict):
        raise UserError(f"{where}: field {name!r} is {type(found).__name__}; expected an object, or leave it out")
    return found


# ---- recorded scores ----------------------------------------------------------------------------------------------


def recorded_scores(found: Sequence[Row], where: str) -> Row:
    """The scores that stand in the generations: `reward` and `attributes`, n values each; {} without a reward.

    The reward is the field `reward`, else one minus `toxicity`, else `positive`, else DExperts' `label` with `score`.

    Raises:
        UserError: a field holds numbers in one generation and something else in another.
    """
    names = dict.fromkeys(name for each in found for name, value in each.items() if _is_number(value))
    names |= dict.fromkeys(name for name in ("toxicity", "reward") if any(name in each for each in found))
    attributes = {name: [_score(each, name, number, where) for number, each in enumerate(found, 1)] for name in names}
    if "score" in attributes and any(_sign(each) is not None for each in found):
        certain = attributes.pop("score")
        attributes.setdefault("positive", [_positive(*pair) for pair in zip(found, certain, strict=True)])
    reward = attributes.pop("reward", None)
    if reward is None and "toxicity" in attributes:
        reward = [None if value is None else 1 - value for value in attributes["toxicity"]]
    reward = reward or attributes.get("positive")
    return {"reward": reward, "attributes": attributes} if reward else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _score(generation: Row, name: str, number: int, where: str) -> float | None:
    value = generation.get(name)
    if value is not None and not _is_number(value):
        raise UserError(
            f"{where}, generation {number}: field {name!r} is {str(value)[:40]!r}; expected a number or null"
        )
    return finite(value)


def _positive(generation: Row, score: float | None) -> float | None:
    """The probability of "positive" from a classifier's label and its certainty; None without a label."""
    positive = _sign(generation)
    return None if score is None or positive is None else score if positive else 1 - score


def _sign(generation: Row) -> bool | None:
    """Whether the label is positive; None for another label, or none."""
    return {"POSITIVE": True, "NEGATIVE": False}.get(str(generation.get("label")).upper())


def written(line: Mapping[str, Any], scorer: str) -> list[Row]:
    """The generations of a scored line of n completions in this form, for any scorer; `recorded_scores` reads them.

    A sentiment scorer's generations also have DExperts' `label` and `score`.
    """
    scores = line["scores"][scorer]
    columns = {**scores["attributes"], "reward": scores["reward"]}
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(line["completions"]))]
    texts = [{"text": text} | row | {"text": text} for text, row in zip(line["completions"], rows, strict=True)]
    return texts if "toxicity" in columns else [each | _labelled(each.get("positive")) for each in texts]


def _labelled(positive: float | None) -> Row:
    if positive is None:
        return {}
    return {"label": "POSITIVE" if positive >= 0.5 else "NEGATIVE", "score": max(positive, 1 - positive)}
