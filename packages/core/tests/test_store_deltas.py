"""Calls as what their base lacks: an answer is not stored again in the request that repeats it."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from lightningrl.schema import AttemptId, CallEvent
from lightningrl.store.deltas import head_of, restore, shorten, with_answer, without_answer
from lightningrl_testkit.records import call

pieces = st.binary(max_size=80)


@given(before=pieces, answer=st.binary(max_size=200), after=pieces, cut=st.integers(0, 60))
@example(before=b"\0", answer=b"", after=b"", cut=0)
@example(before=b"\0" * 20, answer=b"x" * 100, after=b"\0", cut=0)
def test_what_was_cut_out_comes_back(before: bytes, answer: bytes, after: bytes, cut: int) -> None:
    text = before + answer[cut:] + after
    assert with_answer(without_answer(text, answer), answer) == text


def test_an_answer_in_another_frame_is_found() -> None:
    said = random.Random(1).randbytes(500)
    short = without_answer(
        b'{"role": "assistant", "content": "' + said + b'"}', b'{"content":"' + said + b'"}'
    )
    # What stays is the frame of 36 bytes, less the `"` and `"}` that both have, and 13 that say where.
    assert len(short) <= 36 + 13
    assert said[:16] not in short


def test_a_call_and_its_base_give_the_call_back() -> None:
    said = "some words that were said, and more of them, and a few more"
    message = b'{"role":"assistant","content":"' + said.encode() + b'"}'
    asked = b'{"messages":[{"role":"user","content":"' + b"What is it? " * 10 + b'"}'
    first = _answered(call(AttemptId("a"), "1", request=asked + b"]}"), message)
    repeated = b"," + message.replace(b":", b": ") + b"]}"
    second = call(AttemptId("a"), "2", request=asked + repeated)
    base = head_of(1, first)
    short, shared = shorten(second, [base])
    assert shared is not None
    assert said.encode() not in short.request
    assert restore(short, shared, base) == second


def _answered(event: CallEvent, message: bytes) -> CallEvent:
    choice = replace(event.choices[0], message=message)
    return replace(event, choices=(choice,))
