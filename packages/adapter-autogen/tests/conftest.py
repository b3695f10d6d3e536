"""A lab for agents of AutoGen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lightningrl_autogen import AutoGenAdapter
from lightningrl_testkit.lab import CaptureLab, open_lab, script
from lightningrl_testkit.model_server import Script
from lightningrl_testkit.runner_process import captured, tell_address


@pytest.fixture
def model() -> Script:
    """What the model answers; modules have their own."""
    return script


@pytest.fixture
def adapter() -> Iterator[AutoGenAdapter]:
    """The adapter, installed."""
    adapter = AutoGenAdapter()
    with captured(adapter):
        yield adapter


@pytest.fixture
async def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: AutoGenAdapter, model: Script
) -> AsyncIterator[CaptureLab]:
    """The lab, with a runner's environment."""
    async with open_lab(tmp_path, model) as lab:
        tell_address(monkeypatch, lab.rig.url)
        yield lab
