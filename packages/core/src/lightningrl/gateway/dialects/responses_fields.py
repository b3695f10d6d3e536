"""OpenAI Responses: what becomes of each request field."""

from __future__ import annotations

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

_UNSUPPORTED = "unsupported_parameter"
_BAD_VALUE = "unsupported_value"

RESPONSES_FIELDS = FieldTable(
    (
        passed("model", "the policy that answers for it; the reply names the model asked for"),
        passed("input", "as `messages`; text, images, files, calls and their outputs, tools that are declared later"),
        emulated("input", "an item of an earlier response of the attempt", "item_reference"),
        refused(
            "input",
            "hosted tools' items and others",
            "other item types",
            code="invalid_value",
        ),
        left_out("input", "the item itself is as if it had none of them", "unknown keys of an item or part"),
        passed("instructions", "as a `system` message before all others"),
        emulated("previous_response_id", "its conversation is read from the attempt's record"),
        refused(
            "previous_response_id",
            "the attempt was given no such response, or it had `store: false`",
            "an unknown id",
            code="previous_response_not_found",
        ),
        passed("tools", "as `tools`", "function"),
        passed(
            "tools",
            "as functions, and their calls come back in their own form",
            "custom, namespace, local_shell, shell, apply_patch, tool_search of the client",
        ),
        refused(
            "tools",
            "tools that the service runs itself; `gateway.hosted_tools: drop` leaves them out",
            "other tool types",
            code=_BAD_VALUE,
        ),
        left_out("tools", "the function itself is as if it had none of them", "unknown keys of a definition"),
        passed("tool_choice", "as `tool_choice`; without tools left out, or refused", "auto, none, required, a tool"),
        passed("tool_choice", "the allowed tools alone are declared", "allowed_tools"),
        refused("tool_choice", "a tool that can't be declared", "other tools", code=_BAD_VALUE),
        passed("parallel_tool_calls", "as `parallel_tool_calls`; left out without tools"),
        passed("text.format", "as `response_format` of chat completions"),
        accepted("text.verbosity", "a hint; the policy answers as it was trained to"),
        passed("reasoning.effort", "as `reasoning_effort`"),
        accepted("reasoning.generate_summary", "an older name of `reasoning.summary`"),
        accepted("reasoning.summary", "reasoning comes whole, in `content`; nothing is summed up"),
        passed("temperature", "unless the rollout says how to sample"),
        passed("top_p", "unless the rollout says how to sample"),
        passed("max_output_tokens", "as `max_tokens`: the lower of it, the rollout's and what the context still"
               " holds"),
        passed("top_logprobs", "as `top_logprobs`, with `include: message.output_text.logprobs`"),
        emulated(
            "include", "the log-probs of the answer's text", "message.output_text.logprobs"
        ),
        accepted("include", "the reply holds nothing that they would add to", "other known values"),
        refused("include", "", "unknown values", code="invalid_value"),
        emulated("stream", "the finished answer in the service's events"),
        accepted("stream_options", "streams are not padded (`include_obfuscation`)"),
        emulated("store", "`false`: later requests can't refer to the response"),
        emulated("metadata", "the reply repeats it"),
        accepted("truncation", "a prompt that is too long is refused, never cut"),
        accepted("max_tool_calls", "counts the service's own tools alone"),
        accepted("service_tier", ""),
        accepted("user", ""),
        accepted("client_metadata", ""),
        accepted("safety_identifier", ""),
        accepted("prompt_cache_key", ""),
        accepted("prompt_cache_retention", ""),
        accepted("prompt_cache_options", ""),
        accepted("background", "the answer comes at once", "false"),
        refused("background", "responses are answered at once", "true", code=_UNSUPPORTED),
        refused("background_options", "responses are answered at once", code=_UNSUPPORTED),
        refused("conversation", "conversations are not kept here; use `previous_response_id`",
                code=_UNSUPPORTED),
        refused("prompt", "prompt templates are not kept here; send `instructions` and `input`",
                code=_UNSUPPORTED),
        refused("context_management", "nothing is compacted here", code=_UNSUPPORTED),
        accepted("generate", "an answer is what a request is for", "true"),
        refused("generate", "every request is answered here; turn warming up off in the client", "false",
                code=_UNSUPPORTED),
        refused("image", "the policy makes no images", code=_UNSUPPORTED),
        refused("moderation", "nothing is moderated here", code=_UNSUPPORTED),
        refused("access_programs", "the service's own programmes", code=_UNSUPPORTED),
        *rows_of_every_dialect(()),
        OTHERS,
    ),
    tool_keys=(
        "type", "name", "description", "parameters", "strict", "format", "tools", "environment", "execution",
    ),
)  # fmt: skip
