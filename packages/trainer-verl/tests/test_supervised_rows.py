"""Dialogues become the rows that RL would have made of them, and what is left out is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe_model import write_bpe_model
from transformers import AutoTokenizer

from lightningrl.errors import ConfigError, NothingTrainable
from lightningrl.experience.drift import total
from lightningrl_verl.supervised.course import material
from lightningrl_verl.supervised.demonstrations import Demonstration
from lightningrl_verl.supervised.rows import TOO_LONG, WEIGHTLESS, Example, example_of
from lightningrl_verl.supervised.scribe import Scribe, UnfitError
from lightningrl_verl.tiny import build_tokenizer

TOKENIZER = build_tokenizer((" tom", " has", " pens"), context=64)
_PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}}
CALCULATOR = {"type": "function", "function": {"name": "calc", "parameters": _PARAMETERS}}

ASK = {"role": "user", "content": "tom has 3 pens"}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "7"}
SAY = {"role": "assistant", "content": "7"}


def _call(expression: str, **more: Any) -> dict[str, Any]:
    function = {"name": "calc", "arguments": json.dumps({"expression": expression})}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def _example(*messages: dict[str, Any], longest: int = 64, key: str = "a") -> Example:
    demonstration = Demonstration("dialogues.jsonl:1", key, messages, (CALCULATOR,))
    return example_of(demonstration, Scribe(TOKENIZER, "compact"), alias="policy", longest=longest)


def _trained(example: Example) -> list[str]:
    return [TOKENIZER.decode(row.token_ids[row.mask]) for row in example.rows]


def test_a_dialogue_is_one_row_whose_answers_are_trained_with_their_end_tokens() -> None:
    example = _example(ASK, _call("3+4"), RESULT, SAY)
    (row,) = example.rows
    assert TOKENIZER.decode(row.token_ids) == (
        "<user> tom has 3 pens<asst><call>3+4<end><tool>7<asst><ans>7<end>"
    )
    assert _trained(example) == ["<call>3+4<end><ans>7<end>"]
    assert len(row.spans) == 2
    assert not row.logprobs.any()
    drift = example.drift
    # <call> 3 + 4 <end> and <ans> 7 <end>: 5 + 3 tokens, none of which an engine sampled.
    assert (drift.sampled, drift.masked, drift.dropped, drift.rendered) == (8, 0, 0, 8)
    assert (drift.continued, drift.continuing, drift.breaks) == (1, 1, ())


def test_an_answer_of_weight_0_is_context() -> None:
    example = _example(ASK, _call("3-4", weight=0), RESULT, _call("3+4"), RESULT, SAY)
    assert _trained(example) == ["<call>3+4<end><ans>7<end>"]
    assert "<call>3-4<end>" in TOKENIZER.decode(example.rows[0].token_ids)
    assert example.left_out == {WEIGHTLESS: 1}
    assert example.drift.masked == 5


def test_answers_beyond_max_model_len_are_left_out_and_counted() -> None:
    whole = _example(ASK, _call("3+4"), RESULT, SAY)
    longest = len(whole.rows[0].token_ids) - 1
    example = _example(ASK, _call("3+4"), RESULT, SAY, longest=longest)
    assert _trained(example) == ["<call>3+4<end>"]
    assert example.left_out == {TOO_LONG: 1}
    assert example.drift.dropped == 3
    with pytest.raises(NothingTrainable, match=f"no answer may be trained: 2 x {TOO_LONG}"):
        material([_example(ASK, _call("3+4"), RESULT, SAY, longest=5)], 0.1, seed=0)


def test_an_answer_whose_next_prompt_differs_begins_a_row_of_its_own_and_is_told() -> None:
    # The template writes nothing of the content where there are tool calls beside it.
    spoken = Demonstration("d:1", "a", (ASK, SAY, ASK, SAY), ())
    scribe = Scribe(TOKENIZER, "none")  # writes "7<end>", where the template writes "<ans>7<end>"
    example = example_of(spoken, scribe, alias="policy", longest=64)
    assert [len(row.spans) for row in example.rows] == [1, 1]
    assert [one.cause for one in example.drift.breaks] == ["retokenised"]
    assert "answers that continue no row: 1 x retokenised" in material([example], 0, seed=0).told()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"role": "assistant", "content": "7<end>8"}, "holds the end token"),
        ({"role": "assistant", "content": "\u00e9"}, "does not know"),
        (_call("3", tool_calls=[{"function": {"name": "calc", "arguments": "{"}}]), "malformed"),
        ({**_call("3"), "content": "so"}, "has no text for this message"),
        (
            _call(
                "3", tool_calls=[{"function": {"name": "calk", "arguments": '{"expression": "3"}'}}]
            ),
            "has no text for this message",
        ),
    ],
)
def test_an_answer_that_the_policy_can_not_give_is_refused_by_its_place(
    answer: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=rf"dialogues\.jsonl:1: messages\[1\]: .*{complaint}"):
        _example(ASK, answer)


def test_a_policy_without_a_template_is_refused() -> None:
    bare = build_tokenizer((" tom",), context=64)
    bare.chat_template = None
    with pytest.raises(UnfitError, match="no chat template"):
        Scribe(bare, "compact")


def test_dialogues_of_one_key_are_held_out_together() -> None:
    asked = [{"role": "user", "content": str(number)} for number in range(20)]
    examples = [_example(one, SAY, key=str(n // 2)) for n, one in enumerate(asked)]
    found = material(examples, 0.3, seed=1)
    held_out = {one.key for one in found.held_out}
    assert len(held_out) == 3  # of 10 keys
    assert len(found.held_out) == 6
    assert held_out.isdisjoint(one.key for one in found.train)
    assert total(found.drift).trained == 20 * 3
    again = material(examples, 0.3, seed=1)
    other = material(examples, 0.3, seed=2)
    assert found.digest() == again.digest()
    assert found.digest() != other.digest()


def test_something_is_always_trained_and_something_held_out_where_it_can_be() -> None:
    examples = [_example(ASK, SAY, key=str(number)) for number in range(3)]
    assert [len(material(examples[:n], 0.1, seed=0).held_out) for n in (1, 2, 3)] == [0, 1, 1]
    assert len(material(examples, 1.0, seed=0).train) == 1
    assert material(examples, 0.0, seed=0).held_out == ()


def test_the_digest_knows_the_masks() -> None:
    plain = material([_example(ASK, _call("3+4"), RESULT, SAY)], 0, seed=0)
    weighted = material([_example(ASK, _call("3+4", weight=0), RESULT, SAY)], 0, seed=0)
    (one,), (two,) = plain.train[0].rows, weighted.train[0].rows
    assert np.array_equal(one.token_ids, two.token_ids)
    assert plain.digest() != weighted.digest()


# As published templates of the Hermes form write it: a line end before each call, JSON with spaces.
_HERMES = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{ '<|im_start|>assistant' }}"
    "{%- if message.content -%}{{ '\\n' ~ message.content }}{%- endif -%}"
    "{%- for call in message.tool_calls or [] -%}"
    '{{ \'\\n<tool_call>\\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}"
    "{%- endfor -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- else -%}"
    "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def test_hermes_calls_merge_with_the_template_of_their_models(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_bpe_model(tmp_path))
    tokenizer.chat_template = _HERMES
    call = {"id": "c", "type": "function", "function": {"name": "calc", "arguments": '{"x":1}'}}
    turns = (
        ASK,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        RESULT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        RESULT,
        SAY,
    )
    example = example_of(
        Demonstration("d:1", "a", turns, (CALCULATOR,)),
        Scribe(tokenizer, "hermes"),
        alias="policy",
        longest=1000,
    )
    assert example.drift.breaks == ()
    (row,) = example.rows
    one = '<tool_call>\n{"name": "calc", "arguments": {"x": 1}}\n</tool_call>'
    assert tokenizer.decode(row.token_ids[row.mask]) == (
        f"Let me see.\n{one}\n{one}<|im_end|>{one}<|im_end|>7<|im_end|>"
    )
