"""Whose figures come first where a run is shown: those of its auditors, before those of the scorers it was trained on.

Results of a model that no run trained have neither, and keep the order in which the scorers were named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlf.evaluation.metrics import family, scorer_of

AUDITOR, TRAINED_ON = "auditor", "trained on"  # roles


@dataclass(frozen=True)
class Headlines:
    """The scorers of results, by metric and by role.

    Attributes:
        owners: The scorer of each metric that needs one.
        roles: "auditor" or "trained on", by scorer; empty unless there is an auditor.
        floors: By scorer, the figures that its own error alone gives clean texts, if its card has them.
    """

    owners: Mapping[str, str]
    roles: Mapping[str, str]
    floors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def floor(self, name: str) -> float | None:
        """The noise floor of a metric; None if it is not known for its scorer and its number of completions."""
        found = self.floors.get(self.owners.get(name, ""), {}).get(name.partition("/")[0])
        return found if isinstance(found, float) else None

    @property
    def audited(self) -> list[str]:
        """The metrics by auditors of the run."""
        return [name for name in self.owners if self.order(name) == 0]

    def beside(self, name: str) -> str | None:
        """The same metric by a scorer that the run was trained on; None if there is none."""
        same = (other for other in self.owners if other.partition("/")[0] == name.partition("/")[0])
        return next((other for other in same if self.order(other) == 2), None)

    def order(self, name: str) -> int:
        """0 for a metric by an auditor of the run, 1 for the others, 2 for a metric by a scorer it was trained on."""
        return {AUDITOR: 0, TRAINED_ON: 2}.get(self.roles.get(self.owners.get(name, ""), ""), 1)

    def suffix(self, name: str) -> str:
        """The scorer of a metric and its role, for a heading: `, local@1 (trained on)`; the scorer of a suffix without role."""
        scorer = self.owners.get(name, "")
        if role := self.roles.get(scorer):
            return f", {scorer} ({role})"
        return f", {name.partition('/')[2]}" if "/" in name else ""


def headlines(results: Mapping[str, Any]) -> Headlines:
    """The headlines of the content of a `results.json`.

    Results of earlier versions name no roles: where an auditor stood beside the rewards and both measured toxicity, it
    audited them.
    """
    scorers = [str(each) for each in results.get("scorers") or []]
    names = dict.fromkeys(name for system in results["systems"] for name in system["metrics"])
    owners = scorer_of(names, scorers)
    if "audited_by" in results:
        audited, trained = results["audited_by"], results.get("trained_on") or []
    else:
        audited = [each for each in results.get("auditors") or [] if _measures_toxicity(owners, each)]
        trained = [each for each in scorers if each not in audited and _measures_toxicity(owners, each)]
        audited = audited if trained else []
    roles = dict.fromkeys(trained, TRAINED_ON) | dict.fromkeys(audited, AUDITOR)
    floors = {scorer: found for scorer, found in (results.get("noise_floor") or {}).items() if isinstance(found, dict)}
    return Headlines(owners, roles if audited else {}, floors)


def merged(found: Sequence[Headlines]) -> Headlines:
    """The owners and roles of several results, of which the first decides."""
    owners: dict[str, str] = {}
    roles: dict[str, str] = {}
    for each in reversed(found):
        owners, roles = {**owners, **each.owners}, {**roles, **each.roles}
    return Headlines(owners, roles)


def _measures_toxicity(owners: Mapping[str, str], scorer: str) -> bool:
    return any(family(name) == "toxicity" and owner == scorer for name, owner in owners.items())
