"""What one gateway allows, and how long it tries.

Every default is safe for one laptop and for a few thousand concurrent agents.
"""

from __future__ import annotations

import msgspec


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on agents, on engines and on the gateway's own memory."""

    body_bytes: int = 16 * 2**20
    """Longest request body; a longer one is answered 413."""
    concurrent_calls_per_attempt: int = 64
    """Calls of one attempt under way at a time; one more is answered 429."""
    calls_per_attempt: int | None = None
    """Calls that one attempt may make in all, as this process counts them. `None`: no limit."""
    upstream_seconds: float = 1800.0
    """Longest time that one answer of an engine may take; then the agent is answered 504."""
    connect_seconds: float = 10.0
    """Longest time to connect to an engine."""
    upstream_retries: int = 6
    """How often a call is sent again after a broken connection, 502, 503 or 504."""
    backoff_seconds: float = 0.25
    """Wait before the second retry, doubled for each further one; the first is immediate."""
    backoff_limit_seconds: float = 4.0
    """Longest wait between two retries, and how long a failed endpoint is avoided."""
    close_seconds: float = 30.0
    """How long `close` lets calls finish before it stops them."""
    context_seconds: float = 5.0
    """How long an attempt is believed to be running before the store is asked again. Whatever is
    believed, the commit of a call checks it."""
    contexts: int = 65536
    """Attempts remembered at a time; idle ones are forgotten first."""
