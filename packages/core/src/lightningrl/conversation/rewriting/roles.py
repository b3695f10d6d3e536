"""Roles and places: what a chat template does not read is given a role and a place that it reads.

Invariant: no text is dropped, and none is moved past a message of another kind: instructions that begin a
conversation may become one message, later ones stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lightningrl.conversation.malformed import Malformed, wrong_type
from lightningrl.conversation.rewriting.fields import (
    Fields,
    content_of,
    messages_of,
    opened,
    raw,
    roles_of,
    with_messages,
)
from lightningrl.schema import RewriteRules

INSTRUCTIONS = frozenset({"system", "developer"})
TURNS = ("user", "assistant", "tool")
OTHER = "other"
"""The place of a message of any other role."""


def beginning(roles: Sequence[str]) -> int:
    """How many messages of instructions a conversation begins with."""
    return next((place for place, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))


def places(roles: Sequence[str]) -> list[str]:
    """Where each message stands, as `RewriteRules.lost` names it.

    `user`, `assistant`, `tool`, `other`; of instructions the role, and ` second` after others that begin
    the conversation, ` later` after its beginning, ` alone` where nothing else follows.
    """
    lead = beginning(roles)
    return [_place(role, index, lead, len(roles)) for index, role in enumerate(roles)]


def _place(role: str, index: int, lead: int, count: int) -> str:
    if role not in INSTRUCTIONS:
        return role if role in TURNS else OTHER
    if index >= lead:
        return f"{role} later"
    if index:
        return f"{role} second"
    return f"{role} alone" if count == 1 else role


# -- decided from the roles alone --------------------------------------------------------------


def renamed(roles: list[str], rules: RewriteRules) -> dict[str, str]:
    """The roles in use that get another one."""
    return {role: rules.roles[role] for role in dict.fromkeys(roles) if role in rules.roles}


def is_merged(roles: Sequence[str], rules: RewriteRules) -> bool:
    """Whether the instructions at the beginning become one message."""
    return rules.merge_instructions and beginning(roles) > 1


def is_alone(roles: Sequence[str], rules: RewriteRules) -> bool:
    """Whether the last of the instructions at the beginning becomes the user's message."""
    lead = beginning(roles)
    return rules.alone_as_user and lead > 0 and roles[lead : lead + 1] != ["user"]


def has_later(roles: Sequence[str], rules: RewriteRules) -> bool:
    """Whether there are instructions after the beginning that become a user's."""
    return rules.later_as_user and any(role in INSTRUCTIONS for role in roles[beginning(roles) :])


def refuse_lost(roles: Sequence[str], lost: Sequence[str]) -> None:
    """Refuse what the template would leave out; `roles` are those of the request as the engine gets it.

    Raises:
        Malformed: names the first such message.
    """
    for index, place in enumerate(places(roles)):
        if place in lost:
            where = f"messages[{index}].role"
            raise Malformed(
                f"'{where}': the chat template of this model leaves out a message of role"
                f" '{roles[index]}' at this place ({place}), so the model would never read it. Send it in"
                " another role, or give the policy a template that has a place for it.",
                param=where,
                code="unsupported_value",
            )


# -- done to roles, and to messages ------------------------------------------------------------


def with_roles(fields: Fields, names: Mapping[str, str]) -> Fields:
    """The messages of some roles get others."""
    roles = roles_of(fields) or []
    return _with_new_roles(fields, [names.get(role, role) for role in roles], roles)


def with_one_instruction(fields: Fields, by: Any = None) -> Fields:
    """The instructions at the beginning as one message, of the first one's role, texts two lines apart."""
    del by
    messages = messages_of(fields)
    lead = beginning(roles_of(fields) or [])
    read = [opened(message, place) for place, message in enumerate(messages[:lead])]
    contents = [content_of(message, place) for place, message in enumerate(read)]
    one = {**read[0], "content": raw(_joined(contents))}
    return with_messages(fields, [raw(one), *messages[lead:]])


def with_user_alone(fields: Fields, by: Any = None) -> Fields:
    """The last of the instructions at the beginning as the user's."""
    del by
    roles = roles_of(fields) or []
    return _with_new_roles(fields, alone_as_user(roles), roles)


def with_user_later(fields: Fields, by: Any = None) -> Fields:
    """The instructions after the beginning as the user's."""
    del by
    roles = roles_of(fields) or []
    return _with_new_roles(fields, later_as_user(roles), roles)


def alone_as_user(roles: Sequence[str]) -> list[str]:
    """The roles where the last of the instructions at the beginning becomes the user's."""
    lead = beginning(roles)
    return [*roles[: lead - 1], "user", *roles[lead:]]


def later_as_user(roles: Sequence[str]) -> list[str]:
    """The roles where instructions after the beginning become the user's."""
    lead = beginning(roles)
    return [*roles[:lead], *("user" if one in INSTRUCTIONS else one for one in roles[lead:])]


def _with_new_roles(fields: Fields, new: Sequence[str], old: Sequence[str]) -> Fields:
    messages = [
        message if role == former else _with_role(message, role, place)
        for place, (message, role, former) in enumerate(
            zip(messages_of(fields), new, old, strict=True)
        )
    ]
    return with_messages(fields, messages)


def _with_role(message: msgspec.Raw, role: str, place: int) -> msgspec.Raw:
    return raw({**opened(message, place), "role": raw(role)})


def _joined(contents: Sequence[Any]) -> Any:
    """One content that says all: a text where all are texts, else parts."""
    said = [one for one in contents if one not in (None, "", [])]
    if all(isinstance(one, str) for one in said):
        return "\n\n".join(said)
    parts: list[Any] = []
    for place, one in enumerate(said):
        if isinstance(one, str):
            parts.append({"type": "text", "text": one})
        elif isinstance(one, list):
            parts += one
        else:
            raise wrong_type(one, "a string or an array of objects", f"messages[{place}].content")
    return parts
