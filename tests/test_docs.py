"""The documents are true: their programs run, their recipes, commands, links and paths exist.

A code block below `<!-- file: NAME -->` is a file of the page's own project; one below
`<!-- fragment -->` is part of something, and is not checked by itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from lightningrl.cli import commands
from lightningrl.recipe import parse_recipe
from lightningrl_testkit.model_server import Answer, ModelServer

pytestmark = pytest.mark.usefixtures("forked")

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "*/*/README.md")
    for page in ROOT.glob(pattern)
)
README = Path("README.md")
_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>file|fragment)(?:: (?P<name>\S+))? -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SHELL = re.compile(r"```(?:bash|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_RECIPE_KEYS = {"agent", "command"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    file: str | None
    """Name within the page's project. `None`: it is no file."""
    fragment: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(one["language"], one["text"], one["name"], one["marker"] == "fragment")
        for one in _BLOCK.finditer(read(page))
    ]


def read(page: Path) -> str:
    """A page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words of each command line of ours, in shell blocks and in `code spans`."""
    text = read(page)
    lines = [line for block in _SHELL.findall(text) for line in block.splitlines()]
    for line in [*lines, *_SPAN.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))]:
        words = line.split("#")[0].split()
        if words[:1] in (["make"], ["lightningrl"]) and len(words) > 1:
            yield words


def _load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_at_most_110_lines_and_architecture_150() -> None:
    assert len(read(Path("README.md")).splitlines()) <= 110
    assert len(read(Path("ARCHITECTURE.md")).splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_that_installs_ours_says_how_pip_finds_it(page: Path) -> None:
    """The packages are on no index before the first release; the README says in one place what to do."""
    text = read(page)
    if re.search(r"pip install [^\n]*lightningrl", text):
        assert "#install-elsewhere" in text or '"Install elsewhere"' in text or page == README, page


def test_the_readme_says_how_pip_finds_ours() -> None:
    section = read(README).split("## Install elsewhere\n")[1].split("\n## ")[0]
    assert "make build " in section
    assert "export PIP_FIND_LINKS=$PWD/dist " in section


def test_the_readmes_program_is_at_most_20_lines() -> None:
    program = [
        block.text
        for block in blocks(Path("README.md"))
        if block.file is not None and block.file.endswith((".py", ".yaml"))
    ]
    assert sum(len(text.splitlines()) for text in program) <= 20


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.fragment:
            assert compile(block.text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_names_of_a_pages_files_can_be_read(page: Path) -> None:
    """The marker is a comment, so the name stands in the text before it too, below the same heading."""
    for one in _BLOCK.finditer(read(page)):
        if one["name"]:
            before = re.sub(r"```.*?```", "", read(page)[: one.start()], flags=re.DOTALL)
            assert f"`{one['name']}`" in before.rsplit("\n#", 1)[-1], f"{page}: {one['name']}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_yaml_blocks_are_recipes(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml" and not block.fragment:
            assert parse_recipe(yaml.safe_load(block.text), where=str(page)).name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = commands.list_commands(click.Context(commands))
    for program, name, *_ in commands_in(page):
        valid = targets if program == "make" else known
        # `lightningrl train RECIPE` and `lightningrl --help` alike.
        assert name in valid or name.startswith("-"), f"{page}: {program} {name}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_of_our_commands_exist(page: Path) -> None:
    with click.Context(commands) as context:
        for program, name, *rest in commands_in(page):
            command = commands.get_command(context, name) if program == "lightningrl" else None
            if isinstance(command, click.Group) and rest:
                command = command.get_command(context, rest[0])
            if command is None:
                continue
            options = {text for one in command.params for text in one.opts}
            used = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert used <= {*options, "--help"}, f"{page}: lightningrl {name}"
            required = {one.opts[-1] for one in command.params if one.required and rest}
            asked = {one for one in required if one.startswith("--")}
            assert asked <= used or "--help" in used, f"{page}: lightningrl {name} lacks {asked}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_resolve(page: Path) -> None:
    for link in _LINK.findall(read(page)):
        if "://" not in link and not link.startswith("#"):
            target = (ROOT / page).parent / link.partition("#")[0]
            assert target.exists(), f"{page}: {link}"


def test_the_paths_that_architecture_names_exist() -> None:
    tree = [str(path.relative_to(ROOT)) for path in _files()]
    text = read(Path("ARCHITECTURE.md"))
    named = [span for span in _SPAN.findall(text) if re.fullmatch(r"[\w./-]+", span)]
    paths = [span for span in named if "/" in span or span.endswith((".py", ".sql", ".toml"))]
    assert len(paths) > 30
    for path in paths:
        inside = path.strip("/")
        assert any(
            f"/{one}".endswith(f"/{inside}") or f"/{inside}/" in f"/{one}" for one in tree
        ), path


def _files() -> Iterator[Path]:
    for folder in ("packages", "benchmarks", "tests", "scripts", "docs"):
        yield from (ROOT / folder).rglob("*.*")
    yield from ROOT.glob("*.*")


def test_each_guard_is_a_test_file() -> None:
    table = read(Path("ARCHITECTURE.md")).split("## Invariants", 1)[1].split("##", 1)[0]
    rows = [line for line in table.splitlines() if re.match(r"\| \d\.", line)]
    assert len(rows) == 6
    for row in rows:
        guards = _SPAN.findall(row)
        assert guards, row
        for guard in guards:
            text = (ROOT / guard).read_text(encoding="utf-8")
            assert "def test_" in text or "(AdapterContract)" in text, row


def test_each_decision_has_a_number_of_its_own_which_its_title_repeats() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name.partition("-")[0] for page in pages]
    assert len(set(numbers)) == len(numbers) > 0
    for page, number in zip(pages, numbers, strict=True):
        assert page.read_text().startswith(f"# {number}"), page.name


@pytest.mark.parametrize(
    "script",
    [
        "adapter_reference",
        "recipe_reference",
        "cli_reference",
        "clients_reference",
        "algorithms_reference",
        "gateway_fields_reference",
        "engine_fields_reference",
        "settings_reference",
    ],
)
def test_the_reference_is_up_to_date(script: str) -> None:
    written = _load(script)
    assert written.PAGE.read_text(encoding="utf-8") == written.render(), (
        f"run: python scripts/{script}.py"
    )


def test_the_reference_has_every_command() -> None:
    page = read(Path("docs/reference/cli.md"))
    for name in commands.list_commands(click.Context(commands)):
        assert f"## `lightningrl {name}`" in page


def _recipes() -> list[tuple[Path, str]]:
    return [
        (page, block.file)
        for page in PAGES
        for block in blocks(page)
        if block.file is not None and block.file.endswith(".yaml")
    ]


@pytest.mark.parametrize(("page", "recipe"), _recipes(), ids=str)
def test_the_pages_programs_run(page: Path, recipe: str, tmp_path: Path) -> None:
    """Each recipe of a page is tried as the page says, against a model that answers "42"."""
    for block in blocks(page):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    environment = {
        **os.environ,
        # Recipes say `python`, which must be the one that has their packages.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with ModelServer(lambda _: Answer("42")) as model:
        done = subprocess.run(
            [sys.executable, "-m", "lightningrl.cli", "try", recipe, "--policy", model.url,
             "--split", "train"],
            cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reward 1.000" in done.stdout
    assert model.calls > 0
