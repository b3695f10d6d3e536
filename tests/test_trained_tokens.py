"""Invariant 3: only tokens that the engine sampled are trained, with the log-probs it had then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from user_project import Project

from lightningrl.experience.trajectory import Row, merge
from lightningrl.schema import Mode, RolloutState
from lightningrl.store import RolloutQuery, open_store
from lightningrl.traces import read_attempts


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_recorded_log_probs_are_those_of_the_version_that_sampled(
    trained: Project, cache_model: str, version: int
) -> None:
    """A plain transformers forward of the saved weights gives the recorded log-probs to 1e-4."""
    folder = (
        cache_model
        if version == 0
        else str(trained.run / "checkpoints" / f"iteration-{version:06d}" / "huggingface")
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    checked = 0
    rows, stamps = await _rows(trained, iteration=version + 1)
    assert stamps == {(version, version)}
    for row in rows:
        ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0, :-1], -1)
        scored = log_probs.gather(1, ids[0, 1:, None])[:, 0].numpy()
        mask = row.mask[1:]
        assert np.abs(scored[mask] - row.logprobs[1:][mask]).max() < 1e-4
        checked += int(mask.sum())
    # Of 16 rollouts more than a first token each; how many depends on the machine's arithmetic.
    assert checked > 2 * 16


async def test_masked_tokens_are_exactly_the_sampled_ones(trained: Project) -> None:
    store = open_store(trained.run / "store.db", read_only=True)
    try:
        rollouts = await store.rollouts(
            RolloutQuery(run="quick", iteration=2, states=(RolloutState.SUCCEEDED,))
        )
        for records in await read_attempts(store, rollouts):
            merged = merge(records[-1].transitions)
            sampled = [one.token_ids for one in records[-1].transitions if len(one.token_ids)]
            trained_ids = [row.token_ids[row.mask] for row in merged.rows]
            assert sorted(np.concatenate(trained_ids)) == sorted(np.concatenate(sampled))
    finally:
        await store.close()


@pytest.fixture
def cache_model(trained: Project) -> str:
    """The folder of the policy that the run started from."""
    cache = trained.environment["LIGHTNINGRL_CACHE"]
    (found,) = Path(cache, "tiny").glob("quick-*")
    return str(found)


async def _rows(trained: Project, *, iteration: int) -> tuple[list[Row], set[tuple[int, int]]]:
    """The rows of an iteration's rollouts, and the policy versions stamped on their calls."""
    store = open_store(trained.run / "store.db", read_only=True)
    try:
        rollouts = await store.rollouts(
            RolloutQuery(run="quick", mode=Mode.TRAIN, iteration=iteration)
        )
        last = [records[-1] for records in await read_attempts(store, rollouts)]
        calls = [one.call for record in last for one in record.transitions if one.call]
        rows = [row for record in last for row in merge(record.transitions).rows]
        return rows, {(call.version_start, call.version_end) for call in calls}
    finally:
        await store.close()
