"""Tool parsers: what is read as a call, what stays content, and that nothing raises."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightningrl_verl.engine import (
    TOOL_PARSERS,
    ParsedMessage,
    ToolCall,
    UnknownToolParserError,
    UnwritableError,
    tool_parser,
)


def tool(name: str, *parameters: str, kind: str = "string") -> dict[str, Any]:
    properties = {parameter: {"type": kind} for parameter in parameters}
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


CALC = tool("calc", "expression")
SEARCH = tool("search", "query")


def test_unknown_parser_names_the_nearest() -> None:
    with pytest.raises(UnknownToolParserError, match="'hermess'; did you mean 'hermes'"):
        tool_parser("hermess")


def test_none_returns_the_text_even_if_it_holds_a_call() -> None:
    text = '<tool_call>{"name": "calc", "arguments": {}}</tool_call>'
    assert tool_parser("none").parse(text, [CALC]) == ParsedMessage(content=text)


def test_hermes_reads_parallel_calls_and_the_text_before_them() -> None:
    text = (
        'Let me see.<tool_call>\n{"name": "calc", "arguments": {"expression": "3 + 4"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search", "arguments": {"query": "Zürich", "k": 2}}\n</tool_call>'
    )
    assert tool_parser("hermes").parse(text, [CALC, SEARCH]) == ParsedMessage(
        content="Let me see.",
        tool_calls=(
            ToolCall("calc", '{"expression": "3 + 4"}'),
            ToolCall("search", '{"query": "Zürich", "k": 2}'),
        ),
    )


def test_hermes_call_alone_has_no_content() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    parsed = tool_parser("hermes").parse(text, [tool("now")])
    assert parsed == ParsedMessage(content=None, tool_calls=(ToolCall("now", "{}"),))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>{not json}</tool_call>", "Expecting property name"),
        ('<tool_call>{"name": "calc", "arguments": {}}', "no </tool_call>"),
        ("<tool_call>[1]</tool_call>", "not a JSON object"),
        ('<tool_call>{"name": "calc", "arguments": {"x": NaN}}</tool_call>', "not JSON compliant"),
        (
            '<tool_call>{"name": "calc", "arguments": {"x": 1e999}}</tool_call>',
            "not JSON compliant",
        ),
        (
            '<tool_call>{"name": "calc", "arguments": {"x": "\\ud83d"}}</tool_call>',
            "half a character",
        ),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "nested too deeply"),
        ('<tool_call>{"arguments": {}}</tool_call>', "`name` is not a string"),
        ('<tool_call>{"name": "calc", "arguments": "3"}</tool_call>', "`arguments` is not a JSON"),
        (
            '<tool_call>{"name": "calc", "arguments": {}}</tool_call><tool_call>oops</tool_call>',
            "Expecting value",
        ),
    ],
)
def test_hermes_unreadable_call_stays_content_with_the_reason(text: str, reason: str) -> None:
    parsed = tool_parser("hermes").parse(text, [CALC])
    assert (parsed.content, parsed.tool_calls) == (text, ())
    assert parsed.error is not None
    assert reason in parsed.error


def test_compact_call_of_the_only_tool_keeps_its_text_to_the_character() -> None:
    for text in ("<call> 3 + 4", "<call> 3 + 4<end>"):
        assert tool_parser("compact").parse(text, [CALC]) == ParsedMessage(
            content=None, tool_calls=(ToolCall("calc", '{"expression": " 3 + 4"}'),)
        )


def test_compact_call_names_its_tool_if_there_are_several() -> None:
    parsed = tool_parser("compact").parse("<call>search who is ada", [CALC, SEARCH])
    assert parsed.tool_calls == (ToolCall("search", '{"query": "who is ada"}'),)


def test_compact_answer_is_content() -> None:
    assert tool_parser("compact").parse("<ans>7<end>", [CALC]) == ParsedMessage(content="7")
    assert tool_parser("compact").parse("hello", [CALC]) == ParsedMessage(content="hello")


@pytest.mark.parametrize(
    ("text", "tools", "reason"),
    [
        ("<call>3", [], "declares no tool"),
        ("<call>serch ada", [CALC, SEARCH], "did you mean 'search'"),
        ("<call>3", [tool("calc", "a", "b")], "has 2 parameters"),
        ("<call>3", [tool("calc", "a", kind="integer")], "'a' of tool 'calc' is not a string"),
        ("so <call>3", [CALC], "not at the start"),
    ],
)
def test_compact_unreadable_call_stays_content_with_the_reason(
    text: str, tools: list[dict[str, Any]], reason: str
) -> None:
    parsed = tool_parser("compact").parse(text, tools)
    assert (parsed.content, parsed.tool_calls) == (text, ())
    assert parsed.error is not None
    assert reason in parsed.error


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
@pytest.mark.parametrize(
    "text",
    ["", "<end>", "<call>", "<ans>", "<tool_call>", "</tool_call>", "<tool_call>null</tool_call>"],
)
def test_no_parser_raises_and_arguments_are_always_json_objects(name: str, text: str) -> None:
    for tools in ([], [CALC], [CALC, SEARCH], [{"function": {"name": "bare"}}]):
        for call in tool_parser(name).parse(text, tools).tool_calls:
            assert isinstance(json.loads(call.arguments_json), dict)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_ARGUMENTS = st.dictionaries(st.text(max_size=6), _JSON, max_size=3)
_TEXT = st.text(max_size=20)


@given(
    content=_TEXT.filter(lambda text: "<tool_call>" not in text),
    calls=st.lists(st.tuples(st.text(min_size=1, max_size=6), _ARGUMENTS), max_size=3),
)
def test_hermes_reads_back_what_it_writes(
    content: str, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    message = ParsedMessage(
        content=content or None,
        tool_calls=tuple(
            ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls
        ),
    )
    assume(
        "</tool_call>"
        not in "".join(call.arguments_json + call.name for call in message.tool_calls)
    )
    parser = tool_parser("hermes")
    read = parser.parse(parser.write(message, [CALC]), [CALC])
    assert (read.content or None, read.tool_calls, read.error) == (
        message.content,
        message.tool_calls,
        None,
    )


def test_hermes_writes_as_the_templates_of_its_models_do() -> None:
    calls = (ToolCall("calc", '{"expression": "3"}'), ToolCall("search", '{"query": "a"}'))
    assert tool_parser("hermes").write(ParsedMessage("First.", calls), [CALC, SEARCH]) == (
        'First.\n<tool_call>\n{"name": "calc", "arguments": {"expression": "3"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search", "arguments": {"query": "a"}}\n</tool_call>'
    )


def test_a_line_end_between_content_and_call_belongs_to_neither() -> None:
    text = 'Well.\n\n<tool_call>\n{"name": "calc", "arguments": {}}\n</tool_call>'
    parsed = tool_parser("hermes").parse(text, [CALC])
    assert parsed.content == "Well.\n"
    assert tool_parser("hermes").write(parsed, [CALC]) == text


@given(text=_TEXT, expression=_TEXT)
def test_compact_reads_back_what_it_writes(text: str, expression: str) -> None:
    parser = tool_parser("compact")
    call = ToolCall("calc", json.dumps({"expression": expression}, ensure_ascii=False))
    for tools in ([CALC], [CALC, SEARCH]):
        for message in (ParsedMessage(text), ParsedMessage(None, (call,))):
            try:
                written = parser.write(message, tools)
            except UnwritableError:
                # `<end>` ends an answer, and is the only text that can't be said.
                assert (text if message.content is not None else expression).endswith("<end>")
                continue
            read = parser.parse(written, tools)
            assert (read.content or "", read.tool_calls) == (
                message.content or "",
                message.tool_calls,
            )


@given(text=_TEXT)
def test_none_writes_the_content(text: str) -> None:
    assert tool_parser("none").write(ParsedMessage(text), []) == text


@pytest.mark.parametrize(
    ("parser", "message"),
    [
        ("none", ParsedMessage(None, (ToolCall("calc", "{}"),))),
        ("hermes", ParsedMessage("use <tool_call> here")),
        ("compact", ParsedMessage("so", (ToolCall("calc", '{"expression": "3"}'),))),
        ("compact", ParsedMessage(None, (ToolCall("calc", '{"expression": 3}'),))),
        ("compact", ParsedMessage(None, (ToolCall("calk", '{"expression": "3"}'),))),
    ],
)
def test_what_no_text_says_is_refused(parser: str, message: ParsedMessage) -> None:
    with pytest.raises(UnwritableError, match=f"the tool parser '{parser}' has no text for this"):
        tool_parser(parser).write(message, [CALC])
