"""`/v1/models`: the policies of a run, in the form of whichever service the client takes us for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightningrl.gateway.asgi import Headers, Refusal

ROUTE = "models"
_NEVER = "1970-01-01T00:00:00Z"


def is_anthropic(headers: Headers) -> bool:
    """Whether the client is one of Anthropic's, which say so with every request."""
    return b"anthropic-version" in headers


def models(rest: str, names: Sequence[str], *, anthropic: bool) -> dict[str, Any]:
    """The answer to `GET /v1/models` or `GET /v1/models/{name}`.

    Args:
        rest: The route below `/v1/`.
        names: The policies' aliases.
        anthropic: Whether to answer in Anthropic's form, else in OpenAI's.

    Raises:
        Refusal: 404, there is no policy of that name.
    """
    write = _anthropic_model if anthropic else _openai_model
    if rest == ROUTE:
        data = [write(name) for name in names]
        if not anthropic:
            return {"object": "list", "data": data}
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
        return {"data": data, "has_more": False, "first_id": None, "last_id": None, **ends}
    name = rest.removeprefix(ROUTE + "/")
    if name not in names:
        raise Refusal(
            404,
            "model_not_found",
            f"The model '{name}' does not exist; the run's policies are"
            f" {', '.join(map(repr, names)) or 'not registered yet'}",
            param="model",
        )
    return write(name)


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lightningrl"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _NEVER}
