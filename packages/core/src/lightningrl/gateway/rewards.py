"""Rewards that an agent posts over HTTP: for agents in other processes and other languages.

Invariant: a reward is accepted only for the running attempt that the request proves to be, and only
where its rollout says `rewards: emitted`, since a tool that runs model-written code holds this key too.
(step, name, revision) is one reward: posting it again changes nothing, with another value it is refused.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

import msgspec

from lightningrl.conversation.responses import step_of_response
from lightningrl.gateway.asgi import Answer, Refusal, to_json
from lightningrl.gateway.identity import AttemptContext
from lightningrl.machine.clock import Clock
from lightningrl.schema import FINAL, EventId, RewardEvent, RewardsFrom, StepId
from lightningrl.store.base import Store

SOURCE = "agent"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class PostedReward(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request, JSON."""

    value: float
    """Finite."""
    name: _Name = FINAL
    step_id: _Name | None = None
    """A step, or the id of a model response. `None`: rewards the rollout."""
    revision: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    """Of the rewards with equal step and name, the highest revision counts."""


async def post_reward(store: Store, clock: Clock, context: AttemptContext, body: bytes) -> Answer:
    """Store the reward in `body`; answer with the id of its event.

    Raises:
        Refusal: 403, the rollout doesn't take rewards from its agent; 400, the body is no reward; 409,
            the same step, name and revision was rewarded with another value.
        StaleAttempt: the attempt has just ended.
    """
    if context.rollout.rewards is not RewardsFrom.EMITTED:
        raise Refusal(
            403,
            "rewards_not_emitted",
            f"rollout {context.rollout.id!r} is rewarded by its runner alone, so its agent can't post"
            " rewards; say `rewards: emitted` in the recipe",
        )
    posted = _read(body)
    step_id = None if posted.step_id is None else StepId(step_of_response(posted.step_id))
    event = RewardEvent(
        id=_event_id(step_id, posted.name, posted.revision),
        attempt_id=context.id,
        at=clock.now(),
        value=posted.value,
        step_id=step_id,
        name=posted.name,
        source=SOURCE,
        revision=posted.revision,
    )
    await store.append([event])
    ((*stored,),) = await store.events([context.id])
    held = next(one for one in stored if one.id == event.id)
    if not isinstance(held, RewardEvent) or held.value != event.value:
        raise Refusal(
            409,
            "rewarded_otherwise",
            f"attempt {context.id!r} has a reward {posted.name!r} of revision {posted.revision} with"
            " another value; post the new value with a higher revision",
        )
    return Answer(200, to_json({"id": event.id}))


def _event_id(step_id: StepId | None, name: str, revision: int) -> EventId:
    """One id for each step, name and revision, whatever the texts hold."""
    digest = hashlib.blake2b(to_json([step_id, name, revision]), digest_size=16)
    return EventId(f"posted-{digest.hexdigest()}")


def _read(body: bytes) -> PostedReward:
    try:
        posted = msgspec.json.decode(body, type=PostedReward)
    except msgspec.DecodeError as error:
        raise Refusal(400, "no_reward", f"the body is no reward: {error}") from error
    if not math.isfinite(posted.value):
        raise Refusal(400, "no_reward", f"the reward is {posted.value}; it must be finite")
    return posted
