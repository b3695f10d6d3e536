"""LangChain and LangGraph beyond the contract: graphs, retries, streams, people, judges, tracing."""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from autogen_agentchat.agents import AssistantAgent
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, SummarizationMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, Send, interrupt
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import BaseModel

import lightningrl
from lightningrl.capture.client import CallHeaders, uninstall_client_patch
from lightningrl.capture.context import current, in_rollout
from lightningrl.schema import LogEvent, LogTopic, StepKind
from lightningrl_autogen import AutoGenAdapter
from lightningrl_langchain import CaptureHandler, LangChainAdapter
from lightningrl_testkit.autogen_client import autogen_client
from lightningrl_testkit.lab import (
    MODEL,
    CaptureLab,
    Recorded,
    in_threads_of_users,
    lookup,
    open_lab,
    script,
)
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall, in_turn
from lightningrl_testkit.runner_process import captured, tell_address


class Weather(BaseModel):
    """A structured answer."""

    city: str


def answer(request: dict[str, Any]) -> Answer:
    """As the lab's script; and what is asked for in a form gets it."""
    if request.get("response_format"):
        return Answer('{"city": "Paris"}')
    return script(request)


@pytest.fixture(autouse=True)
def adapter() -> Iterator[LangChainAdapter]:
    adapter = LangChainAdapter()
    with captured(adapter):
        yield adapter


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaptureLab]:
    async with open_lab(tmp_path, answer) as lab:
        tell_address(monkeypatch, lab.rig.url)
        yield lab


class Http:
    """HTTP clients of one test's event loop, given to every model."""

    def __init__(self, sync: DefaultHttpxClient, asynchronous: DefaultAsyncHttpxClient) -> None:
        self._clients: dict[str, Any] = {"http_client": sync, "http_async_client": asynchronous}

    def model(self, **settings: Any) -> ChatOpenAI:
        given = {"model": MODEL, "max_retries": 0, **self._clients, **settings}
        return ChatOpenAI(**given)


@pytest.fixture
async def http(lab: CaptureLab) -> AsyncIterator[Http]:
    with DefaultHttpxClient() as sync:
        async with DefaultAsyncHttpxClient() as asynchronous:
            yield Http(sync, asynchronous)


def check_whole(found: Recorded) -> None:
    """Every call is a step's, every model step that ended well has a call, and nothing is open."""
    steps = {one.step_id for one in found.of(StepKind.LLM)}
    went_well = {one for one in steps if found.ends[one].error is None}
    assert found.joined == went_well
    assert {one.step_id for one in found.starts} == set(found.ends)


def agents_of(found: Recorded) -> list[str | None]:
    return sorted((one.agent for one in found.calls), key=str)


class State(TypedDict):
    """Of the graphs below."""

    texts: Annotated[list[str], operator.add]


def node(model: ChatOpenAI, text: str, *, sync: bool = False) -> Any:
    """A node that asks the model once."""

    def ask(state: State) -> dict[str, Any]:
        return {"texts": [str(model.invoke(text).text)]}

    async def ask_async(state: State) -> dict[str, Any]:
        return {"texts": [str((await model.ainvoke(text)).text)]}

    return ask if sync else ask_async


# -- graphs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
async def test_nodes_are_agents_also_in_parallel_and_in_sub_graphs(
    lab: CaptureLab, http: Http, sync: bool
) -> None:
    model = http.model()
    inner = StateGraph(State)
    inner.add_node("writer", node(model, "write", sync=sync))
    inner.add_edge(START, "writer")
    graph = StateGraph(State)
    graph.add_node("left", node(model, "left", sync=sync))
    graph.add_node("right", node(model, "right", sync=sync))
    graph.add_node("book", inner.compile(name="inner"))
    graph.add_edge(START, "left")
    graph.add_edge(START, "right")
    graph.add_edge(["left", "right"], "book")
    compiled = graph.compile()
    found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    check_whole(found)
    assert agents_of(found) == ["left", "right", "writer"]
    [writer] = [one for one in found.of(StepKind.LLM) if one.agent == "writer"]
    assert [one.name for one in found.ancestors(writer.step_id)] == ["writer", "book"]


async def test_a_fan_out_by_send_is_as_many_steps(lab: CaptureLab, http: Http) -> None:
    graph = StateGraph(State)
    graph.add_node("worker", node(http.model(), "work"))
    graph.add_conditional_edges(START, lambda state: [Send("worker", state) for _ in range(5)])
    compiled = graph.compile()
    found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    check_whole(found)
    assert len(found.of(StepKind.AGENT)) == len(found.calls) == 5


async def test_an_agent_in_a_node_has_its_own_name_and_one_without_a_name_the_nodes(
    lab: CaptureLab, http: Http
) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("one", create_agent(http.model(), name="named"))
    graph.add_node("two", create_agent(http.model()))
    graph.add_edge(START, "one")
    graph.add_edge("one", "two")
    compiled = graph.compile()
    found = await lab.record(lambda: compiled.ainvoke({"messages": "hello"}))
    check_whole(found)
    assert agents_of(found) == ["named", "two"]


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
async def test_members_of_a_team_that_have_a_node_of_the_same_name_are_told_apart(
    lab: CaptureLab, http: Http
) -> None:
    """As LangGraph's supervisor builds them: each member is a graph of its own, with a node `agent`."""
    graph = StateGraph(MessagesState)
    for name in ("supervisor", "maths"):
        graph.add_node(name, create_react_agent(http.model(model="gpt-4o"), [], name=name))
    graph.add_edge(START, "supervisor")
    graph.add_edge("supervisor", "maths")
    compiled = graph.compile()
    with ModelServer(lambda request: Answer("fine")) as fixed:
        await lab.rig.register(lab.model.url, name=MODEL, agents=("supervisor",))
        await lab.rig.register(fixed.url, name="fixed", agents=("maths",))
        found = await lab.record(lambda: compiled.ainvoke({"messages": "hello"}))
    check_whole(found)
    assert [(one.agent, one.policy) for one in found.calls] == [
        ("supervisor", MODEL),
        ("maths", "fixed"),
    ]
    [maths] = [one for one in found.of(StepKind.LLM) if one.agent == "maths"]
    assert [one.name for one in found.ancestors(maths.step_id)] == ["agent", "maths"]


async def test_nodes_of_the_same_name_are_told_apart_by_the_graphs_around_them(
    lab: CaptureLab, http: Http
) -> None:
    graph = StateGraph(State)
    for name in ("left", "right"):
        inner = StateGraph(State)
        inner.add_node("writer", node(http.model(model="gpt-4o"), name))
        inner.add_edge(START, "writer")
        graph.add_node(name, inner.compile())
    graph.add_edge(START, "left")
    graph.add_edge("left", "right")
    compiled = graph.compile()
    with ModelServer(lambda request: Answer("fine")) as fixed:
        await lab.rig.register(lab.model.url, name=MODEL, agents=("left/writer",))
        await lab.rig.register(fixed.url, name="fixed", agents=("right/writer",))
        found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    assert [(one.within, one.agent, one.policy) for one in found.calls] == [
        (("left",), "writer", MODEL),
        (("right",), "writer", "fixed"),
    ]


async def test_waiting_for_a_person_is_no_error_and_the_same_rollout_goes_on(
    lab: CaptureLab, http: Http
) -> None:
    model = http.model()

    async def ask(state: State) -> dict[str, Any]:
        word = interrupt("which word?")
        return {"texts": [str((await model.ainvoke(word)).text)]}

    graph = StateGraph(State)
    graph.add_node("asks", ask)
    graph.add_edge(START, "asks")
    compiled = graph.compile(checkpointer=InMemorySaver())

    async def run() -> object:
        config: Any = {"configurable": {"thread_id": "1"}}
        await compiled.ainvoke({"texts": []}, config)
        return await compiled.ainvoke(Command(resume="hello"), config)

    found = await lab.record(run)
    check_whole(found)
    assert [one.name for one in found.of(StepKind.AGENT)] == ["asks", "asks"]
    assert [end.error for end in found.ends.values()] == [None, None, None]
    assert len(found.calls) == 1


async def test_a_recursion_limit_leaves_nothing_open(lab: CaptureLab, http: Http) -> None:
    graph = StateGraph(State)
    graph.add_node("again", node(http.model(), "again"))
    graph.add_edge(START, "again")
    graph.add_conditional_edges("again", lambda state: "again", ["again", END])
    compiled = graph.compile()

    async def run() -> None:
        with pytest.raises(GraphRecursionError):
            await compiled.ainvoke({"texts": []}, {"recursion_limit": 3})

    found = await lab.record(run)
    check_whole(found)
    assert len(found.calls) == 3


# -- agents for policies -----------------------------------------------------------------------------


async def test_two_agents_calls_land_at_two_policies(lab: CaptureLab, http: Http) -> None:
    """The writer and the rewriter are trained, the checker is another policy."""
    with ModelServer(lambda request: Answer("fine")) as fixed:
        await lab.rig.register(lab.model.url, name=MODEL, agents=("writer", "rewriter"))
        await lab.rig.register(fixed.url, name="fixed", agents=("checker",))
        graph = StateGraph(State)
        for name in ("writer", "checker", "rewriter"):
            graph.add_node(name, node(http.model(model="gpt-4o"), name))
        graph.add_edge(START, "writer")
        graph.add_edge("writer", "checker")
        graph.add_edge("checker", "rewriter")
        compiled = graph.compile()
        found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    check_whole(found)
    assert [(one.agent, one.policy) for one in found.calls] == [
        ("writer", MODEL),
        ("checker", "fixed"),
        ("rewriter", MODEL),
    ]


# -- retries, caches, forms --------------------------------------------------------------------------


async def test_each_try_of_a_runnable_is_a_step(lab: CaptureLab, http: Http) -> None:
    lab.model.fail_next(1, 400)
    found = await lab.record(lambda: http.model().with_retry(stop_after_attempt=2).ainvoke("hello"))
    errors = [found.ends[one.step_id].error is None for one in found.of(StepKind.LLM)]
    assert errors == [False, True]
    check_whole(found)


async def test_fallbacks_and_retrying_middleware_are_a_step_each_try(
    lab: CaptureLab, http: Http
) -> None:
    async def run() -> None:
        model = http.model()
        lab.model.fail_next(1, 400)
        await model.with_fallbacks([http.model()]).ainvoke("hello")
        again = ModelRetryMiddleware(
            max_retries=1, initial_delay=0.0, jitter=False, retry_on=(Exception,)
        )
        lab.model.fail_next(1, 400)
        await create_agent(model, middleware=[again], name="tries").ainvoke({"messages": "hello"})

    found = await lab.record(run)
    errors = [found.ends[one.step_id].error is None for one in found.of(StepKind.LLM)]
    assert errors.count(True) == len(found.calls)
    check_whole(found)


async def test_arguments_that_are_no_json_call_no_tool(lab: CaptureLab, http: Http) -> None:
    call = ToolCall("call-1", "look", '{"key": ')

    @tool
    async def look(key: str) -> str:
        """Look up."""
        return key

    lab.model.script = in_turn(Answer(tool_calls=(call,)))
    agent = create_agent(http.model(), [look], name="worker")
    found = await lab.record(lambda: agent.ainvoke({"messages": "use a"}))
    check_whole(found)
    assert found.callers == ["worker"]
    assert found.of(StepKind.TOOL) == []


async def test_a_cached_answer_is_a_step_without_a_call(lab: CaptureLab, http: Http) -> None:
    set_llm_cache(InMemoryCache())
    try:

        async def run() -> None:
            await http.model().ainvoke("hello")
            await http.model().ainvoke("hello")

        found = await lab.record(run)
    finally:
        set_llm_cache(None)
    assert (len(found.of(StepKind.LLM)), len(found.calls)) == (2, 1)


async def test_structured_answers_are_joined(lab: CaptureLab, http: Http) -> None:
    async def run() -> None:
        model = http.model()
        by_provider = create_agent(model, name="form", response_format=ProviderStrategy(Weather))
        await by_provider.ainvoke({"messages": "hello"})
        by_tool = create_agent(model, name="tool", response_format=ToolStrategy(Weather))
        await by_tool.ainvoke({"messages": "use Paris"})
        await model.with_structured_output(Weather).ainvoke("hello")

    found = await lab.record(run)
    check_whole(found)
    assert agents_of(found) == [None, "form", "tool"]


async def test_a_summary_is_the_agents_own_call(lab: CaptureLab, http: Http) -> None:
    model = http.model()
    shorten = SummarizationMiddleware(model, trigger=("messages", 3), keep=("messages", 1))
    agent = create_agent(model, middleware=[shorten], name="long")
    given = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    found = await lab.record(lambda: agent.ainvoke({"messages": given}))
    check_whole(found)
    assert agents_of(found) == ["long", "long"]


# -- streams and cancelling --------------------------------------------------------------------------


async def test_a_reader_of_a_stream_is_not_inside_the_models_step(
    lab: CaptureLab, http: Http
) -> None:
    def in_thread() -> None:
        for _ in http.model().stream("hello"):
            break

    async def run() -> None:
        async for _ in http.model().astream("hello"):
            with lightningrl.step("tool", "reads"):
                pass
        await asyncio.to_thread(in_thread)
        async for _ in http.model().astream("hello"):
            break

    found = await lab.record(run)
    assert {one.parent_id for one in found.of(StepKind.TOOL)} == {None}
    assert len(found.of(StepKind.LLM)) == 3
    assert {one.step_id for one in found.starts} == set(found.ends)


async def test_after_a_timeout_the_next_call_is_its_own_step(lab: CaptureLab, http: Http) -> None:
    """LangChain never ends the step of a call that was cancelled, and leaves it current."""
    model = http.model()

    async def ask(state: State) -> dict[str, Any]:
        lab.model.block()
        waiting = asyncio.current_task()
        assert waiting is not None
        arrival = asyncio.ensure_future(lab.model.arrived(1))
        arrival.add_done_callback(lambda _: waiting.cancel())
        try:
            await model.ainvoke("slow")
        except asyncio.CancelledError:
            waiting.uncancel()
        lab.model.unblock()
        return {"texts": [str((await model.ainvoke("quick")).text)]}

    graph = StateGraph(State)
    graph.add_node("asks", ask)
    graph.add_edge(START, "asks")
    compiled = graph.compile()
    found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    [agent] = found.of(StepKind.AGENT)
    assert [one.parent_id for one in found.of(StepKind.LLM)] == [agent.step_id] * 2
    assert [one.step_id for one in found.calls] == [found.of(StepKind.LLM)[1].step_id]
    assert {one.step_id for one in found.starts} == set(found.ends)


# -- others in the process ---------------------------------------------------------------------------


async def test_other_models_are_steps_and_go_out_untouched(lab: CaptureLab, http: Http) -> None:
    with ModelServer(lambda request: Answer("7")) as judge:

        async def run() -> None:
            fake = GenericFakeChatModel(messages=iter([AIMessage("hello")]))
            await fake.ainvoke("hello")
            other = http.model(model="judge", base_url=judge.url, api_key="of the user")
            assert (await other.ainvoke("hello")).text == "7"

        found = await lab.record(run)
        [arrival] = judge.arrivals
    assert arrival.headers["authorization"] == "Bearer of the user"
    assert [name for name in arrival.headers if "lightningrl" in name] == []
    assert found.calls == []
    assert len(found.of(StepKind.LLM)) == 2
    logs = [one for one in found.events if isinstance(one, LogEvent)]
    assert [one.topic for one in logs] == [LogTopic.OUTSIDE]


async def test_the_users_callbacks_and_tracers_see_what_they_always_did(
    lab: CaptureLab, http: Http, adapter: LangChainAdapter
) -> None:
    class Users(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            self.seen.append(f"chain {kwargs['name']}")

        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            self.seen.append("model")

        def on_tool_end(self, output: Any, **kwargs: Any) -> None:
            self.seen.append(f"tool {output.content}")

    @tool("lookup")
    async def look(key: str) -> str:
        """Look up."""
        return await lookup(key)

    async def run(users: Users) -> list[str]:
        agent = create_agent(http.model(), [look], name="worker")
        with collect_runs() as traced:
            await agent.ainvoke({"messages": "use a"}, {"callbacks": [users]})
        return [*users.seen, *(one.name for one in traced.traced_runs)]

    async with lab.attempt():
        with_us = await run(Users())
        adapter.uninstall()
        without_us = await run(Users())
    assert with_us == without_us
    assert "tool value of a" in with_us


async def test_a_thread_that_the_user_starts_is_refused_unless_it_is_bound(
    lab: CaptureLab, http: Http
) -> None:
    model, outcomes = http.model(), list[str]()

    def ask() -> None:
        try:
            outcomes.append(str(model.invoke("hello").text))
        except Exception as error:  # noqa: BLE001 - its text is what is looked at
            outcomes.append(str(error))

    async with lab.attempt() as context:
        await in_threads_of_users(ask)
    found = await lab.recorded(context)
    assert "belongs to no rollout" in outcomes[0]
    assert outcomes[1] == "done: hello"
    assert len(found.calls) == len(found.of(StepKind.LLM)) == 1


async def test_an_autogen_agent_in_a_node_is_one_tree_without_duplicates(
    lab: CaptureLab, http: Http
) -> None:
    model = http.model()

    async def look_up(key: str) -> str:
        """Look up."""
        return str((await model.ainvoke("inside")).text)

    async def ask(state: State) -> dict[str, Any]:
        async with autogen_client() as client:
            agent = AssistantAgent("deep", model_client=client, tools=[look_up])
            result = await agent.run(task="use a")
        return {"texts": [str(result.messages[-1])]}

    graph = StateGraph(State)
    graph.add_node("wide", ask)
    graph.add_edge(START, "wide")
    compiled = graph.compile()
    other = AutoGenAdapter()
    other.install()
    try:
        found = await lab.record(lambda: compiled.ainvoke({"texts": []}))
    finally:
        other.uninstall()
    check_whole(found)
    assert [one.agent for one in found.calls] == ["deep", "deep"]
    above = [[up.name for up in found.ancestors(one.step_id)] for one in found.of(StepKind.LLM)]
    assert above == [["deep", "wide"], ["look_up", "deep", "wide"]]


# -- what patches nothing ----------------------------------------------------------------------------


async def test_a_handler_and_headers_capture_without_any_patch(
    lab: CaptureLab, http: Http, adapter: LangChainAdapter
) -> None:
    adapter.uninstall()
    uninstall_client_patch()
    model = http.model(model_kwargs={"extra_headers": CallHeaders()})
    prompt = ChatPromptTemplate.from_template("hello {number}")
    chain = prompt | model

    async def one(number: int) -> Recorded:
        stream = number % 2 == 1

        async def run() -> None:
            config: Any = {"callbacks": [CaptureHandler()]}
            if stream:
                async for _ in chain.astream({"number": number}, config):
                    pass
            else:
                await chain.ainvoke({"number": number}, config)

        return await lab.record(run)

    for number, found in enumerate(await asyncio.gather(*(one(number) for number in range(16)))):
        check_whole(found)
        [call] = found.calls
        assert f"hello {number}" in json.dumps(json.loads(call.request))
    with pytest.raises(Exception, match="belongs to no rollout"):
        await model.ainvoke("hello")


async def test_a_handler_of_the_users_beside_the_adapters_records_once(
    lab: CaptureLab, http: Http
) -> None:
    agent = create_agent(http.model(), name="asker")
    config: Any = {"callbacks": [CaptureHandler()]}
    found = await lab.record(lambda: agent.ainvoke({"messages": "hello"}, config))
    check_whole(found)
    assert len(found.of(StepKind.LLM)) == 1


# -- run by name -------------------------------------------------------------------------------------


async def test_a_graph_that_a_recipe_names_runs_with_a_conversation_for_each_attempt(
    lab: CaptureLab, http: Http, adapter: LangChainAdapter
) -> None:
    agent = create_agent(http.model(), name="asker", checkpointer=InMemorySaver())
    call = adapter.wrap(agent, fresh=False)
    assert call is not None
    assert adapter.wrap("no agent", fresh=False) is None

    async def run() -> None:
        assert current() is not None
        state = await call({"messages": "hello"})
        assert [one.text for one in state["messages"]] == ["hello", "done: hello"]

    for _ in range(2):
        check_whole(await lab.record(run))
    with in_rollout(None), pytest.raises(Exception, match="belongs to no rollout"):
        await call({"messages": "hello"})
