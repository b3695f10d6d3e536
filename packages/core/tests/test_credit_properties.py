"""Every shipped method against a plain reference, and what must not change its credit.

The references are loops over members and decisions, written from the formulas and sharing nothing with the
methods. They know no gate, so the methods run with `gate=0` here.
"""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightningrl.credit import assign, assign_with, find_assigner
from lightningrl.credit.decisions import Decisions
from lightningrl.credit.gae import gae_advantages
from lightningrl.experience.transition import Group
from lightningrl_testkit.traces import Did, group, trace

Numbers = list[list[float]]
Labels = list[list[Hashable]]


@dataclass(frozen=True)
class Member:
    reward: float
    path: tuple[Did, ...]


Members = Sequence[Member]


def as_group(members: Members) -> Group:
    return group(*(trace(one.reward, *one.path, member=i) for i, one in enumerate(members)))


# -- the references -----------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], ddof: int) -> float:
    if len(values) <= ddof:
        return 0.0
    return math.sqrt(math.fsum((x - mean(values)) ** 2 for x in values) / (len(values) - ddof))


def compared(labels: Labels, values: Numbers, ddof: int | None = None) -> Numbers:
    """Values minus the mean of those with the same label, over their deviation unless `ddof` is None."""
    held: dict[Hashable, list[float]] = defaultdict(list)
    for row, numbers in zip(labels, values, strict=True):
        for label, value in zip(row, numbers, strict=True):
            held[label].append(value)

    def one(label: Hashable, value: float) -> float:
        others = held[label]
        if min(others) == max(others):
            return 0.0
        return (value - mean(others)) / (1 if ddof is None else deviation(others, ddof) + 1e-6)

    return [
        [one(*pair) for pair in zip(*rows, strict=True)]
        for rows in zip(labels, values, strict=True)
    ]


def same(members: Members, values: Sequence[float]) -> Numbers:
    return [[value] * len(one.path) for one, value in zip(members, values, strict=True)]


def episode(members: Members, ddof: int | None) -> Numbers:
    finals = [[one.reward] for one in members]
    return same(members, [row[0] for row in compared([["g"]] * len(members), finals, ddof)])


def step_rewards(members: Members) -> Numbers:
    return [[did.reward or 0.0 for did in one.path] for one in members]


def earned(members: Members) -> Numbers:
    """Step rewards with the final reward on the last decision, unless it is their sum everywhere."""
    own = step_rewards(members)
    paid = any(did.reward is not None for one in members for did in one.path)
    sums = all(abs(sum(row) - one.reward) <= 1e-9 for row, one in zip(own, members, strict=True))
    if paid and sums:
        return own
    return [
        [value + (one.reward if turn == len(row) - 1 else 0.0) for turn, value in enumerate(row)]
        for row, one in zip(own, members, strict=True)
    ]


def to_go(rewards: Numbers, gamma: float) -> Numbers:
    return [
        [math.fsum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))]
        for row in rewards
    ]


def states(members: Members) -> Labels:
    return [[(did.state, did.agent) for did in one.path] for one in members]


def plus(one: Numbers, other: Numbers, weight: float = 1.0) -> Numbers:
    return [
        [a + weight * b for a, b in zip(*rows, strict=True)]
        for rows in zip(one, other, strict=True)
    ]


def whiten(values: Numbers, members: Members) -> Numbers:
    tokens = [
        value
        for row, one in zip(values, members, strict=True)
        for value, did in zip(row, one.path, strict=True)
        for _ in range(did.tokens)
    ]
    if len(tokens) < 2 or min(tokens) == max(tokens):
        return [[0.0] * len(row) for row in values]
    scale = math.sqrt(statistics.variance(tokens) + 1e-8)
    return [[(value - mean(tokens)) / scale for value in row] for row in values]


def by_state_or_index(members: Members, values: Numbers) -> Numbers:
    keys = states(members)
    index: Labels = [list(range(len(row))) for row in keys]
    in_state, at_index = compared(keys, values), compared(index, values)
    shared = {
        key for key in {k for row in keys for k in row} if sum(key in row for row in keys) >= 2
    }
    return [
        [a if key in shared else b for key, a, b in zip(*rows, strict=True)]
        for rows in zip(keys, in_state, at_index, strict=True)
    ]


def role_rewards(members: Members) -> list[dict[str | None, float]]:
    """Of each member the reward of each of its roles that has one."""
    paid = {did.agent for one in members for did in one.path if did.reward is not None}
    q: list[dict[str | None, float]] = []
    for one in members:
        q.append({})
        for agent in {did.agent for did in one.path}:
            own = [d.reward for d in one.path if d.agent == agent and d.reward is not None]
            if agent not in paid:
                q[-1][agent] = one.reward
            elif own:
                q[-1][agent] = mean(own)
    return q


def roles(members: Members) -> Numbers:
    q = role_rewards(members)

    def one_role(agent: str | None, index: int) -> float:
        peers = [row[agent] for row in q if agent in row]
        if agent not in q[index] or min(peers) == max(peers):
            return 0.0
        return q[index][agent] - mean(peers)

    return [[one_role(did.agent, i) for did in one.path] for i, one in enumerate(members)]


def dr_mas(members: Members) -> Numbers:
    q = role_rewards(members)
    agents: Labels = [
        [did.agent if did.agent in row else ("alone", i, t) for t, did in enumerate(one.path)]
        for i, (one, row) in enumerate(zip(members, q, strict=True))
    ]
    rewards = [
        [row.get(did.agent, 0.0) for did in one.path] for one, row in zip(members, q, strict=True)
    ]
    return compared(agents, rewards, 1)


def histories(members: Members, level: int) -> Labels:
    """The state and the `level` states before it of the same agent; a label of its own where there are fewer."""
    labels: Labels = []
    for i, one in enumerate(members):
        labels.append([])
        for t, did in enumerate(one.path):
            past = [d.state for d in one.path[: t + 1] if d.agent == did.agent][-level - 1 :]
            labels[-1].append((did.agent, *past) if len(past) > level else ("alone", i, t))
    return labels


def hgpo(members: Members, levels: int, gamma: float) -> Numbers:
    returns = to_go(earned(members), gamma)
    parts = [(k + 1.0, compared(histories(members, k), returns, 0)) for k in range(levels)]
    parts.append((1.0, episode(members, 1)))

    def blend(i: int, t: int) -> float:
        held = [(weight, part[i][t]) for weight, part in parts if abs(part[i][t]) > 1e-12]
        return sum(w * x for w, x in held) / sum(w for w, _ in held) if held else 0.0

    return [[blend(i, t) for t in range(len(one.path))] for i, one in enumerate(members)]


def visits(members: Members, gamma: float) -> dict[Hashable, list[float]]:
    """State -> the return to go of each visit."""
    held: dict[Hashable, list[float]] = defaultdict(list)
    for row, numbers in zip(states(members), to_go(earned(members), gamma), strict=True):
        for key, value in zip(row, numbers, strict=True):
            held[key].append(value)
    return held


def g2po(members: Members, gamma: float) -> Numbers:
    held = visits(members, gamma)
    edges: Numbers = []
    for row, numbers in zip(states(members), earned(members), strict=True):
        value = [mean(held[key]) for key in row] + [0.0]
        edges.append([r + gamma * value[t + 1] - value[t] for t, r in enumerate(numbers)])
    every = [edge for row in edges for edge in row]
    if max(every) - min(every) < 1e-12:
        return [[0.0] * len(row) for row in edges]
    scale = deviation(every, 0) + 1e-6
    return [[(edge - mean(every)) / scale for edge in row] for row in edges]


def td(members: Members, gamma: float, lam: float) -> Numbers:
    rewards, keys = earned(members), states(members)
    held = visits(members, gamma)
    values = [[mean(held[key]) for key in row] for row in keys]
    raw = advantages(rewards, values, gamma, lam)
    scaled = compared([["g"] * len(row) for row in raw], raw, 0)
    fallback = episode(members, 1)
    return [
        [scaled[i][t] if len(held[key]) >= 2 else fallback[i][t] for t, key in enumerate(row)]
        for i, row in enumerate(keys)
    ]


def advantages(rewards: Numbers, values: Numbers, gamma: float, lam: float) -> Numbers:
    found: Numbers = []
    for row, value in zip(rewards, values, strict=True):
        after = [*value[1:], 0.0]
        deltas = [r + gamma * n - v for r, n, v in zip(row, after, value, strict=True)]
        found.append(to_go([deltas], gamma * lam)[0])
    return found


def rtmc(members: Members, gamma: float, prior: float) -> Numbers:
    keys = states(members)
    pairs = [
        [(key, (did.action, did.tokens)) for key, did in zip(row, one.path, strict=True)]
        for row, one in zip(keys, members, strict=True)
    ]
    visits: dict[Hashable, dict[Hashable, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, returns in zip(pairs, to_go(earned(members), gamma), strict=True):
        for t, (key, action) in enumerate(row):
            if (key, action) not in row[:t]:
                visits[key][action].append(returns[t])
    p = mean([one.reward for one in members])

    def credit(key: Hashable, action: Hashable) -> float:
        all_visits = [value for found in visits[key].values() for value in found]
        v = (math.fsum(all_visits) + prior * p) / (len(all_visits) + prior)
        return mean(visits[key][action]) - v

    if len({one.reward for one in members}) == 1:
        return [[0.0] * len(row) for row in pairs]
    raw = [[credit(*pair) for pair in row] for row in pairs]
    spread = deviation([value for row in raw for value in row], 0)
    return [[value / spread if spread > 1e-8 else value for value in row] for row in raw]


def without_steps(members: Members) -> Members:
    return [
        Member(one.reward, tuple(replace(did, reward=None) for did in one.path)) for one in members
    ]


def discounted(members: Members, d: float) -> Numbers:
    return [
        [value * d ** (len(row) - 1 - t) for t, value in enumerate(row)]
        for row in episode(members, None)
    ]


def max_rl(members: Members) -> Numbers:
    average = mean([one.reward for one in members])
    apart = episode(members, None)
    return [[value / average if average > 0 else 0.0 for value in row] for row in apart]


REFERENCES: dict[str, tuple[str, dict[str, Any], Callable[[Members], Numbers]]] = {
    "broadcast std": ("broadcast", {}, lambda m: episode(m, 1)),
    "broadcast mean": ("broadcast", {"normalise": "mean"}, lambda m: episode(m, None)),
    "broadcast leave_one_out": (
        "broadcast",
        {"normalise": "leave_one_out"},
        lambda m: [[x * len(m) / (len(m) - 1) for x in row] for row in episode(m, None)],
    ),
    "broadcast max_rl": ("broadcast", {"normalise": "max_rl"}, max_rl),
    "broadcast reinforce++": (
        "broadcast",
        {"normalise": "reinforce++"},
        lambda m: whiten(same(m, [one.reward for one in m]), m),
    ),
    "broadcast reinforce++_baseline": (
        "broadcast",
        {"normalise": "reinforce++_baseline"},
        lambda m: whiten(episode(m, None), m),
    ),
    "discount": ("discount", {"discount": 0.9}, lambda m: discounted(m, 0.9)),
    "discount reward": (
        "discount",
        {"discount": 0.9, "form": "reward"},
        lambda m: compared([["g"] * len(one.path) for one in m], to_go(earned(m), 0.9)),
    ),
    "step_reward": (
        "step_reward",
        {"gamma": 0.5},
        lambda m: by_state_or_index(m, to_go(earned(m), 0.5)),
    ),
    "mt_grpo": (
        "mt_grpo",
        {"weight": 0.5},
        lambda m: plus(
            episode(m, 1),
            compared([list(range(len(one.path))) for one in m], step_rewards(m), 1),
            0.5,
        ),
    ),
    "per_agent": ("per_agent", {}, roles),
    "dr_mas": ("dr_mas", {}, dr_mas),
    "g2po": ("g2po", {"gate": 0.0, "gamma": 0.9}, lambda m: g2po(m, 0.9)),
    "g2po undiscounted": ("g2po", {"gate": 0.0}, lambda m: g2po(m, 1.0)),
    "gigpo": (
        "gigpo",
        {"weight": 2.0, "gate": 0.0},
        lambda m: plus(episode(m, None), compared(states(m), to_go(earned(m), 0.95)), 2.0),
    ),
    "gigpo std": (
        "gigpo",
        {"normalise": "std", "gate": 0.0},
        lambda m: plus(episode(m, 1), compared(states(m), to_go(earned(m), 0.95), 1)),
    ),
    "hgpo": ("hgpo", {"gate": 0.0}, lambda m: hgpo(m, 3, 0.95)),
    "group_td": ("group_td", {"gate": 0.0, "lam": 0.5}, lambda m: td(m, 0.95, 0.5)),
    "rtmc": ("rtmc", {"gate": 0.0}, lambda m: rtmc(without_steps(m), 0.99, 2.0)),
}
EXAMPLES = min(int(os.environ.get("LIGHTNINGRL_EXAMPLES", "4")), 100)
FEW = settings(max_examples=EXAMPLES, deadline=None)
"""Of each of many methods; `deadline` would judge the machine."""
SCALE_FREE = {
    "broadcast std", "broadcast max_rl", "broadcast reinforce++", "broadcast reinforce++_baseline", "mt_grpo", "gigpo std",
    "hgpo", "group_td", "rtmc", "dr_mas", "g2po", "g2po undiscounted",
}  # fmt: skip


def credit(name: str, members: Members) -> Numbers:
    method, params, _ = REFERENCES[name]
    assigner: Any = find_assigner(method, params)
    return assign(assigner, [as_group(members)], params)[0]


# -- groups at random ---------------------------------------------------------------------------

rewards = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0])


def paths(*, step_rewards: bool) -> st.SearchStrategy[tuple[Did, ...]]:
    did = st.builds(
        Did,
        state=st.sampled_from(["s0", "s1", "s2"]),
        action=st.sampled_from(["a", "b"]),
        reward=st.one_of(st.none(), rewards) if step_rewards else st.none(),
        agent=st.sampled_from([None, "planner", "solver"]),
        tokens=st.integers(1, 3),
    )
    return st.lists(did, min_size=1, max_size=5).map(tuple)


@st.composite
def groups(draw: st.DrawFn) -> list[Member]:
    path = paths(step_rewards=draw(st.booleans()))
    return draw(st.lists(st.builds(Member, reward=rewards, path=path), min_size=2, max_size=5))


def close(found: Numbers, expected: Numbers) -> None:
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
@FEW
@given(data=st.data())
def test_a_method_gives_what_its_formula_gives(name: str, data: st.DataObject) -> None:
    members = data.draw(groups())
    close(credit(name, members), REFERENCES[name][2](members))


@pytest.mark.parametrize("name", REFERENCES)
@FEW
@given(data=st.data())
def test_the_order_of_members_changes_nothing(name: str, data: st.DataObject) -> None:
    members = data.draw(groups())
    order = data.draw(st.permutations(range(len(members))))
    found = credit(name, [members[i] for i in order])
    close(found, [credit(name, members)[i] for i in order])


@pytest.mark.parametrize("name", REFERENCES)
@FEW
@given(data=st.data())
def test_equal_members_get_equal_credit(name: str, data: st.DataObject) -> None:
    members = data.draw(groups())
    found = credit(name, [members[0], *members])
    close([found[0]], [found[1]])


@pytest.mark.parametrize("name", REFERENCES)
@FEW
@given(data=st.data(), scale=st.sampled_from([0.5, 4.0]))
def test_rewards_in_another_unit_scale_the_credit_or_leave_it(
    name: str, data: st.DataObject, scale: float
) -> None:
    members = data.draw(groups())

    def scaled(did: Did) -> Did:
        value = None if did.reward is None else did.reward * scale
        return Did(did.state, did.action, value, did.agent, did.tokens)

    other = [Member(one.reward * scale, tuple(map(scaled, one.path))) for one in members]
    factor = 1.0 if name in SCALE_FREE else scale
    for row, wanted in zip(credit(name, other), credit(name, members), strict=True):
        # the epsilons added to deviations don't scale
        assert row == pytest.approx([factor * value for value in wanted], abs=1e-2, rel=1e-3)


@pytest.mark.parametrize("name", REFERENCES)
@FEW
@given(data=st.data())
def test_a_member_without_a_score_is_as_if_it_were_not_there(
    name: str, data: st.DataObject
) -> None:
    members = data.draw(groups())
    lost = Member(math.nan, members[0].path)
    found = credit(name, [*members[:1], lost, *members[1:]])
    assert found[1] == [0.0] * len(lost.path)
    close([found[0], *found[2:]], credit(name, members))


# reinforce++ is whitened over the batch by definition
@pytest.mark.parametrize("name", sorted(one for one in REFERENCES if "reinforce++" not in one))
@FEW
@given(data=st.data())
def test_groups_do_not_touch_each_other(name: str, data: st.DataObject) -> None:
    one, other = data.draw(groups()), data.draw(groups())
    method, params, _ = REFERENCES[name]
    assigner: Any = find_assigner(method, params)
    if "final_in_steps" in _accepted(assigner):  # else decided for the whole batch
        params = {**params, "final_in_steps": False}
    found = assign(assigner, [as_group(one), as_group(other)], params)
    for members, credit_G in zip((one, other), found, strict=True):
        close(credit_G, assign(assigner, [as_group(members)], params)[0])


def _accepted(assigner: Any) -> set[str]:
    return set(assigner.__kwdefaults__)


def jumping(rewards: Numbers, values: Numbers, gamma: float, lam: float) -> Numbers:
    """Advantages where a value of NaN is none: from one value to the next, k decisions on,

    delta = r_0 + ... + gamma^(k-1) r_(k-1) + gamma^k V_next - V, A = delta + gamma^k lambda A_next.
    """
    found: Numbers = []
    for row, value in zip(rewards, values, strict=True):
        advantage = [0.0] * len(row)
        following, known = len(row), 0.0
        for t in reversed(range(len(row))):
            if math.isnan(value[t]):
                continue
            k = following - t
            earned = math.fsum(gamma**j * row[t + j] for j in range(k))
            later = advantage[following] if following < len(row) else 0.0
            advantage[t] = earned + gamma**k * known - value[t] + gamma**k * lam * later
            following, known = t, value[t]
        found.append(advantage)
    return found


def trained(members: Members, values: Numbers) -> Members:
    """The members with tokens only where there is a value."""
    return [
        Member(
            one.reward,
            tuple(
                replace(did, tokens=0 if math.isnan(value) else did.tokens)
                for did, value in zip(one.path, row, strict=True)
            ),
        )
        for one, row in zip(members, values, strict=True)
    ]


@FEW
@given(data=st.data(), some=st.booleans())
def test_gae_gives_what_its_formula_gives(data: st.DataObject, some: bool) -> None:
    members = data.draw(groups())
    value = st.one_of(rewards, st.just(math.nan)) if some else rewards
    values = [[data.draw(value) for _ in one.path] for one in members]
    assigner = find_assigner("gae", {"gamma": 0.9, "lam": 0.8})
    outcome = assign_with(assigner, [as_group(members)], {}, state={}, values=[values])
    raw = jumping(earned(members), values, 0.9, 0.8)
    none = [[math.isnan(value) for value in row] for row in values]
    close(outcome.credit[0], blank(whiten(raw, trained(members, values)), none))
    assert outcome.targets is not None
    close(outcome.targets[0], blank(plus(raw, values), none))


def blank(numbers: Numbers, none: list[list[bool]]) -> Numbers:
    """0 where there is none."""
    return [
        [0.0 if empty else number for number, empty in zip(*rows, strict=True)]
        for rows in zip(numbers, none, strict=True)
    ]


@FEW
@given(data=st.data())
def test_gae_aims_at_the_same_return_whoever_has_a_value(data: st.DataObject) -> None:
    """With lambda 1 the target is the return to go, of all decisions, of however many agents."""
    members = data.draw(groups())
    values = [
        [data.draw(st.one_of(rewards, st.just(math.nan))) for _ in one.path] for one in members
    ]
    assigner = find_assigner("gae", {"gamma": 0.9, "lam": 1.0})
    outcome = assign_with(assigner, [as_group(members)], {}, state={}, values=[values])
    none = [[math.isnan(value) for value in row] for row in values]
    assert outcome.targets is not None
    close(outcome.targets[0], blank(to_go(earned(members), 0.9), none))


@st.composite
def trees(draw: st.DrawFn) -> Decisions:
    """One member whose conversations branch anywhere."""
    size = draw(st.integers(1, 8))
    parent = [draw(st.integers(-1, turn - 1)) for turn in range(size)]
    none = np.zeros(size, np.int64)
    return Decisions(
        slot=np.arange(size), group=none, member=none, turn=np.arange(size),
        parent=np.array(parent), reward=np.zeros(size), rewarded=np.zeros(size, np.bool_),
        agent=none, tokens=none + 1, final=np.array([draw(rewards)]),
        member_group=none[:1], agents=((None, ()),),
    )  # fmt: skip


@FEW
@given(decisions=trees(), data=st.data())
def test_gae_on_a_perfect_critic_gives_nothing_on_any_branch(
    decisions: Decisions, data: st.DataObject
) -> None:
    reward = decisions.final[0]
    values = np.array(
        [data.draw(st.sampled_from([reward, math.nan])) for _ in range(len(decisions))]
    )
    found = gae_advantages(decisions, values, gamma=1.0, lam=0.9)
    assert found.tolist() == pytest.approx([0.0] * len(decisions), abs=1e-9)
