"""What a policy's chat template reads, found by texts that nobody would write, and the rules that follow.

A template is a program of the model's author: what it does with a role is seen from what it renders alone.
Done once, when a run starts; no call is checked.

Invariant: a rule is taken only if the template shows with it what it did not show without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec.json import decode
from msgspec.structs import replace

from lightningrl.conversation.rewriting import Rewriter
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.conversation.rewriting.roles import OTHER, places
from lightningrl.conversation.rewriting.thoughts import KEYS
from lightningrl.schema import Dialect, RewriteRules

Message = dict[str, Any]

_STRANGER = "narrator"
"""A role that no template has."""
_WORD = "zq{}sentinel"
"""What a message says whose fate is asked for; `{}` is its place in the conversation."""

SHOWN = "shown"
LEFT_OUT = "left out"


class Render(Protocol):
    """A policy's chat template, with its messages brought in form as its engine does."""

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message], variables: Mapping[str, Any]
    ) -> str:
        """The prompt's text.

        Args:
            messages: as chat completions have them.
            tools: as chat completions have them; may be empty.
            variables: further variables of the template.

        Raises:
            Exception: whatever the template raises where it refuses the messages.
        """
        ...


class Fate(NamedTuple):
    """What becomes of the messages at one place."""

    place: str
    """See `roles.places`."""
    as_it_is: str
    """`shown`, `left out`, or `refused: ` and the template's reason, without rewriting."""
    rewritten: str
    """The same with the rules that were found."""


class _Sample(NamedTuple):
    roles: tuple[str, ...]
    asked: tuple[int, ...]
    """Indices of the messages whose fate is asked for."""


_SAMPLES: dict[str, _Sample] = {
    "user": _Sample(("user",), (0,)),
    "assistant": _Sample(("user", "assistant", "user"), (1,)),
    "tool": _Sample(("user", "assistant", "tool"), (2,)),
    "system": _Sample(("system", "user"), (0,)),
    "system second": _Sample(("system", "system", "user"), (0, 1)),
    "system alone": _Sample(("system",), (0,)),
    "system later": _Sample(("system", "user", "assistant", "system", "user"), (0, 3)),
    "developer": _Sample(("developer", "user"), (0,)),
    "developer second": _Sample(("system", "developer", "user"), (0, 1)),
    "developer alone": _Sample(("developer",), (0,)),
    "developer later": _Sample(("system", "user", "assistant", "developer", "user"), (0, 3)),
    OTHER: _Sample(("user", "assistant", _STRANGER, "user"), (2,)),
}

_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
_CALL = {
    "id": "call00001",  # nine letters and digits, as Mistral's templates demand
    "type": "function",
    "function": {"name": "lookup", "arguments": '{"word": "sea"}'},
}

_PLACED = (
    ("merge_instructions", ("system second", "developer second")),
    ("alone_as_user", ("system alone", "developer alone")),
    ("later_as_user", ("system later", "developer later")),
)
"""Rules and the places that they are for."""


def rules_of(render: Render) -> RewriteRules:
    """The rules of a policy with this template; empty where it can't even render a user's message."""
    if _fate(render, RewriteRules(), "user") != SHOWN:
        return RewriteRules()
    rules = RewriteRules(thinks=_thinks(render), put_back=_reads_thoughts(render))
    if _fate(render, rules, "system") == SHOWN:
        if not _has_developer(render):
            rules = replace(rules, roles={"developer": "system"})
        for name, wanted in _PLACED:
            rules = _better(render, rules, replace(rules, **{name: True}), wanted)
    lost = {place for sample in _SAMPLES for place in _lost(render, rules, sample)}
    return replace(rules, lost=tuple(sorted(lost)))


def fates(render: Render) -> list[Fate]:
    """What becomes of a message at each place, as a table for people."""
    rules = rules_of(render)
    return [
        Fate(one, _fate(render, RewriteRules(), one), _fate(render, rules, one)) for one in _SAMPLES
    ]


def _better(
    render: Render, rules: RewriteRules, tried: RewriteRules, wanted: Sequence[str]
) -> RewriteRules:
    """`tried` if it shows what `rules` does not, else `rules`."""
    lacking = [one for one in wanted if _fate(render, rules, one) != SHOWN]
    return tried if any(_fate(render, tried, one) == SHOWN for one in lacking) else rules


def _has_developer(render: Render) -> bool:
    """Whether the template has the role itself, and does not write whatever role it is given."""
    if _fate(render, RewriteRules(), "developer") != SHOWN:
        return False
    own = _text(render, _conversation(("developer", "user")))
    try:
        strange = _text(render, _conversation((_STRANGER, "user")))
    except _Refused:
        return True
    return strange.replace(_STRANGER, "developer") != own


def _thinks(render: Render) -> bool:
    messages = _conversation(("user",))
    try:
        return _text(render, messages) != _text(render, messages, {"enable_thinking": False})
    except _Refused:
        return False


def _reads_thoughts(render: Render) -> bool:
    """Whether the reasoning of an answer within a tool loop is shown."""
    messages = _conversation(("user", "assistant", "tool"))
    word = _WORD.format(len(messages))
    messages[1] |= dict.fromkeys(KEYS, word)
    try:
        return word in _text(render, messages)
    except _Refused:
        return False


def _fate(render: Render, rules: RewriteRules, sample: str) -> str:
    try:
        return LEFT_OUT if _lost(render, rules, sample, silent=False) else SHOWN
    except _Refused as error:
        return f"refused: {error}"


def _lost(render: Render, rules: RewriteRules, sample: str, *, silent: bool = True) -> list[str]:
    """The places, after rewriting, of what the template leaves out; none where it refuses the conversation.

    Raises:
        _Refused: it does, and `silent` is False.
    """
    roles, asked = _SAMPLES[sample]
    messages = _rewritten(_conversation(roles), rules)
    try:
        text = _text(render, messages)
    except _Refused:
        if silent:
            return []
        raise
    found = places([one["role"] for one in messages])
    gone = [_WORD.format(index) for index in asked if _WORD.format(index) not in text]
    return [
        place
        for place, message in zip(found, messages, strict=True)
        if any(word in message["content"] for word in gone)
    ]


def _conversation(roles: Sequence[str]) -> list[Message]:
    """A message of each role, each with a word of its own."""
    messages: list[Message] = [
        {"role": role, "content": _WORD.format(place)} for place, role in enumerate(roles)
    ]
    for place, message in enumerate(messages[1:], start=1):
        if message["role"] == "tool":
            message["tool_call_id"] = _CALL["id"]
            messages[place - 1]["tool_calls"] = [_CALL]
    return messages


def _rewritten(messages: Sequence[Message], rules: RewriteRules) -> list[Message]:
    fields = raw_fields({"messages": list(messages)})
    # What is lost is what is asked for here.
    sent = Rewriter(replace(rules, lost=())).rewrite(fields, Dialect.CHAT).fields
    return decode(sent["messages"])


class _Refused(Exception):
    """The template refused a conversation; the message says why."""


def _text(
    render: Render, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
) -> str:
    tools = [_TOOL] if any(one["role"] == "tool" for one in messages) else []
    try:
        return render(messages, tools, variables or {})
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _Refused(reason) from error
