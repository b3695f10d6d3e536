"""Credit assigners: the high level of LightningRL, pure functions from groups to credit.

A credit assigner has the signature of `CreditAssigner`. A recipe names a shipped one, an entry point
of the group `lightningrl.credit`, or any `module:function`.
"""

from lightningrl.credit.assigner import CreditAssigner, assign, find_assigner
from lightningrl.credit.broadcast import broadcast

__all__ = ["CreditAssigner", "assign", "broadcast", "find_assigner"]
