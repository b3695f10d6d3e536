"""Which attempt a request belongs to. It is proven by the request or the request is refused.

Invariant: a call lands in the attempt that its key or URL names, and nowhere else; the gateway never
guesses. Three forms say it: the attempt in the URL, the attempt key as bearer token, the attempt key
in the URL. Where two of them are given they must agree.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import unquote

from lightningrl.capture.client import OUTSIDE_HEADER
from lightningrl.capture.variables import PLACEHOLDER_KEY
from lightningrl.errors import AuthError, NotFound
from lightningrl.gateway.asgi import Headers, Refusal
from lightningrl.gateway.dialects import SPOKEN
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.keys import CheckedKey, check_attempt_key
from lightningrl.machine.clock import Clock
from lightningrl.schema import Attempt, AttemptId, AttemptState, Origin, Rollout, RolloutId
from lightningrl.store.base import Store

HOW_TO_IDENTIFY = (
    "Set the client's base_url to the environment variable LIGHTNINGRL_ATTEMPT_URL and its api_key to "
    "the attempt key (inside a rollout, LightningRL's runner and capture do both)"
)
_WITHOUT_ROLLOUT = {
    Origin.THREAD: "it was made in a thread that no rollout started. Threads that a rollout starts, and pools that it hands"
    " work to, carry it by themselves; of a queue or a thread of your own, wrap what is handed over in"
    " lightningrl.bind(function)",
    Origin.ENDED: "it was made by a thread or task of a rollout that has ended. A thread serves the rollout that started it:"
    " end it with the agent, or hand work to a shared one as lightningrl.bind(function)",
    Origin.REWARD: "it was made by the reward function, and a policy never judges itself. A client without a base URL and key of"
    " its own uses those that were in the runner's environment, and there was no key: export the judge's"
    " (OPENAI_API_KEY, ANTHROPIC_API_KEY) before the run is started, or give its client a base URL and key",
    Origin.MAIN: "it was made in the main thread outside every rollout: while a module was imported, or by a background task"
    " that was started there. Make the call, or start the task, inside the agent",
    Origin.CHILD: "it came from a child process of the runner's. Start it with the attempt's URL and key:"
    " subprocess.run(command, env={**os.environ, **lightningrl.environment()})",
    Origin.LIBRARY: "it came through {library}, which is captured in no process of a function agent's, or from a child process. Give that client"
    " URL and key out of lightningrl.environment(), as its OPENAI_BASE_URL and OPENAI_API_KEY (of LiteLLM: api_base and"
    " api_key), or run the agent as a `command`",
}
_IN_PROCESS = (Origin.THREAD, Origin.ENDED, Origin.REWARD, Origin.MAIN)
"""What capture says itself."""
UNIDENTIFIED = "unidentified"
"""Code of the refusal of a request that nothing shows to be of any attempt."""
_KEY_PREFIX = "lrk1."
_KEYS = 65536
"""Keys whose signature is remembered."""


class AgentRoute(NamedTuple):
    """A model route, and what its URL says about the caller."""

    rest: str
    """What follows `/v1/`."""
    rollout: str | None = None
    attempt: str | None = None
    key: str | None = None


def agent_route(path: str) -> AgentRoute | None:
    """Read an undecoded URL path. `None`: it is no route for agents.

    What can mean one thing alone is taken so: empty parts, a `v1` too few or too many, a route that the base
    URL names already.
    """
    parts = [part for part in path.split("/") if part]
    match [unquote(part) for part in parts] if "%" in path else parts:
        case ["rollouts", rollout, "attempts", attempt, *rest] if rest:
            return AgentRoute(_meant(rest), rollout=rollout, attempt=attempt)
        case ["keys", key, *rest] if rest:
            return AgentRoute(_meant(rest), key=key)
        case ["v1", *rest] if rest:
            return AgentRoute(_meant(rest))
        case rest if rest and _is_served(rest):
            return AgentRoute(_meant(rest))
        case _:
            return None


def _meant(rest: list[str]) -> str:
    """The route below `/v1/` that the rest of a path means."""
    while len(rest) > 1 and rest[0] == "v1":
        rest = rest[1:]
    half = len(rest) // 2
    if half and rest[:half] == rest[half:] and "/".join(rest[:half]) in SPOKEN:
        rest = rest[:half]
    return "/".join(rest)


def _is_served(rest: list[str]) -> bool:
    """Whether a path without `v1` and without an attempt is a route of ours all the same."""
    return _meant(rest) in SPOKEN or rest[0] in ("models", "rewards")


def shown_path(path: str) -> str:
    """An undecoded URL path for messages and logs: without what may be an attempt key."""
    shown: list[str] = []
    follows_keys = False
    for part in path.split("/"):
        if not part:
            continue
        plain = unquote(part)
        shown.append("..." if follows_keys or _KEY_PREFIX in plain else part)
        follows_keys = plain == "keys"
    return "/" + "/".join(shown)


def bearer(headers: Headers) -> str | None:
    """The bearer token of a request. `None`: it has none."""
    scheme, _, token = headers.get(b"authorization", b"").decode(errors="replace").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _given_key(headers: Headers) -> str | None:
    """The key of a request: its bearer token, else what Anthropic's clients send."""
    return bearer(headers) or headers.get(b"x-api-key", b"").decode(errors="replace") or None


class AttemptContext:
    """What the gateway knows about one attempt, kept between its calls."""

    def __init__(
        self, rollout: Rollout, attempt: Attempt, checked_at: float, *, turns: int
    ) -> None:
        self.id: AttemptId = attempt.id
        self.number = attempt.number
        """1 for the rollout's first."""
        self.rollout = rollout.spec
        self.state = attempt.state
        self.checked_at = checked_at
        """Monotonic seconds at which the store said `state`; -inf: ask it before the next call."""
        self.running = 0
        """Calls under way, those that wait for their turn among them."""
        self.turns = asyncio.Semaphore(turns)
        """A turn for each call that may be under way at a time; who waits for one is served in order of arrival."""
        self.calls = 0
        """Calls at this gateway so far."""
        self.tokens = 0
        """Prompt and answer tokens of delivered calls at this gateway so far."""
        self.exhausted: str | None = None
        """What the store said when the attempt's calls, those elsewhere counted, had reached a limit."""
        self.refusals = 0
        """Requests refused at this gateway that the attempt's log tells of."""
        self.left_out: set[str] = set()
        """What its log says was left out of its requests."""
        self.extended_seconds = 0.0
        """Hold time by which this gateway pushed back the attempt's deadline."""


class Contexts:
    """Attempt contexts, read from the store and believed for a moment."""

    def __init__(self, store: Store, clock: Clock, limits: GatewayLimits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._known: OrderedDict[AttemptId, AttemptContext] = OrderedDict()

    async def get(self, attempt_id: AttemptId) -> AttemptContext:
        """The context of a running attempt.

        Raises:
            Refusal: 404, there is no such attempt; 409, it has ended.
        """
        context = self._known.get(attempt_id)
        fresh_after = self._clock.monotonic() - self._limits.context_seconds
        if context is None or context.checked_at < fresh_after:
            context = await self._read(attempt_id)
        if context.state is not AttemptState.RUNNING:
            raise ended(context)
        self._known.move_to_end(attempt_id)
        return context

    async def _read(self, attempt_id: AttemptId) -> AttemptContext:
        try:
            rollout, attempt = await self._store.attempt(attempt_id)
        except NotFound as error:
            raise Refusal(
                404, "attempt_not_found", f"there is no attempt {attempt_id!r}. {HOW_TO_IDENTIFY}"
            ) from error
        now = self._clock.monotonic()
        context = self._known.setdefault(attempt_id, self._new(rollout, attempt, now))
        context.state, context.checked_at = attempt.state, now
        self._forget_idle()
        return context

    def _new(self, rollout: Rollout, attempt: Attempt, now: float) -> AttemptContext:
        turns = self._limits.concurrent_calls_per_attempt
        return AttemptContext(rollout, attempt, now, turns=turns)

    def _forget_idle(self) -> None:
        surplus = len(self._known) - self._limits.contexts
        if surplus <= 0:
            return
        for attempt_id in list(self._known)[:surplus]:
            if self._known[attempt_id].running == 0:
                del self._known[attempt_id]

    def extended(self, attempt_ids: list[AttemptId], seconds: float) -> None:
        """Note that deadlines were pushed back; keys stay valid as much longer."""
        for attempt_id in attempt_ids:
            if context := self._known.get(attempt_id):
                context.extended_seconds += seconds

    def extension(self, attempt_id: str) -> timedelta:
        """By how much the attempt's deadline was pushed back."""
        context = self._known.get(AttemptId(attempt_id))
        return timedelta(seconds=context.extended_seconds if context else 0.0)


def ended(context: AttemptContext) -> Refusal:
    """The refusal of a call by an attempt that is not running."""
    known = context.state is not AttemptState.RUNNING
    return Refusal(
        409,
        "attempt_ended",
        f"attempt {context.id!r} of rollout {context.rollout.id!r} is not running any more"
        f"{f' ({context.state.value})' if known else ''}, so its model calls are refused; make calls"
        " only inside the rollout, and stop when the runner cancels the agent",
    )


class Identifier:
    """Finds the attempt of a request."""

    def __init__(
        self, secret: bytes, contexts: Contexts, clock: Clock, *, require_keys: bool
    ) -> None:
        self._secret = secret
        self._contexts = contexts
        self._clock = clock
        self._require_keys = require_keys
        self._checked: OrderedDict[str, CheckedKey] = OrderedDict()
        """Keys whose signature was found good: an attempt shows the same one with every call."""

    async def identify(self, route: AgentRoute, headers: Headers) -> AttemptContext:
        """The running attempt that made a request.

        Raises:
            Refusal: 401, nothing or nothing valid says which attempt it is; 403, key and URL name
                different attempts; 404 or 409, see `Contexts.get`.
        """
        keyed = self._attempt_of_key(route, headers)
        named = AttemptId(route.attempt) if route.attempt is not None else None
        if keyed is not None and named is not None and keyed != named:
            raise Refusal(
                403,
                "key_of_another_attempt",
                f"the key is for attempt {keyed!r}, the URL for attempt {named!r}. "
                f"{HOW_TO_IDENTIFY}",
            )
        attempt_id = keyed or named
        if attempt_id is None:
            raise _unidentified("the request names no attempt")
        context = await self._contexts.get(attempt_id)
        if route.rollout is not None and RolloutId(route.rollout) != context.rollout.id:
            raise Refusal(
                404,
                "rollout_not_found",
                f"attempt {attempt_id!r} belongs to rollout {context.rollout.id!r}, not to "
                f"{route.rollout!r} as the URL says. {HOW_TO_IDENTIFY}",
            )
        return context

    def _attempt_of_key(self, route: AgentRoute, headers: Headers) -> AttemptId | None:
        key = route.key if route.key is not None else _given_key(headers)
        optional = not self._require_keys and route.attempt is not None
        if key is None or (optional and not key.startswith(_KEY_PREFIX)):
            if optional:
                return None
            raise _unidentified("the request has no attempt key")
        try:
            checked = self._checked.get(key) or self._check(key)
            now = self._clock.now() - self._contexts.extension(checked.attempt_id)
            checked.refuse_expired(now)
        except AuthError as error:
            if key == PLACEHOLDER_KEY:
                raise _without_rollout(headers) from error
            raise _unidentified(str(error)) from error
        return checked.attempt_id

    def _check(self, key: str) -> CheckedKey:
        checked = self._checked[key] = check_attempt_key(self._secret, key)
        if len(self._checked) > _KEYS:
            self._checked.popitem(last=False)
        return checked


class Unidentified(Refusal):
    """A request that nothing shows to be of any attempt."""

    def __init__(self, message: str, origin: Origin = Origin.ELSEWHERE) -> None:
        super().__init__(401, UNIDENTIFIED, message)
        self.origin = origin


def _unidentified(reason: str) -> Unidentified:
    return Unidentified(f"{reason}, so the call belongs to no rollout. {HOW_TO_IDENTIFY}")


def _without_rollout(headers: Headers) -> Unidentified:
    """The refusal of a call under a runner's placeholder: where it came from, and what is to be done."""
    said = headers.get(OUTSIDE_HEADER.encode(), b"").decode(errors="replace")
    if said in _IN_PROCESS:
        origin = Origin(said)
    elif b"x-stainless-lang" in headers:  # openai's and anthropic's packages, in whatever language
        origin = Origin.CHILD
    else:
        origin = Origin.LIBRARY
    library = headers.get(b"user-agent", b"unknown").decode(errors="replace").split(" ")[0]
    case = _WITHOUT_ROLLOUT[origin].replace("{library}", repr(library))
    return Unidentified(f"this call came from a runner and belongs to no rollout: {case}", origin)
