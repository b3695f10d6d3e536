"""From chat messages to prompt token ids, through the tokenizer's own chat template.

Invariant: equal messages, tools and template variables give equal token ids. Messages reach the template
as vLLM hands them over: content parts joined to text, tool-call arguments as mappings where they are objects.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
from transformers import PreTrainedTokenizerBase

from lightningrl_verl.engine.chat import BadRequestError, ChatRequest

_CACHED_PROMPTS = 1024
"""Rendered prompts kept; the members of a group open with the same one."""

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
"""Types of content parts that hold text."""

Prompt = tuple[list[int], list[dict[str, Any]]]
"""The token ids, and the tools that the answer may call."""


class PromptRenderer:
    """Renders requests for one tokenizer. For one thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The tokenizer must have a chat template once the first request comes."""
        self._tokenizer = tokenizer
        self._cache: OrderedDict[bytes, Prompt] = OrderedDict()

    def render(self, request: ChatRequest) -> Prompt:
        """The prompt of one request.

        With `tool_choice: none` the template still sees the tools, so that the prefix of a conversation
        stays the same, but no answer is read as a call.

        Raises:
            BadRequestError: Messages or tools are malformed, or the template refuses them.
        """
        key = msgspec.json.encode(
            (
                request.messages,
                request.tools,
                request.chat_template_kwargs,
                request.documents,
                request.reasoning_effort,
                request.tool_choice,
            )
        )
        prompt = self._cache.get(key)
        if prompt is None:
            prompt = self._render(request)
            self._cache[key] = prompt
            if len(self._cache) > _CACHED_PROMPTS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return prompt

    def _render(self, request: ChatRequest) -> Prompt:
        messages = [template_message(m) for m in _objects(request.messages, "messages")]
        if not messages:
            raise BadRequestError("`messages` is empty", param="messages")
        tools = _objects(request.tools, "tools")
        for tool in tools:
            if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
                raise BadRequestError("every tool must be of type 'function'", param="tools")
            if not isinstance(tool["function"].get("name"), str):
                raise BadRequestError("a tool has no `function.name`", param="tools")
        text = self._text(messages, tools, _variables(request))
        # The template writes the special tokens itself; adding the tokenizer's would double them.
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return cast("list[int]", ids), [] if request.tool_choice == "none" else tools

    def _text(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any],
    ) -> str:
        try:
            return self._with_unread(messages, tools, variables)
        except (
            Exception
        ) as error:  # a template is a program of the model's author: anything may come
            raise BadRequestError(
                f"the chat template failed: {type(error).__name__}: {error}", param="messages"
            ) from error

    def _with_unread(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt's text; arguments that are no object as they are, else, where the template fails at them, in one."""
        try:
            return templated(self._tokenizer, messages, tools, variables)
        except Exception:
            in_objects = [_with_objects(message) for message in messages]
            if in_objects == messages:
                raise
            return templated(self._tokenizer, in_objects, tools, variables)


def _variables(request: ChatRequest) -> dict[str, Any]:
    """What the template gets beside messages and tools."""
    fields = {"documents": request.documents, "reasoning_effort": request.reasoning_effort}
    given = {name: value for name, value in fields.items() if value is not None}
    return given | (request.chat_template_kwargs or {})


def templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
) -> str:
    """The prompt's text; `messages` are in the template's form.

    Raises:
        Exception: whatever the template raises.
    """
    text = tokenizer.apply_chat_template(
        cast("list[dict[str, str]]", messages),
        tools=cast("list[dict[Any, Any] | Callable[..., Any]]", tools) or None,
        add_generation_prompt=True,
        tokenize=False,
        **variables,
    )
    return cast("str", text)


def _objects(raw: msgspec.Raw, field: str) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(raw, type=list[dict[str, Any]] | None) or []
    except msgspec.ValidationError as error:
        raise BadRequestError(f"`{field}`: {error}", param=field) from error


def template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message in the form that chat templates expect.

    Raises:
        BadRequestError: No role, a content part that is not text, or a tool call without a function.
    """
    if not isinstance(message.get("role"), str):
        raise BadRequestError("a message has no `role`", param="messages")
    rendered = {name: value for name, value in message.items() if value is not None}
    rendered["content"] = _flattened(message.get("content"))
    reasoning = rendered.get("reasoning") or rendered.get("reasoning_content")
    if reasoning:  # templates read the one name or the other
        rendered |= {"reasoning": reasoning, "reasoning_content": reasoning}
    calls = rendered.pop("tool_calls", None)
    if calls:
        rendered["tool_calls"] = [_call_with_mapping(call) for call in calls]
    return rendered


def _flattened(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else [content]
    return "\n".join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
        text = part.get("refusal") if part["type"] == "refusal" else part.get("text")
        if isinstance(text, str):
            return text
    raise BadRequestError(
        f"content part {part!r} is not supported; this model reads text alone", param="messages"
    )


def _call_with_mapping(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object; what the model wrote and is none stays a text."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise BadRequestError("a message's tool call has no `function`", param="messages")
    function = cast("dict[str, Any]", call["function"])
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(given: Any) -> dict[str, Any] | str:
    if isinstance(given, str) and given:
        try:
            read: Any = msgspec.json.decode(given)
        except (ValueError, RecursionError):
            return given
        return cast("dict[str, Any]", read) if isinstance(read, dict) else given
    if isinstance(given, dict):
        return cast("dict[str, Any]", given)
    return msgspec.json.encode(given).decode() if given else {}


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message with every text of arguments in an object, for templates that read objects alone."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        return call
    return {**call, "function": {**call["function"], "arguments": {"arguments": arguments}}}
