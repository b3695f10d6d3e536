"""The shared records: ids that a restart finds again, the state tables, the retry policy."""

import re
from pathlib import Path

import msgspec
import pytest

from lightningrl.schema import (
    ATTEMPT_MOVES,
    RETRY_RULES,
    ROLLOUT_MOVES,
    TERMINAL,
    AttemptState,
    Event,
    FailureKind,
    Mode,
    NewRollout,
    Progress,
    RetryPolicy,
    RetryRule,
    RolloutState,
    Sampling,
    group_id,
    new_id,
    rollout_id,
)

AGENT, TIMEOUT = FailureKind.AGENT, FailureKind.TIMEOUT
LOST, INFRASTRUCTURE = FailureKind.LOST, FailureKind.INFRASTRUCTURE


def test_the_same_run_started_again_gives_the_same_ids() -> None:
    first = group_id("math", Mode.TRAIN, 3, "task-7")
    assert first == group_id("math", Mode.TRAIN, 3, "task-7")
    assert rollout_id(first, 2) == f"r-{first.removeprefix('g-')}-2"


@pytest.mark.parametrize(
    "other",
    [
        ("sql", Mode.TRAIN, 3, "task-7", ""),
        ("math", Mode.VAL, 3, "task-7", ""),
        ("math", Mode.TRAIN, 4, "task-7", ""),
        ("math", Mode.TRAIN, 3, "task-8", ""),
        ("math", Mode.TRAIN, 3, "task-7", "sampled"),
        ("math", Mode.TRAIN, 37, "task-", ""),  # the same letters, cut elsewhere
    ],
)
def test_groups_that_differ_in_anything_have_ids_that_differ(
    other: tuple[str, Mode, int, str, str],
) -> None:
    assert group_id("math", Mode.TRAIN, 3, "task-7") != group_id(*other)


def test_random_ids_carry_their_prefix_and_never_a_dot() -> None:
    one, two = new_id("a"), new_id("a")
    assert one.startswith("a-")
    assert one != two
    assert "." not in one  # attempt keys are split at dots


def test_every_state_has_a_row_in_its_table() -> None:
    assert set(ROLLOUT_MOVES) == set(RolloutState)
    assert set(ATTEMPT_MOVES) == set(AttemptState)


def test_only_a_failed_rollout_leaves_its_end_state() -> None:
    assert {state.value for state in TERMINAL} == {"succeeded", "failed", "cancelled"}
    left = {state: ROLLOUT_MOVES[state] for state in TERMINAL if ROLLOUT_MOVES[state]}
    assert left == {RolloutState.FAILED: {RolloutState.QUEUED}}
    ends = {state for state, moves in ATTEMPT_MOVES.items() if not moves}
    assert ends == set(AttemptState) - {AttemptState.RUNNING}


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, frontier = {RolloutState.QUEUED}, [RolloutState.QUEUED]
    while frontier:
        new = ROLLOUT_MOVES[frontier.pop()] - reached
        reached |= new
        frontier += new
    assert reached == set(RolloutState)


@pytest.mark.parametrize(
    ("kind", "failures", "again"),
    [
        (AGENT, [AGENT], False),  # an exception of the agent would come again
        (TIMEOUT, [TIMEOUT], True),  # max_attempts is 2
        (TIMEOUT, [TIMEOUT, TIMEOUT], False),
        (TIMEOUT, [LOST, LOST, LOST, TIMEOUT], True),  # infrastructure has a limit of its own
        (LOST, [LOST] * 5, True),
        (LOST, [LOST] * 6, False),
        (INFRASTRUCTURE, [LOST, LOST, LOST, INFRASTRUCTURE, LOST, INFRASTRUCTURE], False),
        (FailureKind.CANCELLED, [FailureKind.CANCELLED], False),
    ],
)
def test_the_default_policy_tries_again(
    kind: FailureKind, failures: list[FailureKind], again: bool
) -> None:
    assert RetryPolicy().again(kind, failures) is again


def test_every_kind_of_failure_has_its_rule() -> None:
    assert set(RETRY_RULES) == set(FailureKind)


def test_the_concepts_have_the_same_rules() -> None:
    page = Path(__file__).parents[3].joinpath("docs/concepts.md").read_text(encoding="utf-8")
    shown = {
        RetryRule.AGENT: "if `retry_agent_errors`, within `max_attempts`",
        RetryRule.ATTEMPTS: "within `max_attempts`",
        RetryRule.INFRASTRUCTURE: "within `max_infrastructure_failures`",
        RetryRule.NEVER: "never",
    }
    for kind, rule in RETRY_RULES.items():
        assert re.search(rf"^\| `{kind}` \|.*\| {re.escape(shown[rule])} \|$", page, re.MULTILINE)


def test_agent_errors_are_tried_again_where_the_recipe_says_so() -> None:
    policy = RetryPolicy(max_attempts=3, retry_agent_errors=True)
    assert policy.again(AGENT, [AGENT, AGENT])
    assert not policy.again(AGENT, [AGENT, AGENT, AGENT])


def test_progress_counts_what_ended_and_averages_what_was_rewarded() -> None:
    progress = Progress(
        queued=1, running=2, succeeded=3, failed=4, cancelled=5, reward_sum=1.5, rewarded=3
    )
    assert progress.ended == 12  # 3 + 4 + 5
    assert progress.total == 15  # 12 + 1 + 2
    assert progress.mean_reward == 0.5  # 1.5 / 3


def test_without_a_reward_there_is_no_mean() -> None:
    assert Progress(succeeded=2).mean_reward is None


def test_settings_that_people_write_refuse_unknown_fields() -> None:
    for kind in (Sampling, RetryPolicy):
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({"temprature": 0.5}, kind)


def test_records_survive_the_wire() -> None:
    group = group_id("math", Mode.TRAIN, 1, "t")
    sent = NewRollout(
        id=rollout_id(group, 0),
        run="math",
        mode=Mode.TRAIN,
        iteration=1,
        task_id="t",
        group_id=group,
        member=0,
        task={"question": "1+1?"},
        sampling=Sampling(temperature=0.0, max_tokens=8),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=NewRollout) == sent


def test_events_tell_their_kind_on_the_wire() -> None:
    wire = {"type": "log", "id": "e1", "attempt_id": "a1", "at": "2026-01-01T00:00:00Z"}
    event = msgspec.convert(wire | {"level": "info", "message": "hello"}, Event)
    assert type(event).__name__ == "LogEvent"
