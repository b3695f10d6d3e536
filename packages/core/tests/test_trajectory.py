"""`merge` joins calls on exact token prefixes; what it trains is what the engine sampled."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightningrl.schema import (
    AttemptId,
    CallEvent,
    CallStatus,
    EventId,
    RolloutId,
    StepId,
    StepKind,
)
from lightningrl.trajectory import Row, Span, merge, with_credit
from lightningrl.transition import Transition

START = datetime(2026, 1, 1, tzinfo=UTC)


def ask(
    step: str,
    prompt: list[int],
    sampled: list[int],
    *,
    later: bool = False,
    untrainable: str | None = None,
    logprob: float = -0.5,
) -> Transition:
    """A model call; `later` says that its messages hold an earlier answer."""
    roles = ["user", "assistant", "tool"] if later else ["user"]
    request = json.dumps({"messages": [{"role": role, "content": ""} for role in roles]})
    call = CallEvent(
        id=EventId(step),
        attempt_id=AttemptId("a"),
        at=START,
        step_id=StepId(step),
        agent=None,
        policy="policy",
        model="m",
        endpoint="",
        version_start=1,
        version_end=1,
        request=request.encode(),
        sampling=None,
        prompt_ids=b"",
        choices=(),
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        held_ms=0.0,
        upstream_retries=0,
        status=CallStatus.DELIVERED,
        http_status=200,
        error=None,
    )
    return Transition(
        step_id=StepId(step),
        rollout_id=RolloutId("r"),
        attempt_id=AttemptId("a"),
        kind=StepKind.LLM,
        name="m",
        agent=None,
        parent_id=None,
        started_at=START,
        call=call,
        prompt_ids=np.array(prompt, np.int32),
        token_ids=np.array(sampled, np.int32),
        logprobs=np.full(len(sampled), logprob, np.float32),
        untrainable=untrainable,
    )


def tool(step: str) -> Transition:
    return Transition(
        step_id=StepId(step),
        rollout_id=RolloutId("r"),
        attempt_id=AttemptId("a"),
        kind=StepKind.TOOL,
        name="calculator",
        agent=None,
        parent_id=None,
        started_at=START,
    )


def shown(row: Row) -> list[tuple[int, bool]]:
    return list(zip(row.token_ids.tolist(), row.mask.tolist(), strict=True))


def test_no_transitions_give_no_rows() -> None:
    assert merge([]).rows == ()


def test_one_call_is_one_row_whose_prompt_is_masked() -> None:
    (row,) = merge([ask("s1", [1, 2], [7, 8], logprob=-0.25)]).rows
    assert shown(row) == [(1, False), (2, False), (7, True), (8, True)]
    assert row.logprobs.tolist() == [0.0, 0.0, -0.25, -0.25]
    assert row.advantages.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert row.spans == (Span(index=0, start=2, stop=4),)
    assert row.trained_tokens == 2


def test_a_call_that_continues_the_last_one_joins_its_row() -> None:
    merged = merge(
        [
            ask("s1", [1, 2], [7, 8]),
            tool("t1"),
            ask("s2", [1, 2, 7, 8, 3, 4], [9], later=True),  # 3 4: the tool's result
        ]
    )
    (row,) = merged.rows
    assert shown(row) == [
        (1, False),
        (2, False),
        (7, True),
        (8, True),
        (3, False),
        (4, False),
        (9, True),
    ]
    assert row.spans == (Span(0, 2, 4), Span(2, 6, 7))  # the tool is transition 1
    assert (merged.continued, merged.continuing, merged.breaks) == (1, 1, ())


def test_interleaved_agents_give_one_row_each() -> None:
    merged = merge(
        [
            ask("A1", [1, 2], [7]),
            ask("B1", [5, 6], [8]),
            ask("A2", [1, 2, 7, 3], [9], later=True),
            ask("B2", [5, 6, 8, 4], [10], later=True),
        ]
    )
    assert [row.token_ids.tolist() for row in merged.rows] == [[1, 2, 7, 3, 9], [5, 6, 8, 4, 10]]
    assert merged.breaks == ()


def test_a_branch_gets_a_row_of_its_own_and_no_token_is_trained_twice() -> None:
    merged = merge([ask("s1", [1, 2], [7]), ask("s2", [1, 2], [8])])
    assert [shown(row) for row in merged.rows] == [
        [(1, False), (2, False), (7, True)],
        [(1, False), (2, False), (8, True)],
    ]
    assert merged.breaks == ()  # neither call's messages hold an answer


def test_a_call_continues_the_longest_row_that_it_can() -> None:
    merged = merge(
        [
            ask("s1", [1], [2]),
            ask("s2", [9], [9]),
            ask("s3", [1, 2, 3], [4], later=True),
            ask("s4", [1, 2, 3, 4, 5], [6], later=True),
        ]
    )
    assert [row.token_ids.tolist() for row in merged.rows] == [[1, 2, 3, 4, 5, 6], [9, 9]]


# -- breaks -------------------------------------------------------------------------------------


def test_prompts_that_part_inside_sampled_tokens_were_tokenised_anew() -> None:
    merged = merge([ask("s1", [1, 2], [7, 8, 9]), ask("s2", [1, 2, 7, 5, 9, 3], [4], later=True)])
    assert len(merged.rows) == 2
    (broken,) = merged.breaks
    assert (broken.step_id, broken.cause, broken.position) == ("s2", "retokenised", 3)
    assert broken.expected == (8, 9)
    assert broken.found == (5, 9, 3)


def test_prompts_that_part_inside_other_tokens_were_edited() -> None:
    merged = merge([ask("s1", [1, 2], [7]), ask("s2", [1, 4, 7, 3], [5], later=True)])
    (broken,) = merged.breaks
    assert (broken.cause, broken.position) == ("edited", 1)


def test_a_prompt_that_ends_inside_an_earlier_row_was_truncated() -> None:
    merged = merge([ask("s1", [1, 2, 3], [7, 8]), ask("s2", [1, 2], [5], later=True)])
    (broken,) = merged.breaks
    assert (broken.cause, broken.position, broken.found) == ("truncated", 2, ())
    assert broken.expected == (3, 7, 8)


def test_a_break_is_judged_by_the_row_that_agrees_longest() -> None:
    merged = merge(
        [
            ask("s1", [9, 9], [9]),
            ask("s2", [1, 2], [7, 8]),
            ask("s3", [1, 2, 7, 5], [4], later=True),
        ]
    )
    (broken,) = merged.breaks
    assert (broken.cause, broken.position) == ("retokenised", 3)


def test_a_break_shows_eight_tokens_a_side() -> None:
    merged = merge(
        [ask("s1", [1], list(range(10, 30))), ask("s2", [1, *range(50, 70)], [4], later=True)]
    )
    (broken,) = merged.breaks
    assert broken.expected == tuple(range(10, 18))
    assert broken.found == tuple(range(50, 58))


# -- what is left out ---------------------------------------------------------------------------


def test_untrainable_tokens_stay_as_context_and_are_counted() -> None:
    merged = merge(
        [
            ask("s1", [1, 2], [7, 8], untrainable="a grammar"),
            ask("s2", [1, 2, 7, 8, 3], [9], later=True),
        ]
    )
    (row,) = merged.rows
    assert row.mask.tolist() == [False, False, False, False, False, True]
    assert row.logprobs.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, -0.5]
    assert row.spans == (Span(1, 5, 6),)
    assert merged.untrainable == {"a grammar": 2}


def test_a_row_without_a_trained_token_is_left_out() -> None:
    merged = merge([ask("s1", [1], [7], untrainable="x"), ask("s2", [5], [8], untrainable="x")])
    assert merged.rows == ()
    assert merged.untrainable == {"x": 2}


def test_a_call_that_sampled_nothing_makes_no_row() -> None:
    assert merge([ask("s1", [1, 2], [])]).rows == ()


def test_tokens_without_a_prompt_are_counted_as_left_out() -> None:
    merged = merge([ask("s1", [], [7, 8], untrainable="the engine gave no prompt token ids")])
    assert merged.rows == ()
    assert merged.untrainable == {"the engine gave no prompt token ids": 2}


# -- credit -------------------------------------------------------------------------------------


def test_the_weights_of_a_rollout_sum_to_one_over_the_rollouts() -> None:
    rows = merge([ask("s1", [1], [7, 8, 9]), ask("s2", [5], [6])]).rows
    first, second = with_credit(rows, [1.0, 1.0], rollouts=2)
    # 4 trained tokens, 2 rollouts: each weighs 1 / (2 * 4) = 0.125
    assert first.advantages.tolist() == [0.0, 0.125, 0.125, 0.125]
    assert second.advantages.tolist() == [0.0, 0.125]


def test_each_transition_gets_its_own_credit() -> None:
    (row,) = merge([ask("s1", [1], [7]), tool("t"), ask("s2", [1, 7, 2], [8], later=True)]).rows
    (credited,) = with_credit([row], [1.0, 99.0, -3.0], rollouts=1)
    # 2 trained tokens: 1 / 2 and -3 / 2; the tool's credit lands nowhere
    assert credited.advantages.tolist() == [0.0, 0.5, 0.0, -1.5]


def test_crediting_leaves_the_given_rows_as_they_were() -> None:
    (row,) = merge([ask("s1", [1], [7])]).rows
    with_credit([row], [1.0], rollouts=1)
    assert row.advantages.tolist() == [0.0, 0.0]


def test_no_rows_need_no_credit() -> None:
    assert with_credit([], [], rollouts=4) == []


# -- whatever the calls -------------------------------------------------------------------------

few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@given(st.lists(st.tuples(few_tokens, few_tokens, st.booleans()), max_size=6))
def test_every_trainable_token_is_trained_exactly_once(
    calls: list[tuple[list[int], list[int], bool]],
) -> None:
    transitions = [
        ask(str(i), prompt, sampled, untrainable=None if good else "no")
        for i, (prompt, sampled, good) in enumerate(calls)
    ]
    merged = merge(transitions)
    spans: dict[int, Any] = {}
    for row in merged.rows:
        assert not row.mask[0]
        assert row.trained_tokens == sum(span.stop - span.start for span in row.spans)
        for span in row.spans:
            assert span.index not in spans
            spans[span.index] = row.token_ids[span.start : span.stop].tolist()
            assert row.mask[span.start : span.stop].all()
            prompt = transitions[span.index].prompt_ids.tolist()
            assert row.token_ids[: span.start].tolist() == prompt
    assert spans == {i: sampled for i, (_, sampled, good) in enumerate(calls) if good}


@pytest.mark.parametrize("rollouts", [1, 3])
def test_total_weight_does_not_depend_on_how_calls_merged(rollouts: int) -> None:
    together = [ask("s1", [1], [7, 8]), ask("s2", [1, 7, 8, 2], [9], later=True)]
    apart = [ask("s1", [1], [7, 8]), ask("s2", [5, 5], [9], later=True)]
    for transitions in (together, apart):
        rows = with_credit(merge(transitions).rows, [1.0, 1.0], rollouts)
        total = sum(float(row.advantages.sum()) for row in rows)
        assert total == pytest.approx(1 / rollouts)
