"""Which rollout, step and agent the running code belongs to.

Invariant: all three follow Python's own context variables, so that an asyncio task belongs to the rollout that
started it; so does work that is handed to a thread (`carrying`, `bind`), and nothing else does.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from lightningrl.capture.jsonable import jsonable, unicode_text
from lightningrl.capture.messages import note_asked, shortened
from lightningrl.capture.sink import Sink
from lightningrl.schema import (
    AttemptId,
    Event,
    EventId,
    LogEvent,
    LogTopic,
    RolloutId,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
    new_id,
)

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class RolloutContext:
    """The attempt that the running code belongs to."""

    rollout_id: RolloutId
    attempt_id: AttemptId
    server_url: str
    """Of `lightningrl serve`, without a path or a final slash."""
    key: str = field(repr=False)
    """The attempt key."""
    sink: Sink
    aliases: frozenset[str] = frozenset()
    """Model names that belong to this run: its policies' own and those that they replace."""
    resources: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Name -> value of the resources that the rollout is pinned to."""
    has_gateway: bool = True
    """Whether calls go to the server's gateway, which records them. Else they go where the agent sends
    them, and its `llm` steps say what was asked and answered."""
    replays: bool = False
    """Whether some of its answers may be given from a record; see `lightningrl.replaying`."""
    model_calls: int = 0
    """Requests that were sent to the gateway from this process, retries not counted."""
    state: str | None = None
    """Key of the state that the agent said it is in. `None`: it said none."""
    closed: bool = False
    """The attempt ended: what still comes has nowhere to go, and its code counts as outside."""
    named_outside: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """(host, model) pairs outside the run that a log event names already."""
    open_steps: dict[StepId, Step] = field(default_factory=dict[StepId, "Step"], repr=False)
    """Steps that began and have not ended, in order of their start."""
    notes: dict[object, Any] = field(default_factory=dict[object, Any], repr=False)
    """What adapters keep for this attempt, each under a key of its own; forgotten with it."""
    revisions: dict[tuple[str | None, str], int] = field(
        default_factory=dict[tuple[str | None, str], int]
    )
    """(step id, reward name) -> how many such rewards were emitted."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Taken again where it is held: the collector may run anywhere, and ends the steps of streams."""
    attempt_url: str = field(init=False)
    """Base URL for this attempt's model calls, ends in `/v1`."""
    placeholder_url: str = field(init=False)
    """Base URL that clients got before any attempt was known, ends in `/v1`."""

    def __post_init__(self) -> None:
        """Derive the two URLs."""
        self.server_url = self.server_url.rstrip("/")
        rollout, attempt = quote(self.rollout_id, safe=""), quote(self.attempt_id, safe="")
        self.attempt_url = f"{self.server_url}/rollouts/{rollout}/attempts/{attempt}/v1"
        self.placeholder_url = f"{self.server_url}/v1"

    def emit(self, event: Event) -> None:
        """Hand `event` to the sink; never raises, since the caller is the user's code."""
        try:
            self.sink.emit(event)
        except Exception:  # noqa: BLE001 - the one boundary between any sink and the user's agent
            _log.exception("the sink of attempt %r lost an event", self.attempt_id)

    def close(self) -> None:
        """The attempt ends: end what is still open, the innermost first; what comes later is dropped.

        Frameworks leave steps open where they are cancelled, and background work may outlive the agent.
        """
        with self.lock:
            still_open = list(self.open_steps.values())
        for step in reversed(still_open):
            end_step(step, error=CUT_OFF)
        self.closed = True

    def log(self, level: str, message: str, topic: LogTopic | None = None) -> None:
        """Add a line for people, and with a `topic` for programs, to the attempt."""
        self.emit(
            LogEvent(
                id=EventId(new_id("e")),
                attempt_id=self.attempt_id,
                at=datetime.now(UTC),
                level=level,
                message=unicode_text(message),
                topic=topic,
            )
        )


@dataclass(slots=True, eq=False)
class Step:
    """One step that began; `output` and `error` may be set until it ends."""

    id: StepId
    kind: StepKind
    name: str
    agent: str | None
    parent: Step | None
    """The enclosing step. `None`: a root of the tree."""
    context: RolloutContext | None
    """`None`: it began outside a rollout, and nothing is recorded."""
    owner: object = None
    """Whatever object of a framework takes the step, for its adapter to recognise."""
    output: Any = None
    error: str | None = None
    ended: bool = False
    call_key: str | None = None
    """Of an `llm` step: the idempotency key of the request that it stands for. `None`: none yet."""

    @property
    def keeps_messages(self) -> bool:
        """Whether no gateway records what a model is asked and answers, so that its step has to."""
        return self.context is not None and not self.context.has_gateway


CUT_OFF = "the attempt ended before this step did"
"""The error of a step that was open when its attempt ended."""

_ROLLOUT: ContextVar[RolloutContext | None] = ContextVar("lightningrl_rollout", default=None)
_JUDGING: ContextVar[bool] = ContextVar("lightningrl_judging", default=False)
STEP: ContextVar[Step | None] = ContextVar("lightningrl_step", default=None)
"""The innermost step that the running code is in."""
AGENT: ContextVar[str | None] = ContextVar("lightningrl_agent", default=None)
"""Name of the agent that acts."""


def current_step() -> Step | None:
    """The innermost step that the running code is in. `None`: none.

    A step that has ended is current nowhere: frameworks tell of an end in another context than of the
    start, from where `STEP` can't be put back.
    """
    step = STEP.get()
    while step is not None and step.ended:
        step = step.parent
    return step


def acting_agent() -> str | None:
    """The agent that the running code is of. `None`: none, or nobody said."""
    step = STEP.get()
    if step is None or not step.ended:
        return AGENT.get()
    around = current_step()
    return None if around is None else around.agent


def agent_path() -> list[str]:
    """The agents around the running code, the outermost first and the one that acts last."""
    acting = acting_agent()
    names = [] if acting is None else [acting]
    step = current_step()
    while step is not None:
        if step.agent is not None and step.agent != (names or [None])[-1]:
            names.append(step.agent)
        step = step.parent
    return names[::-1]


def current() -> RolloutContext | None:
    """The attempt that the running code belongs to. `None`: none, or one that has ended."""
    context = _ROLLOUT.get()
    return None if context is None or context.closed else context


@dataclass(frozen=True, slots=True)
class Place:
    """A rollout and a step in it, to carry from where work is asked for to where it is done."""

    rollout: RolloutContext | None
    step: Step | None = None


def here() -> Place:
    """The running code's place."""
    return Place(_ROLLOUT.get(), current_step())


@contextmanager
def at(place: Place) -> Generator[None]:
    """Run the block at `place`; the agent that acts there is not known yet."""
    tokens = _ROLLOUT.set(place.rollout), STEP.set(place.step), AGENT.set(None)
    try:
        yield
    finally:
        _leave(tokens)


def in_rollout(context: RolloutContext | None) -> AbstractContextManager[None]:
    """Run the block as part of an attempt, outside every step; `None`: as part of none."""
    return at(Place(context))


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, at the place and with the agent of now, wherever it is called; all else is as it is there."""
    rollout, step, agent, judges = _ROLLOUT.get(), current_step(), acting_agent(), is_judging()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tokens = _ROLLOUT.set(rollout), STEP.set(step), AGENT.set(agent), _JUDGING.set(judges)
        try:
            return function(*args, **kwargs)
        finally:
            _leave(tokens)

    return run


@contextmanager
def judging() -> Generator[None]:
    """Run the block, a reward function, outside every rollout: a judge's model calls are not the agent's."""
    token = _JUDGING.set(True)
    try:
        with in_rollout(None):
            yield
    finally:
        _leave((token,))


@contextmanager
def nowhere() -> Generator[None]:
    """Run the block as part of no rollout and of no reward function."""
    token = _JUDGING.set(False)
    try:
        with in_rollout(None):
            yield
    finally:
        _leave((token,))


def is_judging() -> bool:
    """Whether the running code is a reward function."""
    return _JUDGING.get()


def outlived() -> bool:
    """Whether the running code belongs to an attempt that has ended."""
    context = _ROLLOUT.get()
    return context is not None and context.closed


def start_step(
    kind: StepKind | str,
    name: str,
    *,
    agent: str | None = None,
    inputs: Any = None,
    tool_call_id: str | None = None,
    owner: object = None,
    parent: Step | None = None,
    asks: Callable[[], Mapping[str, Any]] | None = None,
) -> Step:
    """Begin a step below another; it is current only within `inside`.

    Args:
        kind: what is done.
        name: of the tool, agent or model.
        agent: who does it. `None`: the agent that acts now.
        inputs: anything; stored as JSON.
        tool_call_id: joins a tool step to the model call that asked for it.
        owner: see `Step.owner`.
        parent: the enclosing step. `None`: the current one.
        asks: of an `llm` step, its request: `messages`, a list, and whatever else it says. Called, and
            stored as `inputs`, only where no gateway records it.
    """
    context = current()
    parent = current_step() if parent is None else parent
    name = unicode_text(name)  # a tool's name and id are the model's
    step = Step(
        id=StepId(new_id("s")),
        kind=StepKind(kind),
        name=name,
        agent=agent if agent is not None else acting_agent(),
        parent=parent,
        context=context,
        owner=owner,
    )
    if context is not None:
        with context.lock:
            context.open_steps[step.id] = step
        marks = None
        if asks is not None and step.keeps_messages:
            inputs, marks = shortened(context.notes, asks)
        context.emit(
            StepStartEvent(
                id=EventId(f"{step.id}-start"),
                attempt_id=context.attempt_id,
                at=datetime.now(UTC),
                step_id=step.id,
                parent_id=None if parent is None else parent.id,
                kind=step.kind,
                name=name,
                agent=step.agent,
                inputs=jsonable(inputs),
                tool_call_id=None if tool_call_id is None else unicode_text(tool_call_id),
            )
        )
        if marks is not None:
            note_asked(context.notes, step.id, marks)
    return step


def end_step(step: Step, *, output: Any = None, error: BaseException | str | None = None) -> None:
    """End `step` in whatever context; ending it again changes nothing."""
    context = step.context
    if step.ended:
        return
    step.ended = True
    if context is None:
        return
    with context.lock:
        context.open_steps.pop(step.id, None)
    if context.closed:
        return
    text = describe_error(error) if isinstance(error, BaseException) else error
    text = step.error if text is None else text
    context.emit(
        StepEndEvent(
            id=EventId(f"{step.id}-end"),
            attempt_id=context.attempt_id,
            at=datetime.now(UTC),
            step_id=step.id,
            output=jsonable(step.output if output is None else output),
            error=None if text is None else unicode_text(text),
        )
    )


def note_answer(step: Step | None, answer: Callable[[], Any]) -> None:
    """Keep what a model answered as its step's output, where no gateway records it; never raises."""
    if step is not None and step.keeps_messages:
        try:
            step.output = jsonable(answer())
        except Exception:  # noqa: BLE001 - a framework's objects, looked at within the user's agent
            _log.warning("a model's answer can't be recorded", exc_info=True)


@contextmanager
def inside(step: Step) -> Generator[None]:
    """Make `step` the current one in the block, and its agent the one that acts."""
    tokens = STEP.set(step), AGENT.set(step.agent)
    try:
        yield
    finally:
        _leave(tokens)


def _leave(tokens: tuple[Token[Any], ...]) -> None:
    """Make current again what was so before, if this is the context in which it was changed.

    A generator of the user's may be closed from another task, which never was in the block.
    """
    for token in tokens:
        try:
            token.var.reset(token)
        except ValueError:
            return


@contextmanager
def step(
    kind: StepKind | str,
    name: str,
    *,
    agent: str | None = None,
    inputs: Any = None,
    tool_call_id: str | None = None,
) -> Generator[Step]:
    """Run the block as one step, and yield it so that the block can set its output.

    `with lightningrl.step("retrieval", "search", inputs=query) as search: search.output = ...`, in
    synchronous and asynchronous code alike. An exception is recorded as the step's error and
    passes on. Outside a rollout the block just runs.
    """
    opened = start_step(kind, name, agent=agent, inputs=inputs, tool_call_id=tool_call_id)
    with inside(opened):
        try:
            yield opened
        except BaseException as error:
            end_step(opened, error=error)
            raise
    end_step(opened)


async def stream_inside(step: Step, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield from `items` with `step` current while they are made, and not where they are used.

    An async generator runs in its consumer's context, so the step is entered anew for each item:
    otherwise it would leak into the consumer, and could not be left when the generator is closed
    from another task.
    """
    try:
        while True:
            with inside(step):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` so that it runs in the rollout and step that are current *now*.

    For threads that the agent starts itself: `executor.submit(lightningrl.bind(work), x)`. asyncio
    tasks and `asyncio.to_thread` need no help.

    Raises:
        TypeError: `function` is a coroutine function.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"bind() takes a plain function and {function.__name__!r} is a coroutine function; "
            "start it as a task, which inherits the rollout by itself"
        )
    context = contextvars.copy_context()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        # A context can be entered once at a time, and executors call from several threads.
        return context.copy().run(function, *args, **kwargs)

    return bound


def describe_error(error: BaseException) -> str:
    """The exception's type and text in one line, as steps record it."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise; the exception is still theirs
        text = "<a text that can't be shown>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
