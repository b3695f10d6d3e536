"""Claims about events: append once, read back the same."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from lightningrl.errors import ConfigError, Conflict, LimitReached, NotFound, StaleAttempt
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallLimits,
    Cause,
    Diverged,
    Event,
    EventId,
    Failure,
    FailureKind,
    ReplayOf,
    RetryPolicy,
    Rewrite,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_testkit.records import AT, call, group, log, reward

LOST = Failure(FailureKind.LOST, "released")


async def running_attempt(store: Store) -> AttemptId:
    """An attempt that runs, of a rollout of its own."""
    await store.enqueue(group())
    (claim,) = await store.claim("worker")
    return claim.attempt.id


async def reward_of_the_rollout(store: Store) -> float | None:
    """The reward of the only rollout."""
    (rollout,) = await store.rollouts(RolloutQuery())
    return rollout.reward


def one_of_each(attempt: AttemptId) -> list[Event]:
    """An event of every kind, in an order that no sorting gives."""
    step = StepId("s-1")
    return [
        StepStartEvent(
            id=EventId("z"),
            attempt_id=attempt,
            at=AT,
            step_id=step,
            parent_id=None,
            kind=StepKind.TOOL,
            name="search",
            agent="solver",
            inputs={"query": "x", "top": [1, 2.5, None]},
            tool_call_id="t-1",
        ),
        replace(call(attempt, "y"), rewrites=(Rewrite("a", {"b": ["c", None]}), Rewrite("d"))),
        replace(
            call(attempt, "w"),
            replay_of=ReplayOf(AttemptId("a-0"), EventId("c")),
            diverged=Diverged("'x' became 'y'", Cause.TIME, EventId("c"), "clock"),
        ),
        StepEndEvent(id=EventId("x"), attempt_id=attempt, at=AT, step_id=step, output="found"),
        reward(attempt, 0.25, step=step, name="relevance"),
        log(attempt, "a", "done"),
    ]


class EventClaims:
    """Append, events, and the reward of a rollout."""

    async def test_events_are_read_as_written_in_order_of_arrival(self, store: Store) -> None:
        attempt = await running_attempt(store)
        events = one_of_each(attempt)
        await store.append(events[:2])
        await store.append(events[2:])
        assert await store.events([attempt]) == [events]

    async def test_an_attempt_without_events_has_an_empty_list(self, store: Store) -> None:
        assert await store.events([await running_attempt(store)]) == [[]]

    async def test_the_calls_of_an_attempt_are_read_without_its_other_events(
        self, store: Store
    ) -> None:
        attempt = await running_attempt(store)
        assert await store.calls(attempt) == []
        first = call(attempt, "1", request=b'{"messages":["a long beginning of a conversation"]}')
        second = call(attempt, "2", request=first.request[:-2] + b',"and more of it"]}')
        await store.append([log(attempt, "line"), first, reward(attempt, 1.0)])
        await store.append([second])
        assert await store.calls(attempt) == [first, second]
        assert await store.calls(attempt, above=1) == [first, second]
        assert await store.calls(attempt, above=2) == []
        with pytest.raises(NotFound, match="a-unknown"):
            await store.calls(AttemptId("a-unknown"))

    async def test_events_come_attempt_by_attempt_as_asked(self, store: Store) -> None:
        await store.enqueue(group(2))
        first, second = (one.attempt.id for one in await store.claim("worker", limit=2))
        await store.append([log(first, "1"), log(second, "1"), log(first, "2")])
        found = await store.events([second, first])
        assert [[event.id for event in events] for events in found] == [["1"], ["1", "2"]]

    async def test_appending_twice_is_appending_once(self, store: Store) -> None:
        attempt = await running_attempt(store)
        events = one_of_each(attempt)
        await store.append(events)
        await store.append([*events, log(attempt, "new")])
        assert await store.events([attempt]) == [[*events, log(attempt, "new")]]

    async def test_the_first_event_with_an_id_stands(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([log(attempt, "1", "first")])
        await store.append([log(attempt, "1", "second")])
        assert await store.events([attempt]) == [[log(attempt, "1", "first")]]

    async def test_appending_at_once_loses_nothing(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await asyncio.gather(*(store.append([log(attempt, str(i))]) for i in range(50)))
        (events,) = await store.events([attempt])
        assert sorted(int(event.id) for event in events) == list(range(50))

    async def test_an_append_is_all_or_none(self, store: Store) -> None:
        attempt = await running_attempt(store)
        with pytest.raises(NotFound):
            await store.append([log(attempt, "1"), log(AttemptId("a-unknown"), "1")])
        assert await store.events([attempt]) == [[]]

    async def test_one_refused_append_does_not_undo_its_neighbours(self, store: Store) -> None:
        attempt = await running_attempt(store)
        unknown = AttemptId("a-unknown")
        results = await asyncio.gather(
            store.append([log(attempt, "1")]),
            store.append([log(attempt, "lost"), log(unknown, "1")]),
            store.append([log(attempt, "2")]),
            return_exceptions=True,
        )
        assert [type(one) for one in results] == [type(None), NotFound, type(None)]
        (events,) = await store.events([attempt])
        assert {event.id for event in events} == {"1", "2"}

    async def test_an_ended_attempt_accepts_only_rewards_and_logs(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.finish(attempt, AttemptState.SUCCEEDED)
        await store.append([log(attempt, "late"), reward(attempt, 1.0)])
        with pytest.raises(StaleAttempt, match=attempt):
            await store.append([log(attempt, "with it"), call(attempt, "late call")])
        (events,) = await store.events([attempt])
        assert [event.id for event in events] == ["late", "reward-final-None-0"]

    async def test_repeating_an_append_after_the_end_changes_nothing(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([call(attempt, "1")])
        await store.finish(attempt, AttemptState.SUCCEEDED)
        await store.append([call(attempt, "1")])  # its answer may have been lost the first time
        assert await store.events([attempt]) == [[call(attempt, "1")]]

    async def test_a_recorded_answer_is_given_to_one_step(self, store: Store) -> None:
        attempt = await running_attempt(store)
        sampled = ReplayOf(AttemptId("a-parent"), EventId("of the parent"))
        first, second = (
            replace(call(attempt, "again"), step_id=StepId(step), replay_of=sampled)
            for step in ("s-1", "s-2")
        )
        await store.append([first])
        await store.append([first])  # its answer may have been lost the first time
        with pytest.raises(Conflict, match=f"'again' of attempt '{attempt}'.*another step"):
            await store.append([log(attempt, "with it"), second])
        await store.finish(attempt, AttemptState.SUCCEEDED)
        await store.append([first])
        with pytest.raises(Conflict, match="another step"):
            await store.append([second])
        assert await store.events([attempt]) == [[first]]

    async def test_an_attempt_has_no_more_calls_than_its_limit(self, store: Store) -> None:
        limits = CallLimits(calls=2)
        attempt = await running_attempt(store)
        await store.append([call(attempt, "1")], limits=limits)
        results = await asyncio.gather(
            *(store.append([call(attempt, str(i))], limits=limits) for i in range(2, 6)),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in results) == ["LimitReached"] * 3 + ["NoneType"]
        (events,) = await store.events([attempt])
        assert len(events) == 2
        # What is there already changes nothing, and what is no call does not count.
        await store.append([call(attempt, events[1].id), log(attempt, "line")], limits=limits)
        with pytest.raises(LimitReached, match=f"{attempt}.*2 calls"):
            await store.append([log(attempt, "with it"), call(attempt, "late")], limits=limits)
        await store.append([call(attempt, "late")])
        (events,) = await store.events([attempt])
        assert [event.id for event in events[2:]] == ["line", "late"]

    async def test_the_call_that_goes_beyond_a_limit_of_tokens_is_the_last(
        self, store: Store
    ) -> None:
        # Each call has 3 prompt and 2 answer tokens.
        limits = CallLimits(tokens=6)
        attempt = await running_attempt(store)
        await store.append([call(attempt, "1"), call(attempt, "2")], limits=limits)
        with pytest.raises(LimitReached, match="10 tokens"):
            await store.append([call(attempt, "3")], limits=limits)

    async def test_long_conversations_are_read_back_byte_for_byte(self, store: Store) -> None:
        # Two interleaved conversations of one attempt, each call continuing its own.
        attempt = await running_attempt(store)
        events: list[Event] = []
        for turn in range(6):
            for start in (100, 500):
                tokens = [start + i % 7 for i in range(40 * (turn + 1))]
                messages = b",".join(
                    b'{"content":"%d"}' % i for i in range(start, start + turn + 1)
                )
                request = b'{"messages":[%s],"tools":["calculator"]}' % messages
                ident = f"{start}-{turn}"
                events.append(call(attempt, ident, prompt=tokens, request=request))
        for event in events:
            await store.append([event])
        assert await store.events([attempt]) == [events]

    async def test_the_final_reward_is_the_rollout_s(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([reward(attempt, 0.5, step="s-1"), reward(attempt, 0.5, name="speed")])
        assert await reward_of_the_rollout(store) is None
        await store.append([reward(attempt, 0.75)])
        assert await reward_of_the_rollout(store) == 0.75

    async def test_the_highest_revision_counts(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([reward(attempt, 0.3, revision=3), reward(attempt, 0.1, revision=1)])
        assert await reward_of_the_rollout(store) == 0.3

    async def test_of_equal_revisions_the_later_counts(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([reward(attempt, 0.3), reward(attempt, 0.1, ident="second")])
        assert await reward_of_the_rollout(store) == 0.1

    async def test_a_repeated_reward_does_not_undo_a_later_one(self, store: Store) -> None:
        attempt = await running_attempt(store)
        await store.append([reward(attempt, 0.3), reward(attempt, 0.1, ident="second")])
        await store.append([reward(attempt, 0.3)])
        assert await reward_of_the_rollout(store) == 0.1

    async def test_only_the_latest_attempt_rewards_the_rollout(self, store: Store) -> None:
        first = await running_attempt(store)
        await store.finish(first, AttemptState.LOST, failure=LOST)
        await store.claim("worker")
        await store.append([reward(first, 1.0)])
        assert await reward_of_the_rollout(store) is None

    @pytest.mark.parametrize(
        ("kind", "when"), [(FailureKind.AGENT, "before"), (FailureKind.TIMEOUT, "after")]
    )
    async def test_what_did_not_succeed_has_no_reward_whenever_it_was_given(
        self, store: Store, kind: FailureKind, when: str
    ) -> None:
        await store.enqueue(group(retry=RetryPolicy(max_attempts=1)))
        (claim,) = await store.claim("worker")
        attempt = claim.attempt.id
        if when == "before":
            await store.append([reward(attempt, 1.0)])
        await store.finish(attempt, AttemptState.FAILED, failure=Failure(kind, "no"))
        await store.append([reward(attempt, 1.0)])
        assert await reward_of_the_rollout(store) is None
        (events,) = await store.events([attempt])
        assert len(events) == 1  # it is kept, for people

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    async def test_a_reward_is_a_finite_number(self, store: Store, value: float) -> None:
        attempt = await running_attempt(store)
        with pytest.raises(ConfigError, match=attempt):
            await store.append([log(attempt, "with it"), reward(attempt, value)])
        assert await store.events([attempt]) == [[]]
