"""Real frameworks call for their adapters, by whichever door a program enters, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from lightningrl.capture.adapter import GROUP

pytestmark = pytest.mark.usefixtures("forked")

FRAMEWORKS = ("agent_framework", "agents", "autogen_core", "langchain_core")

WATCH = """
import sys
from lightningrl.capture.adapters import Adapters
adapters = Adapters()
adapters.watch()
"""

SHOW = "print(*(one.name for one in adapters.installed))"


def run(
    program: str, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_process_that_imports_no_framework_loads_no_adapter() -> None:
    modules = {entry.module for entry in entry_points(group=GROUP)}
    assert len(modules) >= 4
    program = f"{WATCH}\nimport openai\nprint(*sys.modules)"
    assert run(program).stdout.split().count("openai") == 1
    assert set(run(program).stdout.split()).isdisjoint({*modules, *FRAMEWORKS})


@pytest.mark.parametrize(
    ("statement", "adapter"),
    [
        ("import agents", "openai-agents"),
        pytest.param(
            "from agents.tracing import processors", "openai-agents", marks=pytest.mark.long
        ),
        ("import agent_framework", "agent-framework"),
        pytest.param(
            "from agent_framework.openai import OpenAIChatCompletionClient",
            "agent-framework",
            marks=pytest.mark.long,
        ),
        pytest.param("import autogen_core", "autogen", marks=pytest.mark.long),
        ("from autogen_agentchat.agents import AssistantAgent", "autogen"),
        pytest.param(
            "from autogen_agentchat.teams import RoundRobinGroupChat",
            "autogen",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "from autogen_ext.models.openai import OpenAIChatCompletionClient",
            "autogen",
            marks=pytest.mark.long,
        ),
        pytest.param("import langchain_core", "langchain", marks=pytest.mark.long),
        pytest.param("from langchain_core.tools import tool", "langchain", marks=pytest.mark.long),
        pytest.param(
            "from langchain.agents import create_agent", "langchain", marks=pytest.mark.long
        ),
        pytest.param(
            "from langchain_openai import ChatOpenAI", "langchain", marks=pytest.mark.long
        ),
        ("from langgraph.graph import StateGraph", "langchain"),
        pytest.param(
            "import lightningrl_agent_framework", "agent-framework", marks=pytest.mark.long
        ),
        ("import lightningrl_autogen", "autogen"),
        pytest.param("import lightningrl_langchain", "langchain", marks=pytest.mark.long),
        pytest.param("import lightningrl_openai_agents", "openai-agents", marks=pytest.mark.long),
    ],
)
def test_a_framework_calls_for_its_adapter_and_no_other(statement: str, adapter: str) -> None:
    done = run(f"{WATCH}\n{statement}\n{SHOW}")
    assert (done.stdout.split(), done.stderr) == ([adapter], "")


@pytest.mark.long
def test_frameworks_that_are_all_imported_have_all_their_adapters() -> None:
    program = f"{WATCH}\nimport {', '.join(FRAMEWORKS)}\n{SHOW}"
    assert run(program).stdout.split() == [
        *("agent-framework", "openai-agents", "autogen", "langchain"),
    ]


THREADS = """
import threading
ready = threading.Barrier(len(sys.argv) - 1)
def work(name):
    ready.wait()
    __import__(name)
threads = [threading.Thread(target=work, args=[name]) for name in sys.argv[1:]]
for one in threads:
    one.start()
for one in threading.enumerate():
    if one is not threading.main_thread():
        one.join()
"""


@pytest.mark.parametrize(
    ("adapter", "modules"),
    [
        ("autogen", "autogen_core.tools autogen_agentchat.agents autogen_ext.models.openai"),
        pytest.param(
            "langchain",
            "langchain.agents langgraph.graph langchain_openai langchain_core.tools",
            marks=pytest.mark.long,
        ),
    ],
)
def test_threads_that_enter_by_several_doors_at_once_are_not_in_each_others_way(
    adapter: str, modules: str
) -> None:
    done = run(f"{WATCH}\n{THREADS}\n{SHOW}", *modules.split())
    assert (done.stdout.split(), done.stderr) == ([adapter], "")


AGENT = """
def solve(task):
    return task + " solved"
"""

RESOLVE = f"""{WATCH}
import asyncio
from pathlib import Path
from lightningrl.recipe import load_recipe
from lightningrl.runner.resolve import resolve_agent
agent = resolve_agent(load_recipe(Path("recipe.yaml")), adapters.installed)
print(asyncio.run(agent.call("task")))
print("lightningrl_openai_agents" in sys.modules)
"""


def test_a_users_agents_py_is_run_and_named_in_a_warning(tmp_path: Path) -> None:
    users = tmp_path / "agents.py"
    users.write_text(AGENT)
    (tmp_path / "recipe.yaml").write_text(
        "{name: mine, agent: 'agents:solve', policies: {policy: {tiny: 'nothing:at_all'}}}"
    )
    done = run(RESOLVE, folder=tmp_path)
    assert done.stdout.splitlines() == ["task solved", "False"]
    [warning] = done.stderr.splitlines()
    assert (
        f"the adapter 'agents' (lightningrl_openai_agents:OpenAIAgentsAdapter) is left out: {users} is"
        in warning
    )
    assert "rename it, if the agent uses the framework" in warning
