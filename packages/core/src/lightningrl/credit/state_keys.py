"""State keys: when two decisions of a group count as taken in the same state.

The gateway sees messages and no environment, so "same state" can only mean that the agent was told the
same of late. The key of a decision is the group, the agent, its system messages and tool schemas, and what
others said since the call that it continues; in place of that last part, what the agent itself said of its state
(`lightningrl.state`), where it did. History level k adds the keys of the k decisions before it of
the same agent (HGPO's context, arXiv 2602.22817). Too coarse a key makes credit biased, too fine a one
useless; `coverage.py` measures which.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightningrl.credit.compare import paired
from lightningrl.credit.decisions import Decisions, Labels
from lightningrl.credit.observation import normaliser
from lightningrl.credit.turns import Message, Turn, canonical_json


@dataclass(frozen=True)
class KeyRules:
    """How states are told apart."""

    levels: int = 1
    """History levels: 1 for the state alone, k + 1 for the k decisions before it as well."""
    rules: Sequence[str] | None = None
    """Names of `observation.RULES` that texts go through. `None`: all."""


def label_states(decisions: Decisions, turns: Sequence[Turn], keys: KeyRules) -> Decisions:
    """`decisions` with states, actions and the share of edited histories.

    Args:
        decisions: n of them.
        turns: [n] what each conversation says.
        keys: the rules.
    """
    reader = _KeyReader(keys.rules)
    who = zip(decisions.group.tolist(), decisions.agent.tolist(), turns, strict=True)
    labelled = replace(
        decisions,
        states=(_numbered((group, agent, reader.key(turn)) for group, agent, turn in who),),
        action=_numbered(turn.action for turn in turns),
        rewritten=sum(turn.rewritten for turn in turns) / len(turns) if turns else 0.0,
    )
    return with_histories(labelled, keys.levels)


def with_histories(decisions: Decisions, levels: int) -> Decisions:
    """`decisions`, which have level 0, with `levels` history levels in all."""
    before = _same_agent_before(decisions)
    states = list(decisions.states[:1])
    while len(states) < levels:
        states.append(_longer(states[0], states[-1], before))
    return replace(decisions, states=tuple(states))


class _KeyReader:
    """Normalises messages; each distinct message once."""

    def __init__(self, rules: Sequence[str] | None) -> None:
        self._normalise = normaliser(rules)
        self._known: dict[bytes, Hashable] = {}

    def key(self, turn: Turn) -> Hashable:
        system = tuple(self._message(one) for one in turn.system)
        if turn.state is not None:
            return system, turn.tools, turn.state
        observed = [(one.tool, self._message(one)) for one in turn.observed]
        # Parallel tools answer in the order in which they end: that order is not part of the state.
        tools = sorted((one for one in observed if one[0][0]), key=repr)
        others = tuple(told for tool, told in observed if not tool[0])
        return system, turn.tools, others, tuple((tool[0], told) for tool, told in tools)

    def _message(self, one: Message) -> Hashable:
        told = self._known.get(one.identity)
        if told is None:
            told = (one.role, self._told(one.content))
            self._known[one.identity] = told
        return told

    def _told(self, content: Any) -> Hashable:
        if isinstance(content, str):
            return self._normalise(content)
        if isinstance(content, list):
            return tuple(
                self._normalise(str(part["text"]))
                if isinstance(part, dict) and "text" in part
                else canonical_json(part)
                for part in content
            )
        return canonical_json(content)


def _numbered(keys: Any) -> Labels:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _same_agent_before(decisions: Decisions) -> Labels:
    """[n] row of the decision before each, of the same agent and on its path; -1: there is none."""
    before = decisions.parent.copy()
    agent = decisions.agent
    while True:
        other = (before >= 0) & (agent[before] != agent)
        if not other.any():
            return before
        before[other] = decisions.parent[before[other]]


def _longer(states: Labels, shorter: Labels, before: Labels) -> Labels:
    """One history level more: the state, and the level below of the decision before."""
    longer = np.full(len(states), -1)
    known = before >= 0
    known[known] = shorter[before[known]] >= 0
    if known.any():
        longer[known] = paired(states[known], shorter[before[known]])
    return longer
