"""An adapter is installed when its framework is imported, and is in nobody's way before or after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ADAPTER = """
import toy_framework
class Toy:
    name, framework, versions = "toy", "toy-framework", ("1", "2")
    def install(self):
        print("installed")
    def uninstall(self):
        print("uninstalled")
    def wrap(self, agent, *, fresh):
        if not isinstance(agent, toy_framework.Agent):
            return None
        async def call(given):
            return f"wrapped: {agent.answer(given)}"
        return call
"""

FRAMEWORK = """
class Agent:
    def answer(self, given):
        return given + "!"
"""

WATCH = """
import sys
from lightningrl.capture.adapters import Adapters
adapters = Adapters()
adapters.watch()
"""


def announce(folder: Path, name: str, *, metadata: str = "", entries: str = "") -> Path:
    """An installed distribution, as far as its metadata goes."""
    announced = folder / f"{name}-1.0.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}"
    )
    (announced / "entry_points.txt").write_text(entries)
    return announced


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder where a framework and its adapter are installed."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "toy_framework.py").write_text(FRAMEWORK)
    (site / "toy_adapter.py").write_text(ADAPTER)
    framework = announce(site, "toy_framework")
    (framework / "RECORD").write_text("toy_framework.py,,\n")
    announce(
        site,
        "toy_adapter",
        metadata="Requires-Dist: toy-framework>=1\n",
        entries="[lightningrl.adapters]\ntoy_framework = toy_adapter:Toy\n",
    )
    return site


def run(
    site: Path, program: str, *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment that has `site` too."""
    done = subprocess.run(
        [sys.executable, *(("-c", program) if program else ()), *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done


def said(site: Path, program: str) -> list[str]:
    """The lines that it prints, on a stderr that stays empty."""
    done = run(site, program)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_an_adapter_is_installed_when_its_framework_is_imported_and_not_before(site: Path) -> None:
    program = f"""{WATCH}
print("toy_adapter" in sys.modules, adapters.installed)
import toy_framework
print([one.name for one in adapters.installed])
"""
    assert said(site, program) == ["False []", "installed", "['toy']"]


def test_an_adapter_whose_framework_is_imported_already_is_installed_at_once(site: Path) -> None:
    assert said(site, f"import toy_framework\n{WATCH}\nprint('watching')") == [
        *("installed", "watching"),
    ]


@pytest.mark.parametrize("first", ["toy_adapter", "toy_framework"])
def test_who_imports_the_adapter_has_it_installed_once(site: Path, first: str) -> None:
    program = f"{WATCH}\nimport {first}\nimport toy_adapter, toy_framework\nprint('imported')"
    assert said(site, program) == ["installed", "imported"]


def test_watching_twice_and_importing_again_install_once(site: Path) -> None:
    program = f"""{WATCH}
adapters.watch()
import importlib, toy_framework
importlib.reload(toy_framework)
print(len(adapters.installed))
"""
    assert said(site, program) == ["installed", "1"]


def test_threads_that_import_a_framework_at_once_install_its_adapter_once(site: Path) -> None:
    program = f"""{WATCH}
import threading
ready = threading.Barrier(8)
def work(name):
    ready.wait()
    __import__(name)
threads = [
    threading.Thread(target=work, args=[name]) for name in ["toy_framework", "toy_adapter"] * 4
]
for one in threads:
    one.start()
for one in threads:
    one.join()
print(len(adapters.installed))
"""
    assert said(site, program) == ["installed", "1"]


def test_a_framework_of_two_packages_calls_by_the_one_that_is_imported_first(site: Path) -> None:
    """`upper` imports `toy_framework`, and the adapter imports a part of it that is not there by then."""
    (site / "upper").mkdir()
    (site / "upper" / "__init__.py").write_text("")
    (site / "upper" / "part.py").write_text("import toy_framework\nclass Part: ...\n")
    (site / "toy_adapter.py").write_text(f"from upper.part import Part\n{ADAPTER}")
    announced = site / "toy_adapter-1.0.dist-info" / "entry_points.txt"
    announced.write_text(f"{announced.read_text()}upper = toy_adapter:Toy\n")
    for first in ("toy_framework", "upper.part"):
        assert said(site, f"{WATCH}\nimport {first}\nprint('imported')") == [
            *("installed", "imported"),
        ]


def test_after_uninstalling_the_import_of_a_framework_installs_nothing(site: Path) -> None:
    program = f"""{WATCH}
adapters.uninstall()
import toy_framework
print(adapters.installed)
adapters.watch()
adapters.uninstall()
print(adapters.installed)
"""
    assert said(site, program) == ["[]", "installed", "uninstalled", "[]"]


# -- what is not the framework ---------------------------------------------------------------------


def test_a_users_module_of_a_frameworks_name_is_left_alone_with_a_warning(site: Path) -> None:
    users = site.parent / "toy_framework.py"
    users.write_text("mine = True")
    done = run(site, f"{WATCH}\nimport toy_framework\nprint(toy_framework.mine)")
    assert done.stdout == "True\n"
    [warning] = done.stderr.splitlines()
    assert warning == (
        f"the adapter 'toy_framework' (toy_adapter:Toy) is left out: {users} is not its framework, but "
        "a module of the same name; rename it, if the agent uses the framework"
    )


@pytest.mark.parametrize("record", ["", "__editable__.toy_framework.pth,,\n"])
def test_a_framework_whose_files_are_not_told_is_taken_for_it(site: Path, record: str) -> None:
    (site / "toy_framework-1.0.dist-info" / "RECORD").write_text(record)
    assert said(site, f"{WATCH}\nimport toy_framework") == ["installed"]


# -- what can't be used ----------------------------------------------------------------------------


def break_adapter(site: Path, how: str) -> None:
    """Make its import fail, or its installation."""
    raising = "from lightningrl.errors import ConfigError\n        raise ConfigError('too old')"
    broken = {
        "import": f"import no_such_module\n{ADAPTER}",
        "install": ADAPTER.replace('print("installed")', raising),
    }
    (site / "toy_adapter.py").write_text(broken[how])


BROKEN = pytest.mark.parametrize(
    ("how", "told"),
    [
        ("import", "the adapter 'toy_framework' (toy_adapter:Toy) can't be imported: No module"),
        ("install", "too old"),
    ],
)


@BROKEN
def test_a_broken_adapter_is_silent_until_its_framework_is_imported(
    site: Path, how: str, told: str
) -> None:
    break_adapter(site, how)
    program = f"""{WATCH}
from lightningrl.errors import ConfigError
for _ in range(2):
    try:
        import toy_framework
    except ConfigError as error:
        print(error)
"""
    assert [line.startswith(told) for line in said(site, program)] == [True, True]


RECORD = """
import lightningrl
lightningrl.record("traffic.db")
import toy_framework, toy_framework
with lightningrl.rollout() as one:
    one.output = toy_framework.Agent().answer("works")
print(one.output)
"""


@BROKEN
def test_recording_goes_on_without_an_adapter_that_a_later_import_finds_broken(
    site: Path, how: str, told: str
) -> None:
    break_adapter(site, how)
    done = run(site, RECORD)
    assert done.stdout == "works!\n"
    assert done.stderr.count("the adapter 'toy_framework' (toy_adapter:Toy) is left out") == 1
    assert told in done.stderr


@BROKEN
def test_recording_refuses_a_broken_adapter_whose_framework_is_there(
    site: Path, how: str, told: str
) -> None:
    break_adapter(site, how)
    done = run(site, f"import toy_framework\n{RECORD}", status=1)
    assert f"ConfigError: {told}" in done.stderr


def test_recording_undone_leaves_later_imports_alone(site: Path) -> None:
    program = """
import lightningrl
from lightningrl.recorder import uninstall_adapters
lightningrl.record("traffic.db")
uninstall_adapters()
import toy_framework
lightningrl.record("traffic.db")
lightningrl.record("traffic.db")
uninstall_adapters()
"""
    assert said(site, program) == ["installed", "uninstalled"]


# -- in a runner -----------------------------------------------------------------------------------


def recipe(folder: Path, agent: str) -> Path:
    """A recipe beside its agent's module."""
    (folder / "my_agent.py").write_text(agent)
    path = folder / "recipe.yaml"
    path.write_text(
        "{name: toy, agent: 'my_agent:make', policies: {policy: {tiny: 'nothing:at_all'}}}"
    )
    return path


LATE = """
def make():
    import toy_framework
    return toy_framework.Agent()
"""


def test_a_factory_that_imports_its_framework_late_is_run_by_the_adapter(site: Path) -> None:
    recipe(site.parent, LATE)
    program = f"""{WATCH}
import asyncio
from pathlib import Path
from lightningrl.recipe import load_recipe
from lightningrl.runner.resolve import resolve_agent
agent = resolve_agent(load_recipe(Path("recipe.yaml")), adapters.installed)
print(adapters.installed)
print(asyncio.run(agent.call("hello")))
"""
    assert said(site, program) == ["[]", "installed", "wrapped: hello!"]


@BROKEN
def test_a_runner_ends_as_with_a_wrong_recipe_where_the_agents_adapter_is_broken(
    site: Path, how: str, told: str
) -> None:
    break_adapter(site, how)
    path = recipe(site.parent, "import toy_framework\nmake = toy_framework.Agent()")
    command = ("-m", "lightningrl.runner.process", str(path), "--server", "http://127.0.0.1:9")
    done = run(site, "", *command, status=78)
    assert done.stderr.startswith(f"error: {told}")
