"""Rewards by name: those shipped here, by prefix, or by a dotted path."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nlf.config import RemoteOptions
from nlf.errors import UserError, did_you_mean
from nlf.rewards import Reward, _brief

REWARDS = {  # name → the class that is made when it is asked for
    "local": "nlf.rewards.local:LocalToxicity",
    "sentiment": "nlf.rewards.local:LocalSentiment",
    "audit": "nlf.rewards.audit:AuditToxicity",
    "perspective": "nlf.rewards.perspective:Perspective",
    "openai-moderation": "nlf.rewards.moderation:Moderation",
    "length": "nlf.rewards.rules:Length",
    "repetition": "nlf.rewards.rules:Repetition",
}


PREFIXES = {  # prefix:argument → the class that takes what stands after the colon
    "hf": "nlf.rewards.hf:HFClassifier",
    "detoxify": "nlf.rewards.hf:Detoxify",
    "perspective": "nlf.rewards.perspective:Perspective",
    "openai-moderation": "nlf.rewards.moderation:Moderation",
    "judge": "nlf.rewards.judge:Judge",
    "length": "nlf.rewards.rules:Length",
    "repetition": "nlf.rewards.rules:Repetition",
    "keywords": "nlf.rewards.rules:Keywords",
    "regex": "nlf.rewards.rules:Regex",
}


@dataclass(frozen=True)
class About:
    """A line of `nlf score --list`."""

    attributes: str
    licence: str
    needs: str


PROVIDER = "the service's terms"


MODEL = "the model's own"


ABOUT = {  # how a scorer is named → what there is to know before it is asked for
    "local": About("toxicity and six kinds of it", "Apache-2.0", "nothing"),
    "sentiment": About("positive", "Apache-2.0", "nothing"),
    "audit": About("toxicity", "Apache-2.0", "nothing"),
    "perspective[:ATTRIBUTE]": About("the one asked for: TOXICITY, INSULT, …", PROVIDER, "PERSPECTIVE_API_KEY"),
    "openai-moderation[:CATEGORY]": About("every category", PROVIDER, "OPENAI_API_KEY"),
    "hf:MODEL_ID[#LABEL]": About("the model's labels", MODEL, "a download, or a folder"),
    "detoxify:original|unbiased|multilingual": About("toxicity and the model's others", MODEL, "a download"),
    "judge:FILE.yaml": About("the template's", MODEL, "a server that speaks OpenAI's chat API"),
    "length[:WORDS]": About("none", "Apache-2.0", "nothing"),
    "repetition[:WORDS]": About("repetition", "Apache-2.0", "nothing"),
    "keywords:FILE": About("none", "Apache-2.0", "a list of words"),
    "regex:PATTERN": About("none", "Apache-2.0", "nothing"),
}


def resolve_reward(spec: str | Callable | Reward) -> Reward:
    """A reward from its name, dotted path (`package.module:function`, `my_rewards.py:function`) or the thing itself.

    Raises:
        UserError: nothing of that name; the message lists what there is.
    """
    if isinstance(spec, Reward):
        return spec
    if not isinstance(spec, str):
        return Reward(spec)
    if spec in REWARDS:
        return Reward(_import(REWARDS[spec])())
    prefix, colon, argument = spec.partition(":")
    if colon and prefix in PREFIXES:
        return Reward(_import(PREFIXES[prefix])(argument))
    if ":" in spec or "." in spec:
        return Reward(_made(_import(spec), spec))
    if spec in PREFIXES:
        form = next(form for form in ABOUT if form.startswith(f"{spec}:"))
        raise UserError(f"reward {spec!r} is not whole; expected {form}; `nlf score --list` says what there is")
    raise UserError(
        f"unknown reward {spec!r};{did_you_mean(spec, [*REWARDS, *PREFIXES])} known: {', '.join(ABOUT)}; "
        "or a dotted path, my_module:my_reward or my_file.py:my_reward"
    )


def configure(options: RemoteOptions) -> None:
    """Let the remote scorers that have been made be asked as the options say; without any, nothing is imported."""
    if "nlf.rewards.remote" in sys.modules:
        sys.modules["nlf.rewards.remote"].configure(options)


def listing(options=None) -> str:
    """`nlf score --list`: every scorer that comes with this package, in columns."""
    lines = [("scorer", "attributes", "licence", "needs")]
    lines += [(form, about.attributes, about.licence, about.needs) for form, about in ABOUT.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _made(found, spec: str):
    """A class of scorers is made with no arguments; anything else is taken as it is."""
    if not callable(found):
        raise UserError(f"reward {spec!r} is {_brief(found)}; expected a function, a scorer object or its class")
    if not inspect.isclass(found):
        return found
    needed = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty and p.kind < 2]
    if needed:
        raise UserError(
            f"reward {spec!r} is a class that needs {', '.join(needed)}; name an object made of it instead"
        )
    return found()


def _import(path: str) -> Callable:
    """The object that a dotted path or `file.py:name` names; modules in the current directory count."""
    if path.endswith(".py"):
        raise UserError(f"reward {path!r}: name the function in it too, {path}:my_reward")
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = (_import_file if module_name.endswith(".py") else _import_module)(module_name, path)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(
            f"reward {path!r}: {module_name} has no {name!r};{did_you_mean(name, public)} it has {', '.join(public)}"
        )
    return getattr(module, name)


def _import_module(name: str, path: str):
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"unknown reward {path!r}; known: {', '.join(ABOUT)}; or a dotted path, my_module:my_reward")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise UserError(
            f"reward {path!r}: no module {name!r} here or installed; known names: {', '.join(ABOUT)}"
        ) from error


def _import_file(name: str, path: str):
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"reward {path!r}: no such file: {name}")
    spec = importlib.util.spec_from_file_location(f"nlf_reward_file_{file.stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
