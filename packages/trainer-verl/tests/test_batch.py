"""Rows in verl's terms, the cut into passes, the schedule: all by literal values."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightningrl.errors import RunError
from lightningrl_verl.worker.batch import align_next, prompt_length, to_batch
from lightningrl_verl.worker.micro_batches import cut_by_padded_tokens
from lightningrl_verl.worker.mini_batches import cut_by_rollout
from lightningrl_verl.worker.schedule import learning_rate_factor
from lightningrl_verl.worker.token_log_probs import token_log_probs


@dataclass(frozen=True)
class Sequence:
    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: NDArray[np.float32]
    rollout_id: str = "rollout-7"


def sequence(mask: list[int], advantage: float = 1.0) -> Sequence:
    """Token ids count up from 10; masked tokens have the advantage."""
    trained = np.array(mask, bool)
    ids = np.arange(10, 10 + len(mask), dtype=np.int32)
    return Sequence(ids, trained, np.where(trained, advantage, 0).astype(np.float32))


# A prompt of two, two sampled tokens, one of a tool's result, one sampled token.
TOOL_USE = sequence([0, 0, 1, 1, 0, 1], advantage=0.5)
ANSWER = sequence([0, 1], advantage=-1.0)


def lists(batch, field: str) -> list[list[float]]:
    return [part.tolist() for part in batch[field].unbind()]


def test_a_prompt_ends_before_the_first_trained_token():
    assert prompt_length(TOOL_USE) == 2
    assert prompt_length(ANSWER) == 1


def test_tool_results_stand_in_the_response_with_mask_0():
    batch = to_batch([TOOL_USE, ANSWER])
    assert lists(batch, "prompts") == [[10, 11], [10]]
    assert lists(batch, "responses") == [[12, 13, 14, 15], [11]]
    assert lists(batch, "response_mask") == [[1, 1, 0, 1], [1]]
    assert lists(batch, "position_ids") == [[0, 1, 2, 3, 4, 5], [0, 1]]


def test_fields_are_those_of_the_response():
    old = [np.full(6, -2.0, np.float32), np.full(2, -3.0, np.float32)]
    rows = [TOOL_USE, ANSWER]
    batch = to_batch(rows, {"old_log_probs": old, "advantages": [row.advantages for row in rows]})
    assert lists(batch, "advantages") == [[0.5, 0.5, 0.0, 0.5], [-1.0]]
    assert lists(batch, "old_log_probs") == [[-2.0] * 4, [-3.0]]


def test_filler_rows_are_masked_entirely():
    old = [np.full(6, -2.0, np.float32), None, np.full(2, -3.0, np.float32)]
    advantages = [TOOL_USE.advantages, None, ANSWER.advantages]
    batch = to_batch([TOOL_USE, None, ANSWER], {"old_log_probs": old, "advantages": advantages})
    assert batch.batch_size == torch.Size([3])
    assert lists(batch, "response_mask") == [[1, 1, 0, 1], [0], [1]]
    assert lists(batch, "advantages") == [[0.5, 0.5, 0.0, 0.5], [0.0], [-1.0]]
    assert len(lists(batch, "prompts")[1]) == 1


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [[0, 1, 2, 5, 3, 4]]),
        # Three rollouts in two mini-batches: two rollouts, then one. Row 5 goes with its rollout.
        (2, [[0, 1, 2, 5], [3, 4]]),
        (3, [[0, 1], [2, 5], [3, 4]]),
        (9, [[0, 1], [2, 5], [3, 4]]),
    ],
)
def test_the_rows_of_a_rollout_stay_in_one_mini_batch(most: int, expected: list[list[int]]):
    assert cut_by_rollout(["a", "a", "b", "c", "c", "b"], most) == expected


def test_no_rows_give_no_mini_batches():
    assert cut_by_rollout([], 3) == []


def test_log_probs_come_back_at_the_token_that_they_are_of():
    # Value i of a row is the log-prob of token i + 1; the last one of a row is of no token.
    scored = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -99.0, -7.0, -99.0])
    first, second = align_next([TOOL_USE, ANSWER], scored)
    assert first.tolist() == [0, 0, -2, -3, 0, -5]
    assert second.tolist() == [0, -7]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows to train on"),
        ([sequence([0, 0])], "'rollout-7' has no trained token"),
        ([sequence([1, 1])], "'rollout-7' trains its first token"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(rows: list[Sequence], message: str):
    with pytest.raises(RunError, match=message):
        to_batch(rows)


def test_rows_of_like_length_share_a_pass_within_the_padded_budget():
    # Sorted: 40, 30, 20, 10. Budget 60: 1 row of 40; then 2 of 30 (the 20 is padded); then the 10.
    assert cut_by_padded_tokens([10, 40, 20, 30], 60) == [[1], [3, 2], [0]]


def test_a_row_beyond_the_budget_has_a_pass_of_its_own():
    assert cut_by_padded_tokens([5, 100], 10) == [[1], [0]]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Two updates of warm-up, then four from 1 to the minimum 0.2.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        # 0.2 + 0.8 * (1 + cos(0.25 pi)) / 2 = 0.8828; its mirror image is 1.2 - 0.8828 = 0.3172.
        ("cosine", [0.5, 1.0, 1.0, 0.8828, 0.6, 0.3172, 0.2, 0.2]),
    ],
)
def test_the_learning_rate_rises_from_the_first_update_and_falls_to_the_minimum(schedule, expected):
    factors = [
        learning_rate_factor(i, schedule=schedule, warmup=2, total=6, min_ratio=0.2)
        for i in range(8)
    ]
    assert factors == pytest.approx(expected, abs=1e-4)


def test_token_log_probs_are_the_log_softmax_in_fp32():
    # Over 1024 tokens, so that it is cut in chunks.
    logits = torch.randn(1500, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1500) % 7
    expected = torch.log_softmax(logits, -1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(token_log_probs(logits, labels), expected)
    half = token_log_probs(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    # ln 2: two equal logits, exact in bf16.
    two = token_log_probs(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([0]))
    assert two.item() == pytest.approx(-0.693147, abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_gradient_of_token_log_probs_is_that_of_the_log_softmax(
    dtype: torch.dtype, tolerance: float
):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1500, 7, generator=generator).to(dtype)
    labels = torch.arange(1500) % 7
    # Every third token is not trained.
    weights = torch.randn(1500, generator=generator) * (torch.arange(1500) % 3 > 0)
    ours, theirs = values.clone().requires_grad_(), values.float().requires_grad_()
    (token_log_probs(ours, labels) * weights).sum().backward()
    chosen = torch.log_softmax(theirs, -1).gather(-1, labels[:, None])[:, 0]
    (chosen * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    # bf16 keeps 8 bits: a gradient of up to 4 is off by at most 2**-8 of its size.
    torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=tolerance, atol=tolerance)
