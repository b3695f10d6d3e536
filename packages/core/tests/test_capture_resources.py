"""What an agent gets for the name of a resource, within a rollout and outside."""

from __future__ import annotations

import pytest

import lightningrl
from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.errors import AgentError
from lightningrl_testkit.contexts import rollout_context


def context(**resources: object) -> RolloutContext:
    return rollout_context(resources=resources)


def test_a_rollout_s_own_version_wins_over_the_default() -> None:
    with in_rollout(context(prompt={"system": "Be brief."})):
        assert lightningrl.resource("prompt", default="Be kind.") == {"system": "Be brief."}


def test_without_a_pinned_version_the_default_is_used_even_none() -> None:
    assert lightningrl.resource("prompt", default=None) is None
    with in_rollout(context()):
        assert lightningrl.resource("prompt", default="Be kind.") == "Be kind."


def test_without_either_it_says_where_and_what_to_do() -> None:
    with pytest.raises(AgentError, match="'prompt' outside a rollout; pin"):
        lightningrl.resource("prompt")
    with in_rollout(context()), pytest.raises(AgentError, match="in rollout 'r1'"):
        lightningrl.resource("prompt")
