"""Demonstrations show the agent's own prompts, repairs always, and slips where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightningrl_bench_sql.database import QueryError, run
from lightningrl_bench_sql.demonstrations import demonstrations
from lightningrl_bench_sql.mistakes import misreadings, mistakes
from lightningrl_bench_sql.prompts import CHECKER, REWRITER, WRITER, approves
from lightningrl_bench_sql.questions import KINDS
from lightningrl_bench_sql.reward import execution_match
from lightningrl_bench_sql.tasks import draw

SYSTEM = {"writer": WRITER, "checker": CHECKER, "rewriter": REWRITER}
COUNT = 78


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="module")
def tasks(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row, _ in draw("train", COUNT, 5, (1, 2, 3), folder)}


@pytest.fixture(scope="module")
def clean(folder: Path) -> list[dict[str, Any]]:
    return demonstrations(COUNT, 5, slips=0, folder=folder)


def _of(rows: list[dict[str, Any]], agent: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["metadata"]["agent"] == agent]


def _shown(row: dict[str, Any], name: str) -> str | None:
    """A line of the prompt, such as `Query: ...`."""
    lines = row["messages"][1]["content"].splitlines()
    return next(
        (one.removeprefix(f"{name}: ") for one in lines if one.startswith(f"{name}: ")), None
    )


def _answer(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"]


def test_the_same_arguments_give_the_same_rows(folder: Path) -> None:
    assert demonstrations(20, 3, folder=folder) == demonstrations(20, 3, folder=folder)
    assert demonstrations(20, 3, folder=folder) != demonstrations(20, 4, folder=folder)


def test_a_dialogue_is_one_call_of_one_role(clean: list[dict[str, Any]]) -> None:
    for row in clean:
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == SYSTEM[row["metadata"]["agent"]]
        assert row["id"].startswith("train-5-")
    assert len(_of(clean, "writer")) == COUNT


def test_without_slips_every_answer_is_right(
    clean: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]
) -> None:
    assert not any(row["metadata"]["slip"] for row in clean)
    for agent in ("writer", "rewriter"):
        for row in _of(clean, agent):
            assert execution_match(tasks[row["id"]], _answer(row), None) == 1
    for row in _of(clean, "checker"):
        right = execution_match(tasks[row["id"]], _shown(row, "Query"), None) == 1
        assert approves(_answer(row)) == right


def test_the_rewriter_mends_errors_and_wrong_results(
    clean: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]
) -> None:
    repairs = _of(clean, "rewriter")
    assert len(repairs) == COUNT
    for row in repairs:
        assert execution_match(tasks[row["id"]], _shown(row, "Query"), None) == 0
    errors = [row for row in repairs if (_shown(row, "Result") or "").startswith("error: ")]
    assert len(repairs) / 5 < len(errors) < len(repairs) * 4 / 5
    assert any("no such column" in (_shown(row, "Result") or "") for row in errors)
    for row in repairs:
        assert (_shown(row, "Check") is None) == (row in errors)


def test_slips_are_as_frequent_as_asked(folder: Path, tasks: dict[str, dict[str, Any]]) -> None:
    rows = demonstrations(COUNT, 5, slips=0.3, folder=folder)
    for agent in ("writer", "rewriter"):
        answers = _of(rows, agent)
        wrong = [
            row for row in answers if not execution_match(tasks[row["id"]], _answer(row), None)
        ]
        assert wrong == [row for row in answers if row["metadata"]["slip"]]
        assert 0.15 < len(wrong) / len(answers) < 0.45
    assert not any(row["metadata"]["slip"] for row in _of(rows, "checker"))
    assert not any(_answer(row) == _shown(row, "Query") for row in _of(rows, "rewriter"))
    with pytest.raises(ValueError, match=r"slips must be from 0 to 1, got 1\.5"):
        demonstrations(1, 0, slips=1.5, folder=folder)


def test_every_kind_of_question_can_be_got_wrong_and_no_mistake_is_rewarded(folder: Path) -> None:
    seen: set[str] = set()
    for row, question in draw("train", 3 * len(KINDS), 2, (1, 2, 3), folder):
        wrong = [query.sql() for query, _ in mistakes(question.query)]
        assert len(wrong) >= 2, row["query"]
        assert not any(execution_match(row, query, None) for query in wrong), row["query"]
        for query in misreadings(question.query):
            with pytest.raises(QueryError, match="no such"):
                run(row["database"], query)
        seen.add(row["kind"])
    assert seen == set(KINDS)
