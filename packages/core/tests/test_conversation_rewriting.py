"""Requests are rewritten by a policy's rules, and a record's rewrites say again what the engine was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import Rewriter, as_sent, hold_also
from lightningrl.conversation.rewriting.fields import Fields, raw_fields
from lightningrl.conversation.rewriting.pins import Held
from lightningrl.conversation.rewriting.template import fates, rules_of
from lightningrl.conversation.rewriting.told import told
from lightningrl.errors import ConfigError
from lightningrl.schema import Dialect, Rewrite, RewriteRules

Message = dict[str, Any]


class Refused(Exception):
    pass


# -- templates of the kinds that published models have, as small programs ------------------------


def any_role(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Writes whatever role it is given (ChatML, Llama 3, SmolLM2)."""
    return "".join(f"<{one['role']}>{one['content']}" for one in messages)


def known_roles(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Leaves out roles that it does not know, thinks by its own (Qwen2.5, Qwen3)."""
    known = ("system", "user", "assistant", "tool")
    shown = [one for one in messages if one["role"] in known]
    thought = "" if variables.get("enable_thinking", True) else "<no thought>"
    return any_role(shown, tools, variables) + thought


def thinks_back(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Writes the thoughts of earlier answers (Qwen3 in a tool loop, gpt-oss)."""
    return "".join(
        f"<{one['role']}>{one.get('reasoning_content', '')}{one['content']}" for one in messages
    )


def no_tools(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Leaves out tools' results (Phi-3)."""
    shown = [one for one in messages if one["role"] in ("system", "user", "assistant")]
    return any_role(shown, tools, variables)


def strict(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """One system message, first, and a user's after it (Qwen3.5)."""
    for place, one in enumerate(messages):
        if one["role"] == "system" and place:
            raise Refused("System message must be at the beginning.")
        if one["role"] not in ("system", "user", "assistant", "tool"):
            raise Refused("Unexpected message role.")
    if not any(one["role"] == "user" for one in messages):
        raise Refused("No user query found in messages.")
    return any_role(messages, tools, variables)


def first_alone(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Has `developer` itself, and reads instructions in the first message alone (gpt-oss)."""
    instructions = ("system", "developer")
    first = f"<developer>{messages[0]['content']}" if messages[0]["role"] in instructions else ""
    rest = [one for one in messages if one["role"] in ("user", "assistant", "tool")]
    return first + any_role(rest, tools, variables)


def no_system(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Refuses system messages, and two messages of one side (Gemma)."""
    for place, one in enumerate(messages):
        if one["role"] == "system":
            raise Refused("System role not supported")
        if (one["role"] == "user") != (place % 2 == 0):
            raise Refused("Conversation roles must alternate")
    return any_role(messages, tools, variables)


def deaf(messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> str:
    """Reads no instructions at all (a tiny policy)."""
    shown = [one for one in messages if one["role"] in ("user", "assistant", "tool")]
    return any_role(shown, tools, variables)


LOST_INSTRUCTIONS = tuple(
    f"{role}{where}"
    for role in ("developer", "system")
    for where in ("", " alone", " later", " second")
)


@pytest.mark.parametrize(
    ("render", "rules"),
    [
        (any_role, RewriteRules(roles={"developer": "system"})),
        (thinks_back, RewriteRules(roles={"developer": "system"}, put_back=True)),
        (known_roles, RewriteRules(roles={"developer": "system"}, lost=("other",), thinks=True)),
        (no_tools, RewriteRules(roles={"developer": "system"}, lost=("other", "tool"))),
        (
            strict,
            RewriteRules(
                roles={"developer": "system"},
                merge_instructions=True,
                alone_as_user=True,
                later_as_user=True,
            ),
        ),
        (
            first_alone,
            RewriteRules(merge_instructions=True, later_as_user=True, lost=("other",)),
        ),
        (no_system, RewriteRules()),
        (deaf, RewriteRules(lost=(*LOST_INSTRUCTIONS[:4], "other", *LOST_INSTRUCTIONS[4:]))),
    ],
)
def test_rules_follow_from_what_a_template_renders(render: Any, rules: RewriteRules) -> None:
    assert rules_of(render) == rules


def test_a_template_that_refuses_every_conversation_gives_no_rules() -> None:
    def broken(messages: Any, tools: Any, variables: Any) -> str:
        raise Refused

    assert rules_of(broken) == RewriteRules()


def test_the_table_tells_what_becomes_of_each_place() -> None:
    table = {one.place: (one.as_it_is, one.rewritten) for one in fates(strict)}
    assert table["user"] == ("shown", "shown")
    assert table["developer"] == ("refused: Unexpected message role.", "shown")
    assert table["system later"] == (
        "refused: System message must be at the beginning.",
        "shown",
    )
    assert table["other"] == ("refused: Unexpected message role.",) * 2
    assert {one.place: one for one in fates(no_tools)}["tool"][1:] == ("left out", "left out")


def test_rules_are_told_in_words() -> None:
    assert told(RewriteRules()) == []
    assert len(told(rules_of(strict))) == 4
    assert "web search" in told(RewriteRules(drop_hosted=True))[0]
    assert "`developer` were sent as `system`" in told(rules_of(any_role))[0]


# -- rewriting ---------------------------------------------------------------------------------


def fields(*messages: Message, **others: Any) -> Fields:
    return raw_fields({"messages": list(messages), **others})


def said(role: str, content: Any = "x", **others: Any) -> Message:
    return {"role": role, "content": content, **others}


def sent(rules: RewriteRules, *messages: Message) -> list[Message]:
    found = Rewriter(rules).rewrite(fields(*messages), Dialect.CHAT)
    return json.loads(bytes(found.fields["messages"]))


STRICT = rules_of(strict)


def test_developer_messages_get_the_role_that_the_template_has() -> None:
    rules = RewriteRules(roles={"developer": "system"})
    assert sent(rules, said("developer", "d", name="n"), said("user")) == [
        said("system", "d", name="n"),
        said("user"),
    ]


def test_instructions_at_the_beginning_become_one_message() -> None:
    parts = [{"type": "text", "text": "b"}]
    user = said("user")
    assert sent(STRICT, said("system", "a"), said("developer", "b"), user) == [
        said("system", "a\n\nb"),
        user,
    ]
    assert sent(STRICT, said("system", "a"), said("system", None), said("system", parts), user) == [
        said("system", [{"type": "text", "text": "a"}, *parts]),
        user,
    ]


def test_instructions_that_the_template_has_no_place_for_become_the_users() -> None:
    assert sent(STRICT, said("system", "a"), said("system", "b")) == [said("user", "a\n\nb")]
    assert sent(STRICT, said("system", "a"), said("assistant"), said("developer", "b")) == [
        said("user", "a"),
        said("assistant"),
        said("user", "b"),
    ]


def test_a_conversation_goes_on_as_it_began() -> None:
    """What was the user's in the first turn still is when a user answers: its tokens are continued."""
    first = sent(STRICT, said("system", "a"))
    assert sent(STRICT, said("system", "a"), said("assistant"), said("user"))[:1] == first


def test_what_no_rewrite_touches_keeps_its_bytes() -> None:
    body = b'{"messages": [{"role":"developer","content":"d"}, { "role" : "user", "n": 1e999 }], "x": 1.0}'
    found = Rewriter(STRICT).rewrite(raw_fields(body), Dialect.CHAT)
    assert b'{ "role" : "user", "n": 1e999 }' in bytes(found.fields["messages"])
    assert bytes(found.fields["x"]) == b"1.0"


@pytest.mark.parametrize(
    ("rules", "messages", "param"),
    [
        (rules_of(no_tools), [said("user"), said("assistant"), said("tool")], "messages[2].role"),
        (rules_of(known_roles), [said("function")], "messages[0].role"),
        (rules_of(first_alone), [said("user"), said("ipython")], "messages[1].role"),
        (STRICT, [said("system", 5), said("system", "b")], "messages[0].content"),
    ],
)
def test_what_the_model_would_never_read_is_refused_by_name(
    rules: RewriteRules, messages: list[Message], param: str
) -> None:
    with pytest.raises(Malformed) as refused:
        sent(rules, *messages)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
        ({"tools": None, "tool_choice": "none"}, {"tools": None}),
        ({"tool_choice": None}, {"tool_choice": None}),
        ({"stop": ""}, {}),
        ({"stop": [""]}, {}),
        ({"stop": ["", ""]}, {}),
        ({"stop": []}, {}),
        ({"stop": ["", "x"]}, {"stop": ["", "x"]}),
        ({"stop": ["x"], "tools": [1], "tool_choice": "required"}, None),
    ],
)
def test_values_that_say_nothing_are_left_out(given: Message, left: Message | None) -> None:
    asked = fields(said("user"), **given)
    found = Rewriter(RewriteRules()).rewrite(asked, Dialect.CHAT)
    expected = given if left is None else left
    rest = {name: msgspec.json.decode(one) for name, one in found.fields.items()}
    assert rest == {"messages": [said("user")], **expected}
    gone = [name for name in given if name not in expected]
    assert found.rewrites == ((Rewrite("left_out", gone),) if gone else ())


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_tool_that_must_be_chosen_must_be_there(choice: Any) -> None:
    with pytest.raises(Malformed, match="only allowed when 'tools' are specified"):
        Rewriter(RewriteRules()).rewrite(fields(said("user"), tool_choice=choice), Dialect.CHAT)


def test_anthropics_default_is_said_to_a_template_that_thinks() -> None:
    rewriter = Rewriter(RewriteRules(thinks=True))
    unsaid = fields(said("user"))
    found = rewriter.rewrite(unsaid, Dialect.ANTHROPIC)
    assert bytes(found.fields["chat_template_kwargs"]) == b'{"enable_thinking":false}'
    assert rewriter.rewrite(unsaid, Dialect.CHAT).rewrites == ()
    asked = fields(said("user"), chat_template_kwargs={"enable_thinking": True})
    assert rewriter.rewrite(asked, Dialect.ANTHROPIC).rewrites == ()


# -- held still --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "dialect", "sent"),
    [
        ({}, Dialect.CHAT, {"enable_thinking": False, "x": 1}),
        ({"chat_template_kwargs": {"x": 2}}, Dialect.CHAT, {"enable_thinking": False, "x": 2}),
        ({"chat_template_kwargs": None}, Dialect.CHAT, {"enable_thinking": False, "x": 1}),
        ({}, Dialect.ANTHROPIC, {"enable_thinking": False, "x": 1}),
        ({"chat_template_kwargs": 3}, Dialect.CHAT, 3),
    ],
)
def test_the_recipes_variables_of_the_template_are_set_where_a_request_does_not(
    given: Message, dialect: Dialect, sent: Any
) -> None:
    rules = RewriteRules(thinks=True, variables={"enable_thinking": False, "x": 1})
    asked = fields(said("user"), **given)
    found = Rewriter(rules).rewrite(asked, dialect)
    assert msgspec.json.decode(found.fields["chat_template_kwargs"]) == sent
    assert as_sent(asked, found.rewrites) == found.fields


PINNED = Rewriter(RewriteRules(pin=(r"cch=\w+", r"^Time: .*$")))


def test_what_changes_from_call_to_call_stays_as_it_was_first_sent() -> None:
    first = fields(said("system", "a cch=1\nTime: 10:00\nb"), said("user", "cch=2"))
    one = PINNED.rewrite(first, Dialect.CHAT)
    assert one.fields == first  # nothing is there to hold still yet
    held: Held = {}
    hold_also(held, one.rewrites)
    assert held == {r"cch=\w+": ["cch=1", "cch=2"], r"^Time: .*$": ["Time: 10:00"]}
    parts = [{"type": "text", "text": "cch=8"}, {"type": "image_url", "image_url": {}}]
    second = fields(
        said("system", "a cch=7\nTime: 10:01\nb"),
        said("user", parts),
        said("assistant", "cch=3"),
        said("user", "cch=4"),
    )
    two = PINNED.rewrite(second, Dialect.CHAT, held)
    system, user, *rest = json.loads(bytes(two.fields["messages"]))
    assert system == said("system", "a cch=1\nTime: 10:00\nb")
    assert user == said("user", [{"type": "text", "text": "cch=2"}, parts[1]])
    assert rest == [said("assistant", "cch=3"), said("user", "cch=4")]
    hold_also(held, two.rewrites)
    assert held[r"cch=\w+"] == ["cch=1", "cch=2"]
    assert as_sent(second, two.rewrites) == two.fields


def test_a_text_more_than_before_is_held_from_then_on() -> None:
    held: Held = {r"cch=\w+": ["cch=1"]}
    found = PINNED.rewrite(fields(said("user", "cch=5 cch=6")), Dialect.CHAT, held)
    assert json.loads(bytes(found.fields["messages"])) == [said("user", "cch=1 cch=6")]


def test_a_request_without_such_a_text_is_not_rewritten() -> None:
    held: Held = {r"cch=\w+": ["cch=1"]}
    assert PINNED.rewrite(fields(said("user", "x")), Dialect.CHAT, held).rewrites == ()


@pytest.mark.parametrize(("pattern", "fault"), [("(", "no regular"), ("a*", "empty text")])
def test_a_pattern_that_cannot_hold_is_refused(pattern: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Rewriter(RewriteRules(pin=(pattern,)))


ROLES = ("system", "developer", "user", "assistant", "tool", "function")
CONTENTS = ("x", "", None, [{"type": "text", "text": "p"}], [])
TEMPLATES = (any_role, known_roles, no_tools, strict, first_alone, no_system, deaf)
RULES = [rules_of(render) for render in TEMPLATES]
messages_of = st.lists(
    st.builds(said, st.sampled_from(ROLES), st.sampled_from(CONTENTS)), max_size=7
)


@given(messages_of, st.sampled_from(RULES), st.booleans())
def test_recorded_rewrites_say_what_the_engine_was_asked(
    messages: list[Message], rules: RewriteRules, idle: bool
) -> None:
    asked = fields(*messages, **({"tools": [], "tool_choice": "auto"} if idle else {}))
    try:
        found = Rewriter(rules).rewrite(asked, Dialect.CHAT)
    except Malformed:
        return
    recorded = msgspec.msgpack.decode(
        msgspec.msgpack.encode(found.rewrites), type=tuple[Rewrite, ...]
    )
    assert as_sent(asked, recorded) == found.fields
    # Decided once is decided for good: what was sent needs no rewriting.
    assert Rewriter(rules).rewrite(found.fields, Dialect.CHAT).rewrites == ()


def test_a_later_versions_rewrite_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="newer LightningRL"):
        as_sent(fields(said("user")), [Rewrite("unheard_of")])
