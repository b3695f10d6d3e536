"""What an iteration was trained on, as records for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightningrl.lessons import LessonCall, LessonHeader
from lightningrl.schema import AttemptId, EventId, GroupId, RolloutId, StepId


def lesson_call(rollout: str = "r1", place: int = 0, **changes: Any) -> LessonCall:
    """A trained call of three tokens, whose log-probs are apart by 0, 1/4 and 0."""
    given: dict[str, Any] = {
        "group_id": GroupId("g"),
        "task_id": "t",
        "rollout_id": RolloutId(rollout),
        "member": 1,
        "attempt_id": AttemptId("a"),
        "step_id": StepId(f"s{place}"),
        "call_id": EventId(f"c{place}"),
        "place": place,
        "agent": None,
        "policy": "policy",
        "version": 3,
        "reward": 1.0,
        "step_reward": None,
        "credit": 0.5,
        "parts": {"reward": 1.0, "baseline": 0.5},
        "state": 2,
        "tokens": 3,
        "reason": None,
        "row": 0,
        "engine_log_probs": np.array([-0.5, -1.0, 0.0], np.float32),
        "trainer_log_probs": np.array([-0.5, -1.25, 0.0], np.float32),
    }
    return LessonCall(**given | changes)


def lesson_header(iteration: int) -> LessonHeader:
    """Of a run named `run`, whose method is GiGPO."""
    return LessonHeader(run="run", iteration=iteration, credit="gigpo", credit_args={"gamma": 0.9})
