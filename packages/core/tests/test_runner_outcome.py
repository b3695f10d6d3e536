"""One source decides a rollout's reward, and failures name whose fault they are."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import httpx
import numpy as np
import openai
import pytest

import lightningrl
from lightningrl.errors import AgentError, CommandFailed, NoReward
from lightningrl.runner.outcome import AttemptTrace, failure_of, judge
from lightningrl.schema import (
    AttemptId,
    CallEvent,
    CallStatus,
    Event,
    EventId,
    FailureKind,
    RewardEvent,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)

SERVER = "http://127.0.0.1:1"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def reward_event(value: float, step: str | None = None) -> RewardEvent:
    return RewardEvent(
        id=EventId(f"e-{value}"),
        attempt_id=AttemptId("a"),
        at=AT,
        value=value,
        step_id=None if step is None else StepId(step),
    )


def decide(returned: Any, *events: Event, by_recipe: bool = False) -> tuple[float, dict] | None:
    found = judge(returned, events, by_recipe=by_recipe, what="rollout 'r'")
    return None if found is None else (found.final, dict(found.steps))


@pytest.mark.parametrize("by_recipe", [False, True])
def test_a_number_or_a_reward_decides(by_recipe: bool) -> None:
    steps = lightningrl.Reward(1, steps={"s-1": 0.5})
    assert decide(0.25, by_recipe=by_recipe) == (0.25, {})
    assert decide(True, by_recipe=by_recipe) == (1.0, {})
    assert decide(steps, by_recipe=by_recipe) == (1.0, {"s-1": 0.5})
    # A tensor without dimensions has a length as well, and refuses to tell it.
    for one in (np.float32(0.25), np.array(0.25)):
        assert decide(one, by_recipe=by_recipe) == (0.25, {})


def test_a_recipes_function_may_return_parts_beside_the_reward() -> None:
    plain = {"final": 1, "format": True, "accuracy": 0.5}
    ours = lightningrl.Reward(1, parts={"format": 1.0, "accuracy": 0.5})
    for returned in (plain, ours):
        found = judge(returned, (), by_recipe=True, what="")
        assert found is not None
        assert (found.final, dict(found.parts)) == (1.0, {"format": 1.0, "accuracy": 0.5})


def test_parts_that_can_not_stand_beside_the_reward_are_refused() -> None:
    with pytest.raises(NoReward, match="has no 'final'"):
        judge({"format": 1.0}, (), by_recipe=True, what="")
    with pytest.raises(AgentError, match="the part 'format' of its reward is nan"):
        judge({"final": 1.0, "format": float("nan")}, (), by_recipe=True, what="")
    with pytest.raises(AgentError, match="the final reward's own name"):
        judge(lightningrl.Reward(1, parts={"final": 1.0}), (), by_recipe=True, what="")


def test_an_agents_mapping_is_its_output() -> None:
    emitted = reward_event(0.5)
    assert judge({"final": 1.0}, (emitted,), by_recipe=False, what="") is None


def test_an_emitted_final_reward_decides_and_a_steps_reward_does_not() -> None:
    assert decide("text", reward_event(0.5)) is None
    with pytest.raises(AgentError, match="rollout 'r' has no reward: the agent returned 'text'"):
        decide("text", reward_event(0.5, step="s-1"))


@pytest.mark.parametrize("returned", [None, "1.0", b"1", [1.0], {"reward": 1.0}, np.array([1.0])])
def test_what_is_no_number_is_no_reward(returned: Any) -> None:
    with pytest.raises(AgentError, match="has no reward"):
        decide(returned)
    with pytest.raises(AgentError, match="the recipe's reward function returned"):
        decide(returned, by_recipe=True)


@pytest.mark.parametrize(
    ("returned", "events", "by_recipe", "text"),
    [
        (1.0, [reward_event(0.5)], False, "1 by lightningrl.final_reward.. and the agent's return"),
        (1.0, [reward_event(0.5)], True, "1 by lightningrl.final_reward.. and the recipe's reward"),
        (None, [reward_event(0.5), reward_event(1.0)], False, "2 by lightningrl.final_reward..;"),
    ],
)
def test_two_sources_fail(returned: Any, events: list[Event], by_recipe: bool, text: str) -> None:
    with pytest.raises(AgentError, match=f"rollout 'r' has 2 final rewards: {text}"):
        decide(returned, *events, by_recipe=by_recipe)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(10**400)])
def test_a_value_that_is_not_finite_fails_by_name(value: float) -> None:
    with pytest.raises(AgentError, match="rollout 'r': the final reward is"):
        decide(value)
    with pytest.raises(AgentError, match="rollout 'r': the reward of step 's-1' is"):
        decide(lightningrl.Reward(1.0, steps={"s-1": value}))


class Unreadable:
    def __float__(self) -> float:
        raise KeyError("no number")


@pytest.mark.parametrize(
    "returned",
    [Unreadable(), lightningrl.Reward(1.0, {"s": Unreadable()}), lightningrl.Reward(0.0, None)],  # pyright: ignore[reportArgumentType]  - the mistake
)
def test_a_reward_that_cannot_be_read_is_the_agents_error(returned: Any) -> None:
    with pytest.raises(AgentError, match="rollout 'r': its reward can't be read: "):
        decide(returned)


def call(status: CallStatus, http_status: int) -> CallEvent:
    return CallEvent(
        id=EventId("c"),
        attempt_id=AttemptId("a"),
        at=AT,
        step_id=StepId("s"),
        agent=None,
        policy="policy",
        model="policy",
        endpoint="",
        version_start=0,
        version_end=0,
        request=b"{}",
        sampling=None,
        prompt_ids=b"",
        choices=(),
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        held_ms=0.0,
        upstream_retries=0,
        status=status,
        http_status=http_status,
        error=None,
    )


@pytest.mark.parametrize(
    ("status", "http_status", "kind"),
    [
        (CallStatus.FAILED, 503, FailureKind.INFRASTRUCTURE),
        (CallStatus.FAILED, 400, FailureKind.AGENT),
        (CallStatus.DELIVERED, 200, FailureKind.AGENT),
    ],
)
def test_a_failure_after_a_5xx_is_not_the_agents(
    status: CallStatus, http_status: int, kind: FailureKind
) -> None:
    failure = failure_of(RuntimeError("wrapped"), [call(status, http_status)], SERVER)
    assert failure.kind is kind


def raised_by(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001  whatever the client raises is what is judged
        return error
    raise AssertionError("nothing was raised")


def ask_anthropic(url: str) -> object:
    import anthropic

    return anthropic.Anthropic(base_url=url, api_key="k", max_retries=0).models.list()


CLIENTS: dict[str, Callable[[str], object]] = {
    "openai": lambda url: openai.OpenAI(base_url=url, api_key="k", max_retries=0).models.list(),
    "anthropic": ask_anthropic,
    "httpx": lambda url: httpx.get(url),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_to_the_gateway_that_fails_is_not_the_agents(client: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    error = raised_by(lambda: CLIENTS[client](url))  # nobody listens there any more
    assert failure_of(error, (), url).kind is FailureKind.INFRASTRUCTURE
    assert failure_of(error, (), SERVER).kind is FailureKind.AGENT  # a tool's own business
    wrapped = RuntimeError("a framework's")
    wrapped.__context__ = error
    assert failure_of(wrapped, (), url).kind is FailureKind.INFRASTRUCTURE


@pytest.mark.parametrize("status", [503, 422])
def test_a_server_error_of_the_gateway_is_not_the_agents(status: int) -> None:
    response = httpx.Response(status, request=httpx.Request("POST", f"{SERVER}/v1/chat"))
    error = raised_by(response.raise_for_status)
    by_gateway = failure_of(error, (), SERVER).kind is FailureKind.INFRASTRUCTURE
    assert by_gateway == (status == 503)
    assert failure_of(error, (), "http://127.0.0.1:2").kind is FailureKind.AGENT


def test_an_error_that_names_no_url_is_judged_by_how_the_last_call_ended() -> None:
    error = aiohttp.ServerDisconnectedError()
    for status, kind in (
        (CallStatus.CANCELLED, FailureKind.INFRASTRUCTURE),
        (CallStatus.DELIVERED, FailureKind.AGENT),
    ):
        assert failure_of(error, [call(status, 200)], SERVER).kind is kind


PYTHON = """Traceback (most recent call last):
  File "agent.py", line 3, in <module>
httpx.ConnectError: [Errno 111] Connection refused
"""
NODE = """node:internal/deps/undici/undici:14976
      Error.captureStackTrace(err);
            ^

TypeError: fetch failed
    at node:internal/deps/undici/undici:14976:13 {
  [cause]: Error: read ECONNRESET
      at TCP.onStreamRead (node:internal/stream_base_commons:218:20) {
    errno: -104,
"""
NODE_HTTP = (
    "Error: connect ECONNREFUSED 127.0.0.1:1\n    at TCPConnectWrap.afterConnect (node:net:1611:16)"
)
GO = '2026/01/01 Post "http://127.0.0.1:1/v1/chat": dial tcp 127.0.0.1:1: connect: connection refused'
CAUSE = f"{PYTHON}\nDuring handling of the above exception, another exception occurred:\n\nValueError: no"


CHAINED = "\nDuring handling of the above exception, another exception occurred:\n\n"


def python(*errors: str) -> str:
    """What Python writes of exceptions of which each followed from the one before."""
    frame = 'Traceback (most recent call last):\n  File "agent.py", line 3, in <module>\n'
    return CHAINED.join(f"{frame}{error}\n" for error in errors)


REFUSED = "ConnectionRefusedError: [Errno 111] Connection refused"
POSTGRES = """psycopg.OperationalError: connection to server at "10.0.0.5", port 5432 failed: Connection refused
\tIs the server running on that host and accepting TCP/IP connections?"""
REDIS = "redis.exceptions.ConnectionError: Error 111 connecting to redis.internal:6379. Connection refused."
MYSQL = (
    "pymysql.err.OperationalError: (2003, \"Can't connect to MySQL server on '10.0.0.5'"
    ' ([Errno 111] Connection refused)")'
)
ASYNCIO = "ConnectionRefusedError: [Errno 111] Connect call failed ('%s', %s)"
PYDANTIC = """pydantic_core._pydantic_core.ValidationError: 1 validation error for Answer
city
  Field required [type=missing, input_value='Connection refused', input_type=str]
    For further information visit https://errors.pydantic.dev/2.9/v/missing"""
SQLITE = 'sqlite3.OperationalError: near "ReadTimeout": syntax error'
LITELLM = "litellm.APIConnectionError: 'NoneType' object is not iterable"
QUOTING = "ValueError: no answer in:\nhttpx.ConnectError: Connection refused"
NODE_THROWN = """file:///agent.mjs:3
      throw new Error(answer)
            ^

Error: socket hang up
    at file:///agent.mjs:3:13"""


@pytest.mark.parametrize(
    ("error", "infrastructure"),
    [
        # What another server refused.
        (python(POSTGRES), False),
        (python(REFUSED, REDIS), False),
        (python(REFUSED, MYSQL), False),
        (python(ASYNCIO % ("10.0.0.5", 5432)), False),
        # What the policy wrote.
        (python(PYDANTIC), False),
        (python(SQLITE), False),
        (python(LITELLM), False),
        (python(QUOTING), False),
        (NODE_THROWN, False),
        # An error that was logged, chained, before another one.
        (python("httpx.ConnectError: no", "RuntimeError: no") + python("ValueError: no"), False),
        # The way to the gateway.
        (python("httpx.ConnectError: [Errno 111] Connection refused", "openai.APIConnectionError: Connection error."), True),
        (python(REFUSED, "urllib.error.URLError: <urlopen error [Errno 111] Connection refused>"), True),
        (python(ASYNCIO % ("127.0.0.1", 1)), True),
        (python(ASYNCIO % ("::1", 1), "openai.APIConnectionError: Connection error."), True),
        (python(REFUSED, REDIS) + python("httpx.ReadError"), True),
        ("curl: (7) Failed to connect to 127.0.0.1 port 1 after 0 ms: Couldn't connect", True),
        ('Exception in thread "main" java.net.ConnectException: Connection refused', True),
    ],
)  # fmt: skip
def test_words_of_a_failed_connection_count_only_in_an_error_of_transport(
    error: str, infrastructure: bool
) -> None:
    failed = CommandFailed(f"'./agent' ended with status 1; it wrote last:\n{error}")
    kind = failure_of(failed, (), SERVER).kind
    assert (kind is FailureKind.INFRASTRUCTURE) == infrastructure


def test_words_without_a_host_count_where_the_last_call_ended_without_its_client() -> None:
    failed = CommandFailed("it wrote last:\nagent: giving up: connection reset by peer")
    for status, kind in (
        (CallStatus.CANCELLED, FailureKind.INFRASTRUCTURE),
        (CallStatus.DELIVERED, FailureKind.AGENT),
    ):
        assert failure_of(failed, [call(status, 200)], SERVER).kind is kind
    postgres = CommandFailed(python(POSTGRES))
    broken = [call(CallStatus.CANCELLED, 499)]
    assert failure_of(postgres, broken, SERVER).kind is FailureKind.AGENT


@pytest.mark.parametrize(
    ("address", "infrastructure"), [(("10.0.0.5", 80), True), (("10.0.0.5", 5432), False)]
)
def test_an_address_may_be_what_the_servers_name_stands_for(
    address: tuple[str, int], infrastructure: bool
) -> None:
    failed = CommandFailed(python(ASYNCIO % address))
    kind = failure_of(failed, (), "http://gateway.internal").kind
    assert (kind is FailureKind.INFRASTRUCTURE) == infrastructure


@pytest.mark.parametrize(
    ("written", "infrastructure"),
    [
        (PYTHON, True),
        (NODE, True),
        (NODE_HTTP, True),
        (NODE_HTTP.replace("127.0.0.1:1", "10.0.0.7:5432"), False),
        (GO, True),
        (GO.replace("127.0.0.1:1", "example.org"), False),
        (CAUSE, True),
        # What a tool printed before something else went wrong.
        (f"curl: connection refused\n{PYTHON}ValueError: the answer is no number", False),
        ("curl: connection refused\nno answer after 10 turns", False),
        ("", False),
    ],
)
def test_a_command_that_could_not_reach_the_gateway_is_not_to_blame(
    written: str, infrastructure: bool
) -> None:
    error = CommandFailed(f"'./agent' ended with status 1; it wrote last:\n{written}")
    kind = failure_of(error, (), SERVER).kind
    assert (kind is FailureKind.INFRASTRUCTURE) == infrastructure


def test_a_failure_names_the_exception_and_the_users_frames_only() -> None:
    def users_function() -> None:
        raise ValueError("the user's")

    try:
        judge(users_function(), (), by_recipe=False, what="")
    except ValueError as error:
        message = failure_of(error, (), SERVER).message
    assert message.startswith("ValueError: the user's\n")
    assert "in users_function" in message

    try:
        judge(None, (), by_recipe=False, what="rollout 'r'")
    except AgentError as error:
        ours = failure_of(error, (), SERVER).message
    assert "runner/outcome.py" not in ours


def test_a_trace_shows_tool_calls_with_what_became_of_them() -> None:
    def start(step: str, kind: StepKind) -> StepStartEvent:
        return StepStartEvent(
            id=EventId(f"{step}-start"),
            attempt_id=AttemptId("a"),
            at=AT,
            step_id=StepId(step),
            parent_id=None,
            kind=kind,
            name="search",
            agent="solver",
            inputs={"q": step},
            tool_call_id=f"call-{step}",
        )

    def end(step: str, output: Any, error: str | None) -> StepEndEvent:
        return StepEndEvent(
            id=EventId(f"{step}-end"),
            attempt_id=AttemptId("a"),
            at=AT,
            step_id=StepId(step),
            output=output,
            error=error,
        )

    trace = AttemptTrace(
        (
            start("llm", StepKind.LLM),
            start("good", StepKind.TOOL),
            start("bad", StepKind.TOOL),
            start("cut", StepKind.TOOL),
            end("bad", None, "KeyError"),
            end("good", "found", None),
        )
    )
    assert [(one.id, one.output, one.error) for one in trace.tool_calls] == [
        ("call-good", "found", None),
        ("call-bad", None, "KeyError"),
        ("call-cut", None, "interrupted"),
    ]
    assert trace.tool_calls[0].inputs == {"q": "good"}
