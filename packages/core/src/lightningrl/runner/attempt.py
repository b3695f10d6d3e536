"""One attempt, from the claim to its end in the store.

Invariant: the attempt is finished only when all that its agent emitted is stored (the barrier), and
whatever the agent raised is data. Only cancellation by the worker leaves `run`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightningrl.capture.carrying import reward_open, rollout_open
from lightningrl.capture.context import RolloutContext
from lightningrl.capture.jsonable import is_jsonable, jsonable
from lightningrl.capture.rewards import emit_rewards
from lightningrl.capture.sink import BufferSink
from lightningrl.errors import AgentError, NotFound, StaleAttempt, StoreUnavailable
from lightningrl.runner.alarms import REMEDY, alarms
from lightningrl.runner.command import run_command
from lightningrl.runner.flush import EventFlusher
from lightningrl.runner.outcome import AttemptTrace, divergence, failure_of, judge
from lightningrl.runner.resolve import ResolvedAgent
from lightningrl.runner.swallowed import swallowed
from lightningrl.schema import (
    FINAL,
    AttemptState,
    CallEvent,
    Claim,
    Event,
    Failure,
    FailureKind,
    LogTopic,
    OnDivergence,
    RewardsFrom,
    may_replay,
)
from lightningrl.store.base import Store

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class AttemptRunner:
    """Runs claims; one for each worker process."""

    store: Store
    agent: ResolvedAgent
    flusher: EventFlusher
    server_url: str
    aliases: frozenset[str]
    """Model names of the run: policies and what they replace."""
    folder: Path
    """Where a command is run."""

    async def run(self, claim: Claim) -> None:
        """Run the agent, judge it, and finish the attempt.

        Returns without a word where the attempt ended elsewhere meanwhile: nothing can be written then.
        """
        sink = BufferSink()
        context = RolloutContext(
            rollout_id=claim.rollout.id,
            attempt_id=claim.attempt.id,
            server_url=self.server_url,
            key=claim.key,
            sink=sink,
            aliases=self.aliases,
            replays=may_replay(claim.rollout.spec, claim.attempt.number),
            resources={one.name: one.value for one in claim.resources},
        )
        self.flusher.add(context.attempt_id, sink)
        try:
            output, failure = await self._outcome(claim, context, sink)
            context.close()
            failure = await self._divergence(claim, context) or failure
            await self._finish(context, output, failure)
        finally:
            context.closed = True
            self.flusher.remove(context.attempt_id)

    async def release(self, claim: Claim, reason: str) -> None:
        """Give back a claim that this process won't finish, so that another one can at once.

        Raises:
            StoreUnavailable: the store can't be told; the lease will run out by itself.
        """
        failure = Failure(kind=FailureKind.INFRASTRUCTURE, message=reason)
        try:
            await self.store.finish(claim.attempt.id, AttemptState.FAILED, failure=failure)
        except StaleAttempt:
            _log.info("attempt %r ended before it was released", claim.attempt.id)

    async def _outcome(
        self, claim: Claim, context: RolloutContext, sink: BufferSink
    ) -> tuple[Any, Failure | None]:
        try:
            output = await self._run_agent(claim, context)
            await self._judge(claim, context, sink, output)
        # The one place where the user's exceptions end, SystemExit included: out of a task, that one
        # would stop the event loop and every other attempt with it.
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            events = await self._stored_events(context)
            return None, failure_of(error, events, self.server_url)
        if not is_jsonable(output):
            context.log(
                "warning",
                f"the output has no JSON form, its repr is stored: {type(output).__name__}",
            )
        return jsonable(output), None

    async def _divergence(self, claim: Claim, context: RolloutContext) -> Failure | None:
        """Of a fork that had to follow its trunk, the failure of not having done so, whatever its agent made of it."""
        fork = claim.rollout.spec.fork
        if fork is None or fork.on_divergence is not OnDivergence.FAIL:
            return None
        return divergence(await self._stored_events(context))

    async def _run_agent(self, claim: Claim, context: RolloutContext) -> Any:
        task = claim.rollout.spec.task
        agent = self.agent
        with rollout_open(context):
            if agent.command is not None:
                return await run_command(agent.command, task, context, folder=self.folder)
            assert agent.call is not None  # a recipe has one of the two
            given = task if agent.make_input is None else await agent.make_input(task)
            with alarms() as asked:
                output = await agent.call(given)
            if asked:
                context.log(
                    "warning", f"the agent called {asked[0]}, and caught the error: {REMEDY}"
                )
            return output

    async def _judge(
        self, claim: Claim, context: RolloutContext, sink: BufferSink, output: Any
    ) -> None:
        """Emit the rewards that the agent or the recipe's function returned."""
        events: tuple[Event, ...] = sink.events
        spec = claim.rollout.spec
        posted = spec.rewards is RewardsFrom.EMITTED
        if self.agent.command is not None or context.model_calls == 0 or posted:
            await until_available(self.flusher.flush)
            events = tuple(await self._stored_events(context))
            if not any(isinstance(event, CallEvent) for event in events):
                raise AgentError(_no_model_call(context))
        caught: list[str] = []
        returned, what = output, f"rollout {context.rollout_id!r}"
        score = self.agent.score
        if score is not None:
            # Outside the rollout: a judge's own model calls are not the agent's.
            with reward_open(), swallowed() as caught, alarms() as asked:
                returned = await score(spec.task, output, AttemptTrace(events))
            if asked:
                raise AgentError(
                    f"the reward function called {asked[0]}, and caught the error: {REMEDY}"
                )
        given = judge(
            returned,
            events,
            by_recipe=score is not None,
            what=what,
            required=FINAL not in spec.await_rewards,
        )
        if caught and given is not None and given.final == 0:
            told = f"the reward function caught an error and gave 0: {caught[0]}"
            context.log("warning", told, LogTopic.REWARD_ERROR)
        if given is not None:
            emit_rewards(context, given, source="agent" if score is None else "recipe")

    async def _stored_events(self, context: RolloutContext) -> list[Event]:
        attempts = [context.attempt_id]
        return (await until_available(lambda: self.store.events(attempts)))[0]

    async def _finish(self, context: RolloutContext, output: Any, failure: Failure | None) -> None:
        """Flush, then finish; again and again while the store is away, since the work is done."""
        attempt_id = context.attempt_id
        await until_available(self.flusher.flush)
        failure = failure or self.flusher.refusal(attempt_id)
        state = AttemptState.SUCCEEDED if failure is None else AttemptState.FAILED
        try:
            await until_available(
                lambda: self.store.finish(attempt_id, state, failure=failure, output=output)
            )
        except (StaleAttempt, NotFound) as error:
            _log.info("attempt %r ended elsewhere: %s", attempt_id, error)


def _no_model_call(context: RolloutContext) -> str:
    went = (f"{model!r} at {host!r}" for host, model in sorted(context.named_outside))
    called = f"; it called {', '.join(went)} instead" if context.named_outside else ""
    return (
        f"the agent made no model call in attempt {context.attempt_id!r}{called}. Its client must "
        "use OPENAI_BASE_URL, or call a model that a policy names or `replaces`; a cache that answers in the"
        " model's place must be off"
    )


async def until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat `call` until the store can be reached, ever more slowly.

    Store calls may be repeated: a second one with the same arguments changes nothing twice.
    """
    pause = _FIRST_RETRY_SECONDS
    while True:
        try:
            return await call()
        except StoreUnavailable as error:
            _log.warning("the store is away, trying again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_SECONDS)
