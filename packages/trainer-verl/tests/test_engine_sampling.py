"""The sampler against distributions that can be worked out by hand."""

import math

import pytest
import torch

from lightningrl_verl.engine.sampling import SamplingParams, SamplingRow, _inverted, sample

LOGITS = torch.tensor([[math.log(8), math.log(4), math.log(2), math.log(2)]])
"""Probabilities 1/2, 1/4, 1/8, 1/8."""


def drawn(count: int = 400, **fields: float) -> dict[int, float]:
    """Token to probability (from the reported log-prob) over `count` draws."""
    rows = [SamplingRow(SamplingParams(seed=seed, **fields)) for seed in range(count)]  # pyright: ignore[reportArgumentType]  top_k is an int
    tokens, logprobs = sample(LOGITS.expand(count, -1), rows)
    return {token: math.exp(value) for token, value in zip(tokens, logprobs, strict=True)}


def test_reported_probability_is_that_of_the_softmax() -> None:
    assert drawn() == pytest.approx({0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125})


def test_temperature_is_applied_before_the_logprob() -> None:
    # p^(1/0.5) = 64, 16, 4, 4 of 88.
    assert drawn(temperature=0.5) == pytest.approx({0: 64 / 88, 1: 16 / 88, 2: 4 / 88, 3: 4 / 88})


def test_greedy_reports_the_logprob_at_temperature_one() -> None:
    assert drawn(3, temperature=0.0) == pytest.approx({0: 0.5})


def test_top_k_renormalises() -> None:
    assert drawn(top_k=2) == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert drawn(3, top_k=1) == pytest.approx({0: 1.0})


def test_top_p_keeps_the_token_that_crosses_the_limit() -> None:
    # 1/2 is below 0.6, so the second token is still kept: 2/3 and 1/3.
    assert drawn(top_p=0.6) == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert drawn(3, top_p=0.4) == pytest.approx({0: 1.0})


def test_top_p_looks_at_what_top_k_left() -> None:
    # Of the two kept, the first has 2/3 >= 0.6 alone.
    assert drawn(3, top_k=2, top_p=0.6) == pytest.approx({0: 1.0})


def test_penalties_count_the_tokens_of_the_answer() -> None:
    row = SamplingRow(SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25))
    logits = torch.tensor([[1.0, 0.9]])
    # Token 0 first; then 1.0 - 0.5 - 0.25 = 0.25 < 0.9; then 0.25 against 0.9 - 0.75 = 0.15;
    # then 1.0 - 0.5 - 0.5 = 0.0 against 0.15.
    assert [sample(logits, [row])[0][0] for _ in range(4)] == [0, 1, 0, 1]
    assert logits.tolist() == [[1.0, pytest.approx(0.9)]]


def test_rows_of_a_batch_keep_their_own_parameters() -> None:
    rows = [
        SamplingRow(SamplingParams(temperature=0)),
        SamplingRow(SamplingParams(top_k=1)),
        SamplingRow(SamplingParams(temperature=0.5, seed=1)),
    ]
    tokens, logprobs = sample(LOGITS.expand(3, -1), rows)
    assert tokens[:2] == [0, 0]
    assert [math.exp(value) for value in logprobs[:2]] == pytest.approx([0.5, 1.0])
    by_token = {0: 64 / 88, 1: 16 / 88, 2: 4 / 88, 3: 4 / 88}
    assert math.exp(logprobs[2]) == pytest.approx(by_token[tokens[2]])


def test_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    rows = [SamplingRow(SamplingParams(seed=seed)) for seed in range(500)]
    tokens, _ = sample(logits.expand(500, -1), rows)
    assert set(tokens) == {1}


def test_draws_of_a_large_vocabulary_follow_its_distribution() -> None:
    """1,000 tokens: blocks of which the last is cut short; whole blocks have no probability."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1000, generator=generator)
    logits[200:600] = float("-inf")
    count = 40_000
    rows = [SamplingRow(SamplingParams(seed=seed)) for seed in range(count)]
    found = torch.zeros(1000, dtype=torch.float64)
    for part in range(0, count, 4000):
        tokens, logprobs = sample(logits.expand(4000, -1), rows[part : part + 4000])
        found += torch.bincount(torch.tensor(tokens), minlength=1000)
        expected = logits.double().log_softmax(-1)[tokens]
        assert torch.tensor(logprobs, dtype=torch.float64) == pytest.approx(expected, abs=2e-6)
    share = logits.double().softmax(-1)
    assert found[share == 0].sum() == 0
    # Pearson's statistic over the tokens that are expected five times and more, and the rest as one.
    often = count * share >= 5
    seen = torch.cat([found[often], found[~often].sum()[None]])
    wanted = count * torch.cat([share[often], share[~often].sum()[None]])
    freedom = len(wanted) - 1
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_token_that_can_be() -> None:
    probabilities = torch.zeros(2, 700)
    probabilities[:, 3] = probabilities[:, 690] = 0.5
    ends = torch.tensor([[0.0], [math.nextafter(1, 0)]], dtype=torch.float64)
    assert _inverted(probabilities, ends).tolist() == [3, 690]


def test_a_row_that_is_not_finite_says_so_and_leaves_the_others_alone() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, float("-inf")]])
    tokens, logprobs = sample(logits, [SamplingRow(SamplingParams(seed=1)) for _ in range(2)])
    assert math.isnan(logprobs[0])
    assert (tokens[1], logprobs[1]) == (0, 0.0)
