"""Attempts that are given another one's recorded answers before their policy samples: forks, and retries.

Invariants:
- What a trunk's calls have answered is what the store has of the attempt, and what is under way here; so a gateway that
  is restarted goes on where it was.
- Reading a trunk holds up no other attempt, and an attempt that has none costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.replaying import Path, Trunk, arrived_at, kept
from lightningrl.errors import NotFound
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.dialects.base import AgentRequest
from lightningrl.gateway.dialects.reading import refusal_of
from lightningrl.gateway.identity import AttemptContext
from lightningrl.gateway.policies import Policies
from lightningrl.gateway.recollection import Recollection
from lightningrl.schema import (
    REPLAYED,
    AttemptId,
    CallEvent,
    Cause,
    Dialect,
    Diverged,
    FailureKind,
    Fork,
    OnDivergence,
    RolloutId,
    StepId,
    may_replay,
)
from lightningrl.store.base import Store

_TRUNKS = 256
"""Trunks remembered at a time; those of attempts that were silent longest are read anew."""

_BROKEN = frozenset({FailureKind.LOST, FailureKind.INFRASTRUCTURE})
"""Failures of attempts that are tried again with the answers that they had got."""
_UNTOLD = frozenset({Cause.OTHER, Cause.MORE})
"""What a request of a retry looks like that may have been under way when the attempt before broke: no divergence."""

_LOGPROBS = Diverged(
    "the request asks for log-probs, and records have no texts of tokens", Cause.LOGPROBS
)


class Replayed(NamedTuple):
    """What the record says of a request."""

    call: CallEvent | None = None
    """Whose answer it gets. `None`: it is not answered by the record."""
    diverged: Diverged | None = None
    refused: bool = False
    """Whether it must not be sampled."""


SAMPLED = Replayed()
"""It comes after the trunk, or there is none."""


class _Known:
    """What is known of one attempt's trunk."""

    def __init__(self) -> None:
        self.trunk: Trunk | None = None
        """`None`: it was not read yet."""
        self.reading = asyncio.Lock()
        self.under_way = 0


class Replays:
    """Answers from the record, by attempt."""

    def __init__(self, store: Store, recollection: Recollection, policies: Policies) -> None:
        self._store = store
        self._recollection = recollection
        self._policies = policies
        self._known: OrderedDict[AttemptId, _Known] = OrderedDict()

    @asynccontextmanager
    async def answering(
        self,
        context: AttemptContext,
        path: Path,
        request: AgentRequest,
        dialect: Dialect,
        step: StepId,
    ) -> AsyncGenerator[Replayed]:
        """What the record says of a request; in the block its call is made and committed, or fails.

        Args:
            context: the attempt.
            path: where in the agent it is made.
            request: as it was read.
            dialect: the request's.
            step: which step asks.

        Raises:
            Refusal: the parent, or its step, is not there.
        """
        if not may_replay(context.rollout, context.number):
            yield SAMPLED
            return
        known = self._of(context)
        known.under_way += 1
        found = SAMPLED
        try:
            trunk = await self._trunk(known, context)
            found = await self._find(trunk, context, path, request, dialect, step)
            yield found
        finally:
            known.under_way -= 1
            if found.call is not None and known.trunk is not None:
                known.trunk.release(found.call)
            self._forget()

    async def is_done(self, context: AttemptContext, path: Path) -> bool:
        """Whether what an agent's last answer asks for was done before: it is of the record, and so is what followed.

        Of an agent that made no call, all others' last answers must be so.
        """
        if not may_replay(context.rollout, context.number):
            return False
        recorded = await self._recollection.of(context.id)
        done = recorded.is_done
        if path not in done:
            return bool(done) and context.rollout.fork is not None and all(done.values())
        if not done[path] or context.rollout.fork is not None:
            return done[path]
        # What broke an attempt may have been what its last answer asked for.
        trunk = await self._trunk(self._of(context), context)
        return trunk.left_of(path, recorded.replays) > 0

    async def _find(
        self,
        trunk: Trunk,
        context: AttemptContext,
        path: Path,
        request: AgentRequest,
        dialect: Dialect,
        step: StepId,
    ) -> Replayed:
        fork = context.rollout.fork
        recorded = await self._recollection.of(context.id)
        fails = fork is not None and fork.on_divergence is OnDivergence.FAIL
        if fails and recorded.diverged is not None:
            return Replayed(None, recorded.diverged, refused=True)
        try:
            asked = recorded.chat_request(dialect, request.body)
            found = trunk.answer(
                path, asked, step, answered=recorded.replays, sampled=recorded.sampled > 0
            )
        except Malformed as error:
            raise refusal_of(error) from error
        if isinstance(found, CallEvent) and _wants_logprobs(request, dialect):
            trunk.release(found)
            found = _LOGPROBS
        if isinstance(found, Diverged):
            if recorded.diverged is not None or (fork is None and found.cause in _UNTOLD):
                return SAMPLED  # it follows from the first, or was under way when the attempt broke
            return Replayed(None, found, refused=fails)
        return Replayed(found)

    def _of(self, context: AttemptContext) -> _Known:
        known = self._known.setdefault(context.id, _Known())
        self._known.move_to_end(context.id)
        return known

    def _forget(self) -> None:
        surplus = len(self._known) - _TRUNKS
        if surplus > 0:
            idle = [one for one, each in self._known.items() if not each.under_way]
            for one in idle[:surplus]:
                del self._known[one]

    async def _trunk(self, known: _Known, context: AttemptContext) -> Trunk:
        async with known.reading:
            if known.trunk is None:
                fork, run = context.rollout.fork, context.rollout.run
                if not self._policies.of(run):
                    await self._policies.load(run)
                # What is pinned is said once for all policies of a run.
                pin = next((one.rules.pin for one in self._policies.of(run).values()), ())
                earlier = await self._earlier(context)
                trunk = Trunk(earlier, pin=pin)
                if fork is not None:
                    of_parent = await self._read(fork, pin)
                    if of_parent.left() >= trunk.left():
                        trunk = of_parent
                known.trunk = trunk
            return known.trunk

    async def _earlier(self, context: AttemptContext) -> list[CallEvent]:
        """What attempts of the rollout that broke had got, as far as it may be given again."""
        staleness = context.rollout.replay_staleness
        if context.number == 1 or staleness is None:
            return []
        broken = [
            one
            for one in await self._store.attempts([context.rollout.id])
            if one.failure is not None and one.failure.kind in _BROKEN
        ]
        calls = [await self._store.calls(one.id) for one in broken]
        policies = self._policies.of(context.rollout.run)
        oldest = {name: one.version - staleness for name, one in policies.items()}
        return kept(
            calls, lambda one: one.policy in oldest and one.version_start >= oldest[one.policy]
        )

    async def _read(self, fork: Fork, pin: Sequence[str]) -> Trunk:
        try:
            parent, _ = await self._store.attempt(fork.attempt)
            calls = await self._store.calls(fork.attempt)
            before = None if fork.step is None else arrived_at(calls, fork.step)
        except (NotFound, KeyError) as error:
            raise Refusal(
                404,
                "fork_without_parent",
                f"this rollout is a fork of attempt {fork.attempt!r} at step {fork.step!r}, which the store does"
                " not have; fork one that it has",
            ) from error
        copies = [_copied(call, parent.id) for call in calls]
        say = None if fork.say is None or fork.step is None else (fork.step, fork.say)
        return Trunk(copies, before=before, say=say, whole=fork.step is None, pin=pin)


def _copied(call: CallEvent, parent: RolloutId) -> CallEvent:
    """A call of another rollout as this one has it: it is trained there alone."""
    told = f"{REPLAYED}{parent}"
    choices = tuple(
        msgspec.structs.replace(one, untrainable=one.untrainable or told) for one in call.choices
    )
    return msgspec.structs.replace(call, choices=choices)


def _wants_logprobs(request: AgentRequest, dialect: Dialect) -> bool:
    """Whether the agent gets log-probs."""
    if dialect is Dialect.COMPLETIONS:
        given = request.engine.fields.get("logprobs")
        return given is not None and bytes(given) != b"null"
    return bool(request.engine.wanted.logprobs) or b"output_text.logprobs" in request.body
