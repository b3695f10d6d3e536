"""State keys: what two decisions must share to count as the same state, and when that is too rare to use."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightningrl.credit import assign, assign_with, find_assigner
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.decisions import Decisions
from lightningrl.credit.observation import RULES, normaliser
from lightningrl.credit.per_agent import per_agent
from lightningrl.credit.state_keys import KeyRules
from lightningrl.credit.turns import Conversations
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Group, Trace, Transition
from lightningrl.schema import StepKind
from lightningrl_testkit.traces import Did, group, trace

normalise = normaliser(None)


def decisions(*groups: Group, levels: int = 1) -> Decisions:
    return read_decisions(groups, keys=KeyRules(levels=levels))


def states(*groups: Group, level: int = 0) -> list[int]:
    return decisions(*groups, levels=level + 1).states[level].tolist()


# -- what is in a key ---------------------------------------------------------------------------


def test_the_state_is_what_was_said_since_the_last_answer() -> None:
    """Turn 2 of both members was told `door`, after different histories."""
    one = trace(1, Did("hall", "left"), Did("door"), conversation=True)
    other = trace(0, Did("hall", "right"), Did("door"), conversation=True, member=1)
    first, second, third, fourth = states(group(one, other))
    assert (first, second) == (third, fourth)
    assert first != second


def test_a_conversation_and_a_fresh_prompt_with_the_same_news_are_one_state() -> None:
    grown = trace(1, Did("hall"), Did("door"), conversation=True)
    fresh = trace(0, Did("door"), member=1)
    assert states(group(grown, fresh))[1:] == [1, 1]


def test_agents_and_groups_never_share_a_state() -> None:
    planner, solver = trace(1, Did("x", agent="planner")), trace(0, Did("x", agent="solver"))
    assert len(set(states(group(planner, solver)))) == 2
    assert len(set(states(group(planner, name="g"), group(planner, name="h")))) == 2


def test_a_history_level_holds_the_states_before_of_the_same_agent() -> None:
    # level 1: (hall, door) twice, and (yard, door); a first decision has no such history
    paths = (("hall", "door"), ("hall", "door"), ("yard", "door"))
    found = states(group(*(trace(0, *map(Did, path)) for path in paths)), level=1)
    assert found[0] == found[2] == found[4] == -1
    assert found[1] == found[3] != found[5]


def test_another_agent_in_between_is_not_part_of_the_history() -> None:
    alone = trace(0, Did("hall", agent="a"), Did("door", agent="a"))
    between = trace(0, Did("hall", agent="a"), Did("?", agent="b"), Did("door", agent="a"))
    found = states(group(alone, between), level=1)
    assert found[1] == found[4] != -1


def chat(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> Transition:
    """A call with these messages."""
    made = trace(0, Did("x", "done")).transitions[0]
    assert made.call is not None
    request = {"messages": list(messages), **({"tools": tools} if tools else {})}
    call = msgspec.structs.replace(made.call, request=json.dumps(request).encode())
    return msgspec.structs.replace(made, call=call)


def key_of(one: Transition) -> int:
    """1 if the call's state is that of `REFERENCE`."""
    pair = [replace(trace(0, Did("x")), transitions=(call,)) for call in (REFERENCE, one)]
    first, second = states(group(*pair))
    return int(first == second)


def in_state(one: Transition, state: str | None) -> Transition:
    assert one.call is not None
    return msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, state=state))


def test_what_the_agent_says_of_its_state_counts_in_place_of_the_news() -> None:
    """Other news in the state `3,4` is the same state; the same news in another one is not."""
    rules = {"role": "system", "content": "Walk."}
    here, there = (chat(rules, {"role": "user", "content": text}) for text in ("a wall", "a door"))
    said = [in_state(here, "3,4"), in_state(there, "3,4"), in_state(here, "5,0"), here, there]
    said += [in_state(chat({"role": "user", "content": "a wall"}), "3,4")]  # without the rules
    found = states(group(*(replace(trace(0, Did("x")), transitions=(one,)) for one in said)))
    assert found[0] == found[1]
    assert len({found[0], *found[2:]}) == 5


def asked(*ids: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": i, "type": "function", "function": {"name": f"t{n}", "arguments": "{}"}}
            for n, i in enumerate(ids)
        ],
    }


def told(ident: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": ident, "content": text}


SYSTEM = {"role": "system", "content": "You are a guide. Today is 2026-11-25."}
USER = {"role": "user", "content": "go"}
REFERENCE = chat(SYSTEM, USER, asked("c1", "c2"), told("c1", "red"), told("c2", "blue"))


@pytest.mark.parametrize(
    ("call", "same"),
    [
        # other ids, the date of another day, results in the order in which the tools ended
        (chat({**SYSTEM, "content": "You are a guide. Today is 2027-01-02."}, USER, asked("x", "y"), told("y", "blue"), told("x", "red")), 1),
        (chat({**SYSTEM, "content": "You are a judge. Today is 2026-11-25."}, USER, asked("c1", "c2"), told("c1", "red"), told("c2", "blue")), 0),
        (chat(SYSTEM, USER, asked("c1", "c2"), told("c1", "blue"), told("c2", "red")), 0),
        (chat(SYSTEM, USER, asked("c1", "c2"), told("c1", "red"), told("c2", "blue"), tools=[{"type": "function"}]), 0),
    ],
)  # fmt: skip
def test_system_tools_and_results_make_the_state(call: Transition, same: int) -> None:
    assert key_of(call) == same


def test_an_edited_history_begins_a_conversation_and_is_counted() -> None:
    base = trace(0, Did("hall"), Did("door"))
    edited = chat(USER, {"role": "assistant", "content": "a summary"}, USER)
    found = decisions(group(replace(base, transitions=(base.transitions[0], edited))))
    assert found.rewritten == 0.5


def answered(one: Transition, call: dict[str, Any]) -> Transition:
    """The call, answered by a tool call."""
    assert one.call is not None
    message = json.dumps({"role": "assistant", "content": None, "tool_calls": [call]}).encode()
    choice = msgspec.structs.replace(one.call.choices[0], message=message)
    return msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, choices=(choice,)))


AS_CUSTOM = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
AS_FUNCTION = {"id": "c", "function": {"name": "shell", "arguments": '{"input":"ls"}'}}


@pytest.mark.parametrize("by_model", [AS_FUNCTION, AS_CUSTOM])
@pytest.mark.parametrize("sent_back", [AS_FUNCTION, AS_CUSTOM])
def test_a_custom_call_is_the_function_call_that_the_engine_made(
    by_model: dict[str, Any], sent_back: dict[str, Any]
) -> None:
    """A model's service makes custom calls itself; an engine makes functions of them."""
    result = {"role": "tool", "tool_call_id": "c", "content": "a.py"}
    then = chat(USER, {"role": "assistant", "tool_calls": [sent_back]}, result)
    first, second = Conversations().read([answered(chat(USER), by_model), then])
    assert (second.continues, second.rewritten) == (0, False)
    assert [one.tool for one in second.observed] == [("shell", '{"input":"ls"}')]
    (plain,) = Conversations().read([answered(chat(USER), AS_FUNCTION)])
    assert first.action == plain.action


def test_an_empty_answer_at_the_end_is_not_among_the_messages() -> None:
    empty = {"role": "assistant", "content": ""}
    (turn,) = Conversations().read([chat(USER, empty)])
    assert not turn.rewritten
    begun, then = Conversations().read([chat(USER), chat(USER, empty, USER)])
    assert (begun.continues, then.rewritten) == (None, True)  # one that stands within was asked


def test_a_branch_is_two_calls_that_continue_the_same_one() -> None:
    first = chat(USER)
    answer = {"role": "assistant", "content": "done"}
    left = chat(USER, answer, {"role": "user", "content": "left"})
    right = chat(USER, answer, {"role": "user", "content": "right"})
    further = chat(USER, answer, {"role": "user", "content": "left"}, answer, USER)
    turns = Conversations().read([first, left, right, further])
    assert [turn.continues for turn in turns] == [None, 0, 0, 1]
    made = replace(trace(1.0, Did("x")), transitions=(first, left, right, further))
    assert read_decisions([group(made)], paths=True).parent.tolist() == [-1, 0, 0, 1]


def test_a_branching_decision_takes_the_mean_of_its_branches() -> None:
    """Rewards 4 on the left branch and 0 on the right: the fork is worth 2, with gamma 1."""
    answer = {"role": "assistant", "content": "done"}
    fork = chat(USER)
    left = msgspec.structs.replace(
        chat(USER, answer, {"role": "user", "content": "left"}), reward=4.0
    )
    right = chat(USER, answer, {"role": "user", "content": "right"})
    made = replace(trace(4.0, Did("x")), transitions=(fork, left, right))
    assigner: Any = find_assigner("step_reward", {"baseline": "group"})
    # returns 2, 4, 0: mean 2
    (credit,) = assign(assigner, [group(made)], {"baseline": "group", "final_in_steps": True})
    assert credit == [[0.0, 2.0, -2.0]]


# -- the rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [
        ("unicode", "caf\u00e9", "cafe\u0301"),
        ("json", '{"b": 1, "a": [2], "request_id": "x"}', '{"a":[2],"b":1,"created":5}'),
        ("uuids", "job 123e4567-e89b-12d3-a456-426614174000", "job 00000000-e89b-12d3-a456-426614174abc"),
        ("dates", "at 2026-11-25T10:11:12Z", "at 2027-01-02 03:04:05.678"),
        ("dates", "Wed, 25 Nov 2026 10:00:00 GMT", "Thu, 26 Nov 2026 11:00:00 GMT"),
        ("epochs", "t=1764064800", "t=1764064801.25"),
        ("hex", "commit 0123456789abcdef", "commit fedcba9876543210"),
        ("paths", "in /tmp/abc123/x.py", "in /tmp/zz/y.py"),
        ("ports", "http://127.0.0.1:8080/v1", "http://127.0.0.1:41234/v1"),
        ("processes", "pid 12", "PID: 3456"),
        ("durations", "took 0.23s", "took 12 ms"),
        ("counters", "step 3/10", "Step 4 of 10"),
        ("counters", "7 turns left", "6 turns left"),
        ("lines", "line 12", "line 345"),
        ("numbers", "score 0.12345678", "score 0.12345699"),
        ("space", "a  \n\n\n\nb\n", "a\n\nb"),
    ],
)  # fmt: skip
def test_a_rule_drops_what_means_nothing(rule: str, one: str, other: str) -> None:
    alone = normaliser([rule])
    assert alone(one) == alone(other)
    assert one != other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the answer is 41", "the answer is 42"),
        ("error: file not found", "error: permission denied"),
        ("door locked", "door open"),
        ("1234567890123 apples", "2234567890123 apples"),
    ],
)
def test_what_means_something_stays(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text(max_size=60))
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_an_unknown_rule_gets_the_nearest_one_suggested() -> None:
    with pytest.raises(ConfigError, match=r"no rule 'uuid'.*Did you mean 'uuids'"):
        find_assigner("gigpo", {"rules": ["uuid"]})
    assert next(iter(RULES)) == "unicode"


# -- coverage and its gate ----------------------------------------------------------------------


def walk(member: int, reward: float, *path: str) -> Any:
    return trace(reward, *(Did(one[:-1], one[-1]) for one in path), member=member)


def metrics(name: str, *groups: Group, **params: Any) -> dict[str, float]:
    assigner: Any = find_assigner(name, params)
    return assign(assigner, groups, params).metrics


def test_coverage_counts_what_repeats_after_the_first_decision() -> None:
    # after the first decisions: x twice, y and z once; 2 of 4 shared. Actions in x: a and b
    one = walk(0, 1.0, "s0a", "xa", "ya")
    other = walk(1, 0.0, "s0a", "xb", "za")
    found = metrics("gigpo", group(one, other))
    assert found["coverage"] == 0.5
    assert found["fallback"] == 0.0
    assert found["states"] == 4
    # shared: s0 (2 decisions, one action) and x (2, two actions)
    assert found["states_with_choice"] == 0.5
    # s0 and x hold 2 of 6 decisions each
    assert found["largest_state_share"] == pytest.approx(1 / 3)
    assert found["inert_groups"] == 0.0


def test_one_state_for_everything_is_called_inert() -> None:
    found = metrics("gigpo", group(walk(0, 1.0, "sa", "sa"), walk(1, 0.0, "sa", "sb")))
    assert (found["largest_state_share"], found["inert_groups"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "params", "form"),
    [
        ("gigpo", {}, "mean"),
        ("gigpo", {"normalise": "std"}, "std"),
        ("hgpo", {}, "std"),
        ("group_td", {"normalise": "leave_one_out"}, "leave_one_out"),
        ("rtmc", {"fallback": "mean"}, "mean"),
        ("g2po", {}, "std"),
    ],
)
def test_where_states_never_repeat_the_credit_is_the_broadcasts(
    name: str, params: dict[str, Any], form: str
) -> None:
    unique = group(*(walk(i, float(i % 2), "s0a", f"{i}xa", f"{i}ya") for i in range(4)))
    assigner: Any = find_assigner(name, params)
    broadcast: Any = find_assigner("broadcast", {"normalise": form})
    found = assign(assigner, [unique], params)
    assert found == assign(broadcast, [unique], {"normalise": form})
    assert (found.metrics["coverage"], found.metrics["fallback"]) == (0.0, 1.0)


@pytest.mark.parametrize(("gate", "fallback"), [(0.25, 0.0), (0.26, 1.0)])
def test_the_gate_is_a_parameter(gate: float, fallback: float) -> None:
    # 8 later decisions, of which x in two members is shared: 1/4
    paths = [["s0a", "xa", "0a"], ["s0a", "xa", "1a"], ["s0a", "2a", "3a"], ["s0a", "4a", "5a"]]
    found = group(*(walk(i, float(i), *path) for i, path in enumerate(paths)))
    assert metrics("group_td", found, gate=gate)["fallback"] == fallback


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("balance 1234567.25 of 1234568.75", "balance 1234567.25 of 1234568.75"),
        ("1234567.0", "1234567"),
        ("100.50", "100.5"),
        ("0.1234567 -0.0000001 1.5e-9", "0.123457 0 0"),
        ("2.5e7 1.0e400", "25000000 1.0e400"),
        ("1.20.3 v1.50", "1.20.3 v1.5"),
    ],
)
def test_numbers_keep_six_decimals_however_large_they_are(text: str, told: str) -> None:
    normalise = normaliser(["numbers"])
    assert normalise(text) == told


@given(number=st.floats(allow_nan=False, allow_infinity=False), form=st.sampled_from("feg"))
def test_numbers_that_were_normalised_stay_as_they_are(number: float, form: str) -> None:
    normalise = normaliser(["numbers"])
    once = normalise(f"at {number:.9{form}}.")
    assert normalise(once) == once


@given(text=st.text("0159.-+e x", max_size=12))
def test_what_looks_like_a_number_stays_as_it_is_once_normalised(text: str) -> None:
    normalise = normaliser(["numbers"])
    once = normalise(text)
    assert normalise(once) == once


# -- conventions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "step", "unfit"),
    [
        ("step_reward", {"baseline": "index"}, None, "no step has a reward"),
        ("mt_grpo", {}, None, "no step has a reward"),
        ("rtmc", {"gate": 0.0}, 1.0, "rtmc compares final rewards alone"),
        ("per_agent", {"train": ["planer"]}, None, "Did you mean 'planner'"),
    ],
)
def test_groups_that_do_not_suit_a_method_are_reported_and_get_what_its_formula_gives(
    name: str, params: dict[str, Any], step: float | None, unfit: str
) -> None:
    # Final rewards 1 and 0 in one state, one action: +-1/2 by step_reward, +-0.7071 by mt_grpo. By rtmc both
    # took the same action in the same state; Q = V = p = 1/2. The agents of `train` took no step.
    made = group(
        *(trace(1.0 - i, Did("s", agent="planner", reward=step), member=i) for i in range(2))
    )
    expected = {"step_reward": 0.5, "mt_grpo": 0.70711}.get(name, 0.0)
    assigner: Any = find_assigner(name, params)
    found = assign(assigner, [made], params)
    assert found.unfit is not None
    assert unfit in found.unfit
    assert found[0] == [[pytest.approx(expected, abs=1e-4)], [pytest.approx(-expected, abs=1e-4)]]
    assert assign(assigner, [], params).unfit is None


def test_a_running_baseline_reports_that_no_agent_of_train_took_a_step() -> None:
    assigner = find_assigner("running_baseline", {"train": ["critic"]})
    made = group(trace(1, Did("s", agent="planner")))
    outcome = assign_with(assigner, [made], {}, state={})
    assert (outcome.credit, "took a step" in (outcome.credit.unfit or "")) == ([[[0.0]]], True)


def test_tools_and_lost_calls_are_no_decisions_and_get_no_credit() -> None:
    made = trace(1, Did("s0"), Did("t", kind=StepKind.TOOL), Did("s1"), member=0)
    lost = msgspec.structs.replace(
        made.transitions[2], call=None, untrainable="the call was failed: x"
    )
    members = group(replace(made, transitions=(*made.transitions, lost)), trace(0, Did("s0")))
    assert decisions(members).slot.tolist() == [0, 2, 4]
    assigner: Any = find_assigner("broadcast", {"normalise": "mean"})
    assert assign(assigner, [members], {"normalise": "mean"}) == [[[0.5, 0, 0.5, 0], [-0.5]]]


def test_parallel_agents_are_one_chain_in_order_of_start() -> None:
    both = trace(1, Did("a0", agent="a"), Did("b0", agent="b"), Did("a1", agent="a"))
    assert decisions(group(both)).parent.tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    "name",
    ["broadcast", "discount", "per_agent", "dr_mas", "gigpo", "hgpo", "group_td", "g2po", "rtmc"],
)
def test_a_group_of_one_and_one_without_differences_learn_nothing(name: str) -> None:
    alone = group(trace(0.7, Did("s0"), Did("s1")))
    equal = group(*(trace(0.7, Did("s0"), Did("s1"), member=i) for i in range(3)))
    assigner: Any = find_assigner(name, {})
    for found in assign(assigner, [alone, equal], {}):
        assert all(value == 0.0 for credit_T in found for value in credit_T)


def test_agents_of_one_name_within_others_are_roles_of_their_own() -> None:
    def member(number: int, maths: float, news: float) -> Trace:
        return trace(
            0.0,
            Did("s", agent="writer", within=("team", "maths"), reward=maths),
            Did("s", agent="writer", within=("team", "news"), reward=news),
            member=number,
        )

    made = group(member(0, 1.0, 5.0), member(1, 0.0, 9.0))
    both: list[list[float]] = [[0.5, -2.0], [-0.5, 2.0]]
    assert per_agent([made])[0] == both
    assert per_agent([made], train=["writer"])[0] == both
    for name in ("maths/writer", "team/maths/writer"):
        assert per_agent([made], train=[name])[0] == [[0.5, 0.0], [-0.5, 0.0]]
    unfit = per_agent([made], train=["maths"]).unfit
    assert unfit is not None
    assert "team/maths/writer" in unfit

    running = find_assigner("running_baseline", {"decay": 0.5})
    found = assign_with(running, [group(made.traces[0])], {}, state={})
    baselines = {"team/maths/writer": 0.5, "team/news/writer": 2.5}
    assert found.state == {"baselines": baselines}

    keyed = read_decisions([made], keys=KeyRules())
    assert keyed.states[0].tolist() == [0, 1, 0, 1]  # told the same, and not in one state


def test_only_the_named_agents_are_trained() -> None:
    one = trace(1, Did("s", agent="planner"), Did("s", agent="solver"))
    other = trace(0, Did("s", agent="planner"), Did("s", agent="solver"), member=1)
    assigner: Any = find_assigner("per_agent", {"train": ["planner"]})
    params = {"train": ["planner"]}
    assert assign(assigner, [group(one, other)], params) == [[[0.5, 0.0], [-0.5, 0.0]]]
