"""Tasks: a split has at least one, each a JSON object, none with another's id; or it says so."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import DataSource
from lightningrl.tasks import load_tasks


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a function puts the recipe's folder on the import path; tests take it off again."""
    monkeypatch.setattr("sys.path", [*sys.path])


def from_file(folder: Path, text: str, **source: Any) -> list[tuple[str, dict[str, Any]]]:
    (folder / "tasks.jsonl").write_text(text, encoding="utf-8")
    return load_tasks(DataSource(source="tasks.jsonl", **source), folder=folder, split="train")


def from_function(
    folder: Path, module: str, body: str, **source: Any
) -> list[tuple[str, dict[str, Any]]]:
    """Load from `make` of a module of its own name, since Python imports each name once."""
    (folder / f"{module}.py").write_text(body, encoding="utf-8")
    return load_tasks(DataSource(source=f"{module}:make", **source), folder=folder, split="val")


# -- files --------------------------------------------------------------------------------------


def test_each_line_is_a_task_with_its_own_id_or_its_index(tmp_path: Path) -> None:
    tasks = from_file(tmp_path, '{"id": "x", "q": 1}\n\n{"q": 2}\n{"id": 7}\n')
    assert tasks == [("x", {"id": "x", "q": 1}), ("1", {"q": 2}), ("7", {"id": 7})]


def test_only_the_first_rows_are_used_where_a_limit_says_so(tmp_path: Path) -> None:
    text = '{"id": "a"}\n{"id": "b"}\nnot even JSON\n'
    assert [task_id for task_id, _ in from_file(tmp_path, text, limit=2)] == ["a", "b"]


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path: Path) -> None:
    assert from_file(tmp_path, '{"q": "a\u2028b"}\n') == [("0", {"q": "a\u2028b"})]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"data\.train: 'tasks\.jsonl' has no rows"),
        ('{"q": 1}\n[1, 2]\n', r"tasks\.jsonl:2: a row is a JSON object, this is a list"),
        ('{"q": 1}\n{"q":\n', r"tasks\.jsonl:2: not JSON"),
        ('{"q": NaN}\n', r"tasks\.jsonl:1: not a JSON object"),
        ('{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n', r"jsonl:3: task id 'a' .* at .*jsonl:1"),
        ('{"id": "1"}\n{"q": 2}\n', r"jsonl:2: task id '1' was used before"),  # the index is 1
        ('{"id": null}\n', "'id' is a text or a whole number, not None"),
        ('{"id": true}\n', "'id' is a text or a whole number, not True"),
        ('{"id": ""}\n', "'id' is a text or a whole number, not ''"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        from_file(tmp_path, text)


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.test: can't read '.*nowhere\.jsonl'"):
        load_tasks(DataSource(source="nowhere.jsonl"), folder=tmp_path, split="test")


def test_a_file_takes_no_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.args: a \.jsonl file takes none"):
        from_file(tmp_path, '{"q": 1}\n', args={"seed": 1})


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.limit: must be at least 1"):
        from_file(tmp_path, '{"q": 1}\n', limit=limit)


# -- functions ----------------------------------------------------------------------------------


def test_a_function_beside_the_recipe_gets_its_arguments(tmp_path: Path) -> None:
    body = "def make(count, seed=0):\n    return [{'id': f't{seed + i}'} for i in range(count)]\n"
    tasks = from_function(tmp_path, "tasks_with_args", body, args={"count": 2, "seed": 5})
    assert tasks == [("t5", {"id": "t5"}), ("t6", {"id": "t6"})]


def test_an_endless_generator_is_read_up_to_the_limit(tmp_path: Path) -> None:
    body = "import itertools\ndef make():\n    return ({'n': n} for n in itertools.count())\n"
    tasks = from_function(tmp_path, "tasks_endless", body, limit=3)
    assert [row["n"] for _, row in tasks] == [0, 1, 2]


def test_rows_are_what_the_store_will_give_back(tmp_path: Path) -> None:
    body = "def make():\n    return [{'pair': (1, 2)}]\n"
    assert from_function(tmp_path, "tasks_tuple", body) == [("0", {"pair": [1, 2]})]


@pytest.mark.parametrize(
    ("module", "body", "complaint"),
    [
        ("tasks_empty", "def make(): return []", "has no rows"),
        ("tasks_none", "def make(): return None", "must return a list of rows, it returned a None"),
        ("tasks_dict", "def make(): return {'q': 1}", "must return a list of rows.* a dict"),
        ("tasks_texts", "def make(): return ['q']", r"row 0 .*a row is a JSON object.* a str"),
        ("tasks_set", "def make(): return [{'q': {1}}]", "row 0 .*not a JSON object.*set"),
        ("tasks_wide", "def make(): return [{'q': 2**64}]", "row 0 .*can be stored.*2\\*\\*64"),
        ("tasks_keys", "def make(): return [{1: 2}]", "row 0 .*keys are texts"),
        ("tasks_value", "make = 3", "is no function"),
    ],
)
def test_a_wrong_function_is_refused_by_what_it_returned(
    tmp_path: Path, module: str, body: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        from_function(tmp_path, module, body)


def test_an_argument_nearly_right_gets_the_right_one_suggested(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val\.args: .*Did you mean 'count'"):
        from_function(tmp_path, "tasks_arg", "def make(count=1): ...", args={"cuont": 3})


def test_what_the_users_function_raises_is_theirs_to_read(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        from_function(tmp_path, "tasks_raise", "def make(): return 1 / 0")


def test_a_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val: there is no module 'no_such_module'"):
        load_tasks(DataSource(source="no_such_module:make"), folder=tmp_path, split="val")
