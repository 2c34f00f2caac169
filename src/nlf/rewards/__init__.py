"""Rewards: the scorers of this package, and the contract between a reward function and the rest of it.

`contract` calls rewards and adds them up, `registry` finds one by name, `tables` scores rollouts. The other modules are
the scorers.
"""

from nlf.rewards.contract import Judgement, Reward, Scores, check_calls, check_weights, reward_names, score

__all__ = ["Judgement", "Reward", "Scores", "check_calls", "check_weights", "reward_names", "score"]
