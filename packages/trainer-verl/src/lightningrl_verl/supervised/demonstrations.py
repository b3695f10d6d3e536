"""Demonstrations: chat dialogues as a recipe's `warm_start` names them, read and checked.

Invariant: every message has a known role and what its role needs, and a dialogue at least one answer of the assistant;
else reading raises a `ConfigError` that names the file and line, or the function and row. No torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightningrl.errors import ConfigError
from lightningrl.recipe import DataSource, WarmStart
from lightningrl.tasks import read_rows
from lightningrl.user_input.names import suggest

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Those of OpenAI's chat completions; which of them a model knows its template says."""

_KEYS = ("messages", "tools", "id", "metadata")
"""Of a row. `metadata` is the user's own."""


@dataclass(frozen=True)
class Demonstration:
    """One dialogue."""

    place: str
    """Where it stands, for messages."""
    key: str
    """Those of one key are held out together: dialogues about one task, rollouts of one."""
    messages: tuple[Message, ...]
    """OpenAI's chat form; an assistant's `weight: 0` says that it is context and no example."""
    tools: tuple[dict[str, Any], ...]
    """That the assistant could call; OpenAI's form."""


def read_demonstrations(source: WarmStart, *, folder: Path, key: str) -> list[Demonstration]:
    """The dialogues of a file or function, in order.

    Args:
        source: names them; not a run.
        folder: the recipe's, which paths and modules are relative to.
        key: of the section, for messages.

    Raises:
        ConfigError: the source can't be read, has no dialogue, or one is malformed.
    """
    rows = DataSource(source=source.demonstrations, args=source.args, limit=source.limit)
    found = [
        _demonstration(row, place, number)
        for number, (place, row) in enumerate(read_rows(rows, folder=folder, key=key))
    ]
    if not found:
        raise ConfigError(f"{key}.demonstrations: {source.demonstrations!r} has no dialogues")
    return found


def _demonstration(row: Mapping[str, Any], place: str, number: int) -> Demonstration:
    for name in row:
        if name not in _KEYS:
            raise ConfigError(
                f"{place}: unknown key {name!r}.{suggest(name, _KEYS)} What is yours goes under 'metadata'"
            )
    messages = [
        _message(one, f"{place}: messages[{index}]")
        for index, one in enumerate(_objects(row.get("messages"), f"{place}: 'messages'"))
    ]
    if not any(message["role"] == "assistant" for message in messages):
        raise ConfigError(
            f"{place}: no message is of the role 'assistant', so there is nothing to imitate"
        )
    if messages[0]["role"] == "assistant":
        raise ConfigError(f"{place}: begins with the assistant, who answers nothing there")
    tools = _objects(row["tools"], f"{place}: 'tools'") if row.get("tools") else []
    return Demonstration(place, str(row.get("id", number)), tuple(messages), tuple(tools))


def _message(message: dict[str, Any], where: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise ConfigError(f"{where}: unknown role {role!r}.{suggest(str(role), ROLES)}")
    if role != "assistant":
        for name in ("tool_calls", "weight"):
            if message.get(name) is not None:
                raise ConfigError(f"{where}: only an assistant has {name!r}")
        if message.get("content") is None:
            raise ConfigError(f"{where}: a message of the role {role!r} needs 'content'")
        return message
    if message.get("function_call") is not None:
        raise ConfigError(f"{where}: write 'function_call' as 'tool_calls', which took its place")
    if message.get("content") is None and not message.get("tool_calls"):
        raise ConfigError(f"{where}: an assistant needs 'content' or 'tool_calls'")
    if message.get("weight") not in (None, 0, 1):
        raise ConfigError(f"{where}: 'weight' is 0 or 1, not {message['weight']!r}")
    return message


def _objects(given: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where} must be a list of objects that is not empty, not {given!r:.80}")
    items = cast("list[Any]", given)
    wrong = next((one for one in items if not isinstance(one, dict)), None)
    if wrong is not None:
        raise ConfigError(f"{where} must hold objects, not {wrong!r:.80}")
    return items
