"""From groups to rows: weights, signal, models seen, the drift report."""

from datetime import UTC, datetime

import numpy as np
import pytest

from lightningrl.credit import broadcast
from lightningrl.errors import RunError
from lightningrl.recipe import PolicyRecipe
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    CallEvent,
    CallStatus,
    Choice,
    Event,
    EventId,
    Mode,
    NewRollout,
    Rollout,
    RolloutState,
    StepId,
    group_id,
    rollout_id,
)
from lightningrl.transition import Group, Trace, assemble
from lightningrl_verl.training.learn import check_models, prepare, update_drift

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GROUP = group_id("run", Mode.TRAIN, 1, "task")


def _call(name: str, prompt: list[int], answer: list[int], *, model: str, turn: int) -> CallEvent:
    role = b'{"role":"assistant","content":"x"}' if turn else b'{"role":"user","content":"q"}'
    return CallEvent(
        id=EventId(name),
        attempt_id=AttemptId("a"),
        at=NOW,
        step_id=StepId(name),
        agent=None,
        policy="policy",
        model=model,
        endpoint="e",
        version_start=0,
        version_end=0,
        request=b'{"messages":[' + role + b"]}",
        sampling=None,
        prompt_ids=np.array(prompt, "<i4").tobytes(),
        choices=(
            Choice(
                index=0,
                message=b'{"role":"assistant","content":"x"}',
                finish_reason="stop",
                token_ids=np.array(answer, "<i4").tobytes(),
                logprobs=np.full(len(answer), -0.5, "<f4").tobytes(),
            ),
        ),
        prompt_tokens=len(prompt),
        completion_tokens=len(answer),
        latency_ms=0.0,
        held_ms=0.0,
        upstream_retries=0,
        status=CallStatus.DELIVERED,
        http_status=200,
        error=None,
    )


def _trace(member: int, reward: float, events: list[Event]) -> Trace:
    spec = NewRollout(
        id=rollout_id(GROUP, member), run="run", mode=Mode.TRAIN, iteration=1, task_id="task",
        group_id=GROUP, member=member, task={},
    )  # fmt: skip
    rollout = Rollout(spec, RolloutState.SUCCEEDED, 1, reward, NOW, NOW)
    attempt = Attempt(
        AttemptId("a"), rollout.id, 1, AttemptState.SUCCEEDED, "w", NOW, NOW, NOW, None, None
    )
    return Trace(rollout, attempt, assemble(rollout, attempt, events), reward)


def _group(*rewards: float, model: str = "gpt", second: str = "gpt") -> Group:
    """Two calls per rollout: the second prompt continues the first one and its answer."""
    return Group(
        GROUP,
        tuple(
            _trace(
                member,
                reward,
                [
                    _call("one", [1, 2], [3, 4], model=model, turn=0),
                    _call("two", [1, 2, 3, 4, 9], [5, 6], model=second, turn=1),
                ],
            )
            for member, reward in enumerate(rewards)
        ),
    )


def test_two_turns_are_one_row_and_each_rollout_weighs_the_same() -> None:
    lesson = prepare([_group(1.0, 0.0)], broadcast, {"normalise": "mean"})
    first, second = lesson.rows
    assert first.token_ids.tolist() == [1, 2, 3, 4, 9, 5, 6]
    assert first.mask.tolist() == [False, False, True, True, False, True, True]
    # Credit +-0.5, two rollouts, four trained tokens: 0.5 / (2 * 4) = 0.0625 per token.
    assert first.advantages.tolist() == [0, 0, 0.0625, 0.0625, 0, 0.0625, 0.0625]
    assert second.advantages.tolist() == (-first.advantages).tolist()
    assert lesson.metrics["train/reward"] == 0.5
    assert lesson.metrics["train/tokens"] == 8
    assert lesson.metrics["drift/merged_share"] == 1.0


def test_a_group_without_signal_gives_no_rows_but_counts_in_the_weights() -> None:
    lesson = prepare([_group(1.0, 0.0), _group(1.0, 1.0)], broadcast, {"normalise": "mean"})
    assert len(lesson.rows) == 2
    # Four rollouts now: 0.5 / (4 * 4) = 0.03125.
    assert lesson.rows[0].advantages[2] == pytest.approx(0.03125)
    assert lesson.metrics["train/groups_without_signal"] == 1
    assert lesson.metrics["train/rows"] == 4


def test_nothing_taken_gives_nothing_to_train_on() -> None:
    lesson = prepare([], broadcast, {})
    assert lesson.rows == ()
    assert lesson.metrics["train/reward"] is None


def test_several_models_are_not_guessed() -> None:
    group = _group(1.0, 0.0, second="gpt-large")
    with pytest.raises(RunError, match=r"'gpt' \(2 calls\), 'gpt-large' \(2 calls\)"):
        check_models([group], {"policy": PolicyRecipe(model="m")})
    check_models([group], {"policy": PolicyRecipe(model="m", replaces=("gpt",))})
    check_models([_group(1.0, 0.0)], {"policy": PolicyRecipe(model="m")})


def test_the_drift_report_shows_the_token_windows_of_a_break() -> None:
    events: list[Event] = [
        _call("one", [1, 2], [3, 4], model="gpt", turn=0),
        _call("two", [1, 2, 3, 7, 9], [5], model="gpt", turn=1),
    ]
    group = Group(GROUP, (_trace(0, 1.0, events), _trace(1, 0.0, events)))
    lesson = prepare([group], broadcast, {})
    drift = update_drift({}, 3, lesson)
    assert drift["iterations"]["3"]["drift/breaks_by_cause"] == {"retokenised": 2}
    assert drift["breaks"][0]["position"] == 3
    assert drift["breaks"][0]["expected"] == [4]
    assert drift["breaks"][0]["found"] == [7, 9]
