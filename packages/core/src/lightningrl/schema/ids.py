"""Ids: types of their own, derived from what they name, or random."""

from __future__ import annotations

import hashlib
import os
import time
from typing import NewType

from lightningrl.schema.states import Mode

RolloutId = NewType("RolloutId", str)
GroupId = NewType("GroupId", str)
AttemptId = NewType("AttemptId", str)
StepId = NewType("StepId", str)
EventId = NewType("EventId", str)


def group_id(run: str, mode: Mode, iteration: int, task_id: str, variant: str = "") -> GroupId:
    """The id of the group that compares the rollouts of one task in one iteration.

    `variant` tells apart groups that differ in nothing else (greedy and sampled validation).
    """
    text = "\x1f".join((run, mode.value, str(iteration), task_id, variant))
    return GroupId("g-" + hashlib.blake2b(text.encode(), digest_size=10).hexdigest())


def rollout_id(group: GroupId, member: int) -> RolloutId:
    """The id of member `member` of `group`: the same for every start of the same run."""
    return RolloutId(f"r-{group[2:]}-{member}")


def branches_id(parents: GroupId, step: StepId) -> GroupId:
    """The id of the group of the branches that begin at a step of a member of the group `parents`."""
    return GroupId(f"{parents}/fork/{step}")


def branch_id(parent: AttemptId, step: StepId, branch: int) -> RolloutId:
    """The id of branch number `branch` of an attempt at a step: the same for every start of the same run."""
    text = "\x1f".join((parent, step))
    return RolloutId(f"r-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}-{branch}")


def new_id(prefix: str) -> str:
    """A fresh id with a readable prefix: when it was made, to the microsecond, then 72 random bits.

    So ids that are made one after the other lie side by side in an index, whose pages are then written once and not
    once per id.
    """
    return f"{prefix}-{time.time_ns() // 1000:014x}{os.urandom(9).hex()}"
