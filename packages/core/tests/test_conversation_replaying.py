"""A request that is made again is answered by the call that asked the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightningrl.conversation.replaying import Divergence, Path, Trunk, arrived_at
from lightningrl.conversation.rewriting.fields import Fields, raw_fields
from lightningrl.schema import AttemptId, CallEvent, CallStatus, EventId, StepId

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
    for path, said in again:
        found = trunk.answer(path, _asked({**_body(said), "stream": True}))
        assert isinstance(found, CallEvent)
        given_ids.setdefault((path, said), []).append(found.id)
    for key, ids in given_ids.items():
        assert ids == [call.id for call, one in zip(calls, made, strict=True) if one == key]
    assert trunk.answer(ROOT, _asked(_body("x"))) is None


@given(st.integers(0, 9))
def test_a_trunk_is_what_was_recorded_before_the_step_arrived(step: int) -> None:
    calls = [_call(index, _body(*"abcdefghij"[: index + 1])) for index in range(10)]
    trunk = Trunk(calls, before=arrived_at(calls, StepId(f"s-{step}")))
    assert trunk.left == step
    for call in calls[:step]:
        assert trunk.answer(ROOT, _asked(json.loads(call.request))) == call
    assert trunk.answer(ROOT, _asked(json.loads(calls[step].request))) is None


def test_another_output_of_a_tool_diverges_by_its_call() -> None:
    def body(output: str) -> dict[str, Any]:
        tool = {"role": "tool", "tool_call_id": "clock-1", "content": output}
        return {"model": "m", "messages": [{"role": "user", "content": "when?"}, tool]}

    trunk = Trunk([_call(0, body("10:00"))])
    found = trunk.answer(ROOT, _asked(body("10:01")))
    assert found == Divergence(EventId("call-0"), 1, (), "clock-1")
    assert trunk.left == 1, "what diverged used up nothing"


def test_another_field_and_another_agent_diverge() -> None:
    trunk = Trunk([_call(0, _body("x"))])
    warm = trunk.answer(ROOT, _asked({**_body("x"), "temperature": 1}))
    assert warm == Divergence(EventId("call-0"), None, ("temperature",), None)
    assert trunk.answer(Path((), "other"), _asked(_body("x"))) == Divergence(None, None, (), None)


def test_what_was_not_delivered_answers_nothing() -> None:
    assert Trunk([_call(0, _body("x"), status=CallStatus.FAILED)]).left == 0


def test_a_step_without_a_call_has_no_trunk() -> None:
    with pytest.raises(KeyError, match="s-7"):
        arrived_at([_call(0, _body("x"))], StepId("s-7"))
