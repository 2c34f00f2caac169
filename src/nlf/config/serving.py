"""Knobs of `nlf serve` and `nlf chat`."""

from dataclasses import dataclass

from nlf.config.commands import ConditionOptions, LoadOptions, ServerOptions
from nlf.config.inherited import SEED
from nlf.config.knobs import Options, Rule, knob, like
from nlf.config.sampling import SampleRuleOptions, SamplingOptions

MODELS = Rule(bool, "at least one name")


@dataclass
class ServedOptions(LoadOptions):
    """The models that the server offers."""

    models: list[str] | None = knob(
        None,
        "Names of the models to serve, the default first: 'tagged', 'base', 'plain', 'distilled'. Null is every model of the "
        "run; a model that is no run has its own name.",
        rule=MODELS,
    )


@dataclass
class AddressOptions(Options):
    """The address of the server, its key and its limits."""

    host: str = like(ServerOptions, "host", "127.0.0.1")
    port: int = like(ServerOptions, "port", 8000)
    api_key: str | None = knob(None, "Key that clients must send; null is $NLF_API_KEY, or no key.")
    max_batch: int = knob(64, "Most completions that are decoded at the same time.", above=0)
    max_waiting: int = knob(512, "Most completions that wait for a place; further requests get 429.", above=0)
    max_tokens: int = knob(1024, "Most new tokens of a completion that a request may ask for.", above=0)
    open: bool = knob(False, "Open the page in this machine's browser, if it has one.")


@dataclass
class ServeOptions(AddressOptions, ServedOptions):
    """Everything that `nlf serve` takes."""


@dataclass
class ChatRuleOptions(SamplingOptions):
    """How `nlf chat` draws its answers."""

    num_generations: int = like(SamplingOptions, "num_generations", 1)
    max_completion_length: int = like(SamplingOptions, "max_completion_length", 256)
    top_p: float = like(SampleRuleOptions, "top_p", 0.9)


@dataclass
class TalkOptions(Options):
    """The scorers and the seed of the chat."""

    reward_funcs: list[str] | None = knob(
        None, "Scorers of /score; null is the run's own rewards, or 'local' for a model that is no run."
    )
    seed: int = knob(0, "Seed of the sampling.", rule=SEED)


@dataclass
class TerminalOptions(TalkOptions, ChatRuleOptions, ConditionOptions, LoadOptions):
    """Everything that `nlf chat` takes."""


SERVING_OPTIONS: dict[str, type[Options]] = {"serve": ServeOptions, "chat": TerminalOptions}
SERVING_GROUPS: dict[str, dict[str, type[Options]]] = {
    "serve": {"Model": ServedOptions, "Server": AddressOptions},
    "chat": {"Model": LoadOptions, "Tags": ConditionOptions, "Sampling": ChatRuleOptions, "Chat": TalkOptions},
}
