"""What every adapter must do: `AdapterContract`, inherited by each adapter's own tests.

Invariant: the claims are checked on what is in the store after real agents made real calls through a
real gateway, never on the adapter's insides. A claim holds, or the class says in `gaps` why it can't
and the claim then fails, every time; it is never left out or weakened.
"""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from lightningrl.capture.adapter import Adapter
from lightningrl_testkit.adapter_manners import MannerClaims
from lightningrl_testkit.adapter_rollouts import RolloutClaims
from lightningrl_testkit.adapter_steps import StepClaims
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import CaptureLab, open_lab
from lightningrl_testkit.runner_process import captured, tell_address

_CLAIMS = (StepClaims, RolloutClaims, MannerClaims)
PREFIX = "test_"
_GAP = "_lightningrl_gap"
"""On the copy of a claim that is a gap: its name."""


def claims() -> dict[str, Callable[..., Any]]:
    """Name of each claim, without `test_` -> its test, in the order in which they are written."""
    return {
        name.removeprefix(PREFIX): test
        for kind in _CLAIMS
        for name, test in vars(kind).items()
        if name.startswith(PREFIX)
    }


class AdapterContract(StepClaims, RolloutClaims, MannerClaims):
    """Inherit, override the fixture `agents`, and every claim is tested on your framework."""

    gaps: ClassVar[Mapping[str, str]] = {}
    """Claim -> why it can't hold for the framework: the test is then expected to fail, strictly."""

    loopback_only: ClassVar[bool] = True
    """See `network`: what an adapter or its framework sends to a vendor fails the test."""

    def __init_subclass__(cls) -> None:
        """Turn gaps into expected failures.

        Raises:
            TypeError: a claim is overridden, or a gap names no claim or gives no reason.
        """
        super().__init_subclass__()
        known = claims()
        for name, claim in known.items():
            # Looked up as pytest does: what a class beside this one brings stands before the claim too.
            test = getattr(cls, PREFIX + name)
            if test is not claim and (getattr(test, _GAP, None) != name or name not in cls.gaps):
                raise TypeError(
                    f"{cls.__name__}.{PREFIX}{name} overrides a claim of the contract; if it can't hold, "
                    f"give the reason in gaps[{name!r}]"
                )
        for name, reason in cls.gaps.items():
            if name not in known or not reason.strip():
                raise TypeError(
                    f"{cls.__name__}.gaps[{name!r}] = {reason!r}: a gap names a claim "
                    f"({', '.join(known)}) and gives a reason"
                )
            setattr(cls, PREFIX + name, _expected_to_fail(known[name], reason))

    @pytest.fixture
    def agents(self) -> ExampleAgents:
        """The framework's example agents; the one thing that a subclass gives."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `agents`")

    @pytest_asyncio.fixture
    async def lab(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[CaptureLab]:
        """The lab, with the environment that a runner makes before it imports user code."""
        async with open_lab(tmp_path) as lab:
            tell_address(monkeypatch, lab.rig.url)
            yield lab

    @pytest.fixture
    def elsewhere(self, lab: CaptureLab, monkeypatch: pytest.MonkeyPatch) -> CaptureLab:
        """The lab, for clients that know its model server and nothing of its gateway."""
        monkeypatch.setenv("OPENAI_BASE_URL", lab.model.url)
        return lab

    @pytest.fixture(autouse=True)
    def adapter(self, agents: ExampleAgents) -> Iterator[Adapter]:
        """The adapter, installed."""
        adapter = agents.make_adapter()
        with captured(adapter):
            yield adapter


def _expected_to_fail(claim: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """A copy of `claim` with the mark: marks of the original would hold for every adapter."""
    assert isinstance(claim, types.FunctionType)  # claims are written as functions
    copy = types.FunctionType(
        claim.__code__, claim.__globals__, claim.__name__, claim.__defaults__, claim.__closure__
    )
    copy.__kwdefaults__ = claim.__kwdefaults__
    copy.__annotations__ = claim.__annotations__
    copy.__doc__ = claim.__doc__
    setattr(copy, _GAP, claim.__name__.removeprefix(PREFIX))
    return pytest.mark.xfail(reason=reason, strict=True)(copy)
