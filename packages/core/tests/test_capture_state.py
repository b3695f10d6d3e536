"""What an agent says of its state, on its way into the headers of its calls."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

import lightningrl
from lightningrl.capture.client import CallHeaders
from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl_testkit.contexts import rollout_context


@pytest.fixture
def context() -> RolloutContext:
    return rollout_context()


def header() -> str | None:
    return CallHeaders().get("x-lightningrl-state")


def test_a_state_holds_until_it_is_said_again(context: RolloutContext) -> None:
    with in_rollout(context):
        assert header() is None
        lightningrl.state("Tür 3")
        assert header() == "T%C3%BCr%203"
        with lightningrl.step("tool", "walk"):
            lightningrl.state(
                "hall"
            )  # an environment that is a tool says it for the calls after it
        assert header() == "hall"
        lightningrl.state(None)
        assert header() is None


def test_a_long_key_becomes_its_digest(context: RolloutContext) -> None:
    with in_rollout(context):
        lightningrl.state("x" * 256)
        assert header() == "x" * 256
        for key in ("x" * 257, "ü" * 60):
            lightningrl.state(key)
            assert header() == hashlib.sha256(key.encode()).hexdigest()


def test_a_state_belongs_to_its_rollout_and_outside_there_is_none(context: RolloutContext) -> None:
    lightningrl.state("nowhere")
    with in_rollout(context):
        assert header() is None
        lightningrl.state("here")
    assert header() is None
    assert context.state == "here"


@pytest.mark.parametrize(
    ("key", "error"), [("", ValueError), ("a\nb", ValueError), (3, TypeError), (b"x", TypeError)]
)
def test_what_is_no_key_is_refused_by_name(
    context: RolloutContext, key: Any, error: type[Exception]
) -> None:
    with in_rollout(context), pytest.raises(error, match="state"):
        lightningrl.state(key)
    assert context.state is None
