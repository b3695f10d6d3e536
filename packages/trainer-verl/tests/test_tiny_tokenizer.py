"""The tiny tokenizer loses nothing, and its chat template only ever appends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightningrl.errors import ConfigError
from lightningrl_verl.tiny import build_tokenizer
from lightningrl_verl.tiny.tokenizer import CHARACTERS

TOKENIZER = build_tokenizer(
    (" tom", " has", " pens", " apples", " how", " many", " now"), context=64
)

Messages = list[dict[str, Any]]


def _tool(name: str, *arguments: str) -> dict[str, Any]:
    properties = {argument: {"type": "string"} for argument in arguments}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CALCULATOR = _tool("calculator", "expression")


def _call(arguments: object, name: str = "calculator", content: object = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    call = {"id": "call-1", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _result(content: object) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call-1", "content": content}


def _prompt(messages: Messages, *tools: dict[str, Any]) -> str:
    return TOKENIZER.apply_chat_template(
        messages, tools=list(tools) or None, add_generation_prompt=True, tokenize=False
    )


def _prompt_ids(messages: Messages, *tools: dict[str, Any]) -> list[int]:
    encoded = TOKENIZER.apply_chat_template(
        messages, tools=list(tools) or None, add_generation_prompt=True, return_dict=True
    )
    return encoded["input_ids"]


def test_whole_words_take_one_token_and_digits_one_each() -> None:
    assert TOKENIZER.tokenize(" tom has 42 apples.") == [
        " tom",
        " has",
        " ",
        "4",
        "2",
        " apples",
        ".",
    ]


def test_a_word_that_is_not_known_falls_back_to_its_longest_pieces() -> None:
    tokenizer = build_tokenizer((" ba", "du", " badu"), context=32)
    assert tokenizer.tokenize(" baduk badudu") == [" badu", "k", " badu", "du"]


def test_all_ascii_text_survives_in_one_piece() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(CHARACTERS, add_special_tokens=False)) == CHARACTERS
    assert TOKENIZER.unk_token_id not in TOKENIZER.encode(CHARACTERS)


def test_a_character_that_is_not_known_costs_one_unknown_token_and_no_more() -> None:
    assert TOKENIZER.tokenize(" tom é日") == [" tom", " ", "<unk>", "<unk>"]


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": "tom has 3 pens"},
        _call({"expression": "3+4"}),
        _result("7"),
    ]
    text = _prompt(messages)
    assert loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_token, loaded.pad_token, loaded.unk_token) == ("<end>", "<pad>", "<unk>")
    assert loaded.eos_token_id == TOKENIZER.eos_token_id
    assert len(loaded) == len(TOKENIZER)


def test_the_template_leaves_out_system_text_and_tool_declarations() -> None:
    messages = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "hi tom"}]
    assert _prompt(messages, CALCULATOR) == "<user> hi tom<asst>"


def test_the_template_renders_a_whole_conversation() -> None:
    messages = [
        {"role": "user", "content": "how many?"},
        _call({"expression": "3*4"}),
        _result("12"),
        {"role": "assistant", "content": "12"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and"}, {"type": "text", "text": " now?"}],
        },
    ]
    assert _prompt(messages, CALCULATOR) == (
        "<user> how many?<asst><call>3*4<end><tool>12<asst><ans>12<end><user> and now?<asst>"
    )


@pytest.mark.parametrize(
    ("sampled", "message"),
    [
        ("<ans>12<end>", {"role": "assistant", "content": "12"}),
        ("<ans><end>", {"role": "assistant", "content": ""}),
        ("<call>1+1<end>", _call({"expression": "1+1"})),
        ("<call>1+1<end>", _call({"expression": "1+1"}, content="")),
        ("<ans>so<call>1+1<end>", _call({"expression": "1+1"}, content="so")),
        (
            "<ans>so<call>1+1<end>",
            _call({"expression": "1+1"}, content=[{"type": "text", "text": "so"}]),
        ),
        ("<call> 1 +1 <end>", _call({"expression": " 1 +1 "})),
        ("<call>1+<end>", _call("1+")),
    ],
)
def test_every_kind_of_answer_is_rendered_as_it_was_sampled(
    sampled: str, message: dict[str, Any]
) -> None:
    messages: Messages = [{"role": "user", "content": "how many?"}]
    before = _prompt(messages, CALCULATOR)
    follow_up = _result("2") if "tool_calls" in message else {"role": "user", "content": "sure?"}
    assert _prompt([*messages, message, follow_up], CALCULATOR).startswith(before + sampled)


def test_with_several_tools_a_call_names_its_tool_and_with_several_arguments_it_is_json() -> None:
    search = _tool("search", "query", "site")
    call = _call({"query": "pens", "site": "shop"}, name="search")
    messages: Messages = [{"role": "user", "content": "find"}, call]
    assert "<call>search {" in _prompt(messages, CALCULATOR, search)
    rendered = _prompt(messages, search).split("<call>")[1].split("<end>")[0]
    assert json.loads(rendered) == {"query": "pens", "site": "shop"}


def test_pieces_that_can_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"word pieces \['a1'\] must be letters"):
        build_tokenizer(("a1",), context=8)
    with pytest.raises(ConfigError, match="stands twice"):
        build_tokenizer((" pen", " pen"), context=8)
