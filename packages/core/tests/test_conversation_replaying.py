"""A request that is made again is answered by the call that asked the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightningrl.conversation.replaying import Path, Trunk, arrived_at, kept
from lightningrl.conversation.rewriting.fields import Fields, raw_fields
from lightningrl.schema import (
    SAID,
    AttemptId,
    CallEvent,
    CallStatus,
    Cause,
    Diverged,
    EventId,
    ReplayOf,
    StepId,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path((), None)


def _body(*said: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": one} for one in said]}


def _call(index: int, body: dict[str, Any], path: Path = ROOT, **changed: Any) -> CallEvent:
    """Call `index` takes 0.9 s from `index` seconds on."""
    known: dict[str, Any] = {
        "id": EventId(f"call-{index}"),
        "attempt_id": AttemptId("att-1"),
        "at": START + timedelta(seconds=index + 0.9),
        "step_id": StepId(f"s-{index}"),
        "agent": path.agent,
        "within": path.within,
        "policy": "p",
        "model": "m",
        "endpoint": "",
        "version_start": 0,
        "version_end": 0,
        "request": json.dumps(body).encode(),
        "sampling": None,
        "prompt_ids": b"",
        "choices": (),
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "latency_ms": 900.0,
        "held_ms": 0.0,
        "upstream_retries": 0,
        "status": CallStatus.DELIVERED,
        "http_status": 200,
        "error": None,
    }
    return CallEvent(**{**known, **changed})


def _asked(body: dict[str, Any]) -> Fields:
    return raw_fields(body)


PATHS = st.sampled_from([ROOT, Path((), "a"), Path(("a",), "b")])
MADE = st.lists(st.tuples(PATHS, st.sampled_from("xyz")), max_size=12)


@given(MADE, st.randoms(use_true_random=False))
def test_each_call_answers_once_and_equal_ones_in_recorded_order(
    made: list[tuple[Path, str]], random: Any
) -> None:
    calls = [_call(index, _body(said), path) for index, (path, said) in enumerate(made)]
    trunk = Trunk(calls)
    again = random.sample(made, len(made))
    given_ids: dict[tuple[Path, str], list[str]] = {}
    for index, (path, said) in enumerate(again):
        asked = _asked({**_body(said), "stream": True})
        found = trunk.answer(path, asked, StepId(f"now-{index}"))
        assert isinstance(found, CallEvent)
        given_ids.setdefault((path, said), []).append(found.id)
    for key, ids in given_ids.items():
        assert ids == [call.id for call, one in zip(calls, made, strict=True) if one == key]
    assert trunk.left() == 0
    assert trunk.answer(ROOT, _asked(_body("x")), StepId("more")) is None


@given(st.integers(0, 9))
def test_a_trunk_is_what_was_recorded_before_the_step_arrived(step: int) -> None:
    calls = [_call(index, _body(*"abcdefghij"[: index + 1])) for index in range(10)]
    trunk = Trunk(calls, before=arrived_at(calls, StepId(f"s-{step}")))
    assert trunk.left() == step
    for call in calls[:step]:
        assert trunk.answer(ROOT, _asked(json.loads(call.request)), call.step_id) == call
    assert trunk.answer(ROOT, _asked(json.loads(calls[step].request)), StepId("now")) is None


def test_a_step_that_asks_again_gets_its_answer_again_and_another_step_does_not() -> None:
    trunk, asked = Trunk([_call(0, _body("x"))], whole=True), _asked(_body("x"))
    answered = {ReplayOf(AttemptId("att-1"), EventId("call-0")): StepId("now")}
    for told in ({}, answered):  # under way, then recorded
        first = trunk.answer(ROOT, asked, StepId("now"), answered=told)
        assert isinstance(first, CallEvent)
        assert first.id == "call-0"
        more = trunk.answer(ROOT, asked, StepId("next"), answered=told)
        assert isinstance(more, Diverged)
        assert more.cause is Cause.MORE
    trunk.release(first)
    assert trunk.left() == 1
    assert trunk.left(answered) == 0


def test_of_a_step_that_was_sent_twice_the_last_answer_counts() -> None:
    calls = [_call(index, _body("x"), step_id=StepId("s-0")) for index in range(2)]
    trunk = Trunk(calls)
    assert trunk.left() == 1
    assert trunk.answer(ROOT, _asked(_body("x")), StepId("now")) == calls[1]


def test_what_a_person_says_answers_the_step_and_is_not_trained() -> None:
    calls = [_call(index, _body(*"ab"[: index + 1])) for index in range(2)]
    say = StepId("s-1"), {"content": "no"}
    trunk = Trunk(calls, before=arrived_at(calls, StepId("s-1")), say=say)
    found = trunk.answer(ROOT, _asked(_body("a", "b")), StepId("now"))
    assert isinstance(found, CallEvent)
    assert json.loads(found.choices[0].message) == {"role": "assistant", "content": "no"}
    assert found.choices[0].untrainable == SAID


# -- attempts of one rollout ------------------------------------------------------------------------


def _again(calls: list[CallEvent], attempt: int, *, new: int = 0) -> list[CallEvent]:
    """An attempt that was given these answers, and then got `new` ones."""
    copies = [
        msgspec.structs.replace(
            call,
            attempt_id=AttemptId(f"att-{attempt}"),
            id=EventId(f"copy-{attempt}-{call.id}"),
            replay_of=call.replay_of or ReplayOf(call.attempt_id, call.id),
        )
        for call in calls
    ]
    own: dict[str, Any] = {"attempt_id": AttemptId(f"att-{attempt}")}
    return [*copies, *(_call(len(copies) + index, _body("n"), **own) for index in range(new))]


def test_an_attempt_is_given_the_most_that_a_broken_one_had_got() -> None:
    first = [_call(index, _body("x")) for index in range(3)]
    early = _again(first[:1], 2)  # broke while it was given the first answer again
    failed = _call(3, _body("y"), status=CallStatus.FAILED, error="away", choices=())
    assert kept([], lambda _: True) == []
    assert kept([[*first, failed]], lambda _: True) == first
    assert kept([first, early], lambda _: True) == first
    more = _again(first, 2, new=1)
    assert kept([first, more], lambda _: True) == more


def test_the_answer_that_two_attempts_broke_after_is_sampled_anew() -> None:
    first = [_call(index, _body("x")) for index in range(3)]
    second = _again(first, 2)
    assert kept([first, second], lambda _: True) == second[:2]
    third = _again(second[:2], 3, new=1)
    assert kept([first, second, third], lambda _: True) == third, "a new answer may be innocent"
    fourth = _again(third, 4)
    assert kept([first, second, third, fourth], lambda _: True) == fourth[:2]


def test_what_is_too_old_and_all_after_it_is_sampled_anew() -> None:
    calls = [_call(index, _body("x"), version_start=one) for index, one in enumerate((2, 1, 2))]
    assert kept([calls], lambda one: one.version_start == 2) == calls[:1]


# -- divergence -------------------------------------------------------------------------------------


def _with_output(output: str, *others: str) -> dict[str, Any]:
    calls = [
        {"id": f"id-{one}", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        for one in (output, *others)
    ]
    tools = [{"role": "tool", "tool_call_id": "id", "content": one} for one in (output, *others)]
    asking = {"role": "assistant", "tool_calls": calls if others else [{**calls[0], "id": "id"}]}
    return {"model": "m", "messages": [{"role": "user", "content": "when?"}, asking, *tools]}


@pytest.mark.parametrize(
    ("then", "now", "cause"),
    [
        ("it is 10:00 now", "it is 10:01 now", Cause.TIME),
        ("id 0f8b2c1d9e", "id 7ac01b22ff", Cause.RANDOMNESS),
        ("3 letters", "4 letters", Cause.SIDE_EFFECT),
    ],
)
def test_another_output_of_a_tool_diverges_by_its_name(then: str, now: str, cause: Cause) -> None:
    trunk = Trunk([_call(0, _with_output(then))])
    found = trunk.answer(ROOT, _asked(_with_output(now)), StepId("now"))
    assert isinstance(found, Diverged)
    assert (found.cause, found.tool, found.nearest) == (cause, "clock", "call-0")
    assert "message 3 (tool), the output of tool 'clock', differs" in found.difference
    assert trunk.left() == 1, "what diverged used up nothing"


def test_outputs_in_another_order_diverge_by_their_order() -> None:
    trunk = Trunk([_call(0, _body("a", "b", "c"))])
    found = trunk.answer(ROOT, _asked(_body("a", "c", "b")), StepId("now"))
    assert isinstance(found, Diverged)
    assert found.cause is Cause.ORDER
    assert found.difference == "line 1 of message 2 (user) differs: 'b' became 'c'"


def test_other_fields_and_lengths_and_agents_diverge() -> None:
    trunk = Trunk([_call(0, _body("x"))])
    told: list[str] = []
    for path, body in (
        (ROOT, {**_body("x"), "temperature": 1}),
        (ROOT, _body("x", "y")),
        (Path((), "other"), _body("x")),
    ):
        found = trunk.answer(path, _asked(body), StepId("now"))
        assert isinstance(found, Diverged)
        told.append(found.difference)
    assert told == [
        "'temperature' differ",
        "the request has 2 messages and was recorded with 1",
        "this agent has no recorded call left, and others have",
    ]


def test_a_request_whose_recorded_call_failed_diverges() -> None:
    failed = _call(0, _body("x"), status=CallStatus.FAILED, error="away", choices=())
    found = Trunk([failed, _call(1, _body("y"))]).answer(ROOT, _asked(_body("x")), StepId("now"))
    assert isinstance(found, Diverged)
    assert (found.cause, found.nearest) == (Cause.FAILED, "call-0")


def test_what_was_asked_after_the_step_is_sampled_and_so_is_what_follows_it() -> None:
    a, b = Path((), "a"), Path((), "b")
    calls = [_call(0, _body("x"), a), _call(1, _body("y"), a), _call(2, _body("z"), b)]
    trunk = Trunk(calls, before=arrived_at(calls, StepId("s-1")))
    # b's call had not ended when a's second request arrived.
    assert trunk.answer(b, _asked(_body("z")), StepId("1")) is None
    assert trunk.answer(b, _asked(_body("z", "new")), StepId("2"), sampled=True) is None
    assert isinstance(trunk.answer(a, _asked(_body("new")), StepId("3"), sampled=True), Diverged)


def test_pinned_texts_may_differ_before_the_first_answer() -> None:
    trunk = Trunk([_call(0, _body("it is 10:00"))], pin=[r"\d+:\d+"])
    assert isinstance(trunk.answer(ROOT, _asked(_body("it is 11:30")), StepId("now")), CallEvent)


def test_what_was_not_delivered_answers_nothing() -> None:
    assert Trunk([_call(0, _body("x"), status=CallStatus.FAILED)]).left() == 0


def test_a_step_without_a_call_has_no_trunk() -> None:
    with pytest.raises(KeyError, match="s-7"):
        arrived_at([_call(0, _body("x"))], StepId("s-7"))
