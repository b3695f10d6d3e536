"""The shipped methods on one group small enough for a pencil.

EX: three members of one task. Member 1 wins; the others fail.

| member | (state, action) | R | G with gamma 1/2 |
|---|---|---|---|
| 1 | (s0,a) (s1,a) | 1 | 1/2, 1 |
| 2 | (s0,b) (s0,a) (s1,b) | 0 | 0, 0, 0 |
| 3 | (s0,b) (s2,a) (s1,a) | 0 | 0, 0, 0 |

Mean R = 1/3, sample deviation sqrt(((2/3)^2 + 2 (1/3)^2) / 2) = 1/sqrt 3 = 0.57735.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from lightningrl.credit import Credit, assign, assign_with, cut_off, find_assigner
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.group_td import td_advantages
from lightningrl.credit.state_keys import KeyRules
from lightningrl.errors import RunError
from lightningrl.experience.transition import Group, Trace
from lightningrl.schema import StepKind
from lightningrl_testkit.traces import Did, group, trace

Numbers = list[list[float]]

PATHS = ("s0a s1a", "s0b s0a s1b", "s0b s2a s1a")
FINAL = (1.0, 0.0, 0.0)
STEPS = ((1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0))


def example(steps: Sequence[Sequence[float]] | None = None) -> Group:
    """EX; with `steps` the variant EXr that has step rewards."""
    members = []
    for index, path in enumerate(PATHS):
        did = [
            Did(one[:2], one[2:], reward=None if steps is None else steps[index][turn])
            for turn, one in enumerate(path.split())
        ]
        members.append(trace(FINAL[index], *did, member=index))
    return group(*members)


def credit(name: str, steps: Sequence[Sequence[float]] | None = None, **params: Any) -> Numbers:
    assigner: Any = find_assigner(name, params)
    return assign(assigner, [example(steps)], params)[0]


def close(found: Numbers, expected: Numbers) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)


def spread(*values: float) -> Numbers:
    """The same value for all decisions of a member."""
    return [[value] * len(path.split()) for value, path in zip(values, PATHS, strict=True)]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # (2/3) / 0.57735 and (-1/3) / 0.57735
        ("std", (1.1547, -0.5774, -0.5774)),
        ("mean", (2 / 3, -1 / 3, -1 / 3)),
        # 3/2 times the line above
        ("leave_one_out", (1.0, -0.5, -0.5)),
        # over the mean, 1/3
        ("max_rl", (2.0, -1.0, -1.0)),
        # 8 decisions of one token: mean 2/8, sample variance (2 (3/4)^2 + 6 (1/4)^2) / 7 = 0.2142857
        # 0.75 / 0.46291 and -0.25 / 0.46291
        ("reinforce++", (1.6202, -0.5401, -0.5401)),
        # the same after an offset per group, which a batch of one group can't tell
        ("reinforce++_baseline", (1.6202, -0.5401, -0.5401)),
    ],
)
def test_broadcast(form: str, expected: tuple[float, float, float]) -> None:
    close(credit("broadcast", normalise=form), spread(*expected))


def test_discounted_advantages_keep_the_broadcast_at_the_end() -> None:
    # d = 1/2: (2/3) (1/2, 1); -(1/3) (1/4, 1/2, 1)
    close(
        credit("discount", discount=0.5),
        [[1 / 3, 2 / 3], [-1 / 12, -1 / 6, -1 / 3], [-1 / 12, -1 / 6, -1 / 3]],
    )


def test_discounted_rewards_are_centred_over_decisions() -> None:
    # rho = (1/2, 1), 0 six times: mean 1.5 / 8 = 3/16
    close(
        credit("discount", discount=0.5, form="reward"),
        [[0.3125, 0.8125], [-0.1875] * 3, [-0.1875] * 3],
    )


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # G = (1, 0) (2, 2, 1) (2, 1, 0). Turn 1: mean 5/3; turn 2: mean 1; turn 3: mean 1/2
        ("index", [[-2 / 3, -1], [1 / 3, 1, 0.5], [1 / 3, 0, -0.5]]),
        # s0: 1, 2, 2, 2, mean 7/4; s1: 0, 1, 0, mean 1/3; s2 was met by one member: turn 2's mean, 1
        ("state", [[-0.75, -1 / 3], [0.25, 0.25, 2 / 3], [0.25, 0, -1 / 3]]),
        # all eight: mean 9/8
        ("group", [[-0.125, -1.125], [0.875, 0.875, -0.125], [0.875, -0.125, -1.125]]),
    ],
)
def test_step_rewards_by_baseline(baseline: str, expected: Numbers) -> None:
    close(credit("step_reward", STEPS, baseline=baseline, final_in_steps=True), expected)


def test_step_rewards_alone_without_looking_ahead() -> None:
    # gamma 0. Turn 1: 1, 0, 1, mean 2/3; turn 2: 0, 1, 1, mean 2/3; turn 3: 1, 0, mean 1/2
    close(
        credit("step_reward", STEPS, baseline="index", gamma=0.0, final_in_steps=True),
        [[1 / 3, -2 / 3], [-2 / 3, 1 / 3, 0.5], [1 / 3, 1 / 3, -0.5]],
    )


def test_mt_grpo_adds_the_turns_part() -> None:
    # turns 1 and 2 have two 1 and one 0: 1/3 / 0.57735 = 0.5774 and -1.1547; turn 3: 1, 0: +-0.7071
    # plus the broadcast 1.1547, -0.5774, -0.5774
    close(credit("mt_grpo", STEPS), [[1.7321, 0], [-1.7321, 0, 0.1298], [0, 0, -1.2845]])


def by_role() -> Group:
    """The first decision is the planner's, who is paid R; the others the solver's, who is paid 1."""
    return group(
        *(
            trace(
                FINAL[index],
                *(
                    Did(
                        "s", agent="P" if turn == 0 else "S", reward=FINAL[index] if not turn else 1
                    )
                    for turn in range(len(path.split()))
                ),
            )
            for index, path in enumerate(PATHS)
        )
    )


def test_each_role_is_compared_with_itself() -> None:
    # P: 1, 0, 0, mean 1/3; S: 1, 1, 1
    assigner: Any = find_assigner("per_agent", {})
    close(assigner([by_role()])[0], [[2 / 3, 0], [-1 / 3, 0, 0], [-1 / 3, 0, 0]])


def test_dr_mas_counts_a_member_as_often_as_the_role_decided() -> None:
    # One role, which decides 2, 3 and 3 times: 1 twice and 0 six times. Mean 2/8, sample variance
    # (2 (3/4)^2 + 6 (1/4)^2) / 7 = 0.2142857: 0.75 / 0.46291 and -0.25 / 0.46291
    close(credit("dr_mas"), spread(1.6202, -0.5401, -0.5401))
    close(credit("per_agent", normalise="std"), spread(1.1547, -0.5774, -0.5774))


def test_dr_mas_is_per_agent_where_a_role_decides_equally_often() -> None:
    # P decides once in each member: 1, 0, 0, deviation 0.57735; S has nothing but 1
    assigner: Any = find_assigner("dr_mas", {})
    close(assigner([by_role()])[0], [[1.1547, 0], [-0.5774, 0, 0], [-0.5774, 0, 0]])


def test_a_running_baseline_moves_after_it_was_used() -> None:
    # b: 0, then 0.05, then 0.95 * 0.05 = 0.0475, then 0.95 * 0.0475 = 0.045125
    assigner = find_assigner("running_baseline", {"decay": 0.95})
    groups = [group(*(trace(reward, Did("s", agent="P")) for reward in FINAL))]
    outcome = assign_with(assigner, groups, {}, state={})
    close(outcome.credit[0], [[1.0], [-0.05], [-0.0475]])
    assert outcome.state == {"baselines": {"P": pytest.approx(0.045125)}}


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        # G, gamma 1/2. s0: 1/2, 0, 0, 0, mean 1/8; s1: 1, 0, 0, mean 1/3; s2 alone
        # plus 2/3, -1/3, -1/3
        (
            "mean",
            [[1.0417, 1.3333], [-0.4583, -0.4583, -0.6667], [-0.4583, -0.3333, -0.6667]],
        ),
        # s0: deviation 1/4: 1.5, -0.5; s1: 0.57735: 1.1547, -0.5774; plus 1.1547, -0.5774
        (
            "std",
            [[2.6547, 2.3094], [-1.0774, -1.0774, -1.1547], [-1.0774, -0.5774, -1.1547]],
        ),
    ],
)
def test_gigpo(normalise: str, expected: Numbers) -> None:
    close(credit("gigpo", gamma=0.5, normalise=normalise), expected)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        # level 1 of member 1's second decision, history (s0, s1): 1, 0, mean 1/2. (1 * 2/3 + 2 * 1/2) / 3
        (
            {"normalise": "mean"},
            [[0.375, 5 / 9], [-0.125, -0.125, -0.4444], [-0.125, 0, -1 / 3]],
        ),
        # weights 2 and 3: (2 * 2/3 + 3 * 1/2) / 5 = 0.5667
        (
            {"normalise": "mean", "offset": 2},
            [[0.375, 0.5667], [-0.125, -0.125, -0.4333], [-0.125, 0, -1 / 3]],
        ),
        (
            {"normalise": "std"},
            [[1.7321, 1.1381], [-0.5774, -0.5774, -0.9024], [-0.5774, 0, -0.7071]],
        ),
    ],
)
def test_hgpo(params: dict[str, Any], expected: Numbers) -> None:
    close(credit("hgpo", history=1, gamma=0.5, base=False, **params), expected)


def test_hgpo_with_the_broadcast_as_a_level() -> None:
    # member 3's second decision has no other level: the broadcast -1/3. Its first: (-1/8 - 1/3) / 2
    found = credit("hgpo", history=1, gamma=0.5, normalise="mean")
    assert found[2][:2] == pytest.approx([-0.2292, -1 / 3], abs=1e-4)


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        # V: s0 1/8, s1 1/3, s2 0. Member 1: delta_2 = 1 - 1/3, delta_1 = 1/6 - 1/8, A_1 = 1/24 + 1/6
        (0.5, [[0.2083, 0.6667], [-0.0729, -0.0417, -0.3333], [-0.1042, 0.0833, -0.3333]]),
        (1.0, [[0.4167, 0.6667], [-0.0417, -0.0833, -0.3333], [-0.1667, 0.1667, -0.3333]]),
    ],
)
def test_group_td_before_it_is_standardised(gamma: float, expected: Numbers) -> None:
    decisions = read_decisions([example()], keys=KeyRules())
    raw = td_advantages(decisions, gamma=gamma, lam=0.5, final_in_steps=None).tolist()
    close([raw[:2], raw[2:5], raw[5:]], expected)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # Returns 1/4, 1/2, 1 and 0, 0, 0: values 1/8, 1/4, 1/2, the same for both. So the TD errors are 0, 0 and
        # +-1/2, and an earlier decision has that times 1/4 for each step that it is away.
        (0.5, 0.5, [[1 / 32, 1 / 8, 1 / 2], [-1 / 32, -1 / 8, -1 / 2]]),
        # Nothing decays: the broadcast, centred.
        (1.0, 1.0, [[1 / 2] * 3, [-1 / 2] * 3]),
    ],
)
def test_group_td_reaches_back_by_gamma_lambda_where_states_hide_the_outcome(
    gamma: float, lam: float, expected: Numbers
) -> None:
    same = [Did(state) for state in ("x", "y", "z")]
    hidden = group(trace(1.0, *same), trace(0.0, *same))
    decisions = read_decisions([hidden], keys=KeyRules())
    raw = td_advantages(decisions, gamma=gamma, lam=lam, final_in_steps=None).tolist()
    close([raw[:3], raw[3:]], expected)


def test_group_td_gives_a_state_met_once_the_broadcast() -> None:
    # standardised over all eight; s2, alone, has the broadcast -0.5774 in place of 0.2450
    close(
        credit("group_td", gamma=0.5, lam=0.5),
        [[0.6576, 2.1705], [-0.2708, -0.1676, -1.1304], [-0.3739, -0.5774, -1.1304]],
    )


def test_g2po() -> None:
    # Returns without discount: 1, 1 and 0s. V: s0 1/4, s1 1/3, s2 0. Edges in twelfths: s0 to s1 is 4 - 3,
    # s0 to s0 0, s0 to s2 0 - 3, s2 to s1 4 - 0 though s2 was met once; from s1 to the end 12 - 4 or 0 - 4.
    # 1, 8; 0, 1, -4; -3, 4, -4: mean 3/8, variance 123/8 - 9/64, deviation 3.90312
    close(
        credit("g2po"),
        [[0.1601, 1.9536], [-0.0961, 0.1601, -1.1209], [-0.8647, 0.9287, -1.1209]],
    )


def test_g2po_discounts_the_value_behind_an_edge() -> None:
    # gamma 1/2, V: s0 1/8, s1 1/3, s2 0. Edges in 48ths: s0 to s1 8 - 6, s0 to s0 3 - 6, s0 to s2 0 - 6, s2 to s1 8,
    # from s1 to the end 48 - 16 or -16: 2, 32; -3, 2, -16; -6, 8, -16: mean 3/8, deviation sqrt(1653/8 - 9/64)
    found = credit("g2po", gamma=0.5)
    expected = [[2, 32], [-3, 2, -16], [-6, 8, -16]]
    scale = math.sqrt(1653 / 8 - 9 / 64)
    close(found, [[(value - 3 / 8) / scale for value in row] for row in expected])


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        # p = 1/3. s0: (a) 1/2 and 0, (b) 0 and 0: V' = (4/8 + 2/3) / 6 = 0.1944; Q(s0, a) = 1/4
        # s1: (a) 1 and 0, (b) 0: V' = (1 + 2/3) / 5 = 1/3; s2: V' = (2/3) / 3
        (False, [[0.0556, 0.1667], [-0.1944, 0.0556, -0.3333], [-0.1944, -0.2222, 0.1667]]),
        (True, [[0.3043, 0.9130], [-1.0652, 0.3043, -1.8260], [-1.0652, -1.2173, 0.9130]]),
    ],
)
def test_rtmc(normalise: bool, expected: Numbers) -> None:
    close(credit("rtmc", gamma=0.5, prior=2.0, normalise=normalise), expected)


def test_gae_carries_on_the_value_behind_a_cut_answer_if_asked() -> None:
    values, ends = [[[0.2, 0.5], [0.2, 0.5]]], [[[0.0, 0.8], [0.0, 0.0]]]
    two = group(trace(1.0, Did("x"), Did("y")), trace(1.0, Did("x"), Did("y")))
    args = {"gamma": 0.5, "lam": 1.0, "whiten": False}
    asked = find_assigner("gae", {**args, "bootstrap": True})
    # delta_2 = 1 - 0.5 + 0.5 * 0.8 and without the 0.8; delta_1 = 0.5 * 0.5 - 0.2; A_1 = delta_1 + 0.5 A_2
    outcome = assign_with(asked, [two], {}, state={}, values=values, ends=ends)
    close(outcome.credit[0], [[0.5, 0.9], [0.3, 0.5]])
    plain = assign_with(find_assigner("gae", args), [two], {}, state={}, values=values, ends=ends)
    close(plain.credit[0], [[0.3, 0.5], [0.3, 0.5]])
    with pytest.raises(RunError, match="behind cut answers"):
        assign_with(asked, [two], {}, state={}, values=values)


def test_a_rollout_is_cut_off_where_its_last_answer_reached_the_limit() -> None:
    whole = trace(1.0, Did("x"), Did("y"), Did("t", kind=StepKind.TOOL))

    def ended(place: int) -> Trace:
        """The same with that answer cut at its token limit."""
        one = whole.transitions[place]
        assert one.call is not None
        choices = (replace(one.call.choices[0], finish_reason="length"),)
        cut = replace(one, call=replace(one.call, choices=choices))
        steps = (*whole.transitions[:place], cut, *whole.transitions[place + 1 :])
        return Trace(whole.rollout, whole.attempt, steps, 1.0)

    assert [cut_off(one) for one in (whole, ended(0), ended(1), trace(1.0))] == [
        None,
        None,
        1,
        None,
    ]


def test_gae_on_a_critics_values() -> None:
    # member 1: delta_2 = 1 - 0.5, delta_1 = 0.5 - 0.2; A_1 = 0.3 + 0.25
    of = {"s0": 0.2, "s1": 0.5, "s2": 0.1}
    values = [[[of[one[:2]] for one in path.split()] for path in PATHS]]
    assigner = find_assigner("gae", {"gamma": 1.0, "lam": 0.5, "whiten": False})
    outcome = assign_with(assigner, [example()], {}, state={"kept": 1}, values=values)
    close(outcome.credit[0], [[0.55, 0.5], [0.025, 0.05, -0.5], [-0.025, 0.15, -0.5]])
    assert outcome.targets is not None
    close(outcome.targets[0], [[0.75, 1.0], [0.225, 0.25, 0.0], [0.175, 0.25, 0.0]])
    assert outcome.state == {"kept": 1}


def gae(rollout: Trace, values: Sequence[float], **params: Any) -> tuple[list[float], list[float]]:
    """Credit and targets of one rollout."""
    assigner = find_assigner("gae", {"whiten": False, **params})
    outcome = assign_with(assigner, [group(rollout)], {}, state={}, values=[[list(values)]])
    assert outcome.targets is not None
    return outcome.credit[0][0], outcome.targets[0][0]


def test_gae_on_a_perfect_critic_gives_nothing_whoever_else_decides() -> None:
    # Each call is worth the 1 that the rollout earns; the solver's calls have no value.
    two = trace(1.0, *[Did("p", agent="planner"), Did("s", agent="solver")] * 2)
    assert gae(two, [1.0, 1.0, 1.0, 1.0]) == ([0.0] * 4, [1.0] * 4)
    assert gae(two, [1.0, math.nan, 1.0, math.nan]) == ([0.0] * 4, [1.0, 0.0, 1.0, 0.0])


def test_gae_looks_past_decisions_without_a_value() -> None:
    # Rewards 0, 4, 0, 2 (the final one); values 2, -, 4, -; gamma 1/2, lambda 1/2.
    # The last valued decision: delta = 0 + 1/2 * 2 - 4 = -3; target 1.
    # The first: delta = 0 + 1/2 * 4 + 1/4 * 4 - 2 = 1, A = 1 + 1/4 * 1/2 * -3 = 5/8; target 21/8.
    steps = [Did("a"), Did("b", reward=4.0), Did("c"), Did("d")]
    found = gae(trace(2.0, *steps), [2.0, math.nan, 4.0, math.nan], gamma=0.5, lam=0.5)
    assert found == ([0.625, 0.0, -3.0, 0.0], [2.625, 0.0, 1.0, 0.0])


def test_gae_without_any_value_gives_nothing() -> None:
    assigner = find_assigner("gae", {})
    outcome = assign_with(
        assigner,
        [example()],
        {},
        state={},
        values=[[[math.nan] * len(path.split()) for path in PATHS]],
    )
    close(outcome.credit[0], spread(0.0, 0.0, 0.0))
    assert (outcome.targets, "value_mean" in outcome.credit.metrics) == (
        [spread(0.0, 0.0, 0.0)],
        False,
    )


def _apart(parts: Mapping[str, float], of: str = "reward") -> float:
    return parts[of] - parts["baseline"]


@pytest.mark.parametrize(
    ("name", "params", "steps", "made"),
    [
        ("broadcast", {}, None, lambda p: _apart(p) / (p["deviation"] + 1e-6)),
        ("broadcast", {"normalise": "mean"}, None, _apart),
        ("broadcast", {"normalise": "leave_one_out"}, None, _apart),
        ("discount", {"discount": 0.5}, None, lambda p: _apart(p) * p["discount"]),
        ("discount", {"form": "reward"}, None, lambda p: _apart(p, "return")),
        ("step_reward", {}, STEPS, lambda p: _apart(p, "return")),
        ("step_reward", {"baseline": "group", "normalise": "std"}, STEPS,
         lambda p: _apart(p, "return") / (p["deviation"] + 1e-6)),
        ("mt_grpo", {}, STEPS, lambda p: p["rollout"] + p["step"]),
        ("per_agent", {}, None, _apart),
        ("per_agent", {"normalise": "std"}, None, lambda p: _apart(p) / (p["deviation"] + 1e-6)),
        ("dr_mas", {}, None, lambda p: _apart(p) / (p["deviation"] + 1e-6)),
        ("gigpo", {"weight": 0.5}, None, lambda p: p["rollout"] + p["state"]),
        ("gigpo", {"gate": 1.0}, None, lambda p: _apart(p)),
        ("rtmc", {"normalise": False}, None, lambda p: p["action_mean"] - p["state_mean"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_credit_is_made_of_its_parts(
    name: str,
    params: dict[str, Any],
    steps: Sequence[Sequence[float]] | None,
    made: Callable[[Mapping[str, float]], float],
) -> None:
    assigner: Any = find_assigner(name, params)
    found = assign(assigner, [example(steps)], params)
    for i, row in enumerate(found[0]):
        for t, value in enumerate(row):
            parts = {part: numbers[0][i][t] for part, numbers in found.parts.items()}
            assert made(parts) == pytest.approx(value)


def test_states_that_were_compared_are_told_by_their_numbers() -> None:
    found = assign(find_assigner("gigpo", {}), [example()], {})  # type: ignore[arg-type]  # it is a function
    # s0 s1, s0 s0 s1, s0 s2 s1
    assert found.states == [[[0, 1], [0, 0, 1], [0, 2, 1]]]
    fell_back = assign(find_assigner("gigpo", {"gate": 1.0}), [example()], {"gate": 1.0})  # type: ignore[arg-type]
    assert fell_back.states is None


def test_parts_that_are_not_aligned_are_refused() -> None:
    def assigner(groups: Sequence[Group]) -> Credit:
        return Credit([[[0.0] * 2, [0.0] * 3, [0.0] * 3]], parts={"odd": [[[0.0]]]})

    with pytest.raises(RunError, match="part 'odd'"):
        assign(assigner, [example()], {})
