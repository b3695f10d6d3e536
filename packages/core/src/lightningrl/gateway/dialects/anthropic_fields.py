"""Anthropic messages: what becomes of each request field."""

from __future__ import annotations

from lightningrl.gateway.dialects.fields import FieldTable, accepted, emulated, passed, refused

_INVALID = "invalid_request_error"

ANTHROPIC_FIELDS = FieldTable(
    (
        passed("model", "the policy that answers for it; the reply names the model asked for"),
        passed("messages", "text, images, documents, thinking, tool uses and their results"),
        refused("messages", "search results, server tools' blocks, uploaded files",
                "other blocks", code=_INVALID),
        refused("messages", "an answer is never begun by the agent", "an assistant's at the end",
                code=_INVALID),
        passed("system", "as a `system` message before all others"),
        passed("max_tokens", "the lower of it, the rollout's and what the context still holds; required"),
        passed("tools", "as `tools`", "custom"),
        refused("tools", "tools whose schema or work is the service's own", "other tool types",
                code=_INVALID),
        passed("tool_choice", "as `tool_choice`; `disable_parallel_tool_use` as"
               " `parallel_tool_calls: false`"),
        passed("temperature", "unless the rollout says how to sample"),
        passed("top_p", "unless the rollout says how to sample"),
        passed("top_k", "unless the rollout says how to sample"),
        passed("stop_sequences", "as `stop`"),
        passed("output_config.format", "as `response_format`; the answer is not trained"),
        passed("output_config.effort", "as `reasoning_effort`"),
        passed("thinking", "as `chat_template_kwargs.enable_thinking`; budgets are hints; without it no"
               " thinking is shown"),
        emulated("stream", "the finished answer in the service's events"),
        accepted("metadata", ""),
        accepted("service_tier", ""),
        accepted("cache_control", "as on every block"),
        accepted("inference_geo", ""),
        accepted("speed", ""),
        accepted("diagnostics", ""),
        accepted("user_profile_id", ""),
        accepted("workspace_id", ""),
        refused("container", "there are no containers here", code=_INVALID),
        refused("context_management", "nothing is cut here", code=_INVALID),
        refused("mcp_servers", "the agent runs its own tools", code=_INVALID),
    ),
    unknown="{name}: Extra inputs are not permitted",
)  # fmt: skip
