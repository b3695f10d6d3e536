"""`/v1/models`: the policies of a run, in the form of whichever service the client takes us for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightningrl.gateway.asgi import Headers, Refusal
from lightningrl.schema import Policy

ROUTE = "models"
_NEVER = "1970-01-01T00:00:00Z"


def is_anthropic(headers: Headers) -> bool:
    """Whether the client is one of Anthropic's, which say so with every request."""
    return b"anthropic-version" in headers


def models(
    rest: str,
    listed: Mapping[str, Policy],
    find: Callable[[str], Policy | None],
    *,
    anthropic: bool,
) -> dict[str, Any]:
    """The answer to `GET /v1/models` or `GET /v1/models/{name}`.

    Args:
        rest: The route below `/v1/`.
        listed: Name -> the policy that answers it, of all that are declared.
        find: The policy that answers any name. `None`: none does.
        anthropic: Whether to answer in Anthropic's form, else in OpenAI's.

    Raises:
        Refusal: 404, no policy answers that name.
    """
    write = _anthropic_model if anthropic else _openai_model
    if rest == ROUTE:
        data = [write(name, policy) for name, policy in listed.items()]
        if not anthropic:
            return {"object": "list", "data": data}
        names = list(listed)
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
        return {"data": data, "has_more": False, "first_id": None, "last_id": None, **ends}
    name = rest.removeprefix(ROUTE + "/")
    policy = find(name)
    if policy is None:
        raise Refusal(
            404,
            "model_not_found",
            f"The model '{name}' does not exist; the run's policies answer"
            f" {', '.join(map(repr, listed)) or 'nothing: none is registered yet'}",
            param="model",
        )
    return write(name, policy)


def _openai_model(name: str, policy: Policy) -> dict[str, Any]:
    model = {"id": name, "object": "model", "created": 0, "owned_by": "lightningrl"}
    longest = policy.max_model_len
    return model if longest is None else {**model, "max_model_len": longest}


def _anthropic_model(name: str, policy: Policy) -> dict[str, Any]:
    model = {"type": "model", "id": name, "display_name": name, "created_at": _NEVER}
    longest = policy.max_model_len
    return model if longest is None else {**model, "max_input_tokens": longest}
