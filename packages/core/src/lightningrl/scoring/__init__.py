"""Automatic step rewards: what recorded steps are worth by rules and judges, without a touch on the agent.

Invariant: nothing is written to the store. The same recorded steps, rules and judge answers give the same
rewards, so a stored run can be scored again, by other rules too.
"""

from lightningrl.scoring.scorer import Scored, Scorer, metric_names

__all__ = ["Scored", "Scorer", "metric_names"]
