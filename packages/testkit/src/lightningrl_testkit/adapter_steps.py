"""Claims about steps: which there are, whose they are, what they say, and how they hang together."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from lightningrl.schema import StepKind
from lightningrl_testkit.examples import ExampleAgents
from lightningrl_testkit.lab import ELSEWHERE, CaptureLab, Recorded


async def run_with_tool(lab: CaptureLab, agents: ExampleAgents, prompt: str) -> Recorded:
    """What is recorded of "worker", whatever its framework raises because of a tool's failure."""
    async with lab.attempt() as context:
        with suppress(KeyError):
            await agents.ask_with_tool(prompt)
    return await lab.recorded(context)


class StepClaims:
    """What one rollout's events say."""

    async def test_a_call_is_one_joined_step(self, lab: CaptureLab, agents: ExampleAgents) -> None:
        """The gateway's call and the adapter's step have one id."""
        found = await lab.record(lambda: agents.ask("hello"))
        [call] = found.calls
        [step] = found.of(StepKind.LLM)
        assert call.step_id == step.step_id

    async def test_a_call_says_which_agent_made_it(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """To the gateway too, which finds the agent's policy by it."""
        found = await lab.record(lambda: agents.ask("hello"))
        assert [one.agent for one in found.calls] == ["asker"]
        assert [one.agent for one in found.of(StepKind.LLM)] == ["asker"]

    async def test_a_failed_call_is_a_step_with_an_error(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """And the agent gets the engine's error."""
        async with lab.attempt() as context:
            with pytest.raises(Exception, match="told to fail"):
                await agents.ask("fail")
        found = await lab.recorded(context)
        [step] = found.of(StepKind.LLM)
        assert "told to fail" in (found.ends[step.step_id].error or "")

    async def test_streaming_gives_the_same_steps(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """The same kinds, names, agents and tree, and as many calls, each of them joined."""
        whole = await lab.record(lambda: agents.ask_with_tool("use a", stream=False))
        streamed = await lab.record(lambda: agents.ask_with_tool("use a", stream=True))
        assert streamed.shape() == whole.shape()
        assert len(streamed.calls) == 2
        assert streamed.joined == {one.step_id for one in streamed.of(StepKind.LLM)}

    async def test_every_step_that_began_has_ended(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Before the attempt does, also where the framework stops reading a stream early."""
        async with lab.attempt() as context:
            await agents.ask_with_tool("use a", stream=True)
            seen = lab.emitted(context)
        assert seen.starts != []
        assert {one.step_id for one in seen.starts} == set(seen.ends)

    async def test_a_tool_step_has_inputs_output_and_call_id(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """As the model asked for it and as the tool answered."""
        found = await run_with_tool(lab, agents, "use a")
        [tool] = found.of(StepKind.TOOL)
        assert (tool.name, tool.inputs, tool.tool_call_id) == ("lookup", {"key": "a"}, "call-1")
        assert found.ends[tool.step_id].output == "value of a"
        assert found.ends[tool.step_id].error is None

    async def test_a_tool_step_belongs_to_the_agent_that_asked(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        found = await run_with_tool(lab, agents, "use a")
        assert [one.agent for one in found.of(StepKind.TOOL)] == ["worker"]

    async def test_a_failing_tool_has_an_error_and_no_output(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Whatever the framework tells the model about it."""
        found = await run_with_tool(lab, agents, "use missing")
        [tool] = found.of(StepKind.TOOL)
        end = found.ends[tool.step_id]
        assert end.error is not None
        assert end.output is None

    async def test_a_call_of_an_unknown_tool_is_a_failed_step(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """The model is told of it, so the record has it."""
        async with lab.attempt() as context:
            with suppress(Exception):  # frameworks may end the agent for it
                await agents.ask_with_tool("unknown a")
        found = await lab.recorded(context)
        [tool] = found.of(StepKind.TOOL)
        assert (tool.name, tool.tool_call_id) == ("no_such_tool", "call-1")
        assert found.ends[tool.step_id].error is not None

    async def test_parallel_tool_calls_are_told_apart(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """By their call ids, whichever is run first."""
        found = await run_with_tool(lab, agents, "both a b")
        tools = {one.tool_call_id: one.inputs for one in found.of(StepKind.TOOL)}
        assert tools == {"call-1": {"key": "a"}, "call-2": {"key": "b"}}

    async def test_a_reward_inside_a_tool_rewards_its_step(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """`lightningrl.reward` needs no step id there."""
        found = await run_with_tool(lab, agents, "use rewarded")
        tools = [one.step_id for one in found.of(StepKind.TOOL)]
        assert [(one.step_id, one.value) for one in found.rewards] == [(tools[0], 0.5)]

    async def test_a_sub_agent_hangs_below_the_tool_that_runs_it(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Its model calls and tools are its own, not the outer agent's."""
        found = await lab.record(lambda: agents.ask_through_sub_agent("use use a"))
        assert {one.agent for one in found.calls} == {"outer", "inner"}
        [inner_tool] = [one for one in found.of(StepKind.TOOL) if one.agent == "inner"]
        [outer_tool] = [one for one in found.of(StepKind.TOOL) if one.agent == "outer"]
        assert outer_tool.step_id in [up.step_id for up in found.ancestors(inner_tool.step_id)]
        for step in found.of(StepKind.LLM):
            around = [up.step_id for up in found.ancestors(step.step_id)]
            assert (outer_tool.step_id in around) == (step.agent == "inner")

    async def test_an_agent_that_a_tool_runs_hangs_below_it(
        self, lab: CaptureLab, agents: ExampleAgents
    ) -> None:
        """Also where the tool's code passes nothing on to it."""

        async def nested() -> object:
            ELSEWHERE.set(lambda: agents.ask("hello"))
            return await agents.ask_with_tool("use elsewhere")

        found = await lab.record(nested)
        [tool] = found.of(StepKind.TOOL)
        around = [found.ancestors(one.step_id) for one in found.of(StepKind.LLM)]
        assert len(found.calls) == len(around) == 3
        assert sum(tool.step_id in [up.step_id for up in one] for one in around) == 1

    async def test_a_handoff_is_a_step(self, lab: CaptureLab, agents: ExampleAgents) -> None:
        """Of the agent that hands over; the calls before and after it are each agent's own."""
        found = await lab.record(lambda: agents.hand_off("use it"))
        [handoff] = found.of(StepKind.HANDOFF)
        assert handoff.agent == "first"
        assert "second" in handoff.name
        assert [one.agent for one in found.calls] == ["first", "second"]

    async def test_a_retrieval_is_a_step(self, lab: CaptureLab, agents: ExampleAgents) -> None:
        """With its query and what was found."""
        found = await lab.record(lambda: agents.retrieve("query"))
        [step] = found.of(StepKind.RETRIEVAL)
        assert (step.name, step.inputs) == ("archive", "query")
        assert "found: query" in json.dumps(found.ends[step.step_id].output)
