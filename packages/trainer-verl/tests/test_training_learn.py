"""From groups to rows: weights, signal, models seen."""

from datetime import UTC, datetime

import numpy as np
import pytest

from lightningrl.credit import assign, broadcast
from lightningrl.errors import NothingTrainable, RunError
from lightningrl.experience.trainable import count_calls
from lightningrl.experience.trained_calls import STALE, UNTRAINED_AGENT, as_trained, lenses
from lightningrl.experience.transition import Group, Trace, assemble
from lightningrl.recipe import Optimiser, PolicyRecipe
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
from lightningrl_verl.training.learn import (
    Lesson,
    check_models,
    check_trainable,
    flat_share,
    has_regulariser,
    prepare,
    solved_share,
)
from lightningrl_verl.training.rows import cut

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GROUP = group_id("run", Mode.TRAIN, 1, "task")


def _call(
    name: str,
    prompt: list[int],
    answer: list[int],
    *,
    model: str,
    turn: int,
    policy: str = "policy",
    agent: str | None = None,
) -> CallEvent:
    role = b'{"role":"assistant","content":"x"}' if turn else b'{"role":"user","content":"q"}'
    return CallEvent(
        id=EventId(name),
        attempt_id=AttemptId("a"),
        at=NOW,
        step_id=StepId(name),
        agent=agent,
        policy=policy,
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


POLICIES = {"policy": PolicyRecipe(model="m")}


def _lesson(
    groups: list[Group],
    policies: dict[str, PolicyRecipe] = POLICIES,
    *,
    per_call: bool = False,
) -> Lesson:
    credit = assign(broadcast, groups, {"normalise": "mean"})
    seen_by = lenses(policies)
    calls = count_calls(
        one
        for group in as_trained(groups, seen_by)
        for trace in group.traces
        for one in trace.transitions
    )
    return prepare(groups, cut(groups, seen_by), credit, calls, per_call=per_call)


def test_tokens_that_may_be_trained_and_tokens_with_signal_are_counted_apart() -> None:
    # Two rollouts of four sampled tokens each in a group that differs, two in one that is flat.
    lesson = _lesson([_group(0.0, 1.0), _group(1.0, 1.0)])
    assert lesson.metrics["train/tokens"] == 16
    assert lesson.metrics["train/tokens_with_signal"] == 8
    assert lesson.metrics["train/trainable_share"] == 1.0
    check_trainable(lesson, 1)


def test_an_iteration_without_a_token_to_train_is_refused_with_the_reasons_counted() -> None:
    frozen = {"policy": PolicyRecipe(model="m", train_agents=("nobody",))}
    lesson = _lesson([_group(0.0, 1.0)], frozen)
    assert lesson.metrics["train/tokens"] == 0
    with pytest.raises(NothingTrainable) as refused:
        check_trainable(lesson, 7)
    assert refused.value.exit_code == 3
    said = str(refused.value)
    assert "iteration 7 has no token that may be trained, in 2 rollouts" in said
    assert "4 x the policy does not train this agent" in said
    # What the recipe leaves out is no loss.
    assert lesson.metrics["train/trainable_share"] is None


def test_an_iteration_whose_groups_were_all_skipped_is_the_guards_matter() -> None:
    check_trainable(_lesson([]), 1)


def test_two_turns_are_one_row_and_each_rollout_weighs_the_same() -> None:
    lesson = _lesson([_group(1.0, 0.0)])
    first, second = lesson.rows["policy"]
    assert first.token_ids.tolist() == [1, 2, 3, 4, 9, 5, 6]
    assert first.mask.tolist() == [False, False, True, True, False, True, True]
    # Credit +-0.5, two rollouts, four trained tokens: 0.5 / (2 * 4) = 0.0625 per token.
    assert first.advantages.tolist() == [0, 0, 0.0625, 0.0625, 0, 0.0625, 0.0625]
    assert second.advantages.tolist() == (-first.advantages).tolist()
    assert lesson.metrics["train/reward"] == 0.5
    assert lesson.metrics["train/tokens"] == 8
    assert lesson.metrics["drift/merged_share"] == 1.0


def test_each_call_may_be_a_row_of_its_own_with_the_same_weights() -> None:
    merged = _lesson([_group(1.0, 0.0)]).rows["policy"][0]
    first, second = _lesson([_group(1.0, 0.0)], per_call=True).rows["policy"][:2]
    assert first.token_ids.tolist() == [1, 2, 3, 4]
    assert first.mask.tolist() == [False, False, True, True]
    assert second.token_ids.tolist() == [1, 2, 3, 4, 9, 5, 6]
    assert second.mask.tolist() == [False, False, False, False, False, True, True]
    assert second.logprobs.tolist() == [0, 0, 0, 0, 0, -0.5, -0.5]
    assert [*first.advantages[2:4], *second.advantages[5:]] == merged.advantages[
        merged.mask
    ].tolist()


def test_a_call_trains_the_policy_that_answered_it_and_no_other() -> None:
    events: list[Event] = [
        _call("one", [1, 2], [3, 4], model="gpt", turn=0, policy="writer"),
        _call("two", [1, 2, 3, 4, 9], [5, 6, 7], model="gpt", turn=1, policy="critic"),
    ]
    group = Group(GROUP, (_trace(0, 1.0, events), _trace(1, 0.0, events)))
    policies = {alias: PolicyRecipe(model="m") for alias in ("writer", "critic")}
    rows = _lesson([group], policies).rows
    assert [row.token_ids.tolist() for row in rows["writer"]] == [[1, 2, 3, 4]] * 2
    assert [row.token_ids.tolist() for row in rows["critic"]] == [[1, 2, 3, 4, 9, 5, 6, 7]] * 2
    # Each policy has its own loss: of two rollouts each weighs a half, 0.5 / (2 * 2) and 0.5 / (2 * 3).
    assert rows["writer"][0].advantages.tolist() == [0, 0, 0.125, 0.125]
    assert rows["critic"][0].advantages[5:].tolist() == pytest.approx([1 / 12] * 3)
    frozen = {**policies, "critic": PolicyRecipe(model="m", trainable=False)}
    assert _lesson([group], frozen).rows.keys() == {"writer"}


def test_agents_that_a_policy_does_not_train_are_counted_with_the_reason() -> None:
    events: list[Event] = [
        _call("one", [1, 2], [3, 4], model="gpt", turn=0, agent="planner"),
        _call("two", [1, 2, 3, 4, 9], [5, 6, 7], model="gpt", turn=1, agent="solver"),
    ]
    group = Group(GROUP, (_trace(0, 1.0, events), _trace(1, 0.0, events)))
    lesson = _lesson([group], {"policy": PolicyRecipe(model="m", train_agents=("solver",))})
    (row, _) = lesson.rows["policy"]
    assert row.token_ids.tolist() == [1, 2, 3, 4, 9, 5, 6, 7]
    assert row.mask.tolist() == [False] * 5 + [True] * 3
    # Two rollouts, two tokens each.
    assert lesson.metrics["drift/untrainable_by_reason"] == {UNTRAINED_AGENT: 4}


def test_calls_of_older_weights_are_left_out_beyond_the_staleness() -> None:
    # The calls are of version 0, and version 2 is trained.
    groups = [_group(1.0, 0.0)]
    stale = cut(groups, lenses(POLICIES, versions={"policy": 2}, max_staleness=1))["policy"]
    assert [piece.merged.rows for piece in stale] == [(), ()]
    assert stale[0].merged.untrainable == {STALE: 4}
    fresh = cut(groups, lenses(POLICIES, versions={"policy": 2}, max_staleness=2))["policy"]
    assert [len(piece.merged.rows) for piece in fresh] == [1, 1]


def test_what_guards_look_at_is_measured() -> None:
    metrics = _lesson([_group(1.0, 0.0), _group(1.0, 1.0)]).metrics
    # Rewards 1, 0, 1, 1: the mean square deviation from 3/4 is 3/16.
    assert metrics["train/reward_std"] == pytest.approx((3 / 16) ** 0.5)
    assert metrics["train/tokens_per_call"] == 2
    assert metrics["train/tool_calls_per_rollout"] == 0
    assert metrics["train/entropy"] == 0.5


def test_a_group_without_signal_gives_no_rows_but_counts_in_the_weights() -> None:
    lesson = _lesson([_group(1.0, 0.0), _group(1.0, 1.0)])
    rows = lesson.rows["policy"]
    assert len(rows) == 2
    # Four rollouts now: 0.5 / (4 * 4) = 0.03125.
    assert rows[0].advantages[2] == pytest.approx(0.03125)
    assert lesson.metrics["train/groups_without_signal"] == 1
    assert lesson.metrics["train/rows"] == 4


def test_nothing_taken_gives_nothing_to_train_on() -> None:
    lesson = _lesson([])
    assert lesson.rows == {"policy": ()}
    assert lesson.metrics["train/reward"] is None


def test_several_models_are_not_guessed() -> None:
    traces = [trace.transitions for trace in _group(1.0, 0.0, second="gpt-large").traces]
    with pytest.raises(RunError, match=r"'gpt' \(2 calls\), 'gpt-large' \(2 calls\)"):
        check_models(traces, POLICIES)
    check_models(traces, {"policy": PolicyRecipe(model="m", replaces=("gpt",))})
    check_models([trace.transitions for trace in _group(1.0, 0.0).traces], POLICIES)
    check_models(traces, {"gpt": PolicyRecipe(model="m"), "gpt-large": PolicyRecipe(model="m")})


def test_flat_groups_are_those_of_several_rollouts_with_one_reward() -> None:
    # Of three groups of two or more, two are flat.
    assert flat_share([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0, 1.0], [0.0], []]) == 2 / 3
    assert flat_share([[1.0], []]) is None


def test_groups_are_solved_at_the_best_reward_that_the_run_has_seen() -> None:
    solved, mixed, lost = [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]
    assert solved_share([solved, mixed, lost, lost, []], []) == 0.25
    # Alone it is solved only where the run has seen less before; and not where it has seen more.
    assert solved_share([solved], []) == 0.0
    before = [{"iteration": 0}, {"train/reward_min": 0.0, "train/reward_max": 0.5}]
    assert solved_share([solved], before) == 1.0
    assert solved_share([lost], before) == 0.0
    assert solved_share([solved], [{"train/reward_min": 0.0, "train/reward_max": 2.0}]) == 0.0
    assert solved_share([], before) is None


@pytest.mark.parametrize(
    ("terms", "regularised"),
    [({}, False), ({"entropy_coeff": 0.01}, True), ({"kl_coeff": 0.1}, True)],
)
def test_entropy_and_kl_are_terms_beside_the_policys(
    terms: dict[str, float], regularised: bool
) -> None:
    assert has_regulariser(Optimiser(learning_rate=0.1, **terms)) is regularised  # type: ignore[arg-type]
