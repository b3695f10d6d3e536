"""Claims about rollouts: a call belongs to the one that made it, and what is outside stays outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from lightningrl.capture.adapters import find_adapters
from lightningrl.capture.context import in_rollout
from lightningrl.schema import StepKind
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import CaptureLab, Recorded

AT_ONCE = 64
"""Rollouts that share a process."""
THREADS = 8


def check_own(found: Sequence[Recorded]) -> None:
    """Rollout number i has the calls and steps of "worker" with the prompt "use key-i", and no other."""
    for index, one in enumerate(found):
        assert len(one.calls) == 2
        for call in one.calls:
            assert f'use key-{index}"' in call.request.decode()
        assert one.joined == {step.step_id for step in one.of(StepKind.LLM)}
        [tool] = one.of(StepKind.TOOL)
        assert tool.inputs == {"key": f"key-{index}"}


class RolloutClaims:
    """What many rollouts, and none, do to each other."""

    async def test_sixty_four_rollouts_at_once_never_mix(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Each attempt has its own prompts and steps, whole, and no other's; every second streams."""

        async def run(index: int) -> Recorded:
            ask: Callable[[], Awaitable[object]] = lambda: agents.ask_with_tool(  # noqa: E731
                f"use key-{index}", stream=index % 2 == 1
            )
            return await lab.record(ask)

        check_own(await asyncio.gather(*(run(index) for index in range(AT_ONCE))))

    async def test_rollouts_in_threads_never_mix(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """A thread that was started inside a rollout belongs to it."""

        async def run(index: int) -> Recorded:
            prompt = f"use key-{index}"
            return await lab.record(lambda: asyncio.to_thread(agents.ask_in_thread, prompt))

        check_own(await asyncio.gather(*(run(index) for index in range(THREADS))))

    async def test_a_cancelled_call_leaves_no_step_open(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Each step ends, with an error, while the attempt goes on."""
        before = lab.model.calls
        async with lab.attempt() as context:
            lab.model.block()
            asking = asyncio.ensure_future(agents.ask("hello"))
            await lab.model.arrived(before + 1)
            asking.cancel()
            await asyncio.wait([asking])
            lab.model.unblock()
            seen = lab.emitted(context)
        assert asking.cancelled()
        [step] = seen.of(StepKind.LLM)
        assert {one.step_id for one in seen.starts} == set(seen.ends)
        assert seen.ends[step.step_id].error is not None

    async def test_outside_a_rollout_calls_are_refused_and_nothing_is_recorded(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """A call that nobody can assign is never filed under somebody."""
        async with lab.attempt() as context:
            await agents.ask("hello")
            before = lab.emitted(context), lab.model.calls
            with in_rollout(None), pytest.raises(Exception, match="belongs to no rollout"):
                await agents.ask("hello")
            assert (lab.emitted(context), lab.model.calls) == before
        assert len((await lab.recorded(context)).calls) == 1

    async def test_outside_a_rollout_a_call_leaves_as_the_agent_made_it(
        self, elsewhere: CaptureLab, agents: ExampleAgents
    ) -> None:
        """To the agent's own server, with its own key, and with nothing of ours."""
        before = elsewhere.model.calls
        assert await agents.ask("hello") == "done: hello"
        [arrival] = elsewhere.model.arrivals[before:]
        assert arrival.headers["authorization"] == "Bearer lightningrl-placeholder"
        assert [name for name in arrival.headers if "lightningrl" in name] == []

    async def test_beside_other_adapters_nothing_is_recorded_twice(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """An agent may import two frameworks, and a runner installs the adapters of both."""
        others = find_adapters()
        for other in others:
            other.install()
        try:
            found = await lab.record(lambda: agents.ask_with_tool("use a"))
        finally:
            for other in reversed(others):
                other.uninstall()
        assert len(found.of(StepKind.LLM)) == len(found.calls) == 2
        assert len(found.of(StepKind.TOOL)) == 1
