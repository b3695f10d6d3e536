"""A lab for agents of the SDK, and nothing leaves this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import agents
import pytest
from agents.models import openai_provider

from lightningrl_openai_agents import OpenAIAgentsAdapter
from lightningrl_testkit.lab import CaptureLab, open_lab, script
from lightningrl_testkit.model_server import Script
from lightningrl_testkit.runner_process import captured, tell_address

# The SDK's default exporter would send what tests trace.
agents.set_trace_processors([])


@pytest.fixture
def model() -> Script:
    """What the model answers; modules have their own."""
    return script


@pytest.fixture
def adapter() -> Iterator[OpenAIAgentsAdapter]:
    """The adapter, installed."""
    adapter = OpenAIAgentsAdapter()
    with captured(adapter):
        yield adapter


@pytest.fixture
async def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: OpenAIAgentsAdapter, model: Script
) -> AsyncIterator[CaptureLab]:
    """The lab, with a runner's environment, for agents whose models are names."""
    agents.set_default_openai_api("chat_completions")
    async with open_lab(tmp_path, model) as lab:
        tell_address(monkeypatch, lab.rig.url)
        monkeypatch.setattr(openai_provider, "_http_client", None)
        yield lab
        async with lab.attempt():  # the SDK never closes what its clients share
            await openai_provider.shared_http_client().aclose()
    agents.set_default_openai_api("responses")
