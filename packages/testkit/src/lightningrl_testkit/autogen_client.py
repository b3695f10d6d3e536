"""AutoGen's client of a model that AutoGen doesn't know, as users build one.

Invariant: address and key come from the environment. Needs `autogen-ext[openai]`, which the kit itself doesn't.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from autogen_core.models import ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

from lightningrl_testkit.lab import MODEL


@asynccontextmanager
async def autogen_client(
    model: str = MODEL, **can: Any
) -> AsyncGenerator[OpenAIChatCompletionClient]:
    """A client for as long as the block runs.

    Args:
        model: its name.
        can: what the model can do beside calling functions, by the names of `ModelInfo`.
    """
    info: dict[str, Any] = {
        "vision": False,
        "function_calling": True,
        "json_output": False,
        "family": "unknown",
        "structured_output": False,
    }
    client = OpenAIChatCompletionClient(
        model=model, model_info=ModelInfo(**{**info, **can}), max_retries=0, timeout=60.0
    )
    try:
        yield client
    finally:
        await client.close()
