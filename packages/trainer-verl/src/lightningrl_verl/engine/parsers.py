"""From a model's raw text to a chat message, content or tool calls, and back.

Invariants:
- `parse` never raises, and what it cannot read it hands on unchanged as content, with the reason in
  `error`. Text keeps its special tokens, so that a template which writes the message back reproduces the
  tokens that were sampled.
- What `write` returns is read back by `parse` as the very message; a message of which no text is raises.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from lightningrl_verl.engine.errors import EngineError


class UnknownToolParserError(EngineError, ValueError):
    """No tool parser has that name."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool that the model asked for."""

    name: str
    """The tool's name, as the model wrote it."""
    arguments_json: str
    """The arguments as one JSON object."""


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What one answer of the model says."""

    content: str | None
    """Text for the reader; None if the answer holds tool calls alone."""
    tool_calls: tuple[ToolCall, ...] = ()
    """In the order written."""
    error: str | None = None
    """Why something that looks like a tool call is not one; None if nothing was wrong."""


class UnwritableError(EngineError, ValueError):
    """No text of the model would be read as that message."""


class ToolParser(Protocol):
    """The seam between a model's own way to write tool calls and OpenAI's."""

    marks_end: ClassVar[bool]
    """Whether a call carries its own closing mark. If not, an answer that was cut off by the token
    limit cannot be told from a whole call, and the server refuses to read it as one."""

    def parse(
        self, text_with_special_tokens: str, tools: Sequence[Mapping[str, Any]]
    ) -> ParsedMessage:
        """Reads one answer.

        Args:
            text_with_special_tokens: The decoded answer without its final end-of-sequence token.
            tools: The request's tools in OpenAI's form; empty if it may not call any.
        """
        ...

    def write(self, message: ParsedMessage, tools: Sequence[Mapping[str, Any]]) -> str:
        """The inverse of `parse`, as the templates of models that write so have it in a later prompt.

        Args:
            message: What is to be said; its arguments as `json.dumps` writes them.
            tools: As for `parse`.

        Raises:
            UnwritableError: No text is read as the message.
        """
        ...


class PlainParser:
    """`none`: every answer is content."""

    marks_end: ClassVar[bool] = True

    def parse(
        self, text_with_special_tokens: str, tools: Sequence[Mapping[str, Any]]
    ) -> ParsedMessage:
        """Returns the text unchanged."""
        del tools
        return ParsedMessage(content=text_with_special_tokens)

    def write(self, message: ParsedMessage, tools: Sequence[Mapping[str, Any]]) -> str:
        """The content; tool calls it can't write."""
        return _read_back(self, message.content or "", message, tools)


class HermesParser:
    """`hermes`: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them.

    Text before the first call is content; text between and after calls is dropped, as in vLLM 0.24's
    `hermes_tool_parser.py`. But a line end between content and call belongs to neither: the templates of models
    that write so (Qwen 2.5, Hermes 2) put one there, and it would be doubled in the next prompt. One call that cannot
    be read turns the whole answer into content.
    """

    marks_end: ClassVar[bool] = True
    _OPEN: ClassVar[str] = "<tool_call>"
    _CALL: ClassVar[re.Pattern[str]] = re.compile(
        r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL
    )

    def parse(
        self, text_with_special_tokens: str, tools: Sequence[Mapping[str, Any]]
    ) -> ParsedMessage:
        """Reads every call; see the class."""
        text = text_with_special_tokens
        if self._OPEN not in text:
            return ParsedMessage(content=text)
        if not tools:
            return ParsedMessage(content=text, error="the request declares no tool to call")
        try:
            calls = tuple(_hermes_call(match) for match in self._CALL.finditer(text))
        except ValueError as error:
            return ParsedMessage(content=text, error=f"unreadable <tool_call>: {error}")
        content = text[: text.index(self._OPEN)].removesuffix("\n")
        return ParsedMessage(content=content or None, tool_calls=calls)

    def write(self, message: ParsedMessage, tools: Sequence[Mapping[str, Any]]) -> str:
        """Content and calls, a line end between any two, as in the templates of Qwen 2.5 and Hermes 2."""
        parts = [message.content] if message.content else []
        parts += [
            f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments":'
            f" {call.arguments_json}}}\n</tool_call>"
            for call in message.tool_calls
        ]
        return _read_back(self, "\n".join(parts), message, tools)


def _hermes_call(match: re.Match[str]) -> ToolCall:
    body = match.group(1)
    if body is None:
        raise ValueError("it has no </tool_call>")
    try:
        call: object = json.loads(body)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(call, dict):
        raise ValueError("it is not a JSON object")
    fields = cast("dict[str, object]", call)
    name, arguments = fields.get("name"), fields.get("arguments")
    if not isinstance(name, str) or not name:
        raise ValueError("`name` is not a string")
    if not isinstance(arguments, dict):
        raise ValueError("`arguments` is not a JSON object")
    try:  # what JSON has not, Python reads: whoever sends the call back could not write it
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character") from error
    return ToolCall(name, written)


class CompactParser:
    """`compact`: `<call>ARGS<end>` calls the only tool, `<ans>TEXT<end>` answers.

    ARGS is the tool's single string parameter, to the character. With several tools declared the form
    is `<call>NAME ARGS<end>`; blanks before NAME are skipped. `<end>` is the end-of-sequence token and
    so is usually gone from the text already.
    """

    marks_end: ClassVar[bool] = False
    _CALL: ClassVar[str] = "<call>"
    _ANSWER: ClassVar[str] = "<ans>"
    _END: ClassVar[str] = "<end>"

    def parse(
        self, text_with_special_tokens: str, tools: Sequence[Mapping[str, Any]]
    ) -> ParsedMessage:
        """Reads the one call or the answer; see the class."""
        text = text_with_special_tokens.removesuffix(self._END)
        if text.startswith(self._ANSWER):
            return ParsedMessage(content=text.removeprefix(self._ANSWER))
        if self._CALL not in text:
            return ParsedMessage(content=text)
        if not text.startswith(self._CALL):
            return ParsedMessage(content=text, error="<call> is not at the start of the answer")
        try:
            call = _compact_call(text.removeprefix(self._CALL), tools)
        except ValueError as error:
            return ParsedMessage(content=text, error=f"unreadable <call>: {error}")
        return ParsedMessage(content=None, tool_calls=(call,))

    def write(self, message: ParsedMessage, tools: Sequence[Mapping[str, Any]]) -> str:
        """The one call, or the answer."""
        if not message.tool_calls:
            return _read_back(self, f"{self._ANSWER}{message.content or ''}", message, tools)
        call = message.tool_calls[0]
        values: list[object] = list(json.loads(call.arguments_json).values())
        name = f"{call.name} " if len(tools) > 1 else ""
        text = f"{self._CALL}{name}{values[0] if values else ''}"
        return _read_back(self, text, message, tools)


def _read_back(
    parser: ToolParser, text: str, message: ParsedMessage, tools: Sequence[Mapping[str, Any]]
) -> str:
    """`text`, if the parser reads it as `message`; no content and empty content are the same.

    Raises:
        UnwritableError: it reads another one.
    """
    read = parser.parse(text, tools)
    if read.error is None and (read.content or "", read.tool_calls) == (
        message.content or "",
        message.tool_calls,
    ):
        return text
    raise UnwritableError(
        f"the tool parser {_name_of(parser)!r} has no text for this message: {text!r:.200} would be read as"
        f" content {read.content!r:.80} with {len(read.tool_calls)} tool calls"
        + (f" ({read.error})" if read.error else "")
    )


def _name_of(parser: ToolParser) -> str:
    names = (name for name, one in TOOL_PARSERS.items() if one is parser)
    return next(names, type(parser).__name__)


def _compact_call(body: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    functions = {str(tool["function"]["name"]): tool["function"] for tool in tools}
    if not functions:
        raise ValueError("the request declares no tool to call")
    if len(functions) == 1:
        name, arguments = next(iter(functions)), body
    else:
        name, _, arguments = body.lstrip().partition(" ")
    if name not in functions:
        raise ValueError(f"no tool {name!r} is declared{_nearest(name, functions)}")
    parameter = _single_string_parameter(name, functions[name])
    return ToolCall(name, json.dumps({parameter: arguments}, ensure_ascii=False))


def _single_string_parameter(name: str, function: Mapping[str, Any]) -> str:
    schema: Mapping[str, Any] = function.get("parameters") or {}
    properties: Mapping[str, Any] = schema.get("properties") or {}
    if len(properties) != 1:
        raise ValueError(
            f"tool {name!r} has {len(properties)} parameters; the compact form holds exactly one"
        )
    parameter, declared = next(iter(properties.items()))
    if declared.get("type", "string") != "string":
        raise ValueError(f"parameter {parameter!r} of tool {name!r} is not a string")
    return parameter


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"


TOOL_PARSERS: Mapping[str, ToolParser] = {
    "none": PlainParser(),
    "hermes": HermesParser(),
    "compact": CompactParser(),
}
"""Every shipped parser, by the name that a recipe uses."""


def tool_parser(name: str) -> ToolParser:
    """Returns the parser called `name`.

    Raises:
        UnknownToolParserError: No parser has that name; the message names the nearest.
    """
    if name not in TOOL_PARSERS:
        hint = _nearest(name, TOOL_PARSERS)
        raise UnknownToolParserError(f"no tool parser is called {name!r}{hint}")
    return TOOL_PARSERS[name]
