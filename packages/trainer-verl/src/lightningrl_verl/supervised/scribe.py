"""Text becomes tokens: what an engine would have been asked, and what the policy would have had to sample.

Invariant: a prompt is what the engine's own renderer gives for the messages before an answer, an answer what the
policy's tool parser would read as that message, and the end token behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from transformers import PreTrainedTokenizerBase

from lightningrl_verl.engine.chat import BadRequestError, ChatRequest
from lightningrl_verl.engine.parsers import ParsedMessage, ToolCall, UnwritableError, tool_parser
from lightningrl_verl.engine.prompts import PromptRenderer, template_message

Message = Mapping[str, Any]


class UnfitError(ValueError):
    """Messages that the policy can't be asked, or an answer that it can't give; says why."""


class Scribe:
    """Writes dialogues as one policy's engine does. For one thread."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        parser: str,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """`parser` and `variables` are the policy's `tool_parser` and `chat_template_kwargs`.

        Raises:
            UnfitError: the tokenizer has no end token or no chat template.
            UnknownToolParserError: there is no such parser.
        """
        end: object = tokenizer.eos_token_id
        if not isinstance(end, int) or not tokenizer.chat_template:
            raise UnfitError("the policy's tokenizer has no end token, or no chat template")
        self._tokenizer = tokenizer
        self._end = end
        self._prompts = PromptRenderer(tokenizer)
        self._parser = tool_parser(parser)
        self._variables = dict(variables or {})

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of what the engine is asked.

        Args:
            messages: of the request.
            tools: that an answer could call.
            variables: of the template; they win over the policy's own.
            defaults: of the template, where neither has them.

        Raises:
            UnfitError: messages or tools are malformed, or the template refuses them.
        """
        request = ChatRequest(
            model="",
            messages=_raw(list(messages)),
            tools=_raw(list(tools) or None),
            chat_template_kwargs={**(defaults or {}), **self._variables, **(variables or {})}
            or None,
        )
        try:
            ids, _ = self._prompts.render(request)
        except BadRequestError as error:
            raise UnfitError(error.message) from error
        return ids

    def answer(self, message: Message, tools: Sequence[Message], *, ends: bool = True) -> list[int]:
        """Token ids of an assistant's message.

        Args:
            message: in OpenAI's form.
            tools: that it could call.
            ends: whether the end token follows; not where the answer was cut off.

        Raises:
            UnfitError: it is malformed, the parser would not read it back, or it holds a token that is none of text.
        """
        try:
            written = template_message(message)
            text = self._parser.write(_parsed(written), tools)
        except (BadRequestError, UnwritableError) as error:
            raise UnfitError(str(error)) from error
        ids = self.encode(text)
        if self._end in ids:
            raise UnfitError(f"its text holds the end token: {text!r:.200}")
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise UnfitError(
                f"its text holds what the policy's tokenizer does not know: {text!r:.200}"
            )
        return [*ids, self._end] if ends else ids

    def wrote(self, ids: Sequence[int], messages: Sequence[Message]) -> bool:
        """Whether a recorded prompt is of this tokenizer.

        Its text, encoded again, must give the same ids, and hold that of the last message. Ids of another vocabulary
        hold other words, if they are any of this one at all.
        """
        text = cast("str", self._tokenizer.decode(list(ids)))
        try:
            last = template_message(messages[-1])["content"] if messages else ""
        except BadRequestError:
            return False
        return last.strip() in text and self.encode(text) == list(ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens are read as such."""
        return cast("list[int]", self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _parsed(message: Mapping[str, Any]) -> ParsedMessage:
    """A message in the form that templates expect, as a parser would have read it.

    Raises:
        UnfitError: the arguments of a tool call are no JSON object.
    """
    for call in message.get("tool_calls") or ():
        if isinstance(call["function"]["arguments"], str):
            raise UnfitError(
                f"the arguments of a tool call are malformed: {call['function']['arguments']!r:.200} is no JSON object"
            )
    calls = tuple(
        ToolCall(
            str(call["function"].get("name")),
            json.dumps(call["function"]["arguments"], ensure_ascii=False),
        )
        for call in message.get("tool_calls") or ()
    )
    return ParsedMessage(content=message["content"] or None, tool_calls=calls)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
