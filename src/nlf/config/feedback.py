"""Knobs of logged feedback: completions that somebody has already scored, labelled, compared or commented on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nlf.config.knobs import Following, Options, Rule, knob
from nlf.errors import UserError, did_you_mean

ROLES: dict[str, tuple[str, ...]] = {  # what a column can hold, and the columns that are taken for it by their names
    "prompt": ("prompt",),
    "user": (),  # a user's message: the row is a conversation of one turn
    "completion": ("completion",),
    "reward": ("reward", "score"),
    "label": ("label",),
    "feedback": ("feedback",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "ended": ("ended", "finish_reason"),
}
CONSTANTS = {"true": True, "false": False}  # in the place of a column: `ended=false`


@dataclass
class FeedbackOptions(Options):
    """Completions with feedback that exist already; see docs/feedback.md."""

    feedback: list[str] | None = knob(
        None,
        "Logged feedback to train on: .jsonl, .json, .csv, .tsv or .parquet files (also .gz), folders of them, or hub ids as "
        "ID:CONFIG:SPLIT. Its rows hold prompt, completion and reward, label or feedback; or chosen and rejected.",
        rule=Rule(bool, "at least one file, folder or hub id"),
        short=True,
    )
    feedback_columns: list[str] | None = knob(
        None,
        "Columns of other names, such as completion=response reward=helpfulness. A minus, reward=-toxicity, means that lower "
        "is better; reward= several times gives one dial each; user=COLUMN is a user's message; ended=false says that the "
        "completions were cut.",
        short=True,
    )
    feedback_epochs: int = knob(
        Following("2 with feedback, else 0"),
        "Iterations on logged feedback alone, before the first one that samples. Without sampling, an iteration is one pass "
        "over the logged rows.",
        least=0,
        short=True,
    )
    feedback_share: float = knob(
        0.5, "Share of each step that is logged feedback in the iterations that sample.", above=0, most=1
    )

    def check_together(self) -> None:
        super().check_together()
        columns_of(self.feedback_columns)
        if self.feedback_columns and not self.feedback:
            raise UserError("feedback_columns needs feedback: give its files, or leave feedback_columns out")
        if self.feedback_epochs and not self.feedback:
            raise UserError("feedback_epochs needs feedback: give its files, or leave feedback_epochs out")


class Column(NamedTuple):
    """A column of logged feedback; `sign` -1 = lower numbers are better."""

    name: str
    sign: int = 1


def columns_of(given: Sequence[str] | None) -> dict[str, list[Column]]:
    """The columns that `feedback_columns` names, by what they hold.

    Raises:
        UserError: not ROLE=COLUMN, or a role that does not exist or stands twice.
    """
    found: dict[str, list[Column]] = {}
    for each in given or ():
        role, equals, name = each.partition("=")
        if not equals or not name.strip("-"):
            raise UserError(f"feedback_columns {each!r}: expected ROLE=COLUMN, such as completion=response")
        if role not in ROLES:
            raise UserError(
                f"feedback_columns {each!r}:{did_you_mean(role, ROLES)} expected one of {', '.join(ROLES)}"
            )
        if role in found and role != "reward":
            raise UserError(f"feedback_columns: {role} is given twice; only reward may be given several times")
        minus = role == "reward" and name.startswith("-")
        found.setdefault(role, []).append(Column(name[1:], -1) if minus else Column(name))
    return found


def check_epochs(options: Any, num_train_epochs: float) -> None:
    """Check that a run has iterations.

    Raises:
        UserError: it neither samples nor trains on logged feedback.
    """
    if not num_train_epochs and not options.feedback_epochs:
        raise UserError(
            "num_train_epochs: 0 where a whole number of iterations, 1 or more, was expected; 0 needs feedback with "
            "feedback_epochs 1 or more"
        )
