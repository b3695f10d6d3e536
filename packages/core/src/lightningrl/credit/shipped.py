"""The methods that come with LightningRL, by the name that a recipe gives them."""

from __future__ import annotations

from typing import Any

from lightningrl.credit.broadcast import broadcast
from lightningrl.credit.discount import discount
from lightningrl.credit.forks import leave_one_out_fork, vine
from lightningrl.credit.g2po import g2po
from lightningrl.credit.gae import GeneralisedAdvantage
from lightningrl.credit.gigpo import gigpo
from lightningrl.credit.group_td import group_td
from lightningrl.credit.hgpo import hgpo
from lightningrl.credit.mt_grpo import mt_grpo
from lightningrl.credit.per_agent import RunningBaseline, dr_mas, per_agent
from lightningrl.credit.rtmc import rtmc
from lightningrl.credit.step_reward import step_reward

SHIPPED: dict[str, Any] = {
    "broadcast": broadcast,
    "discount": discount,
    "dr_mas": dr_mas,
    "g2po": g2po,
    "gae": GeneralisedAdvantage,
    "gigpo": gigpo,
    "group_td": group_td,
    "hgpo": hgpo,
    "leave_one_out_fork": leave_one_out_fork,
    "mt_grpo": mt_grpo,
    "per_agent": per_agent,
    "rtmc": rtmc,
    "running_baseline": RunningBaseline,
    "step_reward": step_reward,
    "vine": vine,
}
"""Functions, and classes of `StatefulAssigner`."""

BY_FORKS = frozenset({"leave_one_out_fork", "vine"})
"""Those that compare branches, and need `algorithm.forks`."""
