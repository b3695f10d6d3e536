"""The real agent of the SDK against a server that plays the model, where none of our packages but its own can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from itertools import count
from typing import Any

import pytest

from lightningrl_bench_rag.demonstrations import demonstrations
from lightningrl_bench_rag.search import index_of
from lightningrl_bench_rag.tasks import generate
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall, in_turn

PROGRAM = textwrap.dedent(
    """
    import asyncio, json, sys

    class Refused:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("lightningrl") and not name.startswith("lightningrl_bench_rag"):
                raise ImportError(name)

    sys.meta_path.insert(0, Refused())
    from lightningrl_bench_rag.agent import solve

    async def main():
        tasks = json.load(sys.stdin)
        print(json.dumps(await asyncio.gather(*[solve(task) for task in tasks])))

    asyncio.run(main())
    assert not {"torch", "transformers", "scipy", "numba"} & sys.modules.keys()
    """
)
"""Solves the tasks on its input, all at the same time, and prints the answers."""

_numbers = count()
_shown = next(one for one in demonstrations(50, 0, slips=1.0) if len(one["messages"]) > 7)
"""A demonstration of three searches, one of them poor."""
_generated = [*generate("val", 3, 2), *generate("test", 3, 3)]


def _call(arguments: str, name: str = "search") -> Answer:
    return Answer(tool_calls=(ToolCall(f"call-{next(_numbers)}", name, arguments),))


def _search(query: str) -> Answer:
    return _call(json.dumps({"query": query}))


def _scripts() -> dict[str, Script]:
    """Question -> how the model deals with it."""
    shown = [
        message["content"] or _call(message["tool_calls"][0]["function"]["arguments"])
        for message in _shown["messages"]
        if message["role"] == "assistant"
    ]
    return {
        _shown["messages"][1]["content"]: in_turn(*shown),
        "How long?": in_turn(_call("{"), _search("quay"), _search("pier"), "long"),
        "For ever?": lambda _: _search("anything"),
        "Another tool?": in_turn(_call("{}", name="find")),
        **{one["question"]: in_turn(_search("school mayor port"), "Felnor") for one in _generated},
    }


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Question -> the agent's answer, and the requests of its model calls."""
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    corpus.write_text('{"title": "Quay", "text": "The quay is long."}\n', encoding="utf-8")
    scripts = _scripts()
    tasks = [*_generated]
    for question in scripts.keys() - {one["question"] for one in _generated}:
        local = question == "How long?"
        tasks.append(
            {"question": question, "corpus": str(corpus) if local else "generated/train/0"}
        )
    with ModelServer(lambda asked: scripts[asked["messages"][1]["content"]](asked)) as server:
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "any"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=json.dumps(tasks),
            env={**environment, "RAG_MODEL": "my-model"},
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        requests: dict[str, list[dict[str, Any]]] = {}
        for one in server.arrivals:
            requests.setdefault(one.body["messages"][1]["content"], []).append(one.body)
    return {
        task["question"]: (answer, requests[task["question"]])
        for task, answer in zip(tasks, json.loads(done.stdout), strict=True)
    }


def _told(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What a chat template reads of messages: ids are not of it."""
    return [
        (
            one["role"],
            one.get("content"),
            [call["function"] for call in one.get("tool_calls") or ()],
        )
        for one in messages
    ]


def test_the_agent_sends_what_demonstrations_say(solved: dict[str, Any]) -> None:
    answer, requests = solved[_shown["messages"][1]["content"]]
    assert answer == _shown["messages"][-1]["content"]
    assert {one["model"] for one in requests} == {"my-model"}
    # As text: a chat template keeps the order of keys.
    assert json.dumps(requests[-1]["tools"]) == json.dumps(_shown["tools"])
    assert _told(requests[-1]["messages"]) == _told(_shown["messages"][:-1])


def test_a_local_corpus_is_searched_and_a_refused_call_is_told(solved: dict[str, Any]) -> None:
    answer, requests = solved["How long?"]
    assert answer == "long"
    results = [one["content"] for one in requests[-1]["messages"] if one["role"] == "tool"]
    assert results == ["error", "Quay: The quay is long.", "nothing found"]


def test_tasks_at_the_same_time_do_not_see_each_other(solved: dict[str, Any]) -> None:
    for task in _generated:
        answer, requests = solved[task["question"]]
        assert answer == "Felnor"
        found = index_of(task["corpus"]).answer("school mayor port")
        assert requests[-1]["messages"][-1]["content"] == found


def test_an_agent_that_never_answers_returns_nothing(solved: dict[str, Any]) -> None:
    answer, requests = solved["For ever?"]
    assert (answer, len(requests)) == ("", 7)


def test_a_call_of_a_tool_that_is_not_there_returns_nothing(solved: dict[str, Any]) -> None:
    answer, requests = solved["Another tool?"]
    assert (answer, len(requests)) == ("", 1)
