"""Reasoning that a client leaves out goes back where its conversation goes on, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lightningrl.conversation.history import Asker, Recorded
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import Rewriter
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.schema import AttemptId, CallEvent, CallStatus, Dialect, Rewrite, RewriteRules
from lightningrl_testkit.records import call

Message = dict[str, Any]
WHO = Asker("policy", (), None)
RESTORE = RewriteRules(put_back=True)


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def said(text: Any, thought: str = "", **more: Any) -> Message:
    thoughts = {"reasoning": thought} if thought else {}
    return {"role": "assistant", "content": text, **thoughts, **more}


def tool_calls(arguments: str, ident: str = "c") -> list[Any]:
    function = {"name": "f", "arguments": arguments}
    return [{"id": ident, "type": "function", "function": function}]


class Attempt:
    """An agent's calls, rewritten as the gateway does; each is read back from the record."""

    def __init__(self, rules: RewriteRules = RESTORE) -> None:
        self.calls: list[CallEvent] = []
        self._rewriter = Rewriter(rules)
        self._recorded = Recorded(to_rewrite=True)

    def ask(
        self,
        messages: list[Message],
        *answers: Message,
        status: CallStatus = CallStatus.DELIVERED,
    ) -> list[Message]:
        """What the engine gets."""
        body = json.dumps({"messages": messages}).encode()
        found = self._rewriter.rewrite(
            raw_fields(body),
            Dialect.CHAT,
            self._recorded.held.get(WHO),
            self._recorded.thoughts.get(WHO),
        )
        one = call(AttemptId("a"), f"call-{len(self.calls)}", request=body)
        [choice] = one.choices
        choices = [replace(choice, message=json.dumps(answer).encode()) for answer in answers]
        rewrites = msgspec.msgpack.decode(
            msgspec.msgpack.encode(found.rewrites), type=tuple[Rewrite, ...]
        )
        one = replace(one, choices=tuple(choices), rewrites=rewrites, status=status)
        sent: list[Message] = json.loads(bytes(found.fields["messages"]))
        assert Recorded(self.calls).messages(one) == sent
        self._recorded.add(one)
        self.calls.append(one)
        return sent

    def thoughts(self, messages: list[Message], *answers: Message) -> list[str | None]:
        """The reasoning that the engine gets, message by message."""
        return [one.get("reasoning") for one in self.ask(messages, *answers)]


def test_an_agents_own_example_gets_no_thought_and_answers_keep_theirs() -> None:
    attempt = Attempt()
    talk = [user("e"), said("Yes"), user("1")]
    assert attempt.thoughts(talk, said("Yes", "r1")) == [None] * 3
    talk += [said("Yes"), user("2")]
    assert attempt.thoughts(talk, said("Yes", "r2")) == [None, None, None, "r1", None]
    talk += [said("Yes"), user("3")]
    assert attempt.thoughts(talk) == [None, None, None, "r1", None, "r2", None]


def test_another_conversation_that_was_answered_alike_keeps_its_own_thought() -> None:
    attempt = Attempt()
    attempt.ask([user("A")], said("OK", "of A"))
    attempt.ask([user("B")], said("OK", "of B"))
    assert attempt.thoughts([user("B"), said("OK"), user("x")]) == [None, "of B", None]
    assert attempt.thoughts([user("A"), said("OK"), user("x")]) == [None, "of A", None]
    assert attempt.thoughts([user("C"), said("OK"), user("x")]) == [None] * 3


def test_of_answers_alike_in_one_conversation_the_first_stays() -> None:
    attempt = Attempt()
    attempt.ask([user("A")], said("OK", "r1"))
    assert attempt.thoughts([user("A"), said("OK"), user("x")]) == [None, "r1", None]
    attempt.ask([user("A")], said("OK", "r2"))
    assert attempt.thoughts([user("A"), said("OK"), user("y")]) == [None, "r1", None]


def test_another_answer_of_the_same_call_that_the_agent_took_has_its_own() -> None:
    attempt = Attempt()
    attempt.ask([user("A")], said("1", "r1"), said("2", "r2"))
    assert attempt.thoughts([user("A"), said("2"), user("x")]) == [None, "r2", None]


def test_an_answer_that_the_agent_never_got_is_not_its() -> None:
    attempt = Attempt()
    attempt.ask([user("A")], said("OK", "lost"), status=CallStatus.CANCELLED)
    attempt.ask([user("A")], said("OK", "got"))
    assert attempt.thoughts([user("A"), said("OK"), user("x")]) == [None, "got", None]


@pytest.mark.parametrize(
    ("answer", "sent_back"),
    [
        (said("\n\nYes"), said("Yes")),
        (said("Yes"), said([{"type": "text", "text": "Yes"}])),
        (said("Yes"), said("Yes", reasoning=None, reasoning_content="")),
        (
            said("", tool_calls=tool_calls('{"b":1.0, "a": "\\u00e9"}')),
            said(None, tool_calls=tool_calls('{"a": "é", "b": 1}')),
        ),
        (said(""), said("")),
        (said("", tool_calls=tool_calls("{")), said("", tool_calls=tool_calls("{"))),
    ],
)
def test_an_answer_is_known_in_the_form_that_a_client_gives_it(
    answer: Message, sent_back: Message
) -> None:
    attempt = Attempt()
    attempt.ask([user("A")], {**answer, "reasoning": "r"})
    assert attempt.thoughts([user("A"), sent_back, user("x")])[1] == "r"


@pytest.mark.parametrize(
    "sent_back",
    [
        [user("A"), said("OK!")],
        [user("B"), said("OK")],
        [user("A"), user("A"), said("OK")],
        [user("A"), said("OK", tool_calls=tool_calls("{}"))],
        [user([{"type": "text", "text": "A"}, {"type": "image_url", "image_url": 1}]), said("OK")],
    ],
)
def test_where_the_conversation_does_not_go_on_nothing_is_put_back(
    sent_back: list[Message],
) -> None:
    attempt = Attempt()
    attempt.ask([user("A")], said("OK", "r"))
    assert attempt.ask([*sent_back, user("x")]) == [*sent_back, user("x")]
    assert attempt.calls[-1].rewrites == ()


@pytest.mark.parametrize("second", [tool_calls('{"n": 2}'), tool_calls('{"n": 1}', "d")])
def test_calls_of_tools_differ_by_their_ids_and_arguments(second: list[Any]) -> None:
    """Some engines count their ids anew in each answer."""
    attempt, first = Attempt(), tool_calls('{"n": 1}')
    attempt.ask([user("A")], said("", "r1", tool_calls=first))
    attempt.ask([user("A")], said("", "r2", tool_calls=second))
    for calls, thought in ((second, "r2"), (first, "r1")):
        result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "1"}
        assert attempt.thoughts([user("A"), said("", tool_calls=calls), result])[1] == thought


def test_what_is_held_still_is_the_same_conversation() -> None:
    attempt = Attempt(RewriteRules(put_back=True, pin=("t=[0-9]+",)))
    attempt.ask([user("t=1 A")], said("OK", "r"))
    sent = attempt.ask([user("t=2 A"), said("OK"), user("x")])
    assert sent == [user("t=1 A"), said("OK", "r"), user("x")]


def test_a_record_grows_by_one_name_a_turn_and_is_read_with_the_calls_before() -> None:
    attempt, talk = Attempt(), [user("0")]
    for turn in range(9):
        attempt.ask(talk, said("Yes", f"r{turn}"))
        talk += [said("Yes"), user(str(turn))]
    named = [[rewrite.by for rewrite in one.rewrites] for one in attempt.calls]
    assert named[:2] == [[], [{"more": [[0, "call-0", 0]]}]]
    assert named[8] == [{"as": "call-7", "more": [[7, "call-7", 0]]}]
    with pytest.raises(Malformed, match="'call-0'"):
        Recorded(attempt.calls[1:8]).messages(attempt.calls[8])
    with pytest.raises(Malformed, match="'call-7'"):
        Recorded().messages(attempt.calls[8])


def test_where_a_client_sent_some_thoughts_itself_the_others_are_named() -> None:
    attempt, talk = Attempt(), [user("0"), said("Yes", "r0"), user("1")]
    attempt.ask(talk[:1], said("Yes", "r0"))
    attempt.ask(talk, said("Yes", "r1"))
    left_out = [user("0"), said("Yes"), user("1"), said("Yes"), user("2")]
    assert attempt.thoughts(left_out) == [None, "r0", None, "r1", None]
    assert [one.by for one in attempt.calls[-1].rewrites] == [
        {"more": [[0, "call-0", 0], [1, "call-1", 0]]}
    ]
