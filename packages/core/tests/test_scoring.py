"""Rules and judges reward recorded steps; nothing is guessed, and a judge's failure is no reward."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightningrl.credit import assign, find_assigner
from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.transition import Trace, Transition
from lightningrl.recipe import StepReward
from lightningrl.schema import TOOL_PARSER_ERROR, StepKind
from lightningrl.scoring import Scorer
from lightningrl.scoring.rules import RULES
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_testkit.traces import Did, group, trace


def asking(*arguments: str, name: str = "search", **call: Any) -> Transition:
    """A model call whose answer asks for a tool, once per given arguments."""
    made = trace(0, Did("x")).transitions[0]
    assert made.call is not None
    calls = [{"id": "c", "function": {"name": name, "arguments": one}} for one in arguments]
    message = json.dumps({"role": "assistant", "content": None, "tool_calls": calls}).encode()
    choice = msgspec.structs.replace(made.call.choices[0], message=message)
    record = msgspec.structs.replace(made.call, choices=(choice,), **call)
    return msgspec.structs.replace(made, call=record)


DEEP = "[" * 100_000
"""What no parser of JSON can read."""


def custom(text: str, name: str = "shell") -> Transition:
    """A model call whose answer calls a custom tool, which takes a text."""
    made = asking("{}")
    assert made.call is not None
    calls = [{"id": "c", "type": "custom", "custom": {"name": name, "input": text}}]
    message = json.dumps({"role": "assistant", "content": None, "tool_calls": calls}).encode()
    choice = msgspec.structs.replace(made.call.choices[0], message=message)
    record = msgspec.structs.replace(made.call, choices=(choice,))
    return msgspec.structs.replace(made, call=record)


def saying(text: str, tokens: int = 1) -> Transition:
    return trace(0, Did("x", text, tokens=tokens)).transitions[0]


def tool(*, error: str | None = None, interrupted: bool = False) -> Transition:
    made = trace(0, Did("x", kind=StepKind.TOOL)).transitions[0]
    return msgspec.structs.replace(made, error=error, interrupted=interrupted)


def of(*steps: Transition) -> Trace:
    named = [msgspec.structs.replace(one, step_id=f"s{i}") for i, one in enumerate(steps)]
    return replace(trace(0, Did("x")), transitions=tuple(named))


@pytest.mark.parametrize(
    ("rule", "args", "steps", "values"),
    [
        ("tool_error", {}, [saying("a"), tool(), tool(error="no"), tool(interrupted=True)], [None, 0, 1, 1]),
        ("repeated_call", {}, [asking('{"a":1,"b":2}'), asking('{"b":2, "a":1}'), asking('{"a":2}'), saying("x")], [0, 1, 0, None]),
        ("invalid_arguments", {}, [asking("{}"), asking("{]"), asking("[1]"), saying("x")], [0, 1, 1, None]),
        ("repeated_call", {}, [asking(DEEP), asking(DEEP)], [0, 1]),
        ("invalid_arguments", {}, [asking(DEEP)], [1]),
        ("repeated_call", {}, [custom("ls"), custom("pwd"), custom("ls"), custom("ls", name="zsh")], [0, 0, 1, 0]),
        ("invalid_arguments", {}, [custom("no JSON")], [0]),
        ("invalid_arguments", {}, [asking("{}", error=TOOL_PARSER_ERROR + "no JSON")], [1]),
        ("format", {"pattern": r"ANSWER: \d+$"}, [saying("ANSWER: 42"), saying("42"), asking("{}")], [1, 0, None]),
        # 3 tokens are half as much again as 2
        ("length", {"limit": 2}, [saying("x", 2), saying("x", 3), tool()], [0, 0.5, None]),
        # 3 s of which 1 s was held: twice the limit
        ("latency", {"limit_seconds": 1.0}, [asking("{}", latency_ms=3000.0, held_ms=1000.0), tool()], [1, None]),
    ],
)  # fmt: skip
def test_a_rule_says_what_it_is_named_for(
    rule: str, args: dict[str, Any], steps: list[Transition], values: list[float | None]
) -> None:
    assert RULES[rule](of(*steps), **args) == values


def test_an_agent_of_the_same_name_within_another_one_has_its_own_calls() -> None:
    steps = [
        msgspec.structs.replace(asking("{}", within=within), agent="a")
        for within in (("maths",), ("news",), ("maths",))
    ]
    assert RULES["repeated_call"](of(*steps)) == [0, 0, 1]


async def score(made: Trace, folder: Path, *rewards: StepReward) -> tuple[Trace, dict[str, float]]:
    scored = await Scorer(rewards, run_folder=folder).score([group(made)])
    return scored.groups[0].traces[0], scored.metrics


async def test_a_tools_value_counts_for_the_call_that_asked_for_it(tmp_path: Path) -> None:
    first, failed = asking("{}"), tool(error="no")
    made = of(msgspec.structs.replace(first, reward=1.0), failed)
    linked = msgspec.structs.replace(made.transitions[1], asked_by=made.transitions[0].step_id)
    made = replace(made, transitions=(made.transitions[0], linked))
    scored, metrics = await score(made, tmp_path, StepReward(rule="tool_error", weight=-0.25))
    # the call: 1 of its own, and -0.25 for its tool; the call itself has no value of the rule
    assert [one.reward for one in scored.transitions] == [0.75, -0.25]
    assert metrics == {"tool_error": 1.0, "tool_error_missing": 1.0}
    assert [one.reward for one in made.transitions] == [1.0, None]


async def test_rules_add_up_and_reach_the_credit_assigner(tmp_path: Path) -> None:
    good, bad = of(saying("ANSWER: 1")), of(saying("hm", 4))
    rewards = (
        StepReward(rule="format", args={"pattern": "ANSWER"}),
        StepReward(rule="length", weight=-0.5, args={"limit": 2}),
    )
    scored = await Scorer(rewards, run_folder=tmp_path).score([group(good, bad)])
    # 1 + 0 and 0 - 0.5 * 1: mean 0.25
    assigner: Any = find_assigner("step_reward", {})
    assert assign(assigner, scored.groups, {"baseline": "index"}) == [[[0.75], [-0.75]]]


async def test_without_rules_groups_stay_as_they_are(tmp_path: Path) -> None:
    made = of(saying("x"))
    assert await score(made, tmp_path) == (made, {})


JUDGED = {"url": "http://h/v1", "model": "m", "prompt": "p"}


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (StepReward(rule="tool_eror"), "no rule 'tool_eror'. Did you mean 'tool_error'"),
        (StepReward(rule="length"), "missing a required argument: 'limit'"),
        (StepReward(rule="tool_error", args={"limit": 1}), "unexpected keyword argument 'limit'"),
        (StepReward(rule="format", args={"pattern": "("}), "pattern '(' is no regular expression"),
        (
            StepReward(rule="format", args={"pattern": 1}),
            "pattern: Expected `str`, got `int`; it is 1",
        ),
        (StepReward(rule="length", args={"limit": 0}), "limit: Expected `int` >= 1; it is 0"),
        (
            StepReward(rule="latency", args={"limit_seconds": "x"}),
            "limit_seconds: Expected `float`",
        ),
        (StepReward(rule="latency", args={"limit_seconds": 0}), "> 0.0; it is 0"),
        (StepReward(rule="judge", args={"model": "m"}), "missing required field `url`"),
        (StepReward(rule="judge", args={**JUDGED, "concurrency": 0}), "Expected `int` >= 1"),
        (
            StepReward(rule="judge", args={**JUDGED, "lowest": 1}),
            "'lowest' must be below 'highest'",
        ),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_runs(
    reward: StepReward, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        Scorer([reward], run_folder=tmp_path)
    assert complaint in str(raised.value)


async def test_a_users_rule_must_be_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rules_of_rewards.py").write_text("def short(trace):\n    return []\n")
    with pytest.raises(RunError, match="gave 0 values for the 1 transitions"):
        await score(of(saying("x")), tmp_path, StepReward(rule="rules_of_rewards:short"))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return [1 / 0]", "failed with ZeroDivisionError: division by zero"),
        ("return None", "failed with TypeError"),
        ("return ['much']", "gave 'much', which is no finite number"),
        ("return [float('nan')]", "gave nan, which is no finite number"),
    ],
)
async def test_a_users_rule_that_fails_is_named_with_the_rollout(
    body: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"failing_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def rule(trace):\n    {body}\n")
    with pytest.raises(RunError) as raised:
        await score(of(saying("x")), tmp_path, StepReward(rule=f"{name}:rule"))
    assert f"rule '{name}:rule', rollout 'r0': it {complaint}" in str(raised.value)


async def test_rules_that_are_named_twice_have_a_metric_each(tmp_path: Path) -> None:
    rewards = [StepReward(rule="format", args={"pattern": one}) for one in ("a", "b", "c")]
    _, metrics = await score(of(saying("ab")), tmp_path, *rewards)
    assert {name: value for name, value in metrics.items() if "missing" not in name} == {
        "format": 1.0,
        "format_2": 1.0,
        "format_3": 0.0,
    }


# -- the judge ----------------------------------------------------------------------------------


def judge(server: ModelServer, **args: Any) -> StepReward:
    given = {"url": server.url, "model": "judge", "prompt": "Is it right?", **args}
    return StepReward(rule="judge", weight=2.0, args=given)


async def test_a_judges_number_is_the_value_and_is_asked_for_once(tmp_path: Path) -> None:
    made = of(saying("forty-two"), tool())
    asked: list[Any] = []

    def half(request: Any) -> Answer:
        asked.append(request)
        return Answer("0.5")

    with ModelServer(half) as server:
        first, metrics = await score(made, tmp_path, judge(server))
        again, _ = await score(made, tmp_path, judge(server))
    assert len(asked) == 1
    assert [one.reward for one in first.transitions] == [1.0, None]
    assert [one.reward for one in again.transitions] == [1.0, None]
    assert metrics == {"judge": 0.5, "judge_missing": 0.0}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("0.5", 0.5),
        (" .5\n", 0.5),
        ("+1.", 1.0),
        ("5e-1", 0.5),
        ("Score: 0.25.", 0.25),
        ("-0", 0.0),
    ],
)
async def test_a_judge_may_write_its_number_in_any_way(
    said: str, value: float, tmp_path: Path
) -> None:
    with ModelServer(lambda request: Answer(said)) as server:
        _, metrics = await score(of(saying("x")), tmp_path, judge(server))
    assert metrics == {"judge": value, "judge_missing": 0.0}


@pytest.mark.parametrize(
    "said", ["I can't tell", "7", "0.5 or 0.6", "1/2", "50%", "0,5", "0.5.1", "v1", "1st", "nan"]
)
async def test_a_judge_that_gives_no_number_in_range_gives_no_reward(
    said: str, tmp_path: Path
) -> None:
    with ModelServer(lambda request: Answer(said)) as server:
        scored, metrics = await score(of(saying("x")), tmp_path, judge(server))
    assert scored.transitions[0].reward is None
    assert metrics == {"judge_missing": 1.0}


async def test_a_judge_that_fails_is_asked_again_the_next_time(tmp_path: Path) -> None:
    made = of(saying("x"))
    with ModelServer(lambda request: Answer("1")) as server:
        reward = judge(server)
    scored, _ = await score(made, tmp_path, reward)  # its server is gone
    assert scored.transitions[0].reward is None
    with ModelServer(lambda request: Answer("1")) as server:
        scored, _ = await score(made, tmp_path, judge(server))
    assert scored.transitions[0].reward == 2.0
