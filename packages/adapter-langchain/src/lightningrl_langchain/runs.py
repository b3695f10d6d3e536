"""LangChain's runs as steps: which of them are steps, whose, and below which.

Invariant: a run is looked for in the rollout that is current, and nowhere else, so that no event of one
rollout can touch a step of another. Runs of a rollout are forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from lightningrl.capture.context import (
    AGENT,
    STEP,
    Step,
    acting_agent,
    current,
    current_step,
    end_step,
    start_step,
)
from lightningrl.schema import StepKind

_LEFT = "its chain ended before this step did"
"""The error of a step that LangChain never ends: of a model call that was cancelled, for example."""


@dataclass(slots=True, eq=False)
class Run:
    """A run that began."""

    id: UUID
    parent: Run | None
    step: Step | None
    """The innermost step that it is in. `None`: none."""
    owns_step: bool = False
    """Whether the step is this run's own."""
    agent_name: str | None = None
    """LangChain's name of the agent that it is in. `None`: it is in none, or in one without a name."""
    is_agent: bool = False
    """Whether it is a whole agent of `create_agent`, whose nodes are no agents of their own."""
    before: tuple[Step | None, str | None] | None = None
    """Step and agent that were current when it entered its own. `None`: it has not entered one."""
    children: dict[UUID, Run] = field(default_factory=dict[UUID, "Run"])
    asked: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """Of a root: id of each tool call that a model asked for and no tool has taken -> who asked."""

    @property
    def root(self) -> Run:
        """The outermost run around it."""
        run = self
        while run.parent is not None:
            run = run.parent
        return run


def runs() -> dict[UUID, Run] | None:
    """The runs of the current rollout that have not ended. `None`: there is no rollout."""
    context = current()
    return None if context is None else context.notes.setdefault(Run, {})


def begin(run_id: UUID, parent_id: UUID | None) -> Run | None:
    """Note a run, in the innermost step around it. `None`: outside a rollout."""
    known = runs()
    if known is None:
        return None
    parent = None if parent_id is None else known.get(parent_id)
    run = Run(run_id, parent, _around(parent))
    known[run_id] = run
    if parent is not None:
        run.agent_name = parent.agent_name
        parent.children[run_id] = run
    return run


def _around(parent: Run | None) -> Step | None:
    """The step around a run that begins here.

    That is the current one, if it began within the parent run: code between the two (a tool, another
    framework) may have opened it. Model steps have nothing below them, and one that was cancelled may
    still be current.
    """
    here = current_step()
    while here is not None and here.kind is StepKind.LLM:
        here = here.parent
    if parent is None or parent.step is None:
        return here
    within = here
    while within is not None:
        if within is parent.step:
            return here
        within = within.parent
    return parent.step


def open_step(
    run: Run, kind: StepKind, name: str, *, agent: str | None = None, inputs: Any = None,
    tool_call_id: str | None = None, asks: Callable[[], Mapping[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Give a run a step of its own; `agent` is that of the step around it unless given."""
    around = run.step
    if agent is None and around is not None:
        agent = around.agent
    run.step = start_step(
        kind,
        name,
        agent=agent,
        inputs=inputs,
        tool_call_id=tool_call_id,
        parent=around,
        asks=asks,
    )
    run.owns_step = True


def enter(run: Run) -> None:
    """Make the run's step current, where the run's own code will find it."""
    if run.step is not None:
        run.before = current_step(), acting_agent()
        STEP.set(run.step)
        AGENT.set(run.step.agent)


def leave(run: Run) -> None:
    """Make current what was so before `enter`, if this is still the place where that happened."""
    if run.before is not None and STEP.get() is run.step:
        STEP.set(run.before[0])
        AGENT.set(run.before[1])
    run.before = None


def finish(
    run_id: UUID, *, output: Any = None, error: BaseException | str | None = None
) -> Run | None:
    """End a run and what it left open. `None`: it began outside this rollout."""
    known = runs()
    run = None if known is None else known.pop(run_id, None)
    if known is None or run is None:
        return None
    leave(run)
    for child in list(run.children):
        finish(child, error=_LEFT)
    if run.parent is not None:
        run.parent.children.pop(run_id, None)
    if run.owns_step and run.step is not None:
        end_step(run.step, output=output, error=error)
    return run


def node_of(name: str, tags: Sequence[str] | None, metadata: Mapping[str, Any]) -> str | None:
    """The graph node that a chain run is. `None`: it is something within or around one, or a graph's own."""
    node = metadata.get("langgraph_node")
    tagged = any(tag.startswith("graph:step:") for tag in tags or ())
    return name if tagged and node == name and not name.startswith("__") else None
