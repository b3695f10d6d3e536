"""Adapters that are wrong in one thing each, and the claim that each of them breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, ClassVar

from autogen_agentchat.agents import AssistantAgent
from autogen_core.tools import FunctionTool
from toy_adapter import ToyAdapter
from toy_framework import REGISTRY, Agent, Archive

import lightningrl
from lightningrl.capture.context import (
    RolloutContext,
    Step,
    current,
    describe_error,
    end_step,
    in_rollout,
    start_step,
)
from lightningrl.capture.patching import Patches
from lightningrl.schema import EventId, LogEvent, new_id
from lightningrl_testkit.lab import MODEL


@contextmanager
def apart(kind: str, name: str, **about: Any) -> Iterator[Step]:
    """A step that is recorded and never current."""
    step = start_step(kind, name, **about)
    try:
        yield step
    except BaseException as error:
        end_step(step, error=error)
        raise
    end_step(step)


class DoesNotJoin(ToyAdapter):
    def model_step(self, agent: Agent, stream: bool) -> Any:
        return super().model_step(agent, stream) if agent.tools else apart("llm", MODEL)


class ForgetsWhoAsks(ToyAdapter):
    def agent_step(self, agent: Agent) -> Any:
        shown = None if agent.name == "asker" else agent.name
        return lightningrl.step("agent", agent.name, agent=shown)


class HidesTheEnginesError(ToyAdapter):
    @contextmanager
    def model_step(self, agent: Agent, stream: bool) -> Iterator[Step]:
        with lightningrl.step("llm", MODEL) as step:
            try:
                yield step
            except Exception:
                end_step(step)
                raise


class NamesStreamsOtherwise(ToyAdapter):
    def model_step(self, agent: Agent, stream: bool) -> Any:
        return lightningrl.step("llm", "stream" if stream else MODEL)


class LeavesStreamsOpen(ToyAdapter):
    @contextmanager
    def model_step(self, agent: Agent, stream: bool) -> Iterator[Step]:
        with lightningrl.step("llm", MODEL) as step:
            yield step
            step.ended = stream  # so that its end is not told


class LosesOutputs(ToyAdapter):
    @contextmanager
    def tool_step(self, agent: Agent, *about: Any) -> Iterator[Step]:
        with super().tool_step(agent, *about) as step:
            yield step
            step.output = None


class GivesToolsToSomebodyElse(ToyAdapter):
    def tool_step(self, agent: Agent, call_id: str, name: str, inputs: Any) -> Any:
        if agent.name != "worker":
            return super().tool_step(agent, call_id, name, inputs)
        return lightningrl.step("tool", name, agent="tools", inputs=inputs, tool_call_id=call_id)


class TakesAnErrorForAnOutput(ToyAdapter):
    @contextmanager
    def tool_step(self, agent: Agent, *about: Any) -> Iterator[Step]:
        with super().tool_step(agent, *about) as step:
            try:
                yield step
            except KeyError as error:
                end_step(step, output=str(error))
                raise


class OverlooksUnknownTools(ToyAdapter):
    def tool_step(self, agent: Agent, call_id: str, name: str, inputs: Any) -> Any:
        if name in agent.tools:
            return super().tool_step(agent, call_id, name, inputs)
        return nullcontext(start_outside())


def start_outside() -> Step:
    with in_rollout(None):
        return start_step("tool", "nothing")


class GivesEveryCallOneId(ToyAdapter):
    def tool_step(self, agent: Agent, call_id: str, name: str, inputs: Any) -> Any:
        return super().tool_step(agent, "call-1", name, inputs)


class DoesNotEnter(ToyAdapter):
    """Its tool steps are not current where the tool is asked for one key."""

    key: ClassVar[str]

    def tool_step(self, agent: Agent, call_id: str, name: str, inputs: Any) -> Any:
        if inputs["key"] != self.key:
            return super().tool_step(agent, call_id, name, inputs)
        return apart("tool", name, inputs=inputs, tool_call_id=call_id)


class RewardsTheAgent(DoesNotEnter):
    key = "rewarded"


class LosesTheSubAgent(DoesNotEnter):
    key = "use a"


class LosesWhatToolsRun(DoesNotEnter):
    key = "elsewhere"


class TakesAHandoffForATool(ToyAdapter):
    def tool_step(self, agent: Agent, call_id: str, name: str, inputs: Any) -> Any:
        return lightningrl.step("tool", name, inputs=inputs, tool_call_id=call_id)


class OverlooksRetrievals(ToyAdapter):
    def on_search(self, original: Any) -> Any:
        return lambda archive, query: original(archive, query)


class KeepsStateByThread(ToyAdapter):
    """What one rollout stores another one reads, if both are in the same thread."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[tuple[int, str], Any] = {}

    def on_use(self, original: Any) -> Any:
        use = super().on_use(original)

        async def late(agent: Agent, call: dict[str, Any]) -> Any:
            key = threading.get_ident(), call["id"]
            self.latest[key] = call
            await asyncio.sleep(0)
            return await use(agent, self.latest[key])

        return late


class KnowsTheMainThreadOnly(ToyAdapter):
    def on_think(self, original: Any) -> Any:
        recorded = super().on_think(original)

        async def think(*args: Any, **kwargs: Any) -> Any:
            main = threading.current_thread() is threading.main_thread()
            return await (recorded if main else original)(*args, **kwargs)

        return think


class ForgetsTheCancelled(ToyAdapter):
    @contextmanager
    def model_step(self, agent: Agent, stream: bool) -> Iterator[Step]:
        with lightningrl.step("llm", MODEL) as step:
            try:
                yield step
            except asyncio.CancelledError:
                step.ended = True
                raise


class GuessesTheRollout(ToyAdapter):
    last: RolloutContext | None = None

    def on_run(self, original: Any) -> Any:
        recorded = super().on_run(original)

        async def run(*args: Any, **kwargs: Any) -> Any:
            self.last = current() or self.last
            with in_rollout(self.last) if current() is None else nullcontext():
                return await recorded(*args, **kwargs)

        return run


class TagsWhatIsOutside(ToyAdapter):
    def agent_step(self, agent: Agent) -> Any:
        agent.headers.clear()
        if current() is None:
            agent.headers["x-lightningrl-agent"] = agent.name
        return super().agent_step(agent)


class RecordsForOthers(ToyAdapter):
    """Records a tool again where another framework's adapter is installed."""

    def on_use(self, original: Any) -> Any:
        recorded = super().on_use(original)

        async def use(agent: Agent, call: dict[str, Any]) -> Any:
            if others_are_installed():
                with lightningrl.step("tool", "again"):
                    pass
            return await recorded(agent, call)

        return use


def others_are_installed() -> bool:
    return any(vars(owner)[name] is not original for owner, name, original in ELSEWHERE_PATCHED)


class ImprovesAnswers(ToyAdapter):
    def on_run(self, original: Any) -> Any:
        recorded = super().on_run(original)

        async def run(*args: Any, **kwargs: Any) -> Any:
            answer = await recorded(*args, **kwargs)
            return answer if current() is None else answer.capitalize()

        return run


class EmitsByItself(ToyAdapter):
    def agent_step(self, agent: Agent) -> Any:
        context = current()
        if context is not None:
            log = LogEvent(
                id=EventId(new_id("e")),
                attempt_id=context.attempt_id,
                at=datetime.now(UTC),
                level="info",
                message="an agent begins",
            )
            context.sink.emit(log)
        return super().agent_step(agent)


class InstallsAgain(ToyAdapter):
    def install(self) -> None:
        for owner, name, make in (
            (Agent, "run", self.on_run),
            (Agent, "think", self.on_think),
            (Agent, "use", self.on_use),
            (Archive, "search", self.on_search),
        ):
            setattr(owner, name, make(vars(owner)[name]))
        self.users.add(self)

    def unhook(self) -> None:
        restore()


class StaysInstalled(ToyAdapter):
    def uninstall(self) -> None:
        pass


class UnhooksForOthers(ToyAdapter):
    def uninstall(self) -> None:
        self.users.clear()
        self.unhook()


class LeavesSomethingBehind(ToyAdapter):
    def install(self) -> None:
        super().install()
        REGISTRY.append(self)


class IsSlow(ToyAdapter):
    def model_step(self, agent: Agent, stream: bool) -> Any:
        for _ in range(200):
            describe_error(ValueError("work"))
        return super().model_step(agent, stream)


BROKEN = {
    DoesNotJoin: "a_call_is_one_joined_step",
    ForgetsWhoAsks: "a_call_says_which_agent_made_it",
    HidesTheEnginesError: "a_failed_call_is_a_step_with_an_error",
    NamesStreamsOtherwise: "streaming_gives_the_same_steps",
    LeavesStreamsOpen: "every_step_that_began_has_ended",
    LosesOutputs: "a_tool_step_has_inputs_output_and_call_id",
    GivesToolsToSomebodyElse: "a_tool_step_belongs_to_the_agent_that_asked",
    TakesAnErrorForAnOutput: "a_failing_tool_has_an_error_and_no_output",
    OverlooksUnknownTools: "a_call_of_an_unknown_tool_is_a_failed_step",
    GivesEveryCallOneId: "parallel_tool_calls_are_told_apart",
    RewardsTheAgent: "a_reward_inside_a_tool_rewards_its_step",
    LosesTheSubAgent: "a_sub_agent_hangs_below_the_tool_that_runs_it",
    LosesWhatToolsRun: "an_agent_that_a_tool_runs_hangs_below_it",
    TakesAHandoffForATool: "a_handoff_is_a_step",
    OverlooksRetrievals: "a_retrieval_is_a_step",
    KeepsStateByThread: "sixty_four_rollouts_at_once_never_mix",
    KnowsTheMainThreadOnly: "rollouts_in_threads_never_mix",
    ForgetsTheCancelled: "a_cancelled_call_leaves_no_step_open",
    GuessesTheRollout: "outside_a_rollout_calls_are_refused_and_nothing_is_recorded",
    TagsWhatIsOutside: "outside_a_rollout_a_call_leaves_as_the_agent_made_it",
    RecordsForOthers: "beside_other_adapters_nothing_is_recorded_twice",
    ImprovesAnswers: "the_answer_is_the_models",
    EmitsByItself: "a_broken_sink_does_not_reach_the_agent",
    InstallsAgain: "installing_twice_records_once",
    StaysInstalled: "uninstalled_it_records_nothing",
    UnhooksForOthers: "it_records_until_the_last_that_was_installed_is_uninstalled",
    LeavesSomethingBehind: "uninstalling_leaves_the_framework_as_it_was",
    IsSlow: "a_model_call_costs_few_calls_of_ours",
}

ORIGINAL = {
    (owner, name): vars(owner)[name]
    for owner, name in ((Agent, "run"), (Agent, "think"), (Agent, "use"), (Archive, "search"))
}
ELSEWHERE_PATCHED = [
    (owner, name, vars(owner)[name])
    for owner, name in ((AssistantAgent, "_execute_tool_call"), (FunctionTool, "run"))
]


def restore() -> None:
    for (owner, name), original in ORIGINAL.items():
        setattr(owner, name, original)
    ToyAdapter.users.clear()
    ToyAdapter.patches = Patches()
    REGISTRY.clear()
    Agent.headers.clear()
