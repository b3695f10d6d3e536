"""What one gateway allows, and how long it tries.

Every default is safe for one laptop and for a few thousand concurrent agents. Each field is also a
setting, `LIGHTNINGRL_GATEWAY_` and its name, which a test checks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from lightningrl import settings
from lightningrl.errors import ConfigError
from lightningrl.schema import CallLimits

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e8)]
_OptionalSeconds = Annotated[float, msgspec.Meta(ge=0, le=1e8)]


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on agents, on engines and on the gateway's own memory."""

    body_bytes: _Count = 16 * 2**20
    """Longest request body; a longer one is answered 413."""
    concurrent_calls_per_attempt: _Count = 64
    """Calls of one attempt under way at a time, at this gateway; one more waits for its turn."""
    queued_calls_per_attempt: Annotated[int, msgspec.Meta(ge=0)] = 1024
    """Calls of one attempt that wait for their turn at a time; one more is answered 429."""
    calls_per_attempt: _Count | None = None
    """Calls that one attempt may make in all, at whatever gateway. `None`: no limit."""
    tokens_per_attempt: _Count | None = None
    """Prompt and answer tokens that one attempt may use in all, at whatever gateway; the call that goes
    beyond is still answered, the next one 429. `None`: no limit."""
    stream_silence_seconds: _Seconds = 2.0
    """How long an agent that asked for a stream waits for its first byte; an answer that comes before has its true
    status."""
    stream_comment_seconds: _Seconds = 5.0
    """How often it is then told that the answer is on its way."""
    upstream_seconds: _Seconds = 1800.0
    """Longest time that one answer of an engine may take; then the agent is answered 504."""
    connect_seconds: _Seconds = 10.0
    """Longest time to connect to an engine."""
    upstream_retries: Annotated[int, msgspec.Meta(ge=0)] = 6
    """How often a call is sent again after a broken connection, 502, 503 or 504."""
    backoff_seconds: _Seconds = 0.25
    """Wait before the second retry, doubled for each further one; the first is immediate."""
    backoff_limit_seconds: _Seconds = 4.0
    """Longest wait between two retries, and how long an endpoint is avoided that failed a call."""
    health_seconds: _OptionalSeconds = 5.0
    """How often each endpoint in use is asked whether it lives. 0: never, calls alone find out."""
    health_timeout_seconds: _Seconds = 5.0
    """Longest time that such an answer may take."""
    health_failures: _Count = 3
    """Failures in a row, of checks and of calls, after which an endpoint is out of rotation until a
    check succeeds."""
    health_path: str = "/health"
    """What is asked for: a path of the endpoint's host (vLLM and SGLang serve this one), or, without a
    slash at its beginning, below the endpoint's base URL. Any answer below 500 is a sign of life."""
    close_seconds: _OptionalSeconds = 30.0
    """How long `close` lets calls finish before it stops them."""
    context_seconds: _OptionalSeconds = 5.0
    """How long an attempt is believed to be running before the store is asked again. Whatever is
    believed, the commit of a call checks it."""
    contexts: _Count = 65536
    """Attempts remembered at a time; idle ones are forgotten first."""

    @property
    def shared(self) -> CallLimits | None:
        """Those that hold for all gateways of a store together. `None`: there are none."""
        if self.calls_per_attempt is None and self.tokens_per_attempt is None:
            return None
        return CallLimits(calls=self.calls_per_attempt, tokens=self.tokens_per_attempt)


def limits_of_environment() -> GatewayLimits:
    """The limits as `LIGHTNINGRL_GATEWAY_*` say.

    Raises:
        ConfigError: a variable holds what its field can't be; the message names it.
    """
    given: dict[str, object] = {}
    for field in msgspec.structs.fields(GatewayLimits):
        name, text = settings.gateway_limit(field.name)
        if not text:
            continue
        try:
            given[field.name] = msgspec.convert(text, field.type, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name} can't be {text!r}: {error}") from error
    return GatewayLimits(**given)  # type: ignore[arg-type]  # each was converted to its field's type
