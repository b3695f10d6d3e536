"""`merge` joins calls on exact token prefixes; what it trains is what the engine sampled."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lightningrl.experience.drift import rollout_drift
from lightningrl.experience.trajectory import (
    UNTAKEN,
    Row,
    Span,
    loss_weights,
    merge,
    pack,
    with_credit,
)
from lightningrl.schema import Choice, RolloutId
from lightningrl_testkit.records import ids, llm_step, tool_step


def shown(row: Row) -> list[tuple[int, bool]]:
    return list(zip(row.token_ids.tolist(), row.mask.tolist(), strict=True))


def test_no_transitions_give_no_rows() -> None:
    assert merge([]).rows == ()


def test_one_call_is_one_row_whose_prompt_is_masked() -> None:
    (row,) = merge([llm_step("s1", [1, 2], [7, 8], logprob=-0.25)]).rows
    assert shown(row) == [(1, False), (2, False), (7, True), (8, True)]
    assert row.logprobs.tolist() == [0.0, 0.0, -0.25, -0.25]
    assert row.advantages.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert row.spans == (Span(index=0, start=2, stop=4),)
    assert row.trained_tokens == 2


def test_a_call_that_continues_the_last_one_joins_its_row() -> None:
    merged = merge(
        [
            llm_step("s1", [1, 2], [7, 8]),
            tool_step("t1"),
            llm_step("s2", [1, 2, 7, 8, 3, 4], [9], later=True),  # 3 4: the tool's result
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
            llm_step("A1", [1, 2], [7]),
            llm_step("B1", [5, 6], [8]),
            llm_step("A2", [1, 2, 7, 3], [9], later=True),
            llm_step("B2", [5, 6, 8, 4], [10], later=True),
        ]
    )
    assert [row.token_ids.tolist() for row in merged.rows] == [[1, 2, 7, 3, 9], [5, 6, 8, 4, 10]]
    assert merged.breaks == ()


def test_a_branch_gets_a_row_of_its_own_and_no_token_is_trained_twice() -> None:
    merged = merge([llm_step("s1", [1, 2], [7]), llm_step("s2", [1, 2], [8])])
    assert [shown(row) for row in merged.rows] == [
        [(1, False), (2, False), (7, True)],
        [(1, False), (2, False), (8, True)],
    ]
    assert merged.breaks == ()  # neither call's messages hold an answer


def test_a_call_continues_the_longest_row_that_it_can() -> None:
    merged = merge(
        [
            llm_step("s1", [1], [2]),
            llm_step("s2", [9], [9]),
            llm_step("s3", [1, 2, 3], [4], later=True),
            llm_step("s4", [1, 2, 3, 4, 5], [6], later=True),
        ]
    )
    assert [row.token_ids.tolist() for row in merged.rows] == [[1, 2, 3, 4, 5, 6], [9, 9]]


# -- breaks -------------------------------------------------------------------------------------


def test_prompts_that_part_inside_sampled_tokens_were_tokenised_anew() -> None:
    merged = merge(
        [llm_step("s1", [1, 2], [7, 8, 9]), llm_step("s2", [1, 2, 7, 5, 9, 3], [4], later=True)]
    )
    assert len(merged.rows) == 2
    (broken,) = merged.breaks
    assert (broken.step_id, broken.cause, broken.position) == ("s2", "retokenised", 3)
    assert broken.expected == (8, 9)
    assert broken.found == (5, 9, 3)


def test_prompts_that_part_inside_an_answer_that_a_stop_text_cut_were_stopped() -> None:
    """The tokens 8 and 9 say the stop text, which the message lacks; an edit before the answer is still one."""
    first = llm_step("s1", [1, 2], [7, 8, 9])
    assert first.call is not None
    cut = replace(first.call.choices[0], stop_text="Observation:")
    first = replace(first, call=replace(first.call, choices=(cut,)))
    for prompt, cause in (([1, 2, 7, 3], "stopped"), ([1, 4, 7, 3], "edited")):
        (broken,) = merge([first, llm_step("s2", prompt, [4], later=True)]).breaks
        assert broken.cause == cause


def test_prompts_that_part_inside_other_tokens_were_edited() -> None:
    merged = merge([llm_step("s1", [1, 2], [7]), llm_step("s2", [1, 4, 7, 3], [5], later=True)])
    (broken,) = merged.breaks
    assert (broken.cause, broken.position) == ("edited", 1)


def test_a_prompt_that_ends_inside_an_earlier_row_was_truncated() -> None:
    merged = merge([llm_step("s1", [1, 2, 3], [7, 8]), llm_step("s2", [1, 2], [5], later=True)])
    (broken,) = merged.breaks
    assert (broken.cause, broken.position, broken.found) == ("truncated", 2, ())
    assert broken.expected == (3, 7, 8)


def test_a_break_is_judged_by_the_row_that_agrees_longest() -> None:
    merged = merge(
        [
            llm_step("s1", [9, 9], [9]),
            llm_step("s2", [1, 2], [7, 8]),
            llm_step("s3", [1, 2, 7, 5], [4], later=True),
        ]
    )
    (broken,) = merged.breaks
    assert (broken.cause, broken.position) == ("retokenised", 3)


def test_a_break_shows_eight_tokens_a_side() -> None:
    merged = merge(
        [
            llm_step("s1", [1], list(range(10, 30))),
            llm_step("s2", [1, *range(50, 70)], [4], later=True),
        ]
    )
    (broken,) = merged.breaks
    assert broken.expected == tuple(range(10, 18))
    assert broken.found == tuple(range(50, 58))


# -- what is left out ---------------------------------------------------------------------------


def test_untrainable_tokens_stay_as_context_and_are_counted() -> None:
    merged = merge(
        [
            llm_step("s1", [1, 2], [7, 8], untrainable="a grammar"),
            llm_step("s2", [1, 2, 7, 8, 3], [9], later=True),
        ]
    )
    (row,) = merged.rows
    assert row.mask.tolist() == [False, False, False, False, False, True]
    assert row.logprobs.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, -0.5]
    assert row.spans == (Span(1, 5, 6),)
    assert merged.untrainable == {"a grammar": 2}
    assert merged.masked == 2


def test_a_row_without_a_trained_token_is_left_out() -> None:
    merged = merge(
        [llm_step("s1", [1], [7], untrainable="x"), llm_step("s2", [5], [8], untrainable="x")]
    )
    assert merged.rows == ()
    assert merged.untrainable == {"x": 2}
    assert merged.masked == 0


def test_a_call_that_sampled_nothing_makes_no_row() -> None:
    assert merge([llm_step("s1", [1, 2], [])]).rows == ()


def test_tokens_without_a_prompt_are_counted_as_left_out() -> None:
    merged = merge([llm_step("s1", [], [7, 8], untrainable="the engine gave no prompt token ids")])
    assert merged.rows == ()
    assert merged.untrainable == {"the engine gave no prompt token ids": 2}


def test_answers_that_the_agent_did_not_go_on_with_are_counted() -> None:
    one = llm_step("s1", [1], [7, 8])
    assert one.call is not None
    choices = tuple(
        Choice(index=i, message=b"{}", finish_reason="stop", token_ids=ids(tokens), logprobs=b"")
        for i, tokens in enumerate(([7, 8], [9, 9, 9]))
    )
    two_answers = replace(one, call=replace(one.call, choices=choices))
    merged = merge([two_answers])
    assert [row.trained_tokens for row in merged.rows] == [2]
    assert (merged.untrainable, merged.masked) == ({UNTAKEN: 3}, 0)


# -- credit -------------------------------------------------------------------------------------


def test_the_weights_of_a_rollout_sum_to_one_over_the_rollouts() -> None:
    rows = merge([llm_step("s1", [1], [7, 8, 9]), llm_step("s2", [5], [6])]).rows
    first, second = with_credit(rows, [1.0, 1.0], rollouts=2)
    # 4 trained tokens, 2 rollouts: each weighs 1 / (2 * 4) = 0.125
    assert first.advantages.tolist() == [0.0, 0.125, 0.125, 0.125]
    assert second.advantages.tolist() == [0.0, 0.125]


def test_each_transition_gets_its_own_credit() -> None:
    (row,) = merge(
        [llm_step("s1", [1], [7]), tool_step("t"), llm_step("s2", [1, 7, 2], [8], later=True)]
    ).rows
    (credited,) = with_credit([row], [1.0, 99.0, -3.0], rollouts=1)
    # 2 trained tokens: 1 / 2 and -3 / 2; the tool's credit lands nowhere
    assert credited.advantages.tolist() == [0.0, 0.5, 0.0, -1.5]


def test_by_calls_a_long_answer_weighs_no_more_than_a_short_one() -> None:
    rows = merge(
        [
            llm_step("s1", [1], [7, 8, 9, 4]),
            llm_step("s2", [1, 7, 8, 9, 4, 2], [6], later=True),
            llm_step("s3", [5], [6, 6]),
        ]
    ).rows
    # Two rollouts, three calls of 4, 1 and 2 tokens: 1 / (2 * 3) = 1/6 for each call.
    assert loss_weights(rows, rollouts=2, share="calls") == [
        [pytest.approx(1 / 24), pytest.approx(1 / 6)],
        [pytest.approx(1 / 12)],
    ]
    # Seven tokens: 1 / (2 * 7) for each.
    assert loss_weights(rows, rollouts=2) == [[1 / 14, 1 / 14], [1 / 14]]
    (first, second) = with_credit(rows, [1.0, 2.0, -1.0], rollouts=2, share="calls")
    assert first.advantages.tolist() == pytest.approx([0, *[1 / 24] * 4, 0, 1 / 3])
    assert second.advantages.tolist() == pytest.approx([0, -1 / 12, -1 / 12])


def test_crediting_leaves_the_given_rows_as_they_were() -> None:
    (row,) = merge([llm_step("s1", [1], [7])]).rows
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
        llm_step(str(i), prompt, sampled, untrainable=None if good else "no")
        for i, (prompt, sampled, good) in enumerate(calls)
    ]
    merged = merge(transitions)
    # Each sampled token is trained, masked or dropped.
    report = rollout_drift(RolloutId("r"), "policy", merged)
    sampled_tokens = sum(len(sampled) for _, sampled, _ in calls)
    assert report.sampled == sampled_tokens
    assert report.masked >= 0
    assert report.dropped >= 0
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
    together = [llm_step("s1", [1], [7, 8]), llm_step("s2", [1, 7, 8, 2], [9], later=True)]
    apart = [llm_step("s1", [1], [7, 8]), llm_step("s2", [5, 5], [9], later=True)]
    for transitions in (together, apart):
        rows = with_credit(merge(transitions).rows, [1.0, 1.0], rollouts)
        total = sum(float(row.advantages.sum()) for row in rows)
        assert total == pytest.approx(1 / rollouts)


def test_packed_rows_stand_end_to_end() -> None:
    rows = merge([llm_step("s1", [1, 2], [7]), llm_step("s2", [3], [8, 9])]).rows
    packed = pack(rows)
    assert packed.token_ids.tolist() == [1, 2, 7, 3, 8, 9]
    assert packed.mask.tolist() == [False, False, True, False, True, True]
    assert packed.logprobs.tolist() == [0.0, 0.0, -0.5, 0.0, -0.5, -0.5]
    assert packed.lengths.tolist() == [3, 3]


def test_no_rows_pack_to_nothing() -> None:
    packed = pack([])
    assert [len(packed.token_ids), len(packed.mask), len(packed.lengths)] == [0, 0, 0]


# -- templates that break a conversation --------------------------------------------------------


def turn(step: str, prompt: list[int], answer: list[int], said: Any, *asked: Any) -> Any:
    """A call that was asked `asked` and answered `said`."""
    one = llm_step(step, prompt, answer)
    assert one.call is not None
    choice = replace(one.call.choices[0], message=json.dumps(said).encode())
    body = json.dumps({"messages": asked}).encode()
    return replace(one, call=replace(one.call, choices=(choice,), request=body))


USER = {"role": "user", "content": "Hi"}
YO = {"role": "assistant", "content": "Yo"}
THOUGHT = {"role": "assistant", "content": "<think>Hm.</think>Yo"}


@pytest.mark.parametrize(
    ("answer", "sent_back", "second", "cause"),
    [
        # 5 is an empty thought that the generation prompt alone has: it is gone in the next one.
        (YO, YO, [1, 7, 8, 2], "template"),
        (YO, {"role": "assistant", "content": "No"}, [1, 7, 8, 2], "edited"),
        (YO, YO, [1, 5, 9, 2], "retokenised"),
        (THOUGHT, THOUGHT, [1, 5, 8, 2], "template"),
        ({**YO, "reasoning": "Hm."}, {**YO, "reasoning_content": "Hm."}, [1, 5, 8, 2], "template"),
        ({**YO, "reasoning": "Hm."}, YO, [1, 5, 8, 2], "retokenised"),
    ],
)
def test_a_template_that_writes_an_answer_otherwise_is_told(
    answer: Any, sent_back: Any, second: list[int], cause: str
) -> None:
    first = turn("s1", [1, 5], [7, 8], answer, USER)
    (broken,) = merge([first, turn("s2", second, [4], YO, USER, sent_back, USER)]).breaks
    assert broken.cause == cause


class Watched(list[Any]):
    """Counts how often its items are taken."""

    taken = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.taken += len(found) if isinstance(place, slice) else 1
        return found


def test_breaks_are_explained_by_one_reading_of_the_calls_before() -> None:
    """A template that drops the empty thought breaks each of 20 turns."""
    talk, turns = [USER], Watched()
    for place in range(20):
        turns.append(turn(f"s{place}", [1, 5 + place], [7], YO, *talk))
        talk += [YO, USER]
    found = merge(turns)
    assert [one.cause for one in found.breaks] == ["template"] * 19
    # 20 rows take the first transition for its rollout, and the 19 before the last break are read.
    assert turns.taken == 20 + 19
