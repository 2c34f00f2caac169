"""A record of logged feedback as rows: a prompt, a completion, and what somebody said about it.

The shape of a record follows from the names of its columns:

    pairs         chosen, rejected, and prompt unless both begin alike   two rows: reward 1 and reward 0
    sentences     prompt, completion, feedback (text), reward optional   a sentence, as a judge's
    scores        prompt, completion, reward or score                    a number, higher is better (toxicity: lower)
    labels        prompt, completion, label (true or false)              reward 1 or 0
    ratings       prompt, completion, several numbers                    one number for each dial
    completions   prompt, completion                                     nothing yet: the run's rewards score it

Records of other forms are unfolded first: RealToxicityPrompts' continuations and generations, lines of our
`generations.jsonl`, rollouts of a run, UltraFeedback's completions, and conversations in `messages`. Names are TRL's.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from nlf.config import feedback as config
from nlf.config.feedback import Column
from nlf.data import rtp
from nlf.data.files import prompt_id
from nlf.data.prompts import Prompt
from nlf.errors import UserError

Record = dict[str, Any]
ShapeName = Literal["pairs", "sentences", "scores", "labels", "ratings", "completions"]
RATINGS = (  # the dials of HelpSteer, HelpSteer2 and UltraFeedback
    *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    *("instruction_following", "honesty", "truthfulness"),
)
ANSWER = "\n\nAssistant:"  # begins an answer in Anthropic's HH
CUT = ("length", "max_tokens", "max_length")  # values of finish_reason for a completion that was cut
WORDS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "yes": 1.0, "no": 0.0}


class Shape(NamedTuple):
    """What the rows of logged feedback hold.

    Attributes:
        rewards: Columns of the numbers of a row; none for pairs, labels and completions, whose reward follows.
    """

    name: ShapeName
    rewards: tuple[Column, ...] = ()

    @property
    def by_word(self) -> bool:
        """Whether a row is good or bad, with nothing between."""
        return self.name in ("pairs", "labels")

    @property
    def words(self) -> str:
        """The shape in words: "scores in -toxicity"."""
        if self.name == "completions":
            return "completions without feedback"
        if self.name not in ("scores", "ratings"):
            return self.name
        return f"{self.name} in " + ", ".join(("-" if each.sign < 0 else "") + each.name for each in self.rewards)


class LoggedRow(NamedTuple):
    """A completion with its feedback.

    Attributes:
        rewards: One number for each reward of the shape; one number for pairs and labels; NaN = none.
        sentence: What somebody wrote about it; None = nothing.
        ended: The completion was not cut.
    """

    prompt: Prompt
    completion: str
    rewards: tuple[float, ...]
    sentence: str | None = None
    ended: bool = True


class Unusable(Exception):
    """A record that cannot be trained on; the text is the reason, the same for all records of one kind."""


class Columns:
    """Where the parts of a record stand.

    Args:
        given: As `feedback_columns` names them.
    """

    def __init__(self, given: Mapping[str, Sequence[Column]]):
        self.given = given
        self.user = given["user"][0].name if "user" in given else None

    def name(self, role: str, record: Mapping[str, Any]) -> str | None:
        """The column of a role; None if the record has none."""
        names = [each.name for each in self.given.get(role, ())] or config.ROLES[role]
        return next((name for name in names if name in record), None)

    def value(self, role: str, record: Mapping[str, Any]) -> Any:
        """What stands in the column of a role; None if there is no such column."""
        name = self.name(role, record)
        return None if name is None else record[name]

    def check(self, record: Mapping[str, Any], where: str) -> None:
        """Raise UserError if a record lacks a column that was named."""
        for role, columns in self.given.items():
            for column in columns:
                constant = role == "ended" and column.name in config.CONSTANTS
                if column.name not in record and not constant:
                    raise UserError(
                        f"{where}: no field {column.name!r}, which feedback_columns names as {role}; there are "
                        f"{', '.join(record)}"
                    )


# ---- the shape of a record ------------------------------------------------------------------------------------------


def shape_of(record: Mapping[str, Any], columns: Columns, where: str) -> Shape:
    """The shape of unfolded records like this one.

    Raises:
        UserError: the record has no feedback that is known, or lacks its prompt or its completion.
    """
    columns.check(record, where)
    has = {role for role in config.ROLES if columns.name(role, record)}
    if {"chosen", "rejected"} <= has:
        return Shape("pairs")
    numbers = _numbers(record, columns)
    if "completion" not in has or not ({"prompt", "user"} & has):
        missing = "completion" if "completion" not in has else "prompt"
        raise UserError(
            f"{where}: no field {missing!r}; there are {', '.join(record) or 'none'}; expected prompt and completion with reward, "
            "label or feedback, or chosen and rejected; name other columns with feedback_columns, such as completion=response"
        )
    if "feedback" in has:
        return Shape("sentences", numbers[:1])
    if numbers:
        return Shape("scores" if len(numbers) == 1 else "ratings", numbers)
    return Shape("labels" if "label" in has else "completions")


def _numbers(record: Mapping[str, Any], columns: Columns) -> tuple[Column, ...]:
    """The columns of a record that hold rewards: those that were named, else a reward, else toxicity, else several
    known ratings.
    """
    if "reward" in columns.given:
        return tuple(columns.given["reward"])
    if own := columns.name("reward", record):
        return (Column(own),)
    if "toxicity" in record:
        return (Column("toxicity", -1),)
    known = [Column(name) for name in RATINGS if name in record]
    return tuple(known) if len(known) > 1 and not columns.name("label", record) else ()


# ---- records of other forms -----------------------------------------------------------------------------------------


def unfolded(record: Record, columns: Columns, where: str) -> list[Record]:
    """The records in a record of another form; any other record alone.

    Raises:
        UserError: the record is of a known form, and something in it is missing or of a wrong type.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object, found {type(record).__name__}")
    if "completions" in record and "completion_ids" in record:
        return _generations(record, columns, where)
    if rtp.is_record(record):
        return _scored(rtp.as_generation(record, where), rtp.RECORDED)
    if isinstance(record.get("continuation"), dict) and isinstance(record.get("prompt"), dict):
        return [_continuation(record)]
    if "completion_ids" in record and "prompt_ids" in record:  # a rollout; `feedback` is what it was sampled under
        kept = {name: record.get(name) for name in ("prompt", "completion", "reward", "ended")}
        return [kept | ({"feedback": record["judged"]} if record.get("judged") else {})]
    if isinstance(record.get("completions"), list) and "instruction" in record:
        return [_rated(record["instruction"], each) for each in record["completions"] if isinstance(each, dict)]
    if isinstance(record.get("messages"), list) and not columns.name("completion", record):
        return [{**record, "prompt": record["messages"][:-1], "completion": record["messages"][-1:]}]
    return [record]


def _continuation(record: Record) -> Record:
    """RealToxicityPrompts' own record: its continuation with Perspective's scores."""
    found = record["continuation"]
    return {**found, "prompt": record["prompt"], "completion": found.get("text")}


def _generations(record: Record, columns: Columns, where: str) -> list[Record]:
    scores = record.get("scores") or {}
    named = [each.name for each in columns.given.get("reward", ())]
    names = named or [*scores]
    if len(names) > 1:
        raise UserError(f"{where}: scores of {', '.join(names)}; choose one with feedback_columns reward={names[0]}")
    if not names or names[0] not in scores:
        raise UserError(f"{where}: no scores{' of ' + named[0] if named else ''}; run `nlf score` on the file first")
    return _scored(record, names[0])


def _scored(line: Mapping[str, Any], scorer: str) -> list[Record]:
    """The completions of a line of generations with the rewards of one scorer."""
    texts = line["completions"]
    rewards = (line["scores"].get(scorer) or {}).get("reward") or [None] * len(texts)
    ended = line["ended"] if line.get("completion_ids") and any(line["completion_ids"]) else [True] * len(texts)
    return [
        {"prompt": line["prompt"], "completion": text, "reward": reward, scorer: reward, "ended": end}
        for text, reward, end in zip(texts, rewards, ended, strict=True)
    ]


def _rated(instruction: Any, completion: Record) -> Record:
    """A completion of UltraFeedback with its ratings."""
    given = completion.get("annotations") or {}
    ratings = {name: each.get("Rating") for name, each in given.items() if isinstance(each, dict)}
    return {"prompt": instruction, "completion": completion.get("response"), **ratings}


# ---- rows -----------------------------------------------------------------------------------------------------------


def rows_in(record: Mapping[str, Any], shape: Shape, columns: Columns) -> list[LoggedRow]:
    """The rows of an unfolded record: two for a pair, chosen first; else one.

    Raises:
        Unusable: the record cannot be trained on.
    """
    if shape.name == "pairs":
        return _pair(record, columns)
    prompt, completion = _prompt(record, columns), _completion(columns.value("completion", record), "completion")
    rewards = tuple(number_of(record.get(each.name)) * each.sign for each in shape.rewards)
    sentence = None
    if shape.name == "sentences":
        text = columns.value("feedback", record)
        sentence = " ".join(text.split()) if isinstance(text, str) and text.strip() else None
    elif shape.name == "labels":
        rewards = (_label(columns.value("label", record)),)
    missing = not rewards or all(map(math.isnan, rewards))
    if missing and sentence is None and shape.name != "completions":
        raise Unusable(f"no {'feedback' if shape.name == 'sentences' else 'reward'}")
    return [LoggedRow(prompt, completion, rewards, sentence, _ended(record, columns))]


def _pair(record: Mapping[str, Any], columns: Columns) -> list[LoggedRow]:
    chosen, rejected = columns.value("chosen", record), columns.value("rejected", record)
    given = (
        _prompt(record, columns) if {"prompt", "user"} & {r for r in config.ROLES if columns.name(r, record)} else None
    )
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, left, right = _parted_messages(given, chosen, rejected)
    else:
        prompt, left, right = _parted_texts(given, _completion(chosen, "chosen"), _completion(rejected, "rejected"))
    if left == right:
        raise Unusable("chosen and rejected are the same")
    if not left.strip() or not right.strip():
        raise Unusable("chosen or rejected is empty")
    _check_id(prompt)
    ended = _ended(record, columns)
    return [LoggedRow(prompt, left, (1.0,), None, ended), LoggedRow(prompt, right, (0.0,), None, ended)]


def _parted_texts(given: Prompt | None, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """The prompt, and what follows it in both texts. Without a prompt, it is what both begin with: up to the last answer of
    a dialogue, else up to the last word.
    """
    if isinstance(given, str) and chosen.startswith(given) and rejected.startswith(given):
        return given, chosen[len(given) :], rejected[len(given) :]
    if given is not None:
        return given, chosen, rejected
    common = chosen[: _first_difference(chosen, rejected)]
    turn = common.rfind(ANSWER)
    end = turn + len(ANSWER) if turn >= 0 else max(common.rfind(" "), common.rfind("\n"))
    if not common[: max(end, 0)].strip():
        raise Unusable("chosen and rejected have no prompt and no common beginning")
    return common[:end], chosen[end:], rejected[end:]


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of equal elements that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _parted_messages(given: Prompt | None, chosen: list, rejected: list) -> tuple[Prompt, str, str]:
    """The conversation before the two answers, and the answers."""
    count = _first_difference(chosen, rejected)
    common = chosen[:count]
    if not common:
        common = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())
    elif isinstance(given, list) and common[: len(given)] != given:
        common = [*given, *common]
    return _messages(common), _completion(chosen[count:], "chosen"), _completion(rejected[count:], "rejected")


def _prompt(record: Mapping[str, Any], columns: Columns) -> Prompt:
    if columns.user is not None:
        return _messages([{"role": "user", "content": record.get(columns.user)}])
    value = columns.value("prompt", record)
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, str) and value.startswith('[{"'):  # messages in a file that holds text only
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list):
        return _messages(value)
    if not isinstance(value, str) or not value.strip():
        raise Unusable("no prompt")
    _check_id(value)
    return value


def _messages(messages: Sequence[Any]) -> list[dict]:
    """A conversation that waits for an answer.

    Raises:
        Unusable: it has no messages, a message is not of role and content, or the last one is the assistant's.
    """
    if not messages:
        raise Unusable("no prompt")
    for message in messages:
        fields = [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
        if not all(isinstance(field, str) for field in fields):
            raise Unusable("a message without role and content as text")
    if messages[-1]["role"] == "assistant":
        raise Unusable("the last message before the completion is the assistant's")
    if not messages[-1]["content"].strip():
        raise Unusable("no prompt")
    kept = [{"role": each["role"], "content": each["content"]} for each in messages]
    _check_id(kept)
    return kept


def _check_id(prompt: Prompt) -> None:
    try:
        prompt_id(prompt)
    except UnicodeEncodeError as error:
        raise Unusable("half a character (a lone surrogate)") from error


def _completion(value: Any, what: str) -> str:
    """A completion as text: itself, or the content of one message of the assistant."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content") if value[0].get("role") == "assistant" else None
    elif isinstance(value, list):
        raise Unusable(f"{what} is not one message of the assistant")
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"no {what}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unusable("half a character (a lone surrogate)") from error
    return value


def number_of(value: Any) -> float:
    """A number, or a text that holds one; NaN for nothing.

    Raises:
        Unusable: something else stands there.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "null", "none", "n/a")):
        return math.nan
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise Unusable("a reward that is not a number") from error
    return found if math.isfinite(found) else math.nan


def _label(value: Any) -> float:
    if value is None:
        return math.nan
    found = WORDS.get(str(value).strip().lower().removesuffix(".0"))
    if found is None:
        raise Unusable("a label that is neither true nor false")
    return found


def _ended(record: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the completion was not cut, as `ended` or `finish_reason` says; without either, it was not."""
    given = columns.given.get("ended")
    if given and given[0].name in config.CONSTANTS and given[0].name not in record:
        return config.CONSTANTS[given[0].name]
    value = columns.value("ended", record)
    if isinstance(value, str):
        return value.strip().lower() not in (*CUT, "false", "0")
    return True if value is None else bool(value)
