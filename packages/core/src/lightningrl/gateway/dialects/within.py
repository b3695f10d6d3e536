"""Which keys are read of the items, messages, blocks and parts within a request.

Invariant: a key that no table here has, and whose value says something, is named by its path, so that nothing within a
conversation is dropped in silence. What is of an unknown type is not looked at: it is refused where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from lightningrl.conversation.malformed import Object
from lightningrl.conversation.responses import item_type

Keys = Mapping[str, frozenset[str]]
"""Type -> the keys that are read, and those that change nothing."""

_NOTHING: tuple[Any, ...] = (None, [], {}, {"enabled": False})


def _of(*names: str, **kinds: str) -> Keys:
    """Tables of keys: `names` are of all kinds, beside those of each."""
    return {kind: frozenset((*names, *keys.split())) for kind, keys in kinds.items()}


_MESSAGE = frozenset({"role", "content"})
_BLOCKS = _of(
    *("type", "cache_control"),
    text="text citations",
    image="source",
    document="source title context",
    search_result="source title content",
    tool_reference="tool_name",
    thinking="thinking signature",
    redacted_thinking="data",
    tool_use="id name input caller",
    tool_result="tool_use_id content is_error",
)

_ITEMS = _of(
    *("type", "id", "status"),
    message="role content phase",
    function_call="call_id name arguments namespace caller",
    function_call_output="call_id output name namespace caller",
    reasoning="summary content encrypted_content",
    item_reference="",
    custom_tool_call="call_id name input namespace caller",
    custom_tool_call_output="call_id output name caller",
    local_shell_call="call_id action",
    local_shell_call_output="call_id output",
    shell_call="call_id action environment caller",
    shell_call_output="call_id output max_output_length caller",
    apply_patch_call="call_id operation caller",
    apply_patch_call_output="call_id output caller",
    tool_search_call="call_id arguments execution",
    tool_search_output="call_id tools execution",
    additional_tools="role tools",
)
_PARTS = _of(
    *("type", "prompt_cache_breakpoint"),
    input_text="text",
    output_text="text annotations logprobs",
    text="text annotations logprobs",
    refusal="refusal",
    input_image="image_url detail file_id",
    input_file="file_data filename file_id file_url detail",
    input_audio="input_audio",
)


def unread_of_messages(fields: Object) -> tuple[str, ...]:
    """The paths of what is not read of an Anthropic request's messages and `system`, each once."""
    found: dict[str, None] = {}
    for message in _objects(fields.get("messages")):
        _note(found, "messages[]", message, _MESSAGE)
        for block in _objects(message.get("content")):
            _note_typed(found, "messages[].content[]", block, _BLOCKS)
            for inner in _objects(block.get("content")):
                _note_typed(found, "messages[].content[].content[]", inner, _BLOCKS)
    for block in _objects(fields.get("system")):
        _note_typed(found, "system[]", block, _BLOCKS)
    return tuple(found)


def unread_of_items(fields: Object, tools: Callable[[Any, str], Iterable[str]]) -> tuple[str, ...]:
    """The paths of what is not read of a Responses request's items, each once.

    Args:
        fields: the request.
        tools: the same of declared tools, which items may hold; gets them and their path.
    """
    found: dict[str, None] = {}
    for item in _objects(fields.get("input")):
        kind = item_type(item)
        _note(found, "input[]", item, _ITEMS.get(kind) if isinstance(kind, str) else None)
        for holder in ("content", "output"):
            for part in _objects(item.get(holder)):
                _note_typed(found, f"input[].{holder}[]", part, _PARTS)
        found |= dict.fromkeys(tools(item.get("tools"), "input[].tools[]"))
    return tuple(found)


def _objects(value: Any) -> Iterator[Object]:
    """The objects in a list; none where it is no list: its reader refuses it."""
    if isinstance(value, list):
        for one in cast("list[Any]", value):
            if isinstance(one, dict):
                yield cast("Object", one)


def _note_typed(found: dict[str, None], where: str, given: Object, keys: Keys) -> None:
    kind = given.get("type")
    _note(found, where, given, keys.get(kind) if isinstance(kind, str) else None)


def _note(found: dict[str, None], where: str, given: Object, known: frozenset[str] | None) -> None:
    if known is None or known.issuperset(given):
        return
    for name, value in given.items():
        if name not in known and value not in _NOTHING:
            found[f"{where}.{name}"] = None
