"""`lightningrl show` draws stored rollouts: who did what, with which tokens, reward and credit."""

import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.cli.stored_run import find_run_folder
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    EventId,
    Failure,
    FailureKind,
    Mode,
    RetryPolicy,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import AT, call, group, log, reward

RECIPE = """
name: run
agent: "m:f"
algorithm: {iterations: 1, tasks_per_iteration: 1, group_size: 2, credit_args: {normalise: mean}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def show(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(commands, ["show", str(folder), *options])


def lines(result: Result) -> list[str]:
    """The drawn lines without the tree's branches."""
    assert result.exit_code == 0, result.output
    return [re.sub(r"^[│├└─ ]+", "", line).rstrip() for line in result.output.splitlines()]


def begin(
    attempt: AttemptId, step: str, seconds: float, kind: StepKind, parent: str | None, **more: Any
) -> StepStartEvent:
    return StepStartEvent(
        id=EventId(f"start-{step}"),
        attempt_id=attempt,
        at=AT + timedelta(seconds=seconds),
        step_id=StepId(step),
        parent_id=StepId(parent) if parent else None,
        kind=kind,
        **more,
    )


def end(
    attempt: AttemptId, step: str, output: Any = None, error: str | None = None
) -> StepEndEvent:
    return StepEndEvent(
        id=EventId(f"end-{step}"),
        attempt_id=attempt,
        at=AT,
        step_id=StepId(step),
        output=output,
        error=error,
    )


def answered(attempt: AttemptId, step: str, seconds: float, message: dict[str, Any]) -> CallEvent:
    plain = call(attempt, step)
    choice = msgspec.structs.replace(plain.choices[0], message=json.dumps(message).encode())
    return msgspec.structs.replace(
        plain, step_id=StepId(step), at=AT + timedelta(seconds=seconds), choices=(choice,)
    )


async def calculator_run(folder: Path) -> None:
    """Two rollouts of one task: one uses a tool and is right, one guesses and is wrong."""
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(2))
    claims = await store.claim("worker", limit=2)
    right, wrong = sorted(claims, key=lambda one: one.rollout.spec.member)
    one = right.attempt.id
    asks = {"tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": '{"x":1}'}}]}
    await store.append(
        [
            begin(one, "agent", 0, StepKind.AGENT, None, name="solver", agent="solver"),
            begin(one, "s1", 1, StepKind.LLM, "agent", name="gpt", agent="solver"),
            answered(one, "s1", 2, asks),
            begin(
                one,
                "t1",
                3,
                StepKind.TOOL,
                "agent",
                name="add",
                agent="solver",
                inputs={"x": 1},
                tool_call_id="c1",
            ),
            end(one, "t1", output=2),
            reward(one, 0.25, name="tool", step="t1"),
            answered(one, "s2", 5, {"content": "it is [bold]2[/bold]"}),
            begin(one, "t2", 6, StepKind.TOOL, "agent", name="check", agent="solver"),
            end(one, "t2", error="ValueError: no"),
            reward(one, 1.0),
        ]
    )
    await store.finish(one, AttemptState.SUCCEEDED, output="2")
    two = wrong.attempt.id
    await store.append([call(two, "guess"), log(two, "l1", "a line for people"), reward(two, 0.0)])
    await store.finish(two, AttemptState.SUCCEEDED, output="3")
    await store.take("run", 1)
    await store.close()


def test_a_call_that_no_gateway_recorded_shows_what_the_agent_was_answered(folder: Path) -> None:
    async def record() -> None:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1))
        [claim] = await store.claim("worker", limit=1)
        one = claim.attempt.id
        tool = {"function": {"name": "add", "arguments": '{"x":1}'}}
        said = {"role": "assistant", "content": "I add.", "tool_calls": [tool]}
        start = begin(one, "s1", 1, StepKind.LLM, None, name="gpt", agent="solver")
        await store.append([start, end(one, "s1", output=said), reward(one, 1.0)])
        await store.finish(one, AttemptState.SUCCEEDED, output="1")
        await store.close()

    asyncio.run(record())
    assert lines(show(folder))[2:] == [
        'call solver I add. → add({"x":1})',
        "recorded without tokens",
        "not trained: no call of this step reached the gateway",
    ]


def test_a_rollout_is_a_tree_of_its_steps(folder: Path) -> None:
    asyncio.run(calculator_run(folder))
    drawn = show(folder).output.splitlines()
    assert drawn[0] == "run: 2 succeeded"
    assert re.match(
        r"train · iteration 1 · task task #0 · succeeded · reward 1\.000 · \d+\.\d s · r-", drawn[1]
    )
    # rewards 1 and 0, mean 0.5: the credit of each call is +0.5 and -0.5
    assert drawn[2:12] == [
        "├── agent solver",
        "│   interrupted",
        '│   ├── call solver → add({"x":1})',
        "│   │   prompt 3 · sampled 2 · version 0 · mean log-prob -0.500 · reward +0.250"
        " · credit +0.500",
        '│   ├── tool add {"x": 1} → 2',
        "│   │   reward +0.250",
        "│   └── tool check",
        "│       ValueError: no",
        "└── call policy it is [bold]2[/bold]",
        "    prompt 3 · sampled 2 · version 0 · mean log-prob -0.500 · credit +0.500",
    ]
    assert "task task #1 · succeeded · reward 0.000" in drawn[12]
    assert drawn[13:] == [
        "├── call policy hello",
        "│   prompt 3 · sampled 2 · version 0 · mean log-prob -0.500 · credit -0.500",
        "└── info: a line for people",
    ]


def test_a_rollout_that_no_iteration_took_has_no_credit(folder: Path) -> None:
    async def validate() -> None:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1, mode=Mode.VAL, variant="greedy"))
        (claim,) = await store.claim("worker")
        await store.append([call(claim.attempt.id, "c"), reward(claim.attempt.id, 1.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        await store.close()

    asyncio.run(validate())
    result = show(folder)
    assert "val · iteration 1 · task task #0 (greedy) · succeeded" in result.output
    assert "credit" not in result.output


def test_failed_attempts_stand_with_their_reason(folder: Path) -> None:
    async def stumble() -> None:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1, retry=RetryPolicy(max_infrastructure_failures=1)))
        (first,) = await store.claim("worker")
        broken = msgspec.structs.replace(
            call(first.attempt.id, "c"), choices=(), error="engine gone", http_status=502
        )
        await store.append([broken])
        failure = Failure(FailureKind.INFRASTRUCTURE, "APIError: 502\n  File agent.py, line 3")
        await store.finish(first.attempt.id, AttemptState.FAILED, failure=failure)
        (second,) = await store.claim("worker")
        await store.append([reward(second.attempt.id, 1.0, step="ghost", name="r")])
        await store.close()

    asyncio.run(stumble())
    drawn = lines(show(folder))
    assert "running · 2 attempts · still running" in drawn[1]
    assert drawn[2].startswith("attempt 1 · failed · ")
    assert drawn[3:7] == [
        "call policy",
        "prompt 3 · sampled 2 · version 0",
        "not trained: the answer has no choices",
        "engine gone",
    ]
    assert drawn[7:9] == ["infrastructure: APIError: 502", "File agent.py, line 3"]
    assert drawn[9].startswith("attempt 2 · running · still running · worker · a-")
    assert drawn[10] == "reward +1 for step 'ghost', which is not known"


def test_it_can_be_narrowed_to_what_is_asked_for(folder: Path) -> None:
    async def several() -> None:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1, task="a"))
        await store.enqueue(group(1, task="b", mode=Mode.VAL))
        await store.enqueue(group(1, task="c", iteration=2))
        await store.close()

    asyncio.run(several())

    def tasks(*options: str) -> list[str]:
        return re.findall(r"task (\w+) #", show(folder, *options).output)

    assert tasks() == ["a", "b", "c"]
    assert tasks("--last", "1") == ["c"]
    assert tasks("--iteration", "1") == ["a", "b"]
    assert tasks("--mode", "val") == ["b"]
    assert tasks("--rollout", group(1, task="a")[0].id) == ["a"]


def test_long_texts_are_cut_unless_all_is_asked_for(folder: Path) -> None:
    async def talk() -> None:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1))
        (claim,) = await store.claim("worker")
        words = {"content": "word\n" * 400}
        await store.append([answered(claim.attempt.id, "s", 1, words)])
        await store.close()

    asyncio.run(talk())
    assert show(folder).output.count("word") == 32  # 159 characters, 5 a word, and the ellipsis
    assert show(folder, "--full").output.count("word") == 400


def test_nothing_that_matches_is_an_error_that_says_what_there_is(folder: Path) -> None:
    asyncio.run(calculator_run(folder))
    result = show(folder, "--iteration", "7")
    assert result.exit_code == 1
    assert result.stderr == "Error: run 'run' has no such rollout; it has 2 succeeded\n"


def test_a_run_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = folder / "runs"
    (runs / "mine").mkdir(parents=True)
    (folder / "recipe.yaml").rename(runs / "mine" / "recipe.yaml")
    asyncio.run(calculator_run(runs / "mine"))
    monkeypatch.chdir(folder)
    assert show(Path("mine")).exit_code == 0
    result = show(Path("mien"))
    assert result.exit_code == 2
    assert "Did you mean 'mine'?" in result.stderr


def test_it_works_while_the_run_is_being_written(folder: Path) -> None:
    async def watch() -> Result:
        store = SqliteStore.open(folder / "store.db")
        await store.enqueue(group(1))
        result = await asyncio.to_thread(show, folder)
        await store.close()
        return result

    assert "run: 1 queued" in asyncio.run(watch()).output


def test_credit_of_a_method_beside_the_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "credit_of_the_show_test.py").write_text(
        "def seven(groups):\n"
        "    return [[[7.0] * len(t.transitions) for t in g.traces] for g in groups]\n"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = RECIPE.replace(
        "credit_args: {normalise: mean}", 'credit: "credit_of_the_show_test:seven"'
    )
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    origin = {"recipe_path": str(tmp_path / "source" / "recipe.yaml")}
    (folder / "run.json").write_text(json.dumps(origin), encoding="utf-8")
    asyncio.run(calculator_run(folder))
    assert "credit +7.000" in show(folder).output


def test_a_name_is_that_of_a_run_before_that_of_the_agents_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("shop"), Path("runs") / "shop"):
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert find_run_folder("shop") == Path("runs") / "shop"
    assert find_run_folder(str(tmp_path / "shop")) == tmp_path / "shop"
