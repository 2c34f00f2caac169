"""The auditors of a run: scorers that measure it and that it never trains on.

Training also learns the mistakes of its reward, so the reward's own figure flatters the model. A scorer that took no part
in training makes other mistakes, so its figure comes first wherever a run is shown.
"""

from collections.abc import Callable, Sequence

from nlf.errors import UserError
from nlf.rewards.contract import Reward
from nlf.rewards.registry import resolve_reward
from nlf.rewards.words import measures_toxicity

AUDITOR = "audit"  # the scorer of this package that no training should see


def auditors_of(named: Sequence[str | Callable | Reward] | None, rewards: Sequence[Reward]) -> list[Reward]:
    """The auditors that `audit_funcs` names. None follows the rewards: `audit` if one measures toxicity and none is `audit`.

    Raises:
        UserError: an auditor cannot be loaded, is named twice, or is also a reward, whatever its version.
    """
    trained = {reward.name for reward in rewards}
    if named is None:
        named = [AUDITOR] if AUDITOR not in trained and any(map(measures_toxicity, rewards)) else []
    auditors = [resolve_reward(each) for each in named]
    for i, auditor in enumerate(auditors):
        if auditor.name in trained:
            raise UserError(
                f"audit_funcs {auditor.name!r}: the run trains on it, so it cannot audit the run; "
                "name a scorer that is no reward, or none"
            )
        if auditor.label in [other.label for other in auditors[:i]]:
            raise UserError(f"audit_funcs names {auditor.label!r} twice; name each auditor once")
    return auditors
