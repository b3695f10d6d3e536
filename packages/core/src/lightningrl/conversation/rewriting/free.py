"""Answers whose form the engine would force are asked for in words, so that every token is the policy's own choice.

Invariants:
- Equal formats give equal text, at the end of the instructions that the conversation begins with, so that turns
  continue each other.
- What is asked for so is what an answer is judged by (`Demand.fault`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import schemas
from lightningrl.conversation.rewriting.fields import (
    Fields,
    content_of,
    messages_of,
    opened,
    raw,
    roles_of,
    with_messages,
)
from lightningrl.conversation.rewriting.roles import beginning
from lightningrl.schema import UNJUDGED

CHOICE = "tool_choice"
FORMAT = "response_format"

_AUTO = raw("auto")
_ONE_OBJECT = "Answer with one JSON object and nothing else."
_BY_SCHEMA = "Answer with JSON and nothing else. The JSON must fit this schema:"


class _Schema(NamedTuple):
    value: Any
    """A JSON schema."""
    where: str
    """Whose it is, for errors."""


class Demand(NamedTuple):
    """What an answer must be."""

    tools: Mapping[str, _Schema] | None
    """Those of which at least one must be called, by name. `None`: none must be."""
    format: _Schema | None
    """What its text must fit, where it calls no tool. `None`: any text does."""

    def fault(self, message: bytes) -> str | None:
        """In what an answer, a chat message as JSON, is not what was asked for. `None`: in nothing.

        It raises nothing, and begins with `UNJUDGED` where it can't be told.
        """
        try:
            return self._fault(_ANSWER.decode(message))
        # The agent's own schema and the policy's own answer: an answered call is not lost by what they are.
        except Exception as error:  # noqa: BLE001
            why = (
                error if isinstance(error, schemas.Unjudged) else f"{type(error).__name__}: {error}"
            )
            return f"{UNJUDGED}{why!s:.200}"

    def _fault(self, answer: _Answer) -> str | None:
        calls = answer.tool_calls or ()
        if self.tools is not None:
            return _fault_of_calls(self.tools, calls)
        if self.format is None or calls:
            return None
        return _fault_of_json("the answer", answer.content or "", self.format)


def demanded(fields: Fields) -> Demand | None:
    """What a chat request demands of its answer that words can say. `None`: nothing.

    Raises:
        Malformed: a schema is none, or the tool to be called is not there.
    """
    tools = _tools_to_call(fields) if CHOICE in fields else None
    schema = _format(fields[FORMAT]) if FORMAT in fields else None
    if tools is None and schema is None:
        return None
    for one in (*(tools or {}).values(), *([schema] if schema else ())):
        _check(one)
    return Demand(tools, schema)


# -- what is done to a request -------------------------------------------------------------------


def with_free_choice(fields: Fields, by: Any = None) -> Fields:
    """The model may choose whether it calls a tool, and which."""
    del by
    return {**fields, CHOICE: _AUTO}


def with_format_in_words(fields: Fields, by: Any = None) -> Fields:
    """The format of the answer stands at the end of the instructions; there is a message of them then."""
    del by
    asked = _format(fields[FORMAT])
    assert asked is not None, "the rewrite is recorded of requests with a format alone"
    left = {name: value for name, value in fields.items() if name != FORMAT}
    roles, messages = roles_of(left) or [], messages_of(left)
    last = beginning(roles) - 1
    if last < 0:
        return with_messages(left, [raw({"role": "system", "content": _words(asked)}), *messages])
    read = opened(messages[last], last)
    content = _with_end(content_of(read, last), _words(asked))
    return with_messages(
        left, [*messages[:last], raw({**read, "content": raw(content)}), *messages[last + 1 :]]
    )


def with_instructions(roles: Sequence[str]) -> list[str]:
    """The roles where there is a message of instructions."""
    return [*roles] if beginning(roles) else ["system", *roles]


def _words(asked: _Schema) -> str:
    if asked.value is True:
        return _ONE_OBJECT
    return f"{_BY_SCHEMA}\n{msgspec.json.encode(asked.value).decode()}"


def _with_end(content: Any, words: str) -> Any:
    if isinstance(content, list):
        return [*cast("list[Any]", content), {"type": "text", "text": words}]
    return f"{content}\n\n{words}" if content else words


# -- reading what is demanded --------------------------------------------------------------------


class _Function(msgspec.Struct, frozen=True):
    name: str
    parameters: Any = None


class _Tool(msgspec.Struct, frozen=True):
    type: str
    function: _Function | None = None


class _Named(msgspec.Struct, frozen=True):
    name: str | None = None


class _Chosen(msgspec.Struct, frozen=True):
    type: str
    function: _Named = _Named()


_CHOICE: msgspec.json.Decoder[str | _Chosen | None] = msgspec.json.Decoder(str | _Chosen | None)
_TOOLS: msgspec.json.Decoder[list[_Tool] | None] = msgspec.json.Decoder(list[_Tool] | None)


def _tools_to_call(fields: Fields) -> dict[str, _Schema] | None:
    """The tools of which one must be called; `None` where none must be, or words can't say which."""
    choice = _read(_CHOICE, fields[CHOICE], CHOICE)
    chosen = choice.function.name if isinstance(choice, _Chosen) else None
    if choice != "required" and chosen is None:
        return None
    tools = _read(_TOOLS, fields["tools"], "tools") if "tools" in fields else None
    functions = [one.function for one in tools or () if one.function is not None]
    offered = {
        one.name: _Schema(one.parameters or True, f"the parameters of the tool {one.name!r}")
        for one in functions
    }
    if chosen is None:
        return offered
    if chosen not in offered:
        raise Malformed(f"Tool choice '{chosen}' not found in 'tools' parameter.", param=CHOICE)
    return {chosen: offered[chosen]}


class _OfSchema(msgspec.Struct, frozen=True):
    schema: Any = None


class _Form(msgspec.Struct, frozen=True):
    type: str = "text"
    json_schema: _OfSchema | None = None


_FORM: msgspec.json.Decoder[_Form | None] = msgspec.json.Decoder(_Form | None)


def _format(given: msgspec.Raw) -> _Schema | None:
    """The schema of the answer, `True` of any JSON object; `None` of plain text, and of a form of other kinds."""
    form = _read(_FORM, given, FORMAT)
    if form is not None and form.type == "json_object":
        return _Schema(True, FORMAT)
    if form is None or form.type != "json_schema":
        return None
    if form.json_schema is None or form.json_schema.schema is None:
        raise Malformed(
            f"Missing required parameter: '{FORMAT}.json_schema.schema'.",
            param=f"{FORMAT}.json_schema.schema",
            code="missing_required_parameter",
        )
    return _Schema(form.json_schema.schema, FORMAT)


def _read(decoder: msgspec.json.Decoder[Any], given: msgspec.Raw, param: str) -> Any:
    try:
        return decoder.decode(given)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"'{param}' can't be read: {error}", param=param) from error


# -- judging an answer ---------------------------------------------------------------------------


class _Called(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct, frozen=True):
    function: _Called = _Called()


class _Answer(msgspec.Struct, frozen=True):
    content: Any = None
    tool_calls: list[_ToolCall] | None = None


_ANSWER: msgspec.json.Decoder[_Answer] = msgspec.json.Decoder(_Answer)


def _fault_of_calls(tools: Mapping[str, _Schema], calls: Sequence[_ToolCall]) -> str | None:
    if not calls:
        return "no tool was called, and one had to be"
    for call in calls:
        name = call.function.name
        if name is None or name not in tools:
            return f"the tool {name!r} was called, and it had to be {' or '.join(map(repr, tools))}"
        what = f"the arguments of {name!r}"
        if fault := _fault_of_json(what, call.function.arguments or "{}", tools[name]):
            return fault
    return None


def _fault_of_json(what: str, text: Any, schema: _Schema) -> str | None:
    if not isinstance(text, str):
        return f"{what} are no text"
    fault = schemas.fault(text, schema.value)
    return None if fault is None else f"{what}: {fault}"


def _check(schema: _Schema) -> None:
    """Refuse what is no schema.

    Raises:
        Malformed: it is none, or it refers to one that is elsewhere.
    """
    if schema.value is not True:
        try:
            schemas.check(schema.value)
        except ValueError as error:
            param = FORMAT if schema.where == FORMAT else "tools"
            raise Malformed(f"Invalid schema for {schema.where}: {error}", param=param) from error
