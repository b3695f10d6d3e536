"""The critic: one value per call, read before its answer, fitted to targets; and who trains whom."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_rows import sequences, write_model

from lightningrl.credit import Credit
from lightningrl.experience.trainable import TrainableCalls
from lightningrl.experience.trajectory import Row, Span
from lightningrl.recipe import Algorithm, Critic, Optimiser, parse_recipe
from lightningrl.schema import RolloutId
from lightningrl.scoring import Scorer
from lightningrl_verl.training.learn import Lesson
from lightningrl_verl.training.rows import behind
from lightningrl_verl.training.study import Credited, Study, Trainee
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.critic import VerlCritic
from lightningrl_verl.worker.importance import importance_weights
from lightningrl_verl.worker.learner import Learner

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BackendConfig:
    model = write_model(tmp_path_factory.mktemp("model"), tied=False)
    optimiser = Optimiser(learning_rate=1e-2, schedule="constant")
    return BackendConfig(model_path=str(model), optimiser=optimiser, max_tokens_per_micro_batch=64)


def two_calls(count: int, seed: int = 0) -> list[Row]:
    """Rows of two calls: a short answer, a tool's result, and a longer answer to the end."""
    return [
        Row(
            rollout_id=RolloutId(one.rollout_id),
            token_ids=one.token_ids,
            mask=one.mask,
            logprobs=np.zeros(len(one.mask), np.float32),
            advantages=one.advantages,
            spans=(Span(0, 4, 7), Span(1, 9, len(one.mask))),
        )
        for one in sequences(count, seed)
    ]


@pytest.fixture(scope="module")
def fitted(config: BackendConfig) -> VerlCritic:
    """A critic that has learnt 1 for first calls and 0 for second ones."""
    critic = VerlCritic(config, Critic(learning_rate=5e-3, epochs=12, clip=10.0))
    rows = two_calls(6)
    assert critic.values(rows) == [[0.0, 0.0]] * 6
    metrics = critic.update(rows, critic.values(rows), [[1.0, 0.0]] * 6)
    # The first of the twelve losses is (1/2) * mean(1, 0) = 1/4; they fall.
    assert 0 < metrics["vf_loss"] < 0.25
    critic.update(rows, critic.values(rows), [[1.0, 0.0]] * 6)
    return critic


def test_values_come_near_their_targets(fitted: VerlCritic) -> None:
    values = np.array(fitted.values(two_calls(6)))
    np.testing.assert_allclose(values, [[1.0, 0.0]] * 6, atol=0.1)


def test_a_value_is_of_the_prompt_and_does_not_see_the_answer(fitted: VerlCritic) -> None:
    (row,) = two_calls(1)
    other = row.token_ids.copy()
    other[9:] = (other[9:] + 1) % 40
    changed = replace(row, token_ids=other)
    assert fitted.values([changed])[0] == pytest.approx(fitted.values([row])[0], abs=1e-5)
    other = row.token_ids.copy()
    other[8] = (other[8] + 1) % 40
    first, second = fitted.values([replace(row, token_ids=other)])[0]
    assert first == pytest.approx(fitted.values([row])[0][0], abs=1e-5)
    assert second != pytest.approx(fitted.values([row])[0][1], abs=1e-5)


def test_the_value_behind_an_answer_is_that_of_its_last_token(fitted: VerlCritic) -> None:
    (row,) = two_calls(1)
    # What the critic would say before a call whose prompt is all of the row up to there.
    for span, stop in ((row.spans[0], 7), (row.spans[1], len(row.token_ids))):
        ((value,),) = fitted.values([behind(row, span)])
        longer = np.append(row.token_ids[:stop], np.int32(9)).astype(np.int32)
        asked = replace(row, token_ids=longer, spans=(Span(0, stop, stop + 1),))
        assert value == pytest.approx(fitted.values([asked])[0][0], abs=1e-5)


def test_the_first_loss_is_half_the_mean_square_error_over_calls(config: BackendConfig) -> None:
    critic = VerlCritic(config, Critic(learning_rate=1e-9))
    rows = two_calls(3)
    # Values are 0. Calls of any length count alike: (1/2) * (4 + 1 + 0 + 1 + 0 + 0) / 6 = 1/2.
    metrics = critic.update(rows, critic.values(rows), [[2.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    assert metrics["vf_loss"] == pytest.approx(0.5, abs=1e-6)
    # A value may move by the clip of 0.5 alone, and has not.
    assert metrics["vf_clipfrac"] == 0


def test_a_restored_critic_says_and_learns_the_same(
    config: BackendConfig, fitted: VerlCritic, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "critic")
    again = VerlCritic(config, Critic(learning_rate=5e-3, epochs=12, clip=10.0))
    again.load(tmp_path / "critic")
    rows = two_calls(4, seed=9)
    assert again.values(rows) == fitted.values(rows)
    targets = [[0.5, 0.5]] * 4
    ours = again.update(rows, again.values(rows), targets)
    assert ours == pytest.approx(fitted.update(rows, fitted.values(rows), targets), rel=1e-4)


# -- importance weights ---------------------------------------------------------------------------


def _sampled(*logprobs: float) -> Row:
    """A prompt of one token, then tokens that the engine sampled with these log-probs."""
    count = len(logprobs) + 1
    return Row(
        rollout_id=RolloutId("r"),
        token_ids=np.arange(count, dtype=np.int32),
        mask=np.arange(count) > 0,
        logprobs=np.array([0.0, *logprobs], np.float32),
        advantages=np.zeros(count, np.float32),
        spans=(Span(0, 1, count),),
    )


def _algorithm(**changes: object) -> Algorithm:
    return Algorithm(iterations=1, tasks_per_iteration=1, group_size=2, **changes)  # type: ignore[arg-type]


def _log(*ratios: float) -> np.ndarray:
    """Log-probs of weights under which the tokens, sampled at log-prob 0, have these ratios."""
    return np.array([0.0, *np.log(ratios)], np.float32)


def test_token_weights_are_ratios_cut_at_the_bound() -> None:
    rows, current = [_sampled(0.0, 0.0), _sampled(0.0)], [_log(0.5, 4.0), _log(1.0)]
    (first, second), metrics = importance_weights(rows, current, _algorithm(importance="token"))
    assert first.tolist() == pytest.approx([0.0, 0.5, 2.0])
    assert second.tolist() == pytest.approx([0.0, 1.0])
    # Of 0.5, 2 and 1: mean 3.5 / 3; effective (3.5)^2 / (3 * 5.25) = 0.7778.
    assert metrics["importance_mean"] == pytest.approx(3.5 / 3)
    assert metrics["importance_max"] == pytest.approx(4.0)
    assert metrics["importance_cut"] == pytest.approx(1 / 3)
    assert metrics["importance_effective"] == pytest.approx(0.7778, abs=1e-4)


def test_with_a_lower_bound_weights_outside_count_nothing() -> None:
    algorithm = _algorithm(importance="token", importance_min=0.6)
    (first,), metrics = importance_weights(
        [_sampled(0.0, 0.0, 0.0)], [_log(0.5, 1.5, 4)], algorithm
    )
    assert first.tolist() == pytest.approx([0.0, 0.0, 1.5, 0.0])
    assert metrics["importance_cut"] == pytest.approx(2 / 3)


def test_weights_beyond_every_number_are_reported_as_one() -> None:
    # e^1000 is no float; metrics are JSON, which has no infinity.
    gap = np.array([0.0, 1000.0], np.float32)
    (first,), metrics = importance_weights([_sampled(0.0)], [gap], _algorithm(importance="token"))
    assert first.tolist() == pytest.approx([0.0, 2.0])
    assert metrics["importance_max"] == sys.float_info.max


def test_sequence_weights_are_products_over_the_row() -> None:
    algorithm = _algorithm(importance="sequence")
    (first,), _ = importance_weights([_sampled(0.0, 0.0)], [_log(0.5, 3.0)], algorithm)
    # 0.5 * 3 = 1.5, for both tokens.
    assert first.tolist() == pytest.approx([0.0, 1.5, 1.5])


# -- two policies ---------------------------------------------------------------------------------


async def test_only_the_rows_of_a_policy_change_its_weights(config: BackendConfig) -> None:
    policies = {alias: {"model": "m", "agents": [alias]} for alias in ("one", "two")}
    recipe = parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": policies,
            "algorithm": {
                "iterations": 4, "tasks_per_iteration": 2, "group_size": 2, "importance": "token",
            },
            "optimiser": {"learning_rate": 0.01},
        }
    )  # fmt: skip
    assert recipe.algorithm is not None
    trainees = []
    with ThreadPoolExecutor(1) as thread:
        for alias in policies:
            learner = Learner(thread, recipe.algorithm)
            await learner.start(config, None, None, 1)
            # Nothing is served in this test.
            trainees.append(Trainee(alias, learner, None, 0))  # type: ignore[arg-type]
        before = [await _weights(one) for one in trainees]
        study = Study(recipe, lambda groups: [], trainees, Scorer((), run_folder=Path()))
        rows = {"one": tuple(two_calls(2)), "two": ()}
        lesson = Lesson(rows, {}, (), TrainableCalls(4, {}, {}))
        credited = Credited(lesson, (), Credit([]), {}, None, None, {})
        metrics = [(await study.train(one, credited, 1))[0] for one in trainees]
        after = [await _weights(one) for one in trainees]
    assert [one.version for one in trainees] == [1, 0]
    assert metrics[0]["actor/grad_norm"] > 0
    # The engine's log-probs of these rows are made up, and the weights say so.
    assert metrics[0]["actor/importance_mean"] < 1
    assert metrics[1] == {}
    assert not _equal(before[0], after[0])
    assert _equal(before[1], after[1])
    assert _equal(before[0], before[1])


async def _weights(trainee: Trainee) -> dict[str, torch.Tensor]:
    return await trainee.learner.call(
        lambda one: {name: tensor.clone() for name, tensor in one.named_parameters()}
    )


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
