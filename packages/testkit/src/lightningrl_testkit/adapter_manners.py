"""Claims about manners: what an adapter does to the agent's program, which is nothing."""

from __future__ import annotations

from lightningrl.capture.adapter import Adapter
from lightningrl.schema import CallEvent, Event, LogEvent, StepKind
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.footprint import calls_into, footprint
from lightningrl_testkit.lab import CaptureLab

MOST_CALLS = 150
"""Function calls in capture and adapter that one model call may cost: 0.3 ms of CPU is about twice that."""


class BrokenSink:
    """A sink that can't take anything."""

    def emit(self, event: Event) -> None:
        """Raise."""
        raise OSError(f"this sink is broken, {event.id!r} is lost")


class MannerClaims:
    """What the agent, its program and its framework notice."""

    async def test_the_answer_is_the_models(self, lab: CaptureLab, agents: ExampleAgents) -> None:
        """Capture changes nothing of what the agent gets."""
        async with lab.attempt():
            assert await agents.ask("hello") == "done: hello"
            assert await agents.ask("hello", stream=True) == "done: hello"

    async def test_a_broken_sink_does_not_reach_the_agent(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Its events are lost, its answer isn't, and the gateway still has the calls."""
        async with lab.attempt(sink=BrokenSink()) as context:
            assert await agents.ask_with_tool("use a") != ""
        found = await lab.recorded(context)
        assert (len(found.calls), found.starts) == (2, [])

    async def test_installing_twice_records_once(
        self, lab: CaptureLab, agents: ExampleAgents, adapter: Adapter
    ) -> None:
        """By the same adapter, and by a second one."""
        adapter.install()
        second = agents.make_adapter()
        second.install()
        found = await lab.record(lambda: agents.ask_with_tool("use a"))
        second.uninstall()
        assert len(found.of(StepKind.LLM)) == len(found.calls) == 2
        assert len(found.of(StepKind.TOOL)) == 1

    async def test_it_records_until_the_last_that_was_installed_is_uninstalled(
        self, lab: CaptureLab, agents: ExampleAgents, adapter: Adapter
    ) -> None:
        """Whichever hooked: what one part of a program undoes, another may need."""
        second = agents.make_adapter()
        second.install()
        adapter.uninstall()
        adapter.uninstall()
        found = await lab.record(lambda: agents.ask("hello"))
        second.uninstall()
        assert found.of(StepKind.LLM) != []

    async def test_uninstalled_it_records_nothing(
        self, lab: CaptureLab, agents: ExampleAgents, adapter: Adapter
    ) -> None:
        """The agent runs on, its calls are recorded by the gateway alone."""
        adapter.uninstall()
        found = await lab.record(lambda: agents.ask_with_tool("use a"))
        assert [one for one in found.events if not isinstance(one, CallEvent | LogEvent)] == []
        assert len(found.calls) == 2

    async def test_uninstalling_leaves_the_framework_as_it_was(
        self, lab: CaptureLab, agents: ExampleAgents, adapter: Adapter
    ) -> None:
        """Every attribute of every class and module, and every list and mapping of a module."""
        adapter.uninstall()
        async with lab.attempt():
            await agents.ask_with_tool("use a")  # what the framework loads lazily is loaded
        before = footprint(agents.packages)
        adapter.install()
        adapter.uninstall()
        assert footprint(agents.packages).changes_from(before) == []

    async def test_a_model_call_costs_few_calls_of_ours(
        self, lab: CaptureLab, agents: ExampleAgents, adapter: Adapter
    ) -> None:
        """Counted in Python calls, since times differ from machine to machine."""
        async with lab.attempt():
            await agents.ask("hello")
            with calls_into(type(adapter)) as counted:
                await agents.ask("hello")
        assert 0 < counted.calls <= MOST_CALLS
