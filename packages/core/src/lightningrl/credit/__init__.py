"""Credit assigners: the high level of LightningRL, pure functions from groups to credit.

A credit assigner has the signature of `CreditAssigner`, or is a `StatefulAssigner`. A recipe names a shipped
one (`shipped.py`), an entry point of the group `lightningrl.credit`, or any `module:function`. Credit says how
good a decision was; how much a rollout weighs in the loss is `trajectory.loss_weights`'s, and never mixed in.
"""

from lightningrl.credit.assigner import (
    CreditAssigner,
    assign,
    assign_with,
    assigner_names,
    find_assigner,
)
from lightningrl.credit.broadcast import broadcast
from lightningrl.credit.result import Credit
from lightningrl.credit.stateful import Outcome, State, StatefulAssigner, Values, cut_off

__all__ = [
    "Credit",
    "CreditAssigner",
    "Outcome",
    "State",
    "StatefulAssigner",
    "Values",
    "assign",
    "assign_with",
    "assigner_names",
    "broadcast",
    "cut_off",
    "find_assigner",
]
