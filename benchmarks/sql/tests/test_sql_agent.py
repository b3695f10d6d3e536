"""The real LangGraph agent against a scripted model, in a process in which none of our packages can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from lightningrl.capture.context import in_rollout
from lightningrl.capture.sink import BufferSink
from lightningrl.schema import StepKind, StepStartEvent
from lightningrl_bench_sql.prompts import CHECKER, REWRITER, WRITER, approves, query_in
from lightningrl_bench_sql.tasks import generate
from lightningrl_testkit.contexts import rollout_context
from lightningrl_testkit.model_server import Answer, ModelServer

ROLES = {WRITER: "writer", CHECKER: "checker", REWRITER: "rewriter"}
Task = dict[str, Any]

# Solves the tasks of each line that it is given, at the same time.
PROGRAM = """
import asyncio, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("lightningrl") and name.split(".")[0] != "lightningrl_bench_sql":
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
from lightningrl_bench_sql.agent import solve

async def main():
    for line in sys.stdin:
        answers = await asyncio.gather(*[solve(task) for task in json.loads(line)])
        print(json.dumps(answers), flush=True)

asyncio.run(main())
"""


@dataclass
class Model:
    """Answers each role from a list of its own; the last answer repeats."""

    answers: dict[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Role and user's message of each request."""
    names: set[str] = field(default_factory=set[str])
    """Models that were asked for."""

    def __call__(self, request: dict[str, Any]) -> Answer:
        system, user = (message["content"] for message in request["messages"])
        role = ROLES[system]
        turn = sum(other == role for other, _ in self.asked)
        self.asked.append((role, user))
        self.names.add(request["model"])
        texts = self.answers[role]
        return Answer(texts[min(turn, len(texts) - 1)])

    @property
    def roles(self) -> list[str]:
        return [role for role, _ in self.asked]


@dataclass
class Agent:
    """The process that the agent runs in."""

    process: subprocess.Popen[str]

    def solve(self, *tasks: Task) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(tasks)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model(server: ModelServer) -> Model:
    server.script = model = Model()
    return model


@pytest.fixture(scope="module")
def agent(server: ModelServer) -> Iterator[Agent]:
    environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "any"}
    environment["SQL_MODEL"] = "my-model"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Agent(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    rows = generate("val", 1, 0, folder=tmp_path_factory.mktemp("databases"))
    assert rows[0]["kind"] == "count"
    return rows[0]


def test_a_query_that_the_checker_approves_is_the_answer(
    agent: Agent, model: Model, task: Task
) -> None:
    model.answers = {"writer": [f"```sql\n{task['query']};\n```"], "checker": ["Correct."]}
    assert agent.solve(task) == [task["query"]]
    assert model.roles == ["writer", "checker"]
    assert model.names == {"my-model"}
    facts = f"Tables:\n{task['schema']}\nQuestion: {task['question']}"
    assert model.asked[0][1] == facts
    assert model.asked[1][1].startswith(f"{facts}\nQuery: {task['query']}\nResult: 1 row: ")


def test_what_the_checker_says_reaches_the_rewriter(agent: Agent, model: Model, task: Task) -> None:
    model.answers = {
        "writer": ["SELECT 1"],
        "checker": ["wrong: the table is missing", "correct"],
        "rewriter": [task["query"]],
    }
    assert agent.solve(task) == [task["query"]]
    assert model.roles == ["writer", "checker", "rewriter", "checker"]
    told = "\nQuery: SELECT 1\nResult: 1 row: 1\nCheck: wrong: the table is missing"
    assert model.asked[2][1].endswith(told)


def test_an_error_goes_to_the_rewriter_at_once_and_the_last_query_is_not_checked(
    agent: Agent, model: Model, task: Task
) -> None:
    model.answers = {"writer": ["SELECT x FROM y"], "rewriter": ["DROP TABLE y", "SELECT 3"]}
    assert agent.solve(task) == ["SELECT 3"]
    assert model.roles == ["writer", "rewriter", "rewriter"]
    assert model.asked[1][1].endswith("\nQuery: SELECT x FROM y\nResult: error: no such table: y")


def test_tasks_at_the_same_time_do_not_see_each_other(
    agent: Agent, model: Model, task: Task
) -> None:
    model.answers = {"writer": ["SELECT 1"], "checker": ["correct"]}
    tasks = [{**task, "question": f"Question {number}?"} for number in range(8)]
    assert agent.solve(*tasks) == ["SELECT 1"] * 8
    for role in ("writer", "checker"):
        users = [user for one, user in model.asked if one == role]
        assert all(sum(one["question"] in user for user in users) == 1 for one in tasks)


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        (" SELECT 1 ;\n", "SELECT 1"),
        ("Here it is:\n```sql\nSELECT 1;\n```\nor\n```\nSELECT 2\n```", "SELECT 1"),
        ("```SQL\nSELECT 1", "SELECT 1"),
        ("", ""),
    ],
)
def test_a_query_is_read_from_an_answer(answer: str, query: str) -> None:
    assert query_in(answer) == query


@pytest.mark.parametrize(
    ("verdict", "approved"),
    [
        ("correct", True),
        (" Correct. Well done", True),
        ("wrong: x", False),
        ("incorrect", False),
        ("", False),
    ],
)
def test_only_a_verdict_that_begins_with_correct_approves(verdict: str, approved: bool) -> None:
    assert approves(verdict) == approved


@pytest.mark.long
async def test_the_adapter_tells_the_three_agents_apart(
    model: Model, server: ModelServer, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both take seconds to import, and are seen at work in other tests.
    from lightningrl_bench_sql.agent import _model, solve
    from lightningrl_langchain import LangChainAdapter

    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    model.answers = {"writer": ["SELECT 1"], "checker": ["no", "correct"], "rewriter": ["SELECT 2"]}
    adapter, context = LangChainAdapter(), rollout_context()
    adapter.install()
    try:
        with in_rollout(context):
            assert await solve(task) == "SELECT 2"
    finally:
        adapter.uninstall()
        await _model().root_async_client.close()
    assert isinstance(context.sink, BufferSink)
    steps = [one for one in context.sink.events if isinstance(one, StepStartEvent)]
    calls = [step.agent for step in steps if step.kind is StepKind.LLM]
    assert calls == ["writer", "checker", "rewriter", "checker"]
