"""Rewards that agents post over HTTP: by whom, what they are, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.schema import AttemptState, Claim, RewardEvent, RewardsFrom, RolloutState
from lightningrl_testkit.gateway import GatewayRig, open_rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


async def post(rig: GatewayRig, claim: Claim, body: Any, key: str | None = None) -> tuple[int, Any]:
    """Status and body of the answer to one posted reward."""
    headers = {"authorization": f"Bearer {claim.key if key is None else key}"}
    url = rig.attempt_url(claim) + "/rewards"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        return response.status, await response.json()


async def rewards(rig: GatewayRig, claim: Claim) -> list[tuple[str, str | None, float, int]]:
    ((*events,),) = await rig.store.events([claim.attempt.id])
    found = [one for one in events if isinstance(one, RewardEvent)]
    return [(one.name, one.step_id, one.value, one.revision) for one in found]


async def test_an_agent_rewards_its_rollout_and_its_steps(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    assert (await post(rig, claim, {"value": 0.5}))[0] == 200
    assert (await post(rig, claim, {"value": -1, "name": "style", "step_id": "s1"}))[0] == 200
    assert await rewards(rig, claim) == [("final", None, 0.5, 0), ("style", "s1", -1.0, 0)]
    rollout = await rig.store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    assert (rollout.state, rollout.reward) == (RolloutState.SUCCEEDED, 0.5)


async def test_posting_a_reward_again_changes_nothing(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    first = await post(rig, claim, {"value": 0.5})
    assert await post(rig, claim, {"value": 0.5}) == first
    assert await rewards(rig, claim) == [("final", None, 0.5, 0)]


@pytest.mark.parametrize("prefix", ["", "resp_", "msg_"])
async def test_the_id_of_a_response_names_its_step(rig: GatewayRig, prefix: str) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    first = await post(rig, claim, {"value": 1, "step_id": f"{prefix}s-1"})
    assert await rewards(rig, claim) == [("final", "s-1", 1.0, 0)]
    assert await post(rig, claim, {"value": 1, "step_id": "s-1"}) == first


async def test_names_with_hyphens_are_told_apart(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    assert (await post(rig, claim, {"value": 1, "step_id": "a", "name": "b-c"}))[0] == 200
    assert (await post(rig, claim, {"value": 2, "step_id": "a-b", "name": "c"}))[0] == 200
    assert await rewards(rig, claim) == [("b-c", "a", 1.0, 0), ("c", "a-b", 2.0, 0)]


async def test_another_value_needs_a_higher_revision(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    await post(rig, claim, {"value": 0.5})
    status, body = await post(rig, claim, {"value": 1.0})
    assert (status, body["error"]["code"]) == (409, "rewarded_otherwise")
    assert (await post(rig, claim, {"value": 1.0, "revision": 1}))[0] == 200
    assert (await rig.store.finish(claim.attempt.id, AttemptState.SUCCEEDED)).reward == 1.0


async def test_unless_the_rollout_says_so_its_agent_can_t_reward(rig: GatewayRig) -> None:
    claim = await rig.claim()
    status, body = await post(rig, claim, {"value": 99})
    assert (status, body["error"]["code"]) == (403, "rewards_not_emitted")
    assert "rewards: emitted" in body["error"]["message"]
    assert await rewards(rig, claim) == []


async def test_another_attempt_s_key_and_no_key_are_refused(rig: GatewayRig) -> None:
    mine, other = [await rig.claim(rewards=RewardsFrom.EMITTED) for _ in range(2)]
    assert (await post(rig, mine, {"value": 1}, key=other.key))[0] == 403
    assert (await post(rig, mine, {"value": 1}, key=""))[0] == 401
    assert await rewards(rig, mine) == []


async def test_after_its_end_an_attempt_s_key_rewards_nothing(rig: GatewayRig) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    await rig.store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    assert (await post(rig, claim, {"value": 1}))[0] == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"value": "much"},
        {"value": 1, "reason": "x"},
        [1],
        {"value": 1, "revision": 0.5},
        {"value": 1, "revision": 2**63},
        {"value": 1, "revision": 10**30},
        {"value": 1, "revision": -(2**63) - 1},
        {"value": 1, "name": "n" * 513},
        {"value": 1, "step_id": ""},
    ],
)
async def test_what_is_no_reward_is_refused(rig: GatewayRig, body: Any) -> None:
    claim = await rig.claim(rewards=RewardsFrom.EMITTED)
    status, answer = await post(rig, claim, body)
    assert (status, answer["error"]["code"]) == (400, "no_reward")
