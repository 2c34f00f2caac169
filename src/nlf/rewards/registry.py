"""Find a reward by its name: a scorer of this package, with its argument after a colon, or a dotted path to your own.

An embedded scorer has versions: `local@1` names one, `local` the newest. A run records the exact name, and is continued
and evaluated with that version (`recorded_version`).
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nlf.config import RemoteOptions
from nlf.data.markdown import text_table
from nlf.errors import UserError, did_you_mean, shown
from nlf.rewards.contract import Reward

FROM_PYTHON = "python"  # the first part of the recorded name of an object that cannot be imported
OURS, SERVICE, MODEL = "Apache-2.0", "the service's terms", "the model's own"  # licences


@dataclass(frozen=True)
class Shipped:
    """A scorer of this package: a line of `nlf score --list`, and the class that the name stands for.

    Attributes:
        form: Its form on the command line: `length[:WORDS]` takes an argument, `hf:MODEL_ID[#LABEL]` needs one.
        classes: `module:class`; where there are versions, that of each by its exact name, `local@1`, oldest first.
        attributes: The numbers that it gives beside the reward.
        licence: Licence of the scorer or its model.
        needs: Keys, files or downloads that it needs.
    """

    form: str
    classes: str | Mapping[str, str]
    attributes: str
    licence: str
    needs: str

    @property
    def name(self) -> str:
        return self.form.partition("[")[0].partition(":")[0]

    @property
    def needs_argument(self) -> bool:
        return ":" in self.form.partition("[")[0]

    @property
    def takes_argument(self) -> bool:
        return ":" in self.form

    @property
    def paths(self) -> Mapping[str, str]:
        """The class of each version by its exact name, oldest first; by the name alone if there are no versions."""
        return {self.name: self.classes} if isinstance(self.classes, str) else self.classes

    @property
    def newest(self) -> str:
        """The exact name that the name alone stands for."""
        return [*self.paths][-1]


LOCAL = {  # a line for each version; the last is the newest
    "local@1": "nlf.rewards.convolution:LocalToxicity1",
    "local@2": "nlf.rewards.local:LocalToxicity",
}
AUDIT = {
    "audit@1": "nlf.rewards.audit:AuditToxicity1",
    "audit@2": "nlf.rewards.audit:AuditToxicity",
}
SENTIMENT = {
    "sentiment@1": "nlf.rewards.convolution:LocalSentiment",
}
SHIPPED = {
    shipped.name: shipped
    for shipped in (
        Shipped("local", LOCAL, "toxicity and six related ones", OURS, "nothing"),
        Shipped("sentiment", SENTIMENT, "positive", OURS, "nothing"),
        Shipped("audit", AUDIT, "toxicity", OURS, "nothing"),
        Shipped(
            "perspective[:ATTRIBUTE]", "nlf.rewards.perspective:Perspective",
            "the six production attributes and ATTRIBUTE", SERVICE, "PERSPECTIVE_API_KEY",
        ),
        Shipped(
            "openai-moderation[:CATEGORY]", "nlf.rewards.moderation:Moderation",
            "every category", SERVICE, "OPENAI_API_KEY",
        ),
        Shipped(
            "hf:MODEL_ID[#LABEL]", "nlf.rewards.hf:HFClassifier",
            "every label of the model", MODEL, "a download, or a local folder",
        ),
        Shipped(
            "detoxify:original|unbiased|multilingual", "nlf.rewards.hf:Detoxify",
            "toxicity and the model's other labels", MODEL, "a download",
        ),
        Shipped(
            "judge:FILE.yaml", "nlf.rewards.judge:Judge",
            "none", MODEL, "a server that speaks OpenAI's chat API",
        ),
        Shipped("length[:WORDS]", "nlf.rewards.rules:Length", "none", OURS, "nothing"),
        Shipped("repetition[:WORDS]", "nlf.rewards.rules:Repetition", "repetition", OURS, "nothing"),
        Shipped("keywords:FILE", "nlf.rewards.rules:Keywords", "none", OURS, "a list of words"),
        Shipped("regex:PATTERN", "nlf.rewards.rules:Regex", "none", OURS, "nothing"),
    )
}  # fmt: skip
FORMS = [shipped.form for shipped in SHIPPED.values()]


def resolve_reward(spec: str | Callable | Reward) -> Reward:
    """The reward of a name (`local`, `local@1`, `hf:MODEL_ID#LABEL`) or dotted path (`package.module:function`,
    `my_rewards.py:function`); a function, scorer object or Reward is used as it is.

    Raises:
        UserError: there is no such reward; the error lists the known rewards.
    """
    if isinstance(spec, Reward):
        return spec
    if not isinstance(spec, str):
        return Reward(_made(spec, shown(spec)), spec=_import_path(spec) if inspect.isclass(spec) else None)
    name, colon, argument = spec.partition(":")
    shipped = SHIPPED.get(name)
    if shipped and colon and shipped.takes_argument:
        return Reward(_load(shipped.paths[name])(argument), spec=spec)
    if shipped and not colon and not shipped.needs_argument:
        return Reward(_load(shipped.paths[shipped.newest])(), spec=shipped.newest)
    if not colon and (versions := _versions(name)):
        if name not in versions:
            raise UserError(
                f"reward {spec!r}: there is no such version of {name.partition('@')[0]}; there is {', '.join(versions)}"
            )
        return Reward(_load(versions[name])(), spec=name)
    if name == FROM_PYTHON:
        raise UserError(
            f"reward {argument!r} was given from Python, so its name cannot load it; expected a path, my_file.py:my_reward"
        )
    if ":" in spec or "." in spec:
        return Reward(_made(_load(spec), spec), spec=spec)
    if shipped:
        raise UserError(
            f"reward {spec!r} is incomplete; expected {shipped.form}; `nlf score --list` shows all scorers"
        )
    raise UserError(
        f"unknown reward {spec!r};{did_you_mean(spec, SHIPPED)} known: {', '.join(FORMS)}; "
        "or a dotted path, my_module:my_reward or my_file.py:my_reward"
    )


def _versions(name: str) -> Mapping[str, str]:
    """The classes of the versions that a name such as `local@1` chooses from; empty for another kind of name."""
    plain, at, _ = name.partition("@")
    shipped = SHIPPED.get(plain)
    return shipped.paths if at and shipped and not isinstance(shipped.classes, str) else {}


def recorded_version(spec: str, label: str | None) -> str:
    """The exact name of an embedded scorer that a run was started with; another spec unchanged.

    The name alone names the newest version today, and the class of the newest version has one import path.

    Args:
        label: The run's label of the reward, `local@1`; None = the run does not record it.
    """
    versions = _versions(label or "")
    return label if label and spec in (label.partition("@")[0], *versions.values()) and versions else spec


def without_version(spec: str) -> str:
    """The name alone of an embedded scorer; another spec unchanged."""
    return spec.partition("@")[0] if _versions(spec) else spec


def recorded_spec(reward: Reward) -> str:
    """The name under which a run records a reward: its exact name, or how it was named, else its import path,
    `my_module:my_reward`.

    An object that cannot be imported is recorded as `python:NAME`, which `resolve_reward` refuses: another reward may
    have the same name.
    """
    if reward.spec is not None:
        return recorded_version(reward.spec, reward.label)
    if found := _name_of(reward):
        return found
    return _import_path(reward.function) or f"{FROM_PYTHON}:{reward.name}"


def _name_of(reward: Reward) -> str | None:
    """The name that alone makes an equal object of this package again, with its version; None if there is none."""
    kind, shipped = type(reward.function), SHIPPED.get(reward.name.partition(":")[0])
    if (
        shipped is None
        or shipped.needs != "nothing"
        or f"{kind.__module__}:{kind.__qualname__}" not in shipped.paths.values()
    ):
        return None
    name = reward.name if isinstance(shipped.classes, str) else reward.label
    try:
        return name if resolve_reward(name).label == reward.label else None
    except UserError:  # the name shortens a pattern
        return None


def _import_path(found: object) -> str | None:
    """The dotted path that imports this very object; None if there is none."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    importable = module and name and module != "__main__" and getattr(sys.modules.get(module), name, None) is found
    return f"{module}:{name}" if importable else None


def configure(options: RemoteOptions) -> None:
    """Set the options of remote scorers. Without a remote scorer this imports nothing."""
    if "nlf.rewards.remote" in sys.modules:
        sys.modules["nlf.rewards.remote"].configure(options)


def listing() -> str:
    """The table of `nlf score --list`: every scorer of this package, in columns."""
    lines = [("scorer", "versions", "attributes", "licence", "needs")]
    for each in SHIPPED.values():
        versions = "" if isinstance(each.classes, str) else ", ".join(each.paths)
        lines.append((each.form, versions, each.attributes, each.licence, each.needs))
    return text_table(lines)


def _made(found: object, spec: str) -> Callable:
    """An object of a class that needs no arguments; any other callable unchanged."""
    if not callable(found):
        raise UserError(f"reward {spec!r} is {shown(found)}; expected a function, a scorer object or its class")
    if not inspect.isclass(found):
        return found
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # some builtin classes have no signature
        parameters = None
    needed = (
        ["arguments"] if parameters is None else [p.name for p in parameters if p.default is p.empty and p.kind < 2]
    )
    if needed:
        raise UserError(
            f"reward {spec!r} is a class that needs {', '.join(needed)}; make an object of it and name that instead"
        )
    return found()


def _load(path: str) -> Callable:
    """The object at a dotted path or `file.py:name`; modules are also found in the current directory."""
    if path.endswith(".py"):
        raise UserError(f"reward {path!r}: name the function in it too, {path}:my_reward")
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = (_file if module_name.endswith(".py") else _module)(module_name, path)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(
            f"reward {path!r}: {module_name} has no {name!r};{did_you_mean(name, public)} it has {', '.join(public)}"
        )
    return getattr(module, name)


def _module(name: str, path: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        hub = f"; a model of the hub is hf:{path}" if "/" in path else ""
        raise UserError(
            f"unknown reward {path!r}; known: {', '.join(FORMS)}; or a dotted path, my_module:my_reward{hub}"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists; one of its own imports is missing
        raise UserError(
            f"reward {path!r}: no module {name!r} here or installed; known names: {', '.join(FORMS)}"
        ) from error


def _file(name: str, path: str) -> ModuleType:
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"reward {path!r}: no such file: {name}")
    spec = importlib.util.spec_from_file_location(f"nlf_reward_file_{file.stem}", file)
    assert spec and spec.loader  # importlib has a loader for every .py file
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
