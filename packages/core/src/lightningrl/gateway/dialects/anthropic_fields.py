"""Anthropic messages: what becomes of each request field."""

from __future__ import annotations

from typing import Any, cast

from lightningrl.conversation.tools.anthropic import READ
from lightningrl.gateway.dialects.engine_fields import rows_of_every_dialect
from lightningrl.gateway.dialects.fields import (
    OTHERS,
    FieldTable,
    accepted,
    emulated,
    left_out,
    passed,
    refused,
)

_INVALID = "invalid_request_error"


def _is_empty(container: Any) -> bool:
    """Whether a container is none: without an id and without skills."""
    return isinstance(container, dict) and not any(cast("dict[str, Any]", container).values())


def _cuts_nothing(management: Any) -> bool:
    """Whether all edits of a context leave it as it is."""
    edits: Any = (
        cast("dict[str, Any]", management).get("edits") if isinstance(management, dict) else None
    )
    if edits is None:
        return management == {}
    return isinstance(edits, list) and all(one in _IDLE_EDITS for one in cast("list[Any]", edits))


_IDLE_EDITS = ({"type": "clear_thinking_20251015", "keep": "all"},)

ANTHROPIC_FIELDS = FieldTable(
    (
        passed("model", "the policy that answers for it; the reply names the model asked for"),
        passed("messages", "text, images, documents, search results, thinking, tool uses and their results; of a failed one the model"
               " reads `Error: `"),
        refused("messages", "server tools' blocks, uploaded files",
                "other blocks", code=_INVALID),
        left_out("messages", "the block itself is as if it had none of them (`citations` of documents)",
                 "unknown keys of a message or block"),
        refused("messages", "an answer is never begun by the agent", "an assistant's at the end",
                code=_INVALID),
        passed("system", "as a `system` message before all others"),
        passed("max_tokens", "the lower of it, the rollout's and what the context still holds; required"),
        passed("tools", "as `tools`", "custom"),
        passed("tools", "as functions with the service's fields",
               "bash, text_editor, memory, computer of a known date"),
        refused("tools", "tools that the service runs itself; `gateway.hosted_tools: drop` leaves them out", "other tool types",
                code=_INVALID),
        accepted("tools", "a hint; arguments are streamed as all answers are", "eager_input_streaming"),
        left_out("tools", "the tool itself is as if it had none of them", "unknown keys of a definition"),
        passed("tool_choice", "as `tool_choice`; `disable_parallel_tool_use` as"
               " `parallel_tool_calls: false`"),
        passed("temperature", "unless the rollout says how to sample"),
        passed("top_p", "unless the rollout says how to sample"),
        passed("top_k", "unless the rollout says how to sample"),
        passed("stop_sequences", "as `stop`"),
        passed("output_config.format", "as `response_format` of chat completions"),
        passed("output_config.effort", "as `reasoning_effort`"),
        passed("output_format", "an older name of `output_config.format`"),
        passed("thinking.type", "as `chat_template_kwargs.enable_thinking`; without it no thinking is shown"),
        accepted("thinking.budget_tokens", "a hint"),
        accepted("thinking.display", "thinking is shown whole"),
        emulated("stream", "the finished answer in the service's events"),
        accepted("metadata", ""),
        accepted("service_tier", ""),
        accepted("cache_control", "as on every block"),
        accepted("inference_geo", ""),
        accepted("speed", ""),
        accepted("diagnostics", ""),
        accepted("user_profile_id", ""),
        accepted("workspace_id", ""),
        accepted("betas", "as the header `anthropic-beta`"),
        accepted("anthropic_beta", "as the header `anthropic-beta`"),
        accepted("fallbacks", "the policy answers"),
        refused("thread", "conversations are not kept here, send all messages with each request (in the SDK:"
                " `thread=False`)", code=_INVALID),
        refused("container", "there are no containers here; leave it and its skills away", code=_INVALID),
        refused("context_management", "nothing is cut here; leave away every edit but `clear_thinking_20251015` with"
                " `keep: \"all\"`, which cuts nothing", code=_INVALID),
        refused("mcp_servers", "the agent runs its own tools; connect to the servers in the client", code=_INVALID),
        *rows_of_every_dialect(("top_k",)),
        OTHERS,
    ),
    tool_keys=("type", "name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming", *READ),
    idle={"container": _is_empty, "context_management": _cuts_nothing},
    unknown="{name}: Extra inputs are not permitted",
)  # fmt: skip
