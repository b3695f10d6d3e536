"""From groups to `Decisions`: the columns that the shipped assigners compute on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightningrl.credit.decisions import Decisions
from lightningrl.credit.state_keys import KeyRules, label_states
from lightningrl.credit.turns import Conversations, Turn
from lightningrl.experience.transition import Group, Transition
from lightningrl.schema import StepKind


def is_decision(one: Transition) -> bool:
    """Whether the transition is a model call whose answer reached the agent."""
    return one.kind is StepKind.LLM and (one.call is not None or one.untrainable is None)


def read_decisions(
    groups: Sequence[Group], *, paths: bool = False, keys: KeyRules | None = None
) -> Decisions:
    """The decisions of `groups`.

    Args:
        groups: what an assigner was given; none give empty columns.
        paths: find branches in the conversations; else a member's decisions are one chain.
        keys: label states and actions by these rules; implies `paths`.
    """
    columns = _Columns()
    members: list[tuple[int, float]] = []
    turns: list[list[Turn]] = []
    conversations = Conversations() if paths or keys is not None else None
    slot = 0
    for g, group in enumerate(groups):
        for trace in group.traces:
            if math.isfinite(trace.reward):
                places = [t for t, one in enumerate(trace.transitions) if is_decision(one)]
                decided = [trace.transitions[t] for t in places]
                read = conversations.read(decided) if conversations is not None else None
                columns.add(g, len(members), [slot + t for t in places], decided, read)
                members.append((g, trace.reward))
                turns.append(read or [])
            slot += len(trace.transitions)
    found = columns.close(members)
    if keys is None:
        return found
    return label_states(found, [turn for member in turns for turn in member], keys)


class _Columns:
    """The columns while they grow."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, float, bool, int, int]] = []
        self._agents: dict[tuple[str | None, tuple[str, ...]], int] = {}

    def add(
        self,
        group: int,
        member: int,
        slots: Sequence[int],
        decided: Sequence[Transition],
        read: Sequence[Turn] | None,
    ) -> None:
        first = len(self._rows)
        parents = _chain(len(decided)) if read is None else _parents(read)
        for turn, (slot, one, parent) in enumerate(zip(slots, decided, parents, strict=True)):
            given = one.reward is not None and math.isfinite(one.reward)
            self._rows.append(
                (
                    slot,
                    group,
                    member,
                    turn,
                    first + parent if parent >= 0 else -1,
                    one.reward if given and one.reward is not None else 0.0,
                    given,
                    self._agents.setdefault((one.agent, one.within), len(self._agents)),
                    len(one.token_ids) if one.untrainable is None else 0,
                )
            )

    def close(self, members: Sequence[tuple[int, float]]) -> Decisions:
        columns = list(zip(*self._rows, strict=True)) if self._rows else [()] * 9
        slot, group, member, turn, parent, reward, rewarded, agent, tokens = columns
        return Decisions(
            slot=np.array(slot, np.int64),
            group=np.array(group, np.int64),
            member=np.array(member, np.int64),
            turn=np.array(turn, np.int64),
            parent=np.array(parent, np.int64),
            reward=np.array(reward, np.float64),
            rewarded=np.array(rewarded, np.bool_),
            agent=np.array(agent, np.int64),
            tokens=np.array(tokens, np.int64),
            final=np.array([reward for _, reward in members], np.float64),
            member_group=np.array([group for group, _ in members], np.int64),
            agents=tuple(self._agents),
        )


def _chain(length: int) -> list[int]:
    return list(range(-1, length - 1))


def _parents(turns: Sequence[Turn]) -> list[int]:
    """Each decision's predecessor: the one started before it on the same branch.

    A branch begins where a second decision continues a conversation that one has continued already.
    """
    parents: list[int] = []
    branch_of: list[int] = []
    tails: list[int] = []
    continued: set[int] = set()
    for index, turn in enumerate(turns):
        origin = turn.continues
        if origin is not None and origin in continued:
            parents.append(origin)
            branch_of.append(len(tails))
            tails.append(index)
            continue
        if origin is not None:
            continued.add(origin)
        branch = branch_of[origin if origin is not None else index - 1] if index else 0
        parents.append(tails[branch] if index else -1)
        branch_of.append(branch)
        tails[branch : branch + 1] = [index]
    return parents
