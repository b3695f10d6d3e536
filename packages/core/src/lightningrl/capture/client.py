"""Sends the model calls of a rollout to the gateway, whoever built the `openai` client and when.

One private method is wrapped: `openai._base_client.BaseClient._build_request`, through which every
request of every client passes (sync, async, streamed, retried), with the same signature since openai
1.66. Lower layers differ: openai 3 left httpx for httpx2.

Invariant: inside a rollout a request is rewritten only if its client's base URL is the server's
placeholder, or its model is an alias of the run. Every other request leaves as the agent made it, and
is named in the attempt's log; outside a rollout nothing is touched.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote

from lightningrl.capture.context import AGENT, STEP, RolloutContext, current
from lightningrl.errors import ConfigError
from lightningrl.schema import LogTopic, StepKind

STEP_HEADER = "x-lightningrl-step"
"""Step id of the call: joins the gateway's record to the adapter's events."""
AGENT_HEADER = "x-lightningrl-agent"
"""Name of the agent that calls, percent-encoded."""

_MARK = "_lightningrl_original"


def install_client_patch() -> bool:
    """Wrap the `openai` client; return whether it is installed here. Twice is the same as once.

    Raises:
        ConfigError: the private method isn't what this was written for.
    """
    if importlib.util.find_spec("openai") is None:
        return False
    from openai import _base_client

    base: Any = _base_client.BaseClient
    original = base.__dict__.get("_build_request")
    if hasattr(original, _MARK):
        return True
    check_signature(original)
    base._build_request = _wrap(cast("Callable[..., Any]", original))
    return True


def uninstall_client_patch() -> None:
    """Put the original method back; does nothing if it is there."""
    if importlib.util.find_spec("openai") is None:
        return
    from openai import _base_client

    base: Any = _base_client.BaseClient
    original = getattr(base.__dict__["_build_request"], _MARK, None)
    if original is not None:
        base._build_request = original


def check_signature(method: Any) -> None:
    """Refuse a `_build_request` of another form than `(self, options, *, retries_taken)`.

    Raises:
        ConfigError: it has another form; the text names openai's version and the remedy.
    """
    found = inspect.signature(method) if callable(method) else None
    names = None if found is None else list(found.parameters)
    if names != ["self", "options", "retries_taken"]:
        import openai

        raise ConfigError(
            f"openai {openai.__version__} builds requests by {names!r} instead of (self, options, *, "
            "retries_taken), so its calls can't be captured; install an openai between 1.66 and 3.x"
        )


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _build_request(self: Any, options: Any, *, retries_taken: int = 0) -> Any:
        context = current()
        # An absolute URL is a request that the user spelt out: its host is no client's base URL.
        if context is not None and str(options.url).startswith("/"):
            if _is_ours(context, self, options):
                options = _redirected(context, options, retries_taken)
            elif retries_taken == 0:
                _name_outside(context, self, options)
        return original(self, options, retries_taken=retries_taken)

    setattr(_build_request, _MARK, original)
    return _build_request


def _model(options: Any) -> str | None:
    body = options.json_data
    model = cast("Mapping[str, Any]", body).get("model") if isinstance(body, Mapping) else None
    return model if isinstance(model, str) else None


def _is_ours(context: RolloutContext, client: Any, options: Any) -> bool:
    if str(client.base_url) == context.placeholder_url:
        return True
    return bool(context.aliases) and _model(options) in context.aliases


def _redirected(context: RolloutContext, options: Any, retries_taken: int) -> Any:
    """A copy of `options` that goes to the attempt's URL with the attempt's key."""
    if retries_taken == 0:
        with context.lock:
            context.model_calls += 1
    redirected = copy.copy(options)
    given = options.headers if isinstance(options.headers, Mapping) else {}
    headers = dict(cast("Mapping[str, Any]", given))
    headers["Authorization"] = f"Bearer {context.key}"
    step_id = _step_id(options)
    if step_id is not None:
        headers[STEP_HEADER] = step_id
    agent = AGENT.get()
    if agent:
        headers[AGENT_HEADER] = quote(agent)
    redirected.headers = headers
    redirected.url = context.attempt_url + options.url
    return redirected


def _step_id(options: Any) -> str | None:
    """The model step that the call belongs to, else an id that the call's retries share.

    openai keeps one idempotency key for a call and its retries, so that the gateway can tell a retry
    from a second call where no adapter opened a step. `None`: it has none here (openai 1.66; 1.109
    has), and the gateway takes each try for a call.
    """
    step = STEP.get()
    if step is not None and step.kind is StepKind.LLM:
        return step.id
    key = options.idempotency_key
    if key is None:
        return None
    return "s-" + hashlib.blake2b(str(key).encode(), digest_size=16).hexdigest()


def _name_outside(context: RolloutContext, client: Any, options: Any) -> None:
    """Log, once for each host and model, that the agent calls something outside the run."""
    where = (str(client.base_url.host), _model(options) or "no model")
    with context.lock:
        if where in context.named_outside:
            return
        context.named_outside.add(where)
    context.log(
        "info",
        f"the agent called {where[1]!r} at {where[0]!r}, which is not of this run: sent on untouched, "
        "not recorded, not trained (policies.*.replaces names the models that a policy answers for)",
        LogTopic.OUTSIDE,
    )
