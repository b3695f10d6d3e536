"""`ARCHITECTURE.md` is the map of the code as it is, and the house keeps its size."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCES = {
    "lightningrl": ROOT / "packages/core/src/lightningrl",
    "lightningrl_verl": ROOT / "packages/trainer-verl/src/lightningrl_verl",
}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 600, 50


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = PAGE.split(f"{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("package", SOURCES)
def test_rooms_are_drawn_as_import_linter_orders_them(package: str) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(
        one
        for one in settings["tool"]["importlinter"]["contracts"]
        if one.get("containers") == [package]
    )
    assert contract["exhaustive"]
    heading = f"### `{SOURCES[package].relative_to(ROOT)}/`"
    drawn = [
        {name.rstrip("/").removesuffix(".py") for name in _quoted(row[0])} for row in _rows(heading)
    ]
    assert drawn == [set(layer.split(" | ")) for layer in contract["layers"]]


@pytest.mark.parametrize("package", SOURCES)
def test_a_room_says_what_happens_in_it(package: str) -> None:
    rooms = [path for path in SOURCES[package].rglob("__init__.py") if path.parent.name != package]
    assert len(rooms) > 5
    silent = [str(one) for one in rooms if not ast.get_docstring(ast.parse(one.read_text("utf-8")))]
    assert silent == []


def test_a_change_begins_where_the_page_says() -> None:
    rows = _rows("## Where would I change ...")
    assert len(rows) >= 12
    for change, place in rows:
        file, name = _quoted(place)
        defined = {
            node.name
            for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in defined, change


def test_a_rollouts_life_and_the_invariants_name_files_that_are_there() -> None:
    told = PAGE.split("## The life of a rollout")[1]
    names = [name for name in _quoted(told) if name.endswith(".py")]
    assert len(names) > 15
    roots = (ROOT, *SOURCES.values())
    assert [name for name in names if not any((root / name).is_file() for root in roots)] == []


def test_no_file_and_no_function_has_outgrown_its_reader() -> None:
    large: list[str] = []
    for folder in ("packages", "benchmarks", "scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if text.count("\n") > MOST_LINES_OF_A_FILE:
                large.append(str(path))
            large += [f"{path}: {one}" for one in _large_functions(ast.parse(text))]
    assert large == []


def _large_functions(tree: ast.Module) -> list[str]:
    """Functions above the limit, their docstrings not counted."""
    large: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            said = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (said.count("\n") + 1 if said else 0)
            if lines > MOST_LINES_OF_A_FUNCTION:
                large.append(node.name)
    return large
