"""Policies, the engines and gateways that serve them, and the workers that call them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from lightningrl.schema.ids import AttemptId
from lightningrl.schema.rollouts import RewardsFrom, Sampling


class Endpoint(msgspec.Struct, frozen=True):
    """One engine that serves a policy."""

    url: str
    """Base URL up to and including `/v1`."""
    key: str | None = None
    """Sent as a bearer token."""


class LiveTerms(msgspec.Struct, frozen=True):
    """How the live rollouts of a run must be enqueued to be trained on; see the fields of `NewRollout`."""

    sampling: Sampling | None
    rewards: RewardsFrom = RewardsFrom.JUDGED
    await_rewards: tuple[str, ...] = ()
    await_seconds: float | None = None


class RewriteRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is changed in a policy's requests: what its chat template needs, found when its run starts, and pins.

    `conversation.rewriting` finds the former and rewrites by both. Empty rules change no message.
    """

    roles: dict[str, str] = {}
    """A role that the template does not have -> the role that its messages get."""
    merge_instructions: bool = False
    """The instructions that a conversation begins with become one message."""
    alone_as_user: bool = False
    """Instructions that no user's message follows become the user's message."""
    later_as_user: bool = False
    """Instructions after the conversation's beginning become a user's messages."""
    lost: tuple[str, ...] = ()
    """Places (`conversation.rewriting.Place`) whose messages the template leaves out even so: refused."""
    pin: tuple[str, ...] = ()
    """Regular expressions of what is held still over an attempt: its text at first stays."""
    drop_hosted: bool = False
    """Tools that the real service would run are left out. Else they are refused."""
    thinks: bool = False
    """The template lets the model think unless `enable_thinking: false` is said."""
    put_back: bool = False
    """The template reads the reasoning of earlier answers, and what clients leave out of it is put back."""
    variables: dict[str, Any] = {}
    """Variables of the chat template, where a request does not set them itself."""
    free: bool = False
    """A tool that must be called, or a format, is asked for in words: nothing forces the answer."""


class Policy(msgspec.Struct, frozen=True):
    """A model under an alias: what agents call, what training changes."""

    name: str
    """The alias, and a model name that agents may use."""
    run: str
    version: int
    """+1 at every weight sync; a number is never used for two sets of weights."""
    endpoints: tuple[Endpoint, ...]
    trainable: bool = True
    replaces: tuple[str, ...] = ()
    """Model names of the agent that this policy answers for."""
    agents: tuple[str, ...] = ()
    """Agent names that this policy answers for."""
    max_model_len: int | None = None
    """Longest prompt plus answer, tokens. `None`: nobody said."""
    live: LiveTerms | None = None
    """`None`: the run doesn't train on live rollouts, and the agent's own sampling parameters stand."""
    rules: RewriteRules = RewriteRules()
    """How requests are rewritten before the engine sees them."""
    refuse_unknown: bool = False
    """Whether a request with a field that nobody knows is refused. Else the field is left out, and a log line says so."""
    held_until: datetime | None = None
    """New calls wait while this instant is in the future. `None`: calls pass."""
    held_since: int | None = None
    """`revision` with which the present hold began: names the hold. `None`: calls pass."""
    drain_seconds: float = 0.0
    """Of the present hold: how long running calls may go on before they are stopped."""
    revision: int = 0
    """+1 at every change by a gateway; of two rows the higher is the newer."""


class CallLimits(msgspec.Struct, frozen=True):
    """What the model calls of one attempt may come to, at all gateways together."""

    calls: int | None = None
    """Recorded calls, failed ones too. `None`: no limit."""
    tokens: int | None = None
    """Prompt and answer tokens; the call that goes beyond is still recorded. `None`: no limit."""


class DrainedHold(msgspec.Struct, frozen=True):
    """A hold that one gateway has drained: no engine works on a call that it let pass."""

    run: str
    policy: str
    since: int
    """The hold's `Policy.held_since`."""
    stopped: int
    """Calls that had to be stopped, to be sent again."""


class GatewayProcess(msgspec.Struct, frozen=True):
    """A gateway, as the store knows it."""

    name: str
    seen_at: datetime
    drained: tuple[DrainedHold, ...]
    """Of the holds in force."""


class Worker(msgspec.Struct, frozen=True):
    """A runner process, as the store knows it."""

    name: str
    run: str | None
    """Whose rollouts it asked for last. `None`: any run's."""
    first_seen_at: datetime
    seen_at: datetime
    """When it last asked for rollouts or renewed leases."""
    claimed_at: datetime | None
    """When it last got a rollout. `None`: never."""
    claimed: int
    """Attempts that it got so far."""
    attempt_ids: tuple[AttemptId, ...]
    """Those that it holds now, oldest first."""

    @property
    def running(self) -> int:
        """How many attempts it holds now."""
        return len(self.attempt_ids)
