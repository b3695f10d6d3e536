"""The benchmark's tiny policy speaks its texts exactly, over many turns of real chat messages."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest

from lightningrl_bench_math.policy import tiny_spec
from lightningrl_bench_math.tasks import Split, calculate, generate

tiny = pytest.importorskip("lightningrl_verl.tiny")

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPEC = tiny.TinySpec(**tiny_spec())
TOKENIZER = tiny.build_tokenizer(SPEC.words, context=SPEC.context)

PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": PARAMETERS}}]


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def _prompt_ids(messages: list[dict[str, Any]]) -> list[int]:
    return TOKENIZER.apply_chat_template(
        messages, tools=TOOLS, add_generation_prompt=True, return_dict=True
    )["input_ids"]


def _call(number: int, arguments: str) -> dict[str, Any]:
    """Return the assistant message of a client, its arguments parsed as an engine parses them."""
    function = {"name": "calculator", "arguments": json.loads(arguments)}
    call = {"id": f"call-{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_survives_and_its_words_take_one_token_each(split: Split) -> None:
    for row in generate(split, 200, 0):
        text = f"<user> {row['question']}<asst>"
        assert TOKENIZER.decode(_ids(text)) == text
        words = [word for word in row["question"].split() if word.isalpha()]
        assert len(_ids(" " + " ".join(words))) == len(words)


def test_every_demonstration_survives_and_its_segments_encode_apart_as_together() -> None:
    rng = random.Random(0)
    for _ in range(200):
        texts = [text for text, _ in SPEC.demonstration(rng)]
        whole = _ids("".join(texts))
        assert TOKENIZER.decode(whole) == "".join(texts)
        assert whole == [token for text in texts for token in _ids(text)]


@pytest.mark.parametrize("split", SPLITS)
def test_a_later_prompt_starts_with_the_earlier_one_and_its_answer(split: Split) -> None:
    for row in generate(split, 50, 1):
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "Use the calculator."},
            {"role": "user", "content": row["question"]},
        ]
        for number, (left, operator, right) in enumerate(row["steps"]):
            expression = f"{left}{operator}{right}"
            wanted = _prompt_ids(messages) + _ids(f"<call>{expression}<end>")
            result = str(calculate((left, operator, right)))
            messages += [
                _call(number, json.dumps({"expression": expression})),
                {"role": "tool", "tool_call_id": f"call-{number}", "content": result},
            ]
            assert _prompt_ids(messages)[: len(wanted)] == wanted


def test_the_longest_conversation_fits_the_context() -> None:
    rows = [row for split in SPLITS for row in generate(split, 400, 2)]
    longest = max(len(_ids(row["question"])) for row in rows)
    # Six rounds of the longest call and result that can occur, "123456%12" and "123456", and a frame.
    assert longest + 6 * len(_ids("<call>123456%12<end><tool>123456<asst>")) < SPEC.context


def test_the_spec_is_read_without_the_trainer() -> None:
    code = (
        "import sys; from lightningrl_bench_math.policy import tiny_spec; tiny_spec();"
        "sys.exit(any(name.split('.')[0] in ('torch', 'lightningrl_verl') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
