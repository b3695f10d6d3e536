"""What `redact` hides is nowhere in the store, whatever it does."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import lightningrl
from lightningrl.capture.context import current, end_step, start_step
from lightningrl.conversation.recorded import whole_requests
from lightningrl.schema import (
    Attempt,
    LogEvent,
    NewRollout,
    StepEndEvent,
    StepStartEvent,
)
from lightningrl.traces import AttemptRecord
from lightningrl_testkit.production import begin_alone, read, written_bytes

pytestmark = pytest.mark.usefixtures("process_in_production")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.db"


SECRET = "4111-1111-1111-1111"


def act(secret: str = SECRET) -> None:
    """A rollout that has `secret` wherever a rollout can have a text."""

    @lightningrl.rollout
    def agent(task: dict[str, Any]) -> dict[str, Any]:
        with lightningrl.step("agent", f"agent {secret}", agent=f"agent {secret}"):
            with lightningrl.step(
                "tool", f"tool {secret}", inputs={secret: [secret]}, tool_call_id=secret
            ) as step:
                step.output = {"card": (secret, {"deep": secret})}
            with lightningrl.step("tool", "t") as step:
                step.error = f"no such card: {secret}"
            lightningrl.reward(1.0, name=f"reward {secret}")
        context = current()
        assert context is not None
        context.log("info", f"saw {secret}")
        return {"answer": f"paid with {secret}", "task": task}

    agent({"card": secret})

    @lightningrl.rollout
    def failing() -> None:
        raise ValueError(f"declined: {secret}")

    with pytest.raises(ValueError, match="declined"):
        failing()


async def test_without_redaction_the_secret_is_there_and_with_it_nowhere(tmp_path: Path) -> None:
    recorder = begin_alone(tmp_path / "open.db")
    act()
    assert recorder.flush()
    # As itself: what holds it is not compressed, so that the next file's lack of it says something.
    assert SECRET.encode() in written_bytes(tmp_path / "open.db")

    path = tmp_path / "closed.db"
    recorder = begin_alone(
        path, redact=lightningrl.redact_texts(lambda text: text.replace(SECRET, "***"))
    )
    act()
    assert recorder.flush()
    for one in await read(path):
        lightningrl.feedback(one.rollout.id, 1.0, name=SECRET, source=f"who paid {SECRET}")
    assert recorder.flush()
    found = await read(path)
    assert [one.rollout.spec.task for one in found] == [
        {"card": "***"},
        {"args": [], "kwargs": {}},
    ]
    assert found[0].attempt.output == {"answer": "paid with ***", "task": {"card": "***"}}
    assert [step.name for step in found[0].transitions] == ["agent ***", "tool ***", "t"]
    assert found[0].transitions[1].output == {"card": ["***", {"deep": "***"}]}
    assert SECRET.encode() not in written_bytes(path)
    recorder.close()
    assert SECRET.encode() not in written_bytes(path)


@pytest.mark.parametrize("where", [NewRollout, StepStartEvent, StepEndEvent, LogEvent, Attempt])
async def test_a_hook_that_raises_leaves_the_rollout_out(
    path: Path, where: type, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(record: Any) -> Any:
        if isinstance(record, where):
            raise RuntimeError(f"can't read {SECRET}")
        return record

    recorder = begin_alone(path, redact=redact)
    with caplog.at_level(logging.WARNING):
        with lightningrl.rollout({"card": SECRET}) as one:
            with lightningrl.step("tool", "t", inputs=SECRET):
                pass
            context = current()
            assert context is not None
            context.log("info", SECRET)
            one.output = SECRET
        assert recorder.flush()
    assert recorder.counts.dropped == {"redaction": 1}
    assert "redact() raised RuntimeError at" in caplog.text
    assert SECRET not in caplog.text
    lightningrl.record(None)
    assert not path.exists() or SECRET.encode() not in written_bytes(path)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda _: "text", "returned a str"),
        (lambda event: structs.replace(event, step_id="s-other"), "changed 'step_id'"),
    ],
)
async def test_what_is_no_such_record_leaves_the_rollout_out(
    path: Path, returned: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = begin_alone(
        path, redact=lambda one: returned(one) if isinstance(one, StepEndEvent) else one
    )
    with lightningrl.rollout(), lightningrl.step("tool", "t"):
        pass
    assert recorder.flush()
    assert recorder.counts.dropped == {"redaction": 1}
    assert said in caplog.text


async def test_a_step_whose_start_is_left_out_is_left_out_whole(path: Path) -> None:
    def redact(record: Any) -> Any:
        secret = isinstance(record, StepStartEvent) and record.name == "secret"
        return None if secret else record

    recorder = begin_alone(path, redact=redact)
    with (
        lightningrl.rollout(),
        lightningrl.step("agent", "a"),
        lightningrl.step("tool", "secret"),
    ):
        lightningrl.reward(1.0)
        with lightningrl.step("tool", "below"):
            pass
    assert recorder.flush()
    [record] = await read(path)
    outer, below = record.transitions
    assert (outer.name, below.name, below.parent_id) == ("a", "below", outer.step_id)
    assert (outer.reward, below.reward) == (None, None)


def converse() -> list[list[str]]:
    """Three requests, each continuing the one before; what each asks."""
    said: list[str] = []
    for word in ("a", "b", "c"):
        said.append(word)
        end_step(start_step("llm", word, asks=lambda: {"messages": list(said)}))
    return [["a"], ["a", "b"], ["a", "b", "c"]]


def requests(record: AttemptRecord) -> list[list[str]]:
    """The messages of each model step, whole."""
    whole = whole_requests({one.step_id: one.inputs for one in record.transitions})
    return [whole[one.step_id]["messages"] for one in record.transitions]


@pytest.mark.parametrize(
    "change", [str.upper, lambda text: re.sub("[0-9a-f]{4}", "#", text)], ids=["upper", "digits"]
)
async def test_changed_texts_leave_whose_messages_a_request_continues(
    path: Path, change: Any
) -> None:
    recorder = begin_alone(path, redact=lightningrl.redact_texts(change))
    with lightningrl.rollout():
        asked = converse()
    assert recorder.flush()
    [record] = await read(path)
    assert requests(record) == [[change(one) for one in messages] for messages in asked]


async def test_a_text_of_the_users_under_the_same_name_is_changed(path: Path) -> None:
    hide = lightningrl.redact_texts(lambda text: text.replace(SECRET, "***"))
    recorder = begin_alone(path, redact=hide)
    with lightningrl.rollout():
        start_step("llm", "m", inputs={"continues": SECRET, "kept": 1})
    assert recorder.flush()
    [record] = await read(path)
    assert record.transitions[0].inputs == {"continues": "***", "kept": 1}


@pytest.mark.parametrize("left_out", ["a", "b", "ab"])
async def test_without_a_model_step_later_requests_are_whole(path: Path, left_out: str) -> None:
    seen: list[Any] = []

    def redact(record: Any) -> Any:
        if isinstance(record, StepStartEvent):
            seen.append(record)
            return None if record.name in left_out else record
        return record

    recorder = begin_alone(path, redact=redact)
    with lightningrl.rollout():
        asked = converse()
    assert recorder.flush()
    [record] = await read(path)
    kept = [one for one in asked if one[-1] not in left_out]
    assert requests(record) == kept
    assert len(seen) == 3


async def test_none_for_the_rollout_leaves_it_out(path: Path) -> None:
    def redact(record: Any) -> Any:
        return None if isinstance(record, NewRollout) and record.task["private"] else record

    recorder = begin_alone(path, redact=redact)
    for private in (True, False):
        with lightningrl.rollout({"private": private}):
            pass
    assert recorder.flush()
    assert [one.rollout.spec.task for one in await read(path)] == [{"private": False}]
    assert recorder.counts.dropped == {}
