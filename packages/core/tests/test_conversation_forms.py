"""Forms that an engine would force are asked for in words, and answers are judged by them, in bounded time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import Rewriter
from lightningrl.conversation.rewriting.fields import Fields, raw_fields
from lightningrl.schema import Dialect, Rewrite, RewriteRules

Message = dict[str, Any]


def fields(*messages: Message, **others: Any) -> Fields:
    return raw_fields({"messages": list(messages), **others})


def said(role: str, content: Any = "x", **others: Any) -> Message:
    return {"role": role, "content": content, **others}


FREE = Rewriter(RewriteRules(free=True))
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SHAPE}}
ASKED_IN_WORDS = (
    "Answer with JSON and nothing else. The JSON must fit this schema:\n"
    '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
)
COUNT = {"type": "function", "function": {"name": "count", "parameters": SHAPE}}
LOOK = {"type": "function", "function": {"name": "look"}}
BY_NAME = {"type": "function", "function": {"name": "count"}}


def calling(name: str, arguments: str) -> Message:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("messages", "sent"),
    [
        ([said("user")], [{"role": "system", "content": ASKED_IN_WORDS}, said("user")]),
        (
            [{"role": "system", "content": "Be."}, said("user")],
            [{"role": "system", "content": f"Be.\n\n{ASKED_IN_WORDS}"}, said("user")],
        ),
        (
            [{"role": "system", "content": [{"type": "text", "text": "Be."}]}, said("user")],
            [
                {
                    "role": "system",
                    "content": [
                        {"type": "text", "text": "Be."},
                        {"type": "text", "text": ASKED_IN_WORDS},
                    ],
                },
                said("user"),
            ],
        ),
    ],
)
def test_a_schema_is_said_at_the_end_of_the_system_message(
    messages: list[Message], sent: list[Message]
) -> None:
    found = FREE.rewrite(fields(*messages, response_format=BY_SCHEMA), Dialect.CHAT)
    assert found.rewrites == (Rewrite("format_in_words"),)
    assert msgspec.json.decode(found.fields["messages"]) == sent
    assert "response_format" not in found.fields


def test_a_template_with_one_place_for_instructions_gets_them_in_one_message() -> None:
    rules = RewriteRules(free=True, merge_instructions=True, roles={"developer": "system"})
    asked = fields(
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        said("user"),
        response_format={"type": "json_object"},
    )
    found = Rewriter(rules).rewrite(asked, Dialect.CHAT)
    words = "a\n\nb\n\nAnswer with one JSON object and nothing else."
    assert msgspec.json.decode(found.fields["messages"])[0] == {"role": "system", "content": words}


@pytest.mark.parametrize(
    ("given", "answer", "fault"),
    [
        ({"tool_choice": "required"}, calling("look", ""), None),
        ({"tool_choice": "required"}, calling("count", '{"n": 1}'), None),
        ({"tool_choice": "required"}, said("assistant"), "no tool was called, and one had to be"),
        (
            {"tool_choice": BY_NAME},
            calling("look", "{}"),
            "the tool 'look' was called, and it had to be 'count'",
        ),
        (
            {"tool_choice": BY_NAME},
            calling("count", '{"n": "x"}'),
            "the arguments of 'count': $.n: 'x' is not of type 'integer'",
        ),
        ({"response_format": BY_SCHEMA}, {"content": ' {"n": 1}\n'}, None),
        ({"response_format": BY_SCHEMA}, calling("look", "{}"), None),
        (
            {"response_format": BY_SCHEMA},
            {"content": "{}"},
            "the answer: $: 'n' is a required property",
        ),
        ({"response_format": {"type": "json_object"}}, {"content": "{}"}, None),
        (
            {"response_format": {"type": "json_object"}},
            {"content": "[]"},
            "the answer: no JSON object",
        ),
    ],
)
def test_an_answer_is_judged_by_what_was_asked_in_words(
    given: Message, answer: Message, fault: str | None
) -> None:
    found = FREE.rewrite(fields(said("user"), tools=[COUNT, LOOK], **given), Dialect.CHAT)
    assert found.demand is not None
    assert found.demand.fault(msgspec.json.encode(answer)) == fault
    if "tool_choice" in given:
        assert bytes(found.fields["tool_choice"]) == b'"auto"'
        assert found.rewrites == (Rewrite("free_choice"),)


@pytest.mark.parametrize("text", ["```json\n{}\n```", '{"n": NaN}', '{"n": 1', '{"n": 1e999}', ""])
def test_an_answer_that_is_no_json_is_of_a_wrong_form(text: str) -> None:
    found = FREE.rewrite(fields(said("user"), response_format=BY_SCHEMA), Dialect.CHAT)
    assert found.demand is not None
    fault = found.demand.fault(msgspec.json.encode({"content": text}))
    assert (fault or "").startswith("the answer: no JSON")


def judged(schema: Any, text: str) -> str | None:
    """What an answer is said to be that a schema is asked of."""
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    found = FREE.rewrite(fields(said("user"), response_format=form), Dialect.CHAT)
    assert found.demand is not None
    return found.demand.fault(msgspec.json.encode({"content": text}))


DRAFT = "https://json-schema.org/draft/2020-12/schema"


def doubling(levels: int) -> Message:
    """Level n asks for level n - 1 twice: 2 to the power of `levels` visits."""
    twice = {
        str(level): {"allOf": [{"$ref": f"#/$defs/{level - 1}"}] * 2} for level in range(1, levels)
    }
    return {"$ref": f"#/$defs/{levels - 1}", "$defs": {"0": {"type": "string"}, **twice}}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (doubling(60), '"a"'),
        ({**doubling(60), "$schema": DRAFT}, '"a"'),
        ({"$ref": "#"}, "1"),
        ({"allOf": [{}] * 12_000}, "1"),
        ({"type": "string"}, f'"{"a" * 100_001}"'),
        ({"type": "object", "description": "a" * 50_000}, "{}"),
        ({"type": "number", "multipleOf": 0.01}, "1" * 311),
        ({"$ref": "#/x", "x": {"type": "y"}}, "1"),
    ],
)
def test_what_takes_too_long_or_fails_to_judge_is_named_so(schema: Any, text: str) -> None:
    assert (judged(schema, text) or "").startswith("could not be judged: ")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "^(a+)+$"}, f'"{"a" * 60}b"'),
        (
            {"allOf": [{"$schema": DRAFT, "pattern": "^(a+)+$"}]},
            f'"{"a" * 60}b"',
        ),
        ({"patternProperties": {"^(a+)+$": True}}, f'{{"{"a" * 60}b": 1}}'),
        (
            {"patternProperties": {"^(a+)+$": True}, "additionalProperties": False},
            f'{{"{"a" * 60}b": 1}}',
        ),
        ({"pattern": r"\p{L}"}, '"a"'),  # ECMAScript's, which Python has not
        ({"uniqueItems": True}, str([{"a": n} for n in range(7000)]).replace("'", '"')),
        ({"unevaluatedProperties": False}, '{"a": 1}'),
    ],
)
def test_what_could_take_for_ever_is_not_looked_at(schema: Any, text: str) -> None:
    assert judged(schema, text) is None


def test_items_that_are_alike_are_found() -> None:
    assert judged({"uniqueItems": True}, '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]') == (
        "the answer: $: [{'a': 1, 'b': 2}, {'b': 2, 'a': 1}] has non-unique elements"
    )


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": ["count"]},
        {"tool_calls": {"0": "count"}},
        {"tool_calls": [{"function": "count"}]},
        {"tool_calls": [{"function": {"name": ["count"]}}]},
        [],
        None,
    ],
)
def test_an_answer_of_an_odd_shape_is_not_judged(message: Any) -> None:
    asked = fields(said("user"), tools=[COUNT], tool_choice="required")
    demand = FREE.rewrite(asked, Dialect.CHAT).demand
    assert demand is not None
    assert (demand.fault(msgspec.json.encode(message)) or "").startswith("could not be judged: ")


@pytest.mark.parametrize("key", ["examples", "default", "const", "enum", "x-own"])
@pytest.mark.parametrize("value", [{"pattern": "*.py"}, {"$ref": "#/nowhere"}])
def test_values_in_a_schema_are_no_schemas(key: str, value: Any) -> None:
    one = [value] if key in {"examples", "enum"} else value
    schema = {"properties": {"query": {key: one}}, "required": ["query"]}
    assert judged(schema, "{}") == "the answer: $: 'query' is a required property"


def test_references_are_followed_where_they_stand() -> None:
    inner = {"$id": "http://a/b", "$ref": "#/$defs/c", "$defs": {"c": {"type": "integer"}}}
    assert judged({"properties": {"n": inner}}, '{"n": 1}') is None
    assert judged({"properties": {"n": inner}}, '{"n": "1"}') == (
        "the answer: $.n: '1' is not of type 'integer'"
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "'f' not found in 'tools'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            r"Invalid schema for response_format: \$.type",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"$ref": "http://127.0.0.1:9/x"}},
                }
            },
            "Invalid schema for response_format: .*127.0.0.1",
        ),
        *(
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
                "Invalid schema for response_format",
            )
            for schema in (
                {"$dynamicRef": "#nope"},
                {
                    "properties": {"a": {"$id": "http://a/b", "$ref": "#/$defs/c"}},
                    "$defs": {"c": {}},
                },
                {"$ref": "#/x", "x": {"items": {"$ref": "#/nowhere"}}},
                {"$ref": "#/x", "x": 5},
                {"$ref": "#/x/y", "x": 5},
                {"$ref": "#/x/0", "x": "text"},
                {"$ref": "http://["},
            )
        ),
        ({"response_format": {"type": "json_schema"}}, "Missing required parameter"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: Message, complaint: str) -> None:
    with pytest.raises(Malformed, match=complaint):
        FREE.rewrite(fields(said("user"), tools=[LOOK], **given), Dialect.CHAT)


@pytest.mark.parametrize(
    "given",
    [
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "structural_tag"}},
    ],
)
def test_what_forces_nothing_and_what_words_cannot_say_stays(given: Message) -> None:
    asked = fields(said("user"), tools=[LOOK], **given)
    assert FREE.rewrite(asked, Dialect.CHAT) == (asked, (), None)
