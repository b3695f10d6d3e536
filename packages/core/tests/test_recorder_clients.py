"""Calls of plain `openai` and `anthropic` clients are recorded as steps, each once, as they were."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import lightningrl
from lightningrl.capture.client_calls import forget_client_calls, record_client_calls
from lightningrl.conversation.recorded import whole_requests
from lightningrl.experience.transition import Transition
from lightningrl.schema import StepKind
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.lab import MODEL, open_lab, script
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_testkit.production import begin_alone, read, written_bytes

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"key": {"type": "string"}}}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "lookup", "parameters": SCHEMA}}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
USE: list[Any] = [{"role": "user", "content": "use a"}]


class Vendor:
    """Who answers: a gateway, which speaks every dialect, reached by its address alone."""

    def __init__(self, rig: GatewayRig, engine: ModelServer, url: str, key: str) -> None:
        import anthropic

        self.rig = rig
        self.engine = engine
        options: Any = {"api_key": key, "max_retries": 0, "timeout": 60.0}
        self.openai = openai.AsyncOpenAI(base_url=url, **options)
        self.openai_sync = openai.OpenAI(base_url=url, **options)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), **options)
        self.anthropic_sync = anthropic.Anthropic(base_url=url.removesuffix("/v1"), **options)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()
        self.openai_sync.close()
        self.anthropic_sync.close()


pytestmark = pytest.mark.usefixtures("process_in_production")


@pytest.fixture(autouse=True)
def recorded_clients() -> Iterator[None]:
    record_client_calls()
    yield
    forget_client_calls()


@pytest.fixture
async def vendor(tmp_path: Path) -> AsyncIterator[Vendor]:
    (tmp_path / "vendor").mkdir()
    with ModelServer(script) as engine:
        async with open_rig(tmp_path / "vendor") as rig:
            await rig.register(engine.url, name=MODEL)
            claim = await rig.claim()
            vendor = Vendor(rig, engine, rig.attempt_url(claim), claim.key)
            yield vendor
            await vendor.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.db"


async def recorded(path: Path, work: Callable[[], Awaitable[object]]) -> list[Transition]:
    """The model steps of one rollout."""
    recorder = begin_alone(path)
    async with lightningrl.rollout():
        await work()
    assert recorder.flush(30.0)
    [record] = await read(path)
    return [one for one in record.transitions if one.kind is StepKind.LLM]


async def consume(stream: Any) -> None:
    async for _ in stream:
        pass


# -- beside others that watch -------------------------------------------------------------------------


class Proxy:
    """What an instrumentation returns in place of a stream."""

    def __init__(self, stream: Any) -> None:
        self.__wrapped__ = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __aiter__(self) -> Any:
        return aiter(self.__wrapped__)


class Watched:
    """A client's method as OpenInference wraps it: in the client's own class, and told by binding whose it is."""

    def __init__(self, method: Any, seen: list[Any]) -> None:
        self._method = method
        self._seen = seen

    def __get__(self, client: Any, owner: type) -> Any:
        async def request(*args: Any, **kwargs: Any) -> Any:
            self._seen.append(client)
            answer = await self._method(client, *args, **kwargs)
            return Proxy(answer) if kwargs.get("stream") else answer

        return request


@pytest.mark.parametrize("first", ["we", "they"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_call_is_recorded_once_beside_an_instrumentation_in_either_order(
    first: str, stream: bool, vendor: Vendor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    forget_client_calls()
    if first == "we":
        record_client_calls()
    watched = Watched(openai.AsyncOpenAI.request, seen)
    monkeypatch.setattr(openai.AsyncOpenAI, "request", watched, raising=False)
    record_client_calls()
    [step] = await recorded(path, lambda: chat(vendor, stream=stream))
    assert "lookup" in str(step.output)
    assert seen == [vendor.openai]
    forget_client_calls()
    assert vars(openai.AsyncOpenAI)["request"] is watched


# -- every dialect, whole and streamed -----------------------------------------------------------


async def chat(vendor: Vendor, *, stream: bool) -> None:
    answer: Any = await vendor.openai.chat.completions.create(
        model=MODEL, messages=USE, tools=[CHAT_TOOL], stream=stream
    )
    if stream:
        await consume(answer)


async def chat_by_helper(vendor: Vendor, *, stream: bool) -> None:
    asked: Any = {"model": MODEL, "messages": USE, "tools": [CHAT_TOOL]}
    if stream:
        async with vendor.openai.chat.completions.stream(**asked) as events:
            await consume(events)
    else:
        await vendor.openai.chat.completions.with_raw_response.create(**asked)


async def chat_in_thread(vendor: Vendor, *, stream: bool) -> None:
    def work() -> None:
        answer: Any = vendor.openai_sync.chat.completions.create(
            model=MODEL, messages=USE, tools=[CHAT_TOOL], stream=stream
        )
        if stream:
            for _ in answer:
                pass

    await asyncio.to_thread(work)


async def responses(vendor: Vendor, *, stream: bool) -> None:
    tool: Any = {"type": "function", "name": "lookup", "parameters": SCHEMA, "strict": False}
    answer: Any = await vendor.openai.responses.create(
        model=MODEL, input="use a", tools=[tool], stream=stream
    )
    if stream:
        await consume(answer)


def anthropic_request() -> dict[str, Any]:
    tool = {"name": "lookup", "input_schema": SCHEMA}
    return {"model": MODEL, "max_tokens": 100, "messages": USE, "tools": [tool]}


async def messages(vendor: Vendor, *, stream: bool) -> None:
    answer: Any = await vendor.anthropic.messages.create(**anthropic_request(), stream=stream)
    if stream:
        await consume(answer)


async def messages_in_thread(vendor: Vendor, *, stream: bool) -> None:
    def work() -> None:
        if not stream:
            vendor.anthropic_sync.messages.create(**anthropic_request())
            return
        with vendor.anthropic_sync.messages.stream(**anthropic_request()) as events:
            for _ in events:
                pass

    await asyncio.to_thread(work)


CALL = {"name": "lookup", "arguments": '{"key": "a"}'}
CHAT_ANSWER = {
    "role": "assistant",
    "tool_calls": [{"id": "call-1", "type": "function", "function": CALL}],
}
BLOCK = {"type": "tool_use", "id": "call-1", "name": "lookup", "input": {"key": "a"}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("work", "answer"),
    [
        (chat, CHAT_ANSWER),
        (chat_by_helper, CHAT_ANSWER),
        (chat_in_thread, CHAT_ANSWER),
        (responses, [{"type": "function_call", "call_id": "call-1", **CALL}]),
        (messages, {"role": "assistant", "content": [BLOCK]}),
        (messages_in_thread, {"role": "assistant", "content": [BLOCK]}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
async def test_a_call_is_a_step_with_its_request_and_answer(
    work: Any, answer: Any, stream: bool, vendor: Vendor, path: Path
) -> None:
    [step] = await recorded(path, lambda: work(vendor, stream=stream))
    assert (step.name, step.agent, step.error, step.interrupted) == (MODEL, None, None, False)
    assert step.inputs["messages"] == USE
    assert "lookup" in json.dumps(step.inputs["tools"])
    assert known(step.output, answer) == answer


def known(found: Any, expected: Any) -> Any:
    """`found` without the fields that `expected` doesn't name."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {key: known(found[key], expected[key]) for key in expected if key in found}
    if isinstance(found, list) and isinstance(expected, list):
        return [known(one, two) for one, two in zip(found, expected, strict=True)]
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_completion_is_a_step_with_its_text(
    stream: bool, vendor: Vendor, path: Path
) -> None:
    vendor.engine.script = lambda _: Answer("Yo there")

    async def work() -> None:
        answer: Any = await vendor.openai.completions.create(
            model=MODEL, prompt="Hi", stream=stream
        )
        if stream:
            await consume(answer)

    [step] = await recorded(path, work)
    assert (step.inputs["prompt"], step.output) == ("Hi", "Yo there")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_several_choices_are_all_there(stream: bool, vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        answer: Any = await vendor.openai.chat.completions.create(
            model=MODEL, messages=HELLO, n=2, stream=stream
        )
        if stream:
            await consume(answer)

    [step] = await recorded(path, work)
    assert [one["content"] for one in step.output] == ["done: hello", "done: hello"]


async def test_a_conversation_keeps_of_each_request_what_is_new(vendor: Vendor, path: Path) -> None:
    said: list[Any] = [*HELLO]

    async def work() -> None:
        for prompt in ("and you?", "bye"):
            answer = await vendor.openai.chat.completions.create(model=MODEL, messages=said)
            message = answer.choices[0].message
            said.extend([message.to_dict(), {"role": "user", "content": prompt}])

    first, second = await recorded(path, work)
    assert (second.inputs["continues"], second.inputs["kept"]) == (first.step_id, 1)
    whole = whole_requests({one.step_id: one.inputs for one in (first, second)})
    assert [one["content"] for one in whole[second.step_id]["messages"]] == [
        *("hello", "done: hello", "and you?")
    ]


async def test_a_step_is_below_the_users_steps_and_of_their_agent(
    vendor: Vendor, path: Path
) -> None:
    async def work() -> None:
        with lightningrl.step("agent", "planner", agent="planner"):
            await vendor.openai.chat.completions.create(model=MODEL, messages=HELLO)

    [step] = await recorded(path, work)
    assert step.agent == "planner"
    assert step.parent_id is not None


# -- what is not recorded, or not again ----------------------------------------------------------


async def test_a_call_within_a_model_step_is_that_steps_own(vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        with lightningrl.step("llm", "mine"):
            await vendor.openai.chat.completions.create(model=MODEL, messages=HELLO)

    assert [one.name for one in await recorded(path, work)] == ["mine"]


async def test_what_asks_no_model_is_no_step(vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        with pytest.raises(openai.APIStatusError):
            await vendor.openai.embeddings.create(model=MODEL, input="text")
        await vendor.openai.models.list()

    assert await recorded(path, work) == []


async def test_calls_through_a_gateway_are_the_gateways(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    async with open_lab(tmp_path / "lab") as lab, lab.attempt() as context:
        async with openai.AsyncOpenAI(base_url=context.attempt_url, api_key=context.key) as client:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert lab.emitted(context).starts == []


async def test_outside_a_rollout_nothing_is_recorded(vendor: Vendor, path: Path) -> None:
    begin_alone(path)
    await chat(vendor, stream=True)
    assert not path.exists()


def hook_points() -> list[Any]:
    """What stands in each place that is hooked."""
    import anthropic

    found: list[Any] = []
    for package in (openai, anthropic):
        clients, streams = package._base_client, package._streaming
        found += [clients.SyncAPIClient.request, clients.AsyncAPIClient.request]
        found += [streams.Stream.__stream__, streams.AsyncStream.__stream__]
    return found


def test_undone_the_clients_are_as_they_were() -> None:
    forget_client_calls()
    before = hook_points()
    record_client_calls()
    hooked = hook_points()
    assert not any(one is two for one, two in zip(before, hooked, strict=True))
    record_client_calls()
    assert hook_points() == hooked
    forget_client_calls()
    assert hook_points() == before


async def test_a_client_that_is_otherwise_is_left_alone(
    vendor: Vendor, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forget_client_calls()
    original = openai._base_client.AsyncAPIClient.request
    monkeypatch.delattr(openai._streaming.AsyncStream, "__stream__")
    record_client_calls()
    assert openai._base_client.AsyncAPIClient.request is original
    assert "openai clients can't be recorded" in caplog.text
    assert await recorded(path, lambda: chat(vendor, stream=False)) == []


# -- what goes wrong -----------------------------------------------------------------------------


async def test_a_failed_call_is_a_step_with_its_error(vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        with pytest.raises(openai.BadRequestError, match="told to fail"):
            await vendor.openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "fail"}]
            )

    [step] = await recorded(path, work)
    assert "told to fail" in str(step.error)
    assert step.output is None


async def test_a_call_with_retries_is_one_step(vendor: Vendor, path: Path) -> None:
    answers = iter([Answer("busy", status=500), Answer("Yo")])
    with ModelServer(lambda _: next(answers)) as server:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=1) as client:
            [step] = await recorded(
                path, lambda: client.chat.completions.create(model=MODEL, messages=HELLO)
            )
        assert len(server.arrivals) == 2
    assert (step.output["content"], step.error) == ("Yo", None)


async def test_a_cancelled_call_is_a_step_with_its_error(vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        vendor.engine.block()
        asking = asyncio.ensure_future(chat(vendor, stream=False))
        await vendor.engine.arrived(1)
        asking.cancel()
        await asyncio.wait([asking])
        vendor.engine.unblock()

    [step] = await recorded(path, work)
    assert "CancelledError" in str(step.error)


async def test_a_stream_that_is_left_keeps_what_had_come(vendor: Vendor, path: Path) -> None:
    async def work() -> None:
        stream = await vendor.openai.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        iterator: Any = stream._iterator
        await iterator.aclose()  # as the garbage collector does, whenever it likes

    [step] = await recorded(path, work)
    assert "done: hello".startswith(step.output["content"])
    assert step.output["content"]
    assert "GeneratorExit" in str(step.error)


async def test_a_stream_that_users_make_of_a_raw_response_is_recorded_as_well(
    vendor: Vendor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raw = vendor.openai.chat.completions.with_raw_response
        response = await raw.create(model=MODEL, messages=HELLO, stream=True)
        await consume(response.parse())
        at_once: Any = vendor.openai_sync.chat.completions.with_raw_response
        await asyncio.to_thread(
            lambda: list(at_once.create(model=MODEL, messages=HELLO, stream=True).parse())
        )

    steps = await recorded(path, work)
    assert [(one.output["content"], one.error) for one in steps] == [("done: hello", None)] * 2
    assert "can't be recorded" not in caplog.text


@pytest.mark.parametrize("within", [True, False], ids=["rollout", "outside"])
async def test_a_stream_that_is_collected_ends_its_step_and_tells_the_loop_nothing(
    within: bool, vendor: Vendor, path: Path
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))

    async def work() -> None:
        stream = await vendor.openai.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        del stream
        for _ in range(10):  # the loop closes what is collected, and lets go of more by that
            gc.collect()
            await asyncio.sleep(0)

    gc.freeze()  # what was there before is not looked through ten times

    if within:
        [step] = await recorded(path, work)
        assert step.output["content"]
        assert "GeneratorExit" in str(step.error)
    else:
        begin_alone(path)
        await work()
    gc.unfreeze()
    assert told == []


async def test_a_stream_that_nobody_reads_ends_with_its_rollout(vendor: Vendor, path: Path) -> None:
    kept: list[Any] = []

    async def work() -> None:
        kept.append(
            await vendor.openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        )

    [step] = await recorded(path, work)
    assert (step.output, step.interrupted) == (None, False)
    assert "before this step did" in str(step.error)
    await consume(kept[0])  # too late for the record, and none of the user's business


async def test_a_body_that_was_not_read_is_a_step_without_an_answer(
    vendor: Vendor, path: Path
) -> None:
    async def work() -> None:
        streaming = vendor.openai.chat.completions.with_streaming_response
        async with streaming.create(model=MODEL, messages=HELLO) as response:
            assert b"done: hello" in await response.read()

    [step] = await recorded(path, work)
    assert (step.inputs["messages"], step.output, step.error) == (HELLO, None, None)


async def test_a_secret_in_a_call_is_nowhere_in_the_file(vendor: Vendor, path: Path) -> None:
    secret = "4111-1111-1111-1111"
    hide = lightningrl.redact_texts(lambda text: text.replace(secret, "***"))
    recorder = begin_alone(path, redact=hide)
    async with lightningrl.rollout():
        await vendor.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"hello {secret}"}]
        )
    assert recorder.flush(30.0)
    [record] = await read(path)
    [step] = record.transitions
    assert step.output["content"] == "done: hello ***"
    assert secret.encode() not in written_bytes(path)
