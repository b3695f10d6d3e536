"""Demonstrations are read whole, or refused by the place and the name of what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import WarmStart
from lightningrl_verl.supervised.demonstrations import Demonstration, read_demonstrations

KEY = "policies.policy.warm_start"
ASK = {"role": "user", "content": "2 + 2?"}
SAY = {"role": "assistant", "content": "4"}


def _read(source: str, folder: Path, **settings: Any) -> list[Demonstration]:
    warm_start = WarmStart(demonstrations=source, learning_rate=1e-4, **settings)
    return read_demonstrations(warm_start, folder=folder, key=KEY)


def _file(folder: Path, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "dialogues.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "dialogues.jsonl"


def test_each_line_is_a_dialogue_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    source = _file(
        tmp_path,
        {"messages": [ASK, SAY]},
        "",
        {"messages": [ASK, {**SAY, "weight": 0}], "tools": tools, "id": "b", "metadata": {"x": 1}},
    )
    first, second = _read(source, tmp_path)
    assert (first.key, first.messages, first.tools) == ("0", (ASK, SAY), ())
    assert (second.key, second.tools) == ("b", tuple(tools))
    assert first.place.endswith("dialogues.jsonl:1")
    assert second.place.endswith("dialogues.jsonl:3")
    assert len(_read(source, tmp_path, limit=1)) == 1


def test_a_function_is_given_the_recipes_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "def dialogues(count):\n"
        "    say = {'role': 'assistant', 'content': '4'}\n"
        "    return [{'messages': [{'role': 'user', 'content': str(n)}, say]} for n in range(count)]\n"
    )
    (tmp_path / "shown_by_function.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = _read("shown_by_function:dialogues", tmp_path, args={"count": 3})
    assert [one.messages[0]["content"] for one in found] == ["0", "1", "2"]
    with pytest.raises(ConfigError, match=r"warm_start\.args.*Did you mean 'count'"):
        _read("shown_by_function:dialogues", tmp_path, args={"counts": 3})


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{not json", r"jsonl:2: not JSON"),
        ("[1]", r"jsonl:2: a row is a JSON object"),
        ({"messages": [ASK]}, r"jsonl:2: no message is of the role 'assistant'"),
        ({"messages": [SAY, ASK]}, r"jsonl:2: begins with the assistant"),
        ({"messages": []}, r"jsonl:2: 'messages' must be a list of objects"),
        ({"messages": ["hi"]}, r"jsonl:2: 'messages' must hold objects, not 'hi'"),
        ({"dialogue": []}, r"jsonl:2: unknown key 'dialogue'"),
        ({"messages": [ASK, SAY], "tool": []}, r"unknown key 'tool'. Did you mean 'tools'"),
        (
            {"messages": [ASK, {"role": "asistant", "content": "4"}]},
            r"jsonl:2: messages\[1\]: unknown role 'asistant'. Did you mean 'assistant'",
        ),
        ({"messages": [{"role": "user"}, SAY]}, r"messages\[0\]: .* needs 'content'"),
        (
            {"messages": [ASK, {"role": "assistant"}]},
            r"messages\[1\]: .* 'content' or 'tool_calls'",
        ),
        ({"messages": [ASK, {**SAY, "weight": 2}]}, r"messages\[1\]: 'weight' is 0 or 1, not 2"),
        ({"messages": [{**ASK, "weight": 0}, SAY]}, r"messages\[0\]: only an assistant"),
        (
            {"messages": [ASK, {"role": "assistant", "function_call": {}, "content": "x"}]},
            r"write 'function_call' as 'tool_calls'",
        ),
        ({"messages": [ASK, SAY], "tools": {"name": "x"}}, r"'tools' must be a list"),
    ],
)
def test_a_malformed_dialogue_is_refused_by_its_place(
    tmp_path: Path, row: Any, complaint: str
) -> None:
    source = _file(tmp_path, {"messages": [ASK, SAY]}, row)
    with pytest.raises(ConfigError, match=complaint):
        _read(source, tmp_path)


def test_a_source_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{KEY}: can't read .*missing\.jsonl"):
        _read("missing.jsonl", tmp_path)
    with pytest.raises(ConfigError, match=r"'dialogues\.jsonl' has no dialogues"):
        _read(_file(tmp_path, ""), tmp_path)
