"""Rows about fields of engines (vLLM, SGLang) beyond OpenAI's: the engine is asked for them, and refuses what it can't do."""

from __future__ import annotations

from collections.abc import Iterable

from lightningrl.conversation.engine_fields import IN_EVERY_DIALECT
from lightningrl.gateway.dialects.engine_request import CONSTRAINTS
from lightningrl.gateway.dialects.fields import Field, passed

_OF_PROMPTS_AND_CHAT = (
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "length_penalty",
    "truncate_prompt_tokens",
    "add_special_tokens",
    "prompt_logprobs",
    "return_tokens_as_token_ids",
    "priority",
    "request_id",
    "cache_salt",
    "kv_transfer_params",
    "vllm_xargs",
)
_OF_CHAT = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "documents",
    "include_reasoning",
    "separate_reasoning",
    "mm_processor_kwargs",
    "echo",
)


def rows_of_every_dialect(known: Iterable[str]) -> tuple[Field, ...]:
    """The fields that every dialect of chat messages has, but for those that the dialect knows."""
    return _rows(IN_EVERY_DIALECT, known)


def rows_of_prompts(known: Iterable[str]) -> tuple[Field, ...]:
    """The fields of plain completions, but for those that the dialect knows."""
    return _rows(
        (*IN_EVERY_DIALECT[:-1], *_OF_PROMPTS_AND_CHAT, *CONSTRAINTS), {*known, "tool_choice"}
    )


def rows_of_chat(known: Iterable[str]) -> tuple[Field, ...]:
    """The fields of chat completions, but for those that the dialect knows."""
    return _rows((*IN_EVERY_DIALECT, *_OF_PROMPTS_AND_CHAT, *_OF_CHAT, *CONSTRAINTS), known)


def _rows(names: Iterable[str], known: Iterable[str]) -> tuple[Field, ...]:
    own = set(known)
    new = dict.fromkeys(name for name in names if name not in own)
    return tuple(
        passed(
            name, "(vLLM, SGLang) the answer is not trained" if name in CONSTRAINTS else "(vLLM)"
        )
        for name in new
    )
