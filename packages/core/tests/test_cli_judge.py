"""`lightningrl judge`: what a model reads of a rollout, how far it agrees with people, and what is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.schema import AttemptState, Failure, FailureKind, Rollout, RolloutState
from lightningrl.store.base import RolloutQuery
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_testkit.records import call, group, reward

TURN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
NEXT = [*TURN, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "Hello"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four tasks that succeeded, each of two turns and with a reward of 1, and one that failed."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: run\nagent: m:f\n", encoding="utf-8")
    (tmp_path / "rubric.txt").write_text("1 if it is polite.", encoding="utf-8")
    asyncio.run(_fill(folder / "store.db"))
    return folder


async def _fill(path: Path) -> None:
    store = SqliteStore.open(path)
    for task in ("a", "b", "c", "d", "failed"):
        await store.enqueue(group(1, task=task))
        (claim,) = await store.claim("worker")
        attempt = claim.attempt.id
        turns = [
            call(attempt, str(number), request=json.dumps({"messages": said}).encode())
            for number, said in enumerate((TURN, NEXT))
        ]
        await store.append([*turns, reward(attempt, 1.0)])
        if task == "failed":
            failure = Failure(FailureKind.AGENT, "ValueError: no")
            await store.finish(attempt, AttemptState.FAILED, failure=failure)
        else:
            await store.finish(attempt, AttemptState.SUCCEEDED, output=f"output of {task}")
    await store.close()


def rewards(folder: Path) -> dict[str, float | None]:
    async def read() -> list[Rollout]:
        store = SqliteStore.open(folder / "store.db")
        try:
            query = RolloutQuery(states=(RolloutState.SUCCEEDED,))
            return list(await store.rollouts(query))
        finally:
            await store.close()

    return {one.spec.task_id: one.reward for one in asyncio.run(read())}


Judge = Callable[..., tuple[Result, list[str]]]


@pytest.fixture
def judge(folder: Path) -> Iterator[Judge]:
    """`judge(script, *arguments)`: what the command says, and what the judge read."""

    def run(script: Callable[[str], str], *arguments: str) -> tuple[Result, list[str]]:
        read: list[str] = []

        def answer(request: Any) -> Answer:
            [instruction, shown] = request["messages"]
            assert instruction["content"].startswith("1 if it is polite.\nAnswer with one number")
            read.append(shown["content"])
            return Answer(script(shown["content"]))

        server.script = answer
        where = ["--url", server.url, "--model", "m", "--rubric", str(folder.parent / "rubric.txt")]
        return CliRunner().invoke(commands, ["judge", str(folder), *where, *arguments]), read

    with ModelServer() as server:
        yield run


def labels(folder: Path, *rows: dict[str, Any]) -> tuple[str, str]:
    path = folder.parent / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "--labels", str(path)


def test_it_reads_the_whole_dialogue_once(folder: Path, judge: Judge) -> None:
    done, read = judge(lambda _: "0.25")
    assert done.output == "m judged 4 of 4 rollouts, mean 0.250\n"
    assert sorted(read)[0] == (
        'Task:\n{"question": "a", "member": null}\n\nWhat happened:\nuser: Hello\nagent: hello\nuser: Hello\n'
        "agent: hello\n\nOutput:\noutput of a"
    )
    assert rewards(folder) == dict.fromkeys("abcd", 1.0)  # nothing is written
    again, read_again = judge(lambda _: "0.25")
    assert (again.output, read_again) == (done.output, [])  # the run's folder has its answers


def test_agreement_is_of_what_has_a_label(folder: Path, judge: Judge) -> None:
    said = [{"question": one, "label": int(one in "ab")} for one in "abc"]
    done, _ = judge(lambda shown: str(int('"a"' in shown)), *labels(folder, *said))
    # People: yes, yes, no; the judge: yes, no, no. p_o = 2/3, p_e = 2/9 + 2/9, kappa = (2/9) / (5/9).
    assert "m and people agree on 67% of 3 labels" in done.output
    assert "Cohen's kappa 0.40\n  people alone call good: 1, the judge alone: 0\n" in done.output


def test_what_it_says_becomes_the_reward(folder: Path, judge: Judge) -> None:
    done, _ = judge(lambda shown: "?" if '"d"' in shown else "0.5", "--write")
    assert "1 without a number:\n  1 times ValueError: it said '?'" in done.output
    assert done.output.endswith("wrote 3 rewards\n")
    assert rewards(folder) == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0}
    judge(lambda _: "0.75", "--write")  # only d is asked for again
    assert rewards(folder) == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.75}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "x", "label": 1}, "{'question': 'x'} names 0;"),
        ({"member": None, "label": 1}, "{'member': None} names 4;"),
        ({"question": "a", "label": 0.5}, "'label', which is 0 or 1"),
        ({"label": 1}, "names its rollout"),
    ],
)
def test_a_label_is_of_one_rollout(
    folder: Path, judge: Judge, row: dict[str, Any], said: str
) -> None:
    done, read = judge(lambda _: "1", *labels(folder, row))
    assert said in done.output + str(done.exception)
    assert read == []


def test_a_judge_that_never_gives_a_number_is_an_error(folder: Path, judge: Judge) -> None:
    done, _ = judge(lambda _: "very polite", "--write")
    assert done.exit_code == 1
    assert "the judge gave no number:" in done.output + str(done.exception)
    assert rewards(folder) == dict.fromkeys("abcd", 1.0)
