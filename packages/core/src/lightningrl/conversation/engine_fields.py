"""Fields of engines (vLLM, SGLang) that a request may have in every dialect, though no service has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEMPLATE_VARIABLES = "chat_template_kwargs"

IN_EVERY_DIALECT = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop_token_ids",
    TEMPLATE_VARIABLES,
)
"""Those that go to the engine as they are."""


def engine_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the request's."""
    return {name: request[name] for name in IN_EVERY_DIALECT if request.get(name) is not None}
