"""Knobs of scorers: which scorers give the reward, and how remote scorers are asked."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nlf.config.knobs import Options, Rule, among, knob
from nlf.errors import UserError

AT_LEAST_ONE = Rule(bool, "at least one reward function")
WEIGHTS = "Weight of each reward function in the sum of the rewards; null is 1 each."
SOME_WEIGHT = Rule(any, "numbers that are not all 0")
DAY = 86_400  # seconds; operating systems refuse timeouts of years


def check_one_each(name: str, numbers: list[float] | None, counted: str, things: list[str]) -> None:
    """Raise UserError unless there is one number for each thing."""
    if numbers is not None and len(numbers) != len(things):
        raise UserError(
            f"{name} has {len(numbers)} numbers for {len(things)} {counted}: give one for each, or leave it out"
        )


@dataclass
class MeasureOptions(Options):
    """The scorers of a command."""

    rewards_follow: ClassVar[bool] = False  # whether `reward_funcs` may be replaced later

    reward_funcs: list[str] = knob(
        ["local"],
        "Scorers: 'local', 'audit', 'sentiment', 'hf:MODEL_ID#LABEL', or a dotted path to your own reward function. "
        "'local@1' is a certain version, 'local' the newest. `nlf score --list` shows all.",
        rule=AT_LEAST_ONE,
        objects=True,
    )
    reward_weights: list[float] | None = knob(None, WEIGHTS, rule=SOME_WEIGHT)

    def check_together(self) -> None:
        super().check_together()
        if self.reward_funcs and not self.rewards_follow:
            check_one_each("reward_weights", self.reward_weights, "reward_funcs", self.reward_funcs)


@dataclass
class RewardOptions(MeasureOptions):
    """The scorers of a run. A scorer gives a completion one number, the reward; higher is better."""

    reward_funcs: list[str] = knob(
        ["local"],
        "Reward functions: 'local' (the embedded toxicity scorer), 'sentiment', 'hf:MODEL_ID#LABEL', or a dotted path to "
        "your own. Do not train on 'audit': it is the independent scorer for evaluation.",
        rule=AT_LEAST_ONE,
        objects=True,
        short=True,
    )
    reward_weights: list[float] | None = knob(None, WEIGHTS, rule=SOME_WEIGHT, short=True)
    audit_funcs: list[str] | None = knob(
        None,
        "Auditors: scorers that every evaluation logs and `nlf evaluate` shows first, and that are never trained on. Null is "
        "'audit' if a reward measures toxicity, else none; 'none' is no auditor.",
        objects=True,
        short=True,
    )
    reward_normalization: Literal["none", "zscore", "rank"] = knob(
        "none",
        "How rewards are scaled over the pool before they are summed. none: not at all. zscore: reward minus mean, divided "
        "by the standard deviation. rank: ranks, scaled to -1/2 … 1/2. Evaluation shows unscaled rewards.",
    )

    def complete(self) -> None:
        super().complete()
        if self.audit_funcs == ["none"]:
            self.audit_funcs = []


@dataclass
class TrainRemoteOptions(Options):
    """How `nlf train` asks remote scorers; the settings hold for all of them."""

    replay: bool = knob(False, "Send no request: take every answer from the cache. A missing answer is an error.")
    rate_limit: float | None = knob(
        None,
        "Most requests per second, over all processes on this machine; null is the scorer's own default.",
        least=0.001,
    )
    max_concurrency: int = knob(16, "Most requests that wait for an answer at the same time.", above=0)
    request_timeout: float = knob(60.0, "Most seconds for one request.", above=0, most=DAY)


@dataclass
class RemoteOptions(TrainRemoteOptions):
    """How a command asks remote scorers, with the settings of cache and tries."""

    cache_dir: str | None = knob(
        None,
        "Folder of the cache, scores.sqlite, which keeps every answer. Null is $NLF_CACHE, or nlf in the user's cache folder.",
    )
    max_tries: int = knob(
        8,
        "Most tries of one request. Broken connections, timeouts, broken JSON and HTTP 408, 429 and 5xx are tried again. A text "
        "that has used them up gets as many again at the end; if these fail too, the command stops.",
        above=0,
    )
    max_failures_in_a_row: int = knob(
        5, "Stop when this many texts in a row have used up their tries. Answers so far are kept.", above=0
    )


def remote_options(options: Any) -> RemoteOptions:
    """The knobs of remote scorers among a larger object's fields; training has the default number of tries."""
    return among(options, RemoteOptions)
