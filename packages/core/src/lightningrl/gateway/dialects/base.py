"""The seam between a dialect and the life of a call: what every dialect gives.

A dialect reads an agent's body, brings it into the one form that engines are asked in
(`EngineRequest`), and writes the engine's answer (`EngineReply`) as its own clients expect it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from lightningrl.conversation.history import Recorded
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.dialects.engine_reply import EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest
from lightningrl.schema import Dialect, StepId

Recall = Callable[[], Awaitable[Recorded]]
"""Gives the attempt's calls so far."""


def _nothing(model: str, step_id: StepId) -> bytes:
    del model, step_id
    return b""


def data_event(error: bytes) -> bytes:
    """An error in a stream of OpenAI's chunks."""
    return b"data: %s\n\n" % error


def error_event(error: bytes) -> bytes:
    """An error in a stream whose events have names."""
    return b"event: error\ndata: %s\n\n" % error


class Written(NamedTuple):
    """An answer as the agent gets it."""

    body: bytes
    streams: bool
    """Whether `body` is a stream of server-sent events."""


class AgentRequest(Protocol):
    """One request of an agent, read."""

    @property
    def body(self) -> bytes:
        """JSON, as the agent sent it."""
        ...

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        ...

    @property
    def engine(self) -> EngineRequest:
        """What to ask the engine."""
        ...

    @property
    def unknown(self) -> tuple[str, ...]:
        """Paths of what no row of the dialect's table knows; the engine does not see it."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the agent asked for a stream."""
        ...

    def write(self, reply: EngineReply, step_id: StepId) -> Written:
        """The engine's answer without what is none of the agent's business.

        Raises:
            ValueError: the answer holds no message that the dialect could express.
        """
        ...


class Spoken(NamedTuple):
    """A dialect that the gateway speaks."""

    dialect: Dialect
    read: Callable[[bytes, Recall], Awaitable[AgentRequest]]
    """From a body to the request; raises `Refusal`."""
    unknown: Callable[[str], Refusal]
    """The refusal of a field that the dialect's table does not know."""
    error: Callable[[Refusal], bytes]
    """A refusal in the dialect's error format."""
    error_event: Callable[[bytes], bytes]
    """From such an error to what a stream says that has begun."""
    waiting: Callable[[str, StepId], bytes] = _nothing
    """From the model's name and the step to what a stream says, beside comments, while there is no answer."""
