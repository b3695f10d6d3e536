"""For each kind of finding what a user does to get it: one scripted agent, and one of a real framework.

Invariant: gateway, store, runner and frameworks are real; only the model behind them is scripted, and what is said
of a case is what the checks say of the store that its rollouts left.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import agents
import openai
import pytest
from agents import Agent, OpenAIProvider, RunConfig, Runner, SQLiteSession
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

import lightningrl
from lightningrl.capture import variables
from lightningrl.capture.adapters import find_adapters
from lightningrl.capture.context import step
from lightningrl.checks import Evidence, Finding, Level, Place, examine
from lightningrl.recipe import parse_recipe
from lightningrl.runner.attempt import AttemptRunner
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.resolve import ResolvedAgent, agent_call, awaitable
from lightningrl.runner.swallowed import heard
from lightningrl.schema import Mode, NewRollout, RetryPolicy, RolloutId, StepKind, group_id
from lightningrl.store.base import RolloutQuery
from lightningrl.traces import read_attempts
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall, echo
from lightningrl_testkit.runner_process import captured

Task = dict[str, Any]
Does = Callable[..., Any]

_LIMITS = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2}


@dataclass(frozen=True)
class Case:
    """Something that a user did, and the kind that it is found as."""

    kind: str
    did: str
    agent: Does
    """Gets the task's row; what it returns is its output."""
    reward: Does | None = field(default=lambda task, output, trace: float(len(str(output)) % 7))
    tasks: Sequence[Task] = ({"question": "1+1"},)
    members: int = 1
    """Rollouts of each task, one after the other."""
    script: Script = echo
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


Said = dict[Place, Finding]
"""What is said of a case, and where."""


@asynccontextmanager
async def laboratory(folder: Path, script: Script) -> AsyncGenerator[GatewayRig]:
    """A runner's process and a server, in this one."""
    agents.set_trace_processors([])  # the SDK's exporter would leave this machine
    with (
        captured(*find_adapters()),
        ModelServer(script) as model,
        pytest.MonkeyPatch.context() as environment,
    ):
        async with open_rig(folder) as rig:
            await rig.register(model.url)
            _become_a_runners(environment, rig.url)
            environment.setenv("OTHER_HOST", model.url)
            yield rig


def _become_a_runners(environment: pytest.MonkeyPatch, server_url: str) -> None:
    """Point this process at the server until `environment` is undone; its user has set nothing."""
    environment.setattr(variables, "_pointed_at", None)
    for name in (*variables.NAMES, "NO_PROXY", "no_proxy"):
        environment.setenv(name, "")
        environment.delenv(f"{variables.USER_PREFIX}{name}", raising=False)
    variables.point_at(server_url)


async def examine_case(case: Case, folder: Path) -> Said:
    """Run a case's rollouts, and have the checks look at them as each command does.

    Raises:
        LookupError: they don't find its kind.
    """
    recipe = parse_recipe({"name": RUN, "agent": "m:f", **case.recipe})
    async with laboratory(folder, case.script) as rig:
        for member in range(case.members):
            for place, task in enumerate(case.tasks):
                await _run(case, rig, task, f"task-{place}", member)
        ended = await rig.store.rollouts(RolloutQuery())
        records = tuple(map(tuple, await read_attempts(rig.store, ended)))
        evidence = Evidence(RUN, records, recipe, rig.gateway.unidentified)
    return _said(case.kind, evidence)


def _said(kind: str, evidence: Evidence) -> Said:
    found = {place: one for place in Place for one in examine(evidence, place) if one.kind == kind}
    if not found:
        raise LookupError(f"{kind!r} is not among {examine(evidence, Place.TRY)}")
    return found


async def _run(case: Case, rig: GatewayRig, task: Task, task_id: str, member: int) -> None:
    group = group_id(RUN, Mode.TRAIN, 1, task_id)
    new = NewRollout(
        id=RolloutId(f"{task_id}-{member}"), run=RUN, mode=Mode.TRAIN, iteration=1, task_id=task_id,
        group_id=group, member=member, task=task,
        retry=RetryPolicy(max_attempts=1, max_infrastructure_failures=0),
    )  # fmt: skip
    await rig.store.enqueue([new])
    (claim,) = await rig.store.claim("w")
    resolved = ResolvedAgent(
        call=agent_call(case.agent, (), what="agent"),
        command=None,
        make_input=None,
        score=case.reward and awaitable(heard(case.reward), "reward"),
    )
    flusher = EventFlusher(rig.store)
    runner = AttemptRunner(rig.store, resolved, flusher, rig.url, frozenset({"policy"}), Path())
    await runner.run(claim)


VARYING = {r"'(?:s|a|task|resp|chatcmpl|lc_run)-[\w-]+'": "'...'", r"in line \d+": "in line ..."}
"""What changes from run to run, or with this file, and what stands for it in the table."""


def row(case: Case, said: Said) -> str:
    """The case's line in the table."""
    told = said.get(Place.DOCTOR) or next(iter(said.values()))
    evidence = " ".join(told.evidence.split()).replace("|", "\\|")
    for varying, shown in VARYING.items():
        evidence = re.sub(varying, shown, evidence)
    codes = {
        place: int(said[place].level is Level.PROBLEM) for place in said if place != Place.TRAIN
    }
    same = len(set(codes.values())) == 1
    code = str(max(codes.values())) if same else ", ".join(f"{p} {one}" for p, one in codes.items())
    places = "all" if len(said) == len(Place) else ", ".join(said)
    return f"| {case.kind} | {case.did} | {evidence} | {places} | {code} |"


# -- scripted agents ----------------------------------------------------------------------------


async def ask(*messages: Any, model: str = "policy", **fields: Any) -> str:
    """One call of the openai client; a text is a user's message."""
    whole: list[Any] = [
        {"role": "user", "content": one} if isinstance(one, str) else one for one in messages
    ]
    async with openai.AsyncOpenAI() as client:
        create: Any = client.chat.completions.create
        reply = await create(model=model, messages=whole, **fields)
    return reply.choices[0].message.content or ""


async def plain(task: Task) -> str:
    return await ask(task["question"])


_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


async def forced(task: Task) -> str:
    choice = {"type": "function", "function": {"name": "add"}}
    return await ask(task["question"], tools=[_TOOL], tool_choice=choice)


async def judged_by_the_policy(task: Task, output: str, trace: Any) -> float:
    try:
        return float(len(await ask(f"How good is {output}?")))
    except openai.AuthenticationError:
        return 0.5


async def newer_than_the_gateway(task: Task) -> str:
    return await ask(task["question"], extra_body={"unheard_of": 1})


async def embedding(task: Task) -> str:
    async with openai.AsyncOpenAI() as client:
        try:
            await client.embeddings.create(model="policy", input="1")
        except openai.NotFoundError:
            return await ask(task["question"])
    return ""


async def elsewhere(task: Task) -> str:
    async with openai.AsyncOpenAI(base_url=os.environ["OTHER_HOST"], api_key="mine") as client:
        messages: Any = [{"role": "user", "content": "Is it right?"}]
        await client.chat.completions.create(model="gpt-x", messages=messages)
    return await ask(task["question"])


async def cached(task: Task) -> str:
    with step(StepKind.LLM, "policy"):
        return await ask(task["question"]) if task["question"] not in _CACHE else _CACHE["1+1"]


_CACHE = {"2+2": "4", "1+1": "2"}


async def two_models(task: Task) -> str:
    return await ask(await ask(task["question"], model="gpt-x"), model="gpt-y")


async def offers_a_tool(task: Task) -> str:
    return await ask(task["question"], tools=[_TOOL])


def writes_tool_calls(request: dict[str, Any]) -> Answer:
    return Answer('<tool_call>{"name": "add", "arguments": {}}</tool_call>')


async def with_a_nonce(task: Task) -> str:
    clock, said = count(), list[Any]()
    for question in (task["question"], "Are you sure?"):
        system = {"role": "system", "content": f"You add. It is 12:00:{next(clock):02}."}
        said.append({"role": "user", "content": question})
        said.append({"role": "assistant", "content": await ask(system, *said)})
    return said[-1]["content"]


class RemembersAll:
    """Its list of messages outlives a rollout."""

    def __init__(self) -> None:
        self._said: list[Any] = []

    async def __call__(self, task: Task) -> str:
        self._said.append({"role": "user", "content": task["question"]})
        answer = await ask(*self._said)
        self._said.append({"role": "assistant", "content": answer})
        return answer


async def forgets_the_task(task: Task) -> str:
    return await ask("Please add.")


def with_an_alarm(task: Task, output: str, trace: Any) -> float:
    try:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    except ValueError:
        return 0.0
    return 1.0


def for_an_unknown_step(task: Task, output: str, trace: Any) -> lightningrl.Reward:
    return lightningrl.Reward(1.0, steps={"step 1": 0.5})


async def gives_up(task: Task) -> str:
    await ask(task["question"])
    raise RuntimeError("no answer after 10 turns")


async def catches_all(task: Task) -> str:
    try:
        return await ask(task["question"])
    except openai.BadRequestError:
        return "sorry"


def refuses(request: dict[str, Any]) -> Answer:
    return Answer("this model's context is full", status=400)


# -- agents of real frameworks ------------------------------------------------------------------


class Sum(BaseModel):
    """A typed answer."""

    value: int


def langchain(**fields: Any) -> ChatOpenAI:
    """Asked without a loop: its async client would stay with the loop of the first case."""
    options: dict[str, Any] = {"model": "policy", **fields}
    return ChatOpenAI(**options)


def said_by(model: ChatOpenAI, asked: str) -> str:
    return str(model.invoke(asked).content)


def langchain_typed(task: Task) -> str:
    return str(langchain().with_structured_output(Sum).invoke(task["question"]))


def answers_typed(request: dict[str, Any]) -> Answer:
    return Answer('{"value": 2}')


def langchain_plain(task: Task) -> str:
    return said_by(langchain(), task["question"])


def langchain_judged(task: Task, output: str, trace: Any) -> float:
    try:
        return float(len(said_by(langchain(), f"How good is {output}?")))
    except openai.AuthenticationError:
        return 0.5


def langchain_retrieval(task: Task) -> str:
    with suppress(openai.NotFoundError):
        OpenAIEmbeddings(model="policy", check_embedding_ctx_length=False).embed_query("1")
    return langchain_plain(task)


def langchain_judge(task: Task) -> str:
    judge = langchain(model="gpt-x", base_url=os.environ["OTHER_HOST"], api_key="mine")
    said_by(judge, "Is it right?")
    return langchain_plain(task)


def langchain_newer(task: Task) -> str:
    return said_by(langchain(extra_body={"unheard_of": 1}), task["question"])


def langchain_fallback(task: Task) -> str:
    sorry = RunnableLambda(lambda _: AIMessage("sorry"))
    return str(langchain().with_fallbacks([sorry]).invoke(task["question"]).content)


async def agents_plain(task: Task) -> str:
    return await run_agent(solver(), task["question"])


def as_json(task: Task, output: str, trace: Any) -> float:
    try:
        return float(json.loads(output)["value"])
    except ValueError:
        return 0.0


class LangchainMessages:
    """Keeps the id that LangChain gave the message, which is no step's."""

    def __init__(self) -> None:
        self._message = ""

    def __call__(self, task: Task) -> str:
        answer = langchain().invoke(task["question"])
        self._message = str(answer.id)
        return str(answer.content)

    def reward(self, task: Task, output: str, trace: Any) -> lightningrl.Reward:
        return lightningrl.Reward(1.0, steps={self._message: 0.5})


_MESSAGES = LangchainMessages()


class LangchainCached:
    def __init__(self) -> None:
        self._cache = InMemoryCache()

    def __call__(self, task: Task) -> str:
        return said_by(langchain(), said_by(langchain(cache=self._cache), task["question"]))


def langgraph_tools(task: Task) -> str:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    done = create_agent(langchain(), [add]).invoke({"messages": task["question"]})
    return str(done["messages"][-1].content)


class LanggraphOneThread:
    """A constant thread id: the checkpointer goes on where the last rollout ended."""

    def __init__(self) -> None:
        self._saver = InMemorySaver()

    def __call__(self, task: Task) -> str:
        graph = create_agent(langchain(), [], checkpointer=self._saver)
        config: Any = {"configurable": {"thread_id": "1"}}
        done = graph.invoke({"messages": task["question"]}, config)
        return str(done["messages"][-1].content)


async def run_agent(agent: Agent, asked: str, **options: Any) -> str:
    """Run an agent of the Agents SDK with a client of this rollout's."""
    async with openai.AsyncOpenAI() as client:
        provider = OpenAIProvider(openai_client=client, use_responses=False)
        config = RunConfig(model_provider=provider)
        return (await Runner.run(agent, asked, run_config=config, **options)).final_output


def solver(**fields: Any) -> Agent:
    options: dict[str, Any] = {"name": "solver", "model": "policy", **fields}
    return Agent(**options)


async def agents_of_two_models(task: Task) -> str:
    asked = task["question"]
    for model in ("gpt-x", "gpt-y"):
        asked = await run_agent(solver(name=model, model=model), asked)
    return asked


def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def doubles_once(request: dict[str, Any]) -> Answer:
    if any(one["role"] == "tool" for one in request["messages"]):
        return Answer("4")
    return Answer(tool_calls=(ToolCall("call-1", "double", '{"number": 2}'),))


async def agents_with_a_clock(task: Task) -> str:
    clock = count()
    agent = solver(
        instructions=lambda _context, _agent: f"You add. It is 12:00:{next(clock):02}.",
        tools=[agents.function_tool(double)],
    )
    return await run_agent(agent, task["question"])


class AgentsOneSession:
    """A session that all rollouts share."""

    def __init__(self) -> None:
        self._session: SQLiteSession | None = None

    async def __call__(self, task: Task) -> str:
        self._session = self._session or SQLiteSession("x")
        return await run_agent(solver(), task["question"], session=self._session)


async def agents_without_the_task(task: Task) -> str:
    return await run_agent(solver(), "Please add.")


async def agents_out_of_turns(task: Task) -> str:
    agent = solver(tools=[agents.function_tool(double)])
    return await run_agent(agent, task["question"], max_turns=1)


_TWO = ({"question": "1+1"}, {"question": "2+2"})

CASES = (
    Case("untrainable calls", "forced a tool by `tool_choice`", forced),
    Case(
        "untrainable calls", "LangChain: `with_structured_output`", langchain_typed,
        script=answers_typed,
    ),
    Case("refused requests", "made the judge of the reward function by `OpenAI()`, and caught its error",
         plain, reward=judged_by_the_policy),
    Case("refused requests", "the same by LangChain's `ChatOpenAI()`",
         langchain_plain, reward=langchain_judged),
    Case("refused requests", "asked the run's client for embeddings, and caught the error", embedding),
    Case("refused requests", "LangChain: `OpenAIEmbeddings` without a host of its own", langchain_retrieval),
    Case("unknown fields", "sent a field that nobody here knows", newer_than_the_gateway),
    Case("unknown fields", "LangChain: the same, by `extra_body`", langchain_newer),
    Case("no model call", "caught the engine's error and answered without the model", catches_all,
         script=refuses),
    Case("no model call", "LangChain: `with_fallbacks` to a fixed answer", langchain_fallback,
         script=refuses),
    Case("other host", "called a judge of another host within the agent", elsewhere),
    Case("other host", "LangChain: a `ChatOpenAI` with a `base_url` of its own", langchain_judge),
    Case("unanswered steps", "answered a model step from a dictionary", cached, tasks=_TWO),
    Case("unanswered steps", "LangChain: `cache=InMemoryCache()`", LangchainCached(), members=2),
    Case("several models", "asked for two models, and declared none", two_models,
         recipe={"policies": {"policy": {"model": "m"}}}),
    Case("several models", "OpenAI Agents SDK: two agents with a model each", agents_of_two_models,
         recipe={"policies": {"policy": {"model": "m"}}}),
    Case("tool parser off", "served a model whose tool calls the engine's parser can't read",
         offers_a_tool, script=writes_tool_calls),
    Case("tool parser off", "LangGraph: the same", langgraph_tools, script=writes_tool_calls),
    Case("broken conversations", "put a clock into the system prompt", with_a_nonce),
    Case("broken conversations", "OpenAI Agents SDK: `instructions` with a clock", agents_with_a_clock,
         script=doubles_once),
    Case("carried-over state", "kept the messages in a list at module level", RemembersAll(), members=2),
    Case("carried-over state", "LangGraph: one `thread_id` for all", LanggraphOneThread(), members=2),
    Case("carried-over state", "OpenAI Agents SDK: one `SQLiteSession` for all", AgentsOneSession(),
         members=2),
    Case("same prompt", "left the task out of the prompt", forgets_the_task, tasks=_TWO),
    Case("same prompt", "OpenAI Agents SDK: the same", agents_without_the_task, tasks=_TWO),
    Case("all rewards equal", "gave every rollout the same reward", plain,
         reward=lambda *_: 0.0, tasks=_TWO, members=2),
    Case("all rewards equal", "LangChain: the same", langchain_plain,
         reward=lambda *_: 1.0, tasks=_TWO, members=2),
    Case("reward errors", "used `signal.alarm` in the reward, and caught its error as 0", plain,
         reward=with_an_alarm),
    Case("reward errors", "OpenAI Agents SDK: read its answer as JSON, and caught the error as 0", agents_plain,
         reward=as_json),
    Case("unknown steps", "rewarded a step that was not taken", plain, reward=for_an_unknown_step),
    Case("unknown steps", "LangChain: rewarded a step by its message's `id`", _MESSAGES,
         reward=_MESSAGES.reward),
    Case("missing reward", "returned a text, and named no reward function", plain, reward=None),
    Case("missing reward", "LangChain: the same", langchain_plain, reward=None),
    Case("rollouts fail", "raised at a turn limit", gives_up),
    Case("rollouts fail", "the same, with `algorithm.failure_reward: -1`", gives_up,
         recipe={"algorithm": {**_LIMITS, "failure_reward": -1.0}}),
    Case("rollouts fail", "OpenAI Agents SDK: `MaxTurnsExceeded`", agents_out_of_turns,
         script=doubles_once),
)  # fmt: skip
