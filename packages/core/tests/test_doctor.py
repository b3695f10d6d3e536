"""`lightningrl doctor` names each problem that a real store shows, and nothing else."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from click.testing import CliRunner

from lightningrl.checks import CHECKS, MOST_COUNTED, Evidence, Finding, Place, examine
from lightningrl.cli import commands
from lightningrl.cli.doctor import gather_evidence
from lightningrl.cli.stored_run import StoredRun
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    Claim,
    Endpoint,
    Failure,
    FailureKind,
    Mode,
    Policy,
    RetryPolicy,
)
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.ports import held_port
from lightningrl_testkit.records import call, group, reward

ONCE = RetryPolicy(max_attempts=1, max_infrastructure_failures=0)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


async def evidence(store: SqliteStore) -> Evidence:
    return await gather_evidence(StoredRun("run", store, None))


async def findings(store: SqliteStore) -> list[Finding]:
    return examine(await evidence(store), Place.DOCTOR)


async def only_finding(store: SqliteStore) -> Finding:
    (finding,) = await findings(store)
    return finding


async def score(store: SqliteStore, claim: Claim, value: float | None) -> None:
    attempt = claim.attempt.id
    await store.append([call(attempt, "c")])
    if value is not None:
        await store.append([reward(attempt, value)])
    await store.finish(attempt, AttemptState.SUCCEEDED)


async def fail(
    store: SqliteStore, claim: Claim, message: str, kind: FailureKind = FailureKind.AGENT
) -> None:
    failure = Failure(kind, message)
    await store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)


# -- runs in order ------------------------------------------------------------------------------


async def test_an_empty_store_has_no_problem(store: SqliteStore) -> None:
    assert await findings(store) == []


async def test_a_run_in_order_has_no_problem(store: SqliteStore) -> None:
    await store.enqueue(group(2) + group(1, mode=Mode.VAL))
    claims = await store.claim("worker", limit=3)
    for value, one in enumerate(claims):
        await score(store, one, float(value))
    assert await findings(store) == []


async def test_a_run_that_has_ended_needs_no_runner_no_engine_and_no_open_gateway(
    store: SqliteStore, closed_url: str
) -> None:
    held = (await store.now()) - timedelta(seconds=60)
    closed = Endpoint(closed_url)
    await store.put_policy(Policy("policy", "run", 3, (closed,), held_until=held))
    await store.enqueue(group(2))
    for value, one in enumerate(await store.claim("worker", limit=2)):
        await score(store, one, float(value))
    found = await evidence(store)
    assert found.operations is not None
    nobody = replace(found.operations, workers=())
    assert examine(replace(found, operations=nobody), Place.DOCTOR) == []


# -- one test for each check --------------------------------------------------------------------


async def test_no_runner(store: SqliteStore) -> None:
    await store.enqueue(group(2))
    problem = await only_finding(store)
    assert problem.kind == "no runner"
    assert problem.evidence.startswith("2 rollouts of run 'run' are queued")
    assert "lightningrl runner RECIPE" in problem.remedy


async def test_a_runner_that_asked_for_work_is_a_runner(store: SqliteStore) -> None:
    await store.enqueue(group(2))
    await store.claim("worker", limit=1)
    assert await findings(store) == []


async def test_expired_lease(store: SqliteStore) -> None:
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker-7", lease_seconds=0)
    problem = await only_finding(store)
    assert problem.kind == "expired lease"
    assert problem.evidence.startswith(
        f"1 running attempt without a lease; that of attempt {claim.attempt.id!r}"
    )
    assert "worker 'worker-7'" in problem.evidence


@pytest.fixture
def closed_url() -> Iterator[str]:
    """Where no engine listens."""
    with held_port() as port:
        yield f"http://127.0.0.1:{port}/v1"


async def test_engine_down(store: SqliteStore, closed_url: str) -> None:
    await store.enqueue(group(1))
    await store.claim("worker")
    with ModelServer() as engine:
        endpoints = (Endpoint(engine.url), Endpoint(closed_url))
        await store.put_policy(Policy("policy", "run", 0, endpoints))
        problem = await only_finding(store)
    assert problem.kind == "engine down"
    assert problem.evidence.startswith(f"endpoint {closed_url!r} of policy 'policy': it can't be")


async def test_gateway_held(store: SqliteStore) -> None:
    await store.enqueue(group(1))
    await store.claim("worker")
    now = await store.now()
    with ModelServer() as engine:
        policy = Policy("policy", "run", 3, (Endpoint(engine.url),))
        ran_out = msgspec.structs.replace(policy, held_until=now - timedelta(seconds=60))
        await store.put_policy(ran_out)
        problem = await only_finding(store)
        assert problem.kind == "gateway held"
        assert "(version 3) ran out 60 s ago, and calls are refused since" in problem.evidence
        held = msgspec.structs.replace(policy, held_until=now + timedelta(seconds=60))
        await store.put_policy(held)
        assert "new calls of policy 'policy' wait" in (await only_finding(store)).evidence


async def test_all_rewards_equal(store: SqliteStore) -> None:
    await store.enqueue(group(2, task="a") + group(2, task="b"))
    for one in await store.claim("worker", limit=4):
        await score(store, one, 0.0)
    problem = await only_finding(store)
    assert problem.kind == "all rewards equal"
    assert "within each of the last 2 training groups all rewards are equal (2 times 0)" in (
        problem.evidence
    )


async def test_one_group_with_two_rewards_is_enough_to_learn(store: SqliteStore) -> None:
    await store.enqueue(group(2, task="a") + group(2, task="b"))
    for one in await store.claim("worker", limit=4):
        is_right = one.rollout.spec.task_id == "b" and one.rollout.spec.member == 1
        await score(store, one, 1.0 if is_right else 0.0)
    assert await findings(store) == []


async def test_missing_reward(store: SqliteStore) -> None:
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker")
    await score(store, claim, None)
    problem = await only_finding(store)
    assert problem.kind == "missing reward"
    assert claim.rollout.id in problem.evidence


async def test_an_agent_that_returned_no_reward_is_named_as_such(store: SqliteStore) -> None:
    await store.enqueue(group(1, retry=ONCE))
    (claim,) = await store.claim("worker")
    await fail(store, claim, "in whatever words", FailureKind.NO_REWARD)
    assert [one.kind for one in await findings(store)] == ["missing reward", "rollouts fail"]


async def test_rollouts_fail(store: SqliteStore) -> None:
    await store.enqueue(group(3, mode=Mode.VAL, retry=ONCE))
    first, second, third = await store.claim("worker", limit=3)
    await score(store, first, 1.0)
    await fail(store, second, "ValueError: no\n  File agent.py, line 3")
    assert await findings(store) == []  # one of two is not most
    await fail(store, third, "ValueError: no\n  File agent.py, line 3")
    problem = await only_finding(store)
    assert problem.kind == "rollouts fail"
    assert problem.evidence.startswith("2 of the last 3 rollouts failed")
    assert problem.evidence.endswith("(agent): ValueError: no")


UNREAD = [
    '<tool_call>{"name": "add", "arguments": {}}</tool_call>',
    'I will use {"name": "add", "arguments": {"x": 1}}',
    "<function=add>{}</function>",
]


@pytest.mark.parametrize("text", UNREAD)
async def test_tool_parser_off(store: SqliteStore, text: str) -> None:
    problem = await after_answer(store, text, b'{"tools":[{}]}')
    assert problem is not None
    assert problem.kind == "tool parser off"
    assert f"it answered {text[:80]!r} and no tool call was read from it" in problem.evidence


async def test_one_unread_tool_call_among_many_is_how_a_policy_learns(store: SqliteStore) -> None:
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker")
    attempt = claim.attempt.id
    unread = answer(attempt, "c1", UNREAD[0])
    asked = answer(attempt, "c2", None, tool_calls=[{"id": "x"}])
    cut_off = answer(attempt, "c3", UNREAD[0], finish_reason="length")
    await store.append([unread, asked, cut_off, reward(attempt, 1.0)])
    await store.finish(attempt, AttemptState.SUCCEEDED)
    assert await findings(store) == []


async def test_the_engines_own_word_on_a_tool_call_is_believed(store: SqliteStore) -> None:
    problem = await after_answer(store, "", b"{}", error="tool parser: no closing brace")
    assert problem is not None
    assert problem.evidence.endswith("tool parser: no closing brace")


@pytest.mark.parametrize(
    ("text", "request_body"),
    [
        ("the answer is 3", b'{"tools":[{}]}'),
        (UNREAD[0], b"{}"),  # no tools were offered: it is just text
    ],
)
async def test_plain_answers_are_no_tool_calls(
    store: SqliteStore, text: str, request_body: bytes
) -> None:
    assert await after_answer(store, text, request_body) is None


def answer(
    attempt: AttemptId,
    ident: str,
    text: str | None,
    *,
    finish_reason: str = "stop",
    tool_calls: Sequence[object] = (),
) -> CallEvent:
    """A call to which tools were offered."""
    plain = call(attempt, ident, request=b'{"tools":[{}]}')
    message = {"role": "assistant", "content": text, "tool_calls": tool_calls}
    choice = msgspec.structs.replace(
        plain.choices[0], message=msgspec.json.encode(message), finish_reason=finish_reason
    )
    return msgspec.structs.replace(plain, choices=(choice,))


async def after_answer(
    store: SqliteStore, text: str, request: bytes, error: str | None = None
) -> Finding | None:
    """The problem after a rollout in which the model answered `text`."""
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker")
    plain = answer(claim.attempt.id, "c", text)
    event = msgspec.structs.replace(plain, request=request, error=error)
    await store.append([event, reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    found = await findings(store)
    return found[0] if found else None


# -- the command --------------------------------------------------------------------------------


def in_folder(folder: Path, prepare: Callable[[SqliteStore], Awaitable[object]]) -> None:
    (folder / "recipe.yaml").write_text('name: run\nagent: "m:f"\n', encoding="utf-8")

    async def fill() -> None:
        store = SqliteStore.open(folder / "store.db")
        await prepare(store)
        await store.close()

    asyncio.run(fill())


def test_the_command_reports_evidence_and_remedy_and_exits_1(tmp_path: Path) -> None:
    in_folder(tmp_path, lambda store: store.enqueue(group(2)))
    result = CliRunner().invoke(commands, ["doctor", str(tmp_path)])
    assert result.exit_code == 1
    first, blank, name, evidence, remedy = result.output.splitlines()
    assert (first, blank, name) == ("run: 1 problem", "", "✗ no runner")
    assert evidence.startswith("  2 rollouts of run 'run' are queued")
    assert remedy.startswith("  → start one: lightningrl runner RECIPE --server URL")


def test_the_command_tells_programs_the_same(tmp_path: Path) -> None:
    in_folder(tmp_path, lambda store: store.enqueue(group(2)))
    result = CliRunner().invoke(commands, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["run"]
    assert (finding["kind"], finding["level"]) == ("no runner", "problem")
    assert set(finding) == {"kind", "level", "evidence", "remedy"}


def test_what_the_newest_iteration_refused_is_in_a_runs_folder(tmp_path: Path) -> None:
    in_folder(tmp_path, lambda store: store.enqueue([]))
    lines = [{"iteration": n, "train/unidentified_calls": calls} for n, calls in ((1, 7), (2, 3))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(commands, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["run"]
    assert finding["kind"] == "refused requests"
    assert finding["evidence"].startswith("3 model calls came without a rollout")


async def test_of_many_queued_rollouts_the_number_is_a_bound(store: SqliteStore) -> None:
    await store.enqueue(group(MOST_COUNTED + 1))
    assert (await only_finding(store)).evidence.startswith("at least 1000 rollouts of run 'run'")


def test_the_command_exits_0_where_nothing_is_wrong(tmp_path: Path) -> None:
    in_folder(tmp_path, lambda store: store.enqueue([]))
    result = CliRunner().invoke(commands, ["doctor", str(tmp_path)])
    checks = sum(Place.DOCTOR in check.places for check in CHECKS)
    assert (result.exit_code, result.output) == (
        0,
        f"run: nothing wrong found ({checks} checks)\n",
    )


def test_the_command_needs_something_to_examine() -> None:
    result = CliRunner().invoke(commands, ["doctor"])
    assert result.exit_code == 2
    assert "name a run's folder, or a server by --server URL" in result.output
