"""The contract holds for a right adapter, and each wrong one breaks exactly the claim that it should."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from broken_adapters import BROKEN, restore
from toy_adapter import ToyAdapter, ToyAgents

from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl_testkit.adapter import AdapterContract, claims
from lightningrl_testkit.lab import CaptureLab, open_lab


class TestToy(AdapterContract):
    """The right adapter passes."""

    @pytest.fixture
    def agents(self) -> ToyAgents:
        return ToyAgents()


@pytest.fixture
async def shared_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaptureLab]:
    async with open_lab(tmp_path) as lab:
        monkeypatch.setenv("OPENAI_API_KEY", "lightningrl-placeholder")
        install_client_patch()
        yield lab
        uninstall_client_patch()


async def holds(
    claim: Callable[..., Awaitable[None]], agents: ToyAgents, lab: CaptureLab, patch: Any
) -> bool:
    """Whether a claim holds for the agents' adapter; tested as the contract's fixtures would."""
    wanted = inspect.signature(claim).parameters
    patch.setenv("OPENAI_BASE_URL", lab.model.url if "elsewhere" in wanted else f"{lab.rig.url}/v1")
    adapter = agents.make_adapter()
    adapter.install()
    given = {"lab": lab, "elsewhere": lab, "agents": agents, "adapter": adapter}
    try:
        await claim(TestToy(), **{name: given[name] for name in wanted if name in given})
    # Whatever a claim raises is that it doesn't hold.
    except (Exception, pytest.fail.Exception):  # noqa: BLE001
        return False
    finally:
        adapter.uninstall()
        restore()
    return True


async def test_each_broken_adapter_fails_its_claim_and_a_right_one_does_not(
    shared_lab: CaptureLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents, known = ToyAgents(), claims()
    for adapter, name in BROKEN.items():
        for agents.adapter, right in ((adapter, False), (ToyAdapter, True)):
            assert await holds(known[name], agents, shared_lab, monkeypatch) == right, adapter


@pytest.mark.long
@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
async def test_a_broken_adapter_fails_no_other_claim(
    broken: type[ToyAdapter], shared_lab: CaptureLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = ToyAgents()
    agents.adapter = broken
    failed = [
        name
        for name, claim in claims().items()
        if not await holds(claim, agents, shared_lab, monkeypatch)
    ]
    assert failed == [BROKEN[broken]]


def test_every_claim_has_an_adapter_that_breaks_it() -> None:
    assert sorted(BROKEN.values()) == sorted(claims())
