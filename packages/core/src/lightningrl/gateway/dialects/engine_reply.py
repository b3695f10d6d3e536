"""An engine's answer, split: what the agent gets, what is recorded, and what is read at all.

Invariant: token ids and log-probs leave here as the engine wrote them; nothing is decoded that nobody
needs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.gateway.dialects.arrays import decoded, ids_from_json, logprobs_from_json

NULL = msgspec.Raw(b"null")
"""An absent value, undecoded."""

_NO_ENTRIES = msgspec.Raw(b"[]")


class _Entries(msgspec.Struct, frozen=True):
    content: msgspec.Raw = _NO_ENTRIES


_ENTRIES: msgspec.json.Decoder[_Entries | None] = msgspec.json.Decoder(_Entries | None)


class _WeightVersion(msgspec.Struct, frozen=True):
    version: str | int | None = None


class EngineChoice(msgspec.Struct, frozen=True):
    """One answer as the engine gave it, undecoded where nobody needs it."""

    index: int = 0
    message: msgspec.Raw = NULL
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string or token that ended it (vLLM)."""
    logprobs: msgspec.Raw = NULL
    """In the form of chat completions."""
    text_logprobs: msgspec.Raw = NULL
    """In the form of completions; absent from chat completions."""
    token_ids: msgspec.Raw = NULL
    weight_versions: list[_WeightVersion] | None = None
    tool_parser_error: str | None = None

    @property
    def stop_text(self) -> str | None:
        """The text that ended it. `None`: a token or a limit did."""
        ended = self.finish_reason in ("stop", "tool_calls")
        return self.stop_reason if ended and isinstance(self.stop_reason, str) else None

    def logprob_entries(self) -> msgspec.Raw:
        """The log-prob of each token as OpenAI's objects, undecoded; an empty list without any."""
        found = _ENTRIES.decode(self.logprobs)
        if found is None or bytes(found.content) == bytes(NULL):
            return _NO_ENTRIES
        return found.content

    def versions(self) -> set[int]:
        """The weight versions that the engine says it sampled with.

        Names that are no number are the engine's own and say nothing about a policy version.
        """
        labels = (str(one.version) for one in self.weight_versions or [])
        return {int(label) for label in labels if label.isdecimal()}


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the engine reports them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class EngineReply(msgspec.Struct, frozen=True):
    """The engine's answer; fields that no agent needs are not read at all."""

    choices: list[EngineChoice]
    created: int = 0
    usage: msgspec.Raw = NULL
    system_fingerprint: str | None = None
    service_tier: str | None = None
    prompt_token_ids: msgspec.Raw = NULL

    def prompt_ids(self) -> bytes:
        """Token ids of the prompt, int32 bytes; empty where the engine gave none."""
        return ids_from_json(self.prompt_token_ids)


class Tokens(msgspec.Struct, frozen=True):
    """What was sampled in one choice."""

    ids: bytes
    """int32, end-of-sequence included."""
    logprobs: bytes
    """float32."""


_REPLY = msgspec.json.Decoder(EngineReply)
_USAGE: msgspec.json.Decoder[Usage | None] = msgspec.json.Decoder(Usage | None)


def parse_reply(body: bytes) -> EngineReply:
    """Read an engine's answer.

    Raises:
        msgspec.DecodeError: it is not a chat completion.
    """
    return decoded(_REPLY, body)


class _CallId(msgspec.Struct, gc=False):
    id: str | None = None


class _Called(msgspec.Struct, gc=False):
    tool_calls: list[_CallId] | None = None


_CALLED = msgspec.json.Decoder(_Called)
_CALLS = b'"tool_calls"'


def with_call_ids(reply: EngineReply, prefix: str) -> EngineReply:
    """The reply with an id for each tool call that has none, or that of a call before it in the same answer.

    Clients tell calls by their ids. What has ids keeps its bytes.

    Args:
        reply: the engine's answer.
        prefix: of the ids that are made; no other answer may have it.

    Raises:
        msgspec.DecodeError: tool calls are not what an engine gives.
    """
    choices = [
        one
        if _CALLS not in bytes(one.message) or _are_distinct(one.message)
        else msgspec.structs.replace(
            one, message=_with_ids(one.message, f"{prefix}-{one.index}", set())
        )
        for one in reply.choices
    ]
    same = all(new is old for new, old in zip(choices, reply.choices, strict=True))
    return reply if same else msgspec.structs.replace(reply, choices=choices)


def _are_distinct(message: msgspec.Raw) -> bool:
    ids = [one.id for one in _CALLED.decode(message).tool_calls or ()]
    return all(ids) and len(set(ids)) == len(ids)


def _with_ids(message: msgspec.Raw, prefix: str, seen: set[str]) -> msgspec.Raw:
    read = msgspec.json.decode(message, type=dict[str, Any])
    for place, call in enumerate(read["tool_calls"]):
        if not call.get("id") or call["id"] in seen:
            call["id"] = f"{prefix}-{place}"
        seen.add(call["id"])
    return msgspec.Raw(msgspec.json.encode(read))


def usage_of(reply: EngineReply) -> Usage | None:
    """The engine's token counts. `None`: it gave none."""
    return _USAGE.decode(reply.usage)


def tokens_of(choice: EngineChoice) -> Tokens:
    """The tokens of one choice.

    Raises:
        ValueError: ids or log-probs are not what an engine gives (`msgspec.DecodeError` is one).
    """
    return Tokens(ids_from_json(choice.token_ids), logprobs_from_json(choice.logprobs))
