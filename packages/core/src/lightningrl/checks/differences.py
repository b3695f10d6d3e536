"""Why a call does not continue an earlier one, in words, with the text that differs.

Invariant: pure, and by what was recorded alone: what the agent sent, and what the model had answered it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightningrl.conversation.differing import first_difference, name_of, shared
from lightningrl.conversation.history import Message, Recorded, answer_of
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.thoughts import KEYS
from lightningrl.conversation.said import Said, said_in, tools_of
from lightningrl.schema import CallEvent


class Difference(NamedTuple):
    """What keeps two conversations apart."""

    words: str
    remedy: str


_HOLD_STILL = (
    "keep what comes early in the prompt equal over a rollout: take clocks, ids and counters out of it, or"
    " move them to its end"
)
_SEND_BACK = (
    "send the model's answer back as it was, its spacing and its tool calls' arguments included"
)


def difference(calls: Sequence[CallEvent], index: int) -> Difference | None:
    """Why call `index` does not continue any call before it; `None` where it was not meant to.

    Meant to is one that holds an answer to one of the calls before, or more answers than the call that it is
    most like: examples in a prompt are answers as well, and are in both.

    Args:
        calls: an attempt's delivered calls, in order.
        index: of a call whose prompt continues none before it token by token.
    """
    found = _conversations(calls, index)
    if found is None:
        return None
    earlier, now = found
    said = [said_in(message) for message in now]
    spoken = [[*map(said_in, messages), said_in(answer)] for messages, answer in earlier]
    if not spoken:
        return None
    common = [shared(one, said) for one in spoken]
    place = max(range(len(spoken)), key=lambda one: (common[one], one))
    if not _is_meant(said, spoken, spoken[place][:-1]):
        return None
    messages, answer = earlier[place]
    tools = [tools_of(one) for one in (calls[place], calls[index])]
    if common[place] > len(messages):
        return _unseen(answer, now[len(messages)], same_tools=tools[0] == tools[1])
    return _seen(spoken[place], said, common[place])


def messages_in(call: CallEvent, recorded: Recorded | None = None) -> list[Message] | None:
    """What was asked. `None`: only calls that are not in `recorded` would tell, or it is no list of messages."""
    try:
        found: Any = (recorded or Recorded()).messages(call)
    except Malformed:
        return None
    # An engine may answer what is no message; whatever it is, nothing can be said of it here.
    return (
        found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else None
    )


def _conversations(
    calls: Sequence[CallEvent], index: int
) -> tuple[list[tuple[list[Message], Message]], list[Message]] | None:
    """Of each call before what was asked and answered; and what was asked in call `index`."""
    recorded = Recorded()
    earlier: list[tuple[list[Message], Message]] = []
    for call in calls[:index]:
        asked = messages_in(call, recorded)
        if asked is None:
            return None
        earlier.append((asked, answer_of(call)))
        recorded.add(call)
    now = messages_in(calls[index], recorded)
    return None if now is None else (earlier, now)


def _is_meant(said: Sequence[Said], spoken: Sequence[Sequence[Said]], like: Sequence[Said]) -> bool:
    if _answers(said) > _answers(like):
        return True
    given = {conversation[-1] for conversation in spoken}
    return any(one in given and one not in like for one in said)


def _answers(said: Sequence[Said]) -> int:
    return sum(one.role == "assistant" for one in said)


def _unseen(answer: Message, sent_back: Message, *, same_tools: bool) -> Difference:
    """The texts are the same, and yet the tokens are not."""
    if any(answer.get(key) for key in KEYS) and not any(map(sent_back.get, KEYS)):
        return Difference(
            "the client left the model's reasoning out of the answer that it sent back",
            "use a client that sends reasoning back (openai's Responses, anthropic's), or turn thinking off in"
            " the chat template: each turn shows the model an empty thought of its own",
        )
    if not same_tools:
        return Difference(
            "the tools that are offered differ", "offer the same tools, in the same order"
        )
    return Difference(
        "the messages are equal, so the chat template or the tool parser renders the earlier answer otherwise"
        " than it was sampled",
        "use a chat template that keeps earlier answers as they were, thoughts included, and the tool parser of"
        " the model's own form",
    )


def _seen(earlier: Sequence[Said], now: Sequence[Said], place: int) -> Difference:
    """Message `place` is the first that differs."""
    if place == len(now):
        return Difference(
            f"the request ends after message {place}, within the earlier conversation",
            "keep the history whole; shortening it is right only where it grows too long",
        )
    then, sent = earlier[place], now[place]
    is_answer = place == len(earlier) - 1
    if is_answer and sent.role != then.role:
        return Difference(
            f"the model's answer is missing: where it was, message {place + 1} is of the {sent.role}",
            _SEND_BACK,
        )
    name = "the answer that was sent back" if is_answer else name_of(then, place)
    remedy = _SEND_BACK if is_answer else _HOLD_STILL
    if then.role != sent.role:
        return Difference(f"{name} was of the {then.role} and is of the {sent.role}", remedy)
    if then.text != sent.text:
        line, before, after = first_difference(then.text, sent.text)
        return Difference(f"line {line} of {name} differs: {before!r} became {after!r}", remedy)
    calls = [json.dumps(one.tool_calls, ensure_ascii=False) for one in (then, sent)]
    _, before, after = first_difference(*calls)
    return Difference(f"a tool call in {name} differs: {before!r} became {after!r}", remedy)
