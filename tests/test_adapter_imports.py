"""An adapter adds little to the import of its framework: its own modules, and msgspec.

Counted in modules, since times depend on the machine: what is listed here takes 20 to 90 ms of CPU.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from lightningrl.capture.adapter import GROUP

USES = {
    "agent_framework": "from agent_framework import Agent",
    "autogen_agentchat": "from autogen_agentchat.agents import AssistantAgent",
    "autogen_core": "from autogen_agentchat.agents import AssistantAgent",
    "langchain_core": "from langchain_core.runnables import Runnable",
    "agents": "from agents import Agent, Runner",
}
"""Module that calls for an adapter -> the import without which nobody uses its framework. Some packages load nothing before that."""

OURS = ("lightningrl", "msgspec")
FRAMEWORKS = ("agent_framework", "autogen_agentchat", "autogen_core", "langchain_core", "agents")
WITH_TRACERS = ("langsmith", "tenacity")
"""What LangChain's own tracers import, which every run of a graph imports as well."""
MOST_OF_OURS = 40

PROGRAM = """
import sys
{use}
before = set(sys.modules)
import {module}
print(*(name for name in sys.modules if name not in before))
"""


def test_there_is_a_use_of_each_adapters_framework() -> None:
    assert {entry.name for entry in entry_points(group=GROUP)} == set(USES)


@pytest.mark.parametrize("name", USES)
def test_an_adapter_imports_little_beyond_its_framework(name: str) -> None:
    [entry] = [one for one in entry_points(group=GROUP) if one.name == name]
    module = entry.value.partition(":")[0].partition(".")[0]
    program = PROGRAM.format(use=USES[name], module=module)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = done.stdout.split()
    assert module in loaded
    allowed = OURS + FRAMEWORKS + (WITH_TRACERS if name == "langchain_core" else ())
    third = {one for one in loaded if one.partition(".")[0] not in sys.stdlib_module_names}
    assert {one for one in third if not one.startswith(allowed)} == set()
    assert sum(one.startswith("lightningrl") for one in loaded) <= MOST_OF_OURS
