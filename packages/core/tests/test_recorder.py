"""Recording without a gateway: what is in the store is what happened."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lightningrl
from lightningrl.capture.context import current, start_step
from lightningrl.errors import ConfigError
from lightningrl.recorder.recorder import in_sample
from lightningrl.schema import (
    Mode,
    RewardEvent,
    RolloutId,
    RolloutState,
)
from lightningrl_testkit.production import begin_alone, read

pytestmark = pytest.mark.usefixtures("forked", "process_in_production")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.db"


async def test_a_block_is_a_live_rollout_with_its_steps_rewards_and_output(path: Path) -> None:
    recorder = begin_alone(path)
    with lightningrl.rollout({"question": "x"}) as one:
        with lightningrl.step("tool", "search", agent="finder", inputs={"q": 1}) as search:
            search.output = "found"
            lightningrl.reward(0.25)
        lightningrl.final_reward(0.5)
        one.output = "answer"
    assert current() is None
    assert recorder.flush()
    [record] = await read(path)
    assert (record.rollout.id, record.rollout.spec.mode) == (one.id, Mode.LIVE)
    assert (record.rollout.spec.task, record.rollout.reward) == ({"question": "x"}, 0.5)
    assert (record.rollout.state, record.rollout.complete) == (RolloutState.SUCCEEDED, True)
    assert record.attempt.output == "answer"
    [step] = record.transitions
    assert (step.name, step.agent, step.inputs, step.output, step.reward) == (
        *("search", "finder", {"q": 1}, "found", 0.25),
    )
    assert recorder.counts.written == 1


async def test_an_exception_is_recorded_and_passes_on(path: Path) -> None:
    recorder = begin_alone(path)

    @lightningrl.rollout
    async def agent() -> None:
        start_step("tool", "left open")
        raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's"):
        await agent()
    assert recorder.flush()
    [record] = await read(path)
    assert record.rollout.state is RolloutState.FAILED
    assert record.attempt.failure is not None
    assert "the user's" in record.attempt.failure.message
    assert [step.error for step in record.transitions] == ["the attempt ended before this step did"]


async def test_an_output_that_is_no_reward_is_said_and_not_raised(path: Path) -> None:
    recorder = begin_alone(path)

    @lightningrl.rollout
    def agent(number: float) -> float:
        return number

    assert str(agent(float("nan"))) == "nan"
    assert agent(10**400) == 10**400
    assert agent(2.5) == 2.5
    assert recorder.flush()
    *failed, rewarded = await read(path)
    assert [one.rollout.state for one in failed] == [RolloutState.FAILED] * 2
    assert rewarded.rollout.reward == 2.5


async def test_a_block_within_a_rollout_is_a_part_of_it(path: Path) -> None:
    recorder = begin_alone(path)
    with lightningrl.rollout({"outer": True}) as outer, lightningrl.rollout({"inner": 1}) as one:
        assert one.id == outer.id
        with lightningrl.step("tool", "within"):
            pass
    assert recorder.flush()
    [record] = await read(path)
    assert record.rollout.spec.task == {"outer": True}
    assert [step.name for step in record.transitions] == ["within"]


async def test_rollouts_of_tasks_and_threads_at_once_never_mix(path: Path) -> None:
    recorder = begin_alone(path)

    async def by_task(number: int) -> None:
        async with lightningrl.rollout({"number": number}):
            for _ in range(5):
                with lightningrl.step("tool", "t", inputs=number):
                    await asyncio.sleep(0)

    @lightningrl.rollout
    def by_thread(task: dict[str, int]) -> None:
        for _ in range(5):
            with lightningrl.step("tool", "t", inputs=task["number"]):
                pass

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(by_thread, {"number": number}) for number in range(64)]
        await asyncio.gather(*(by_task(number) for number in range(64, 128)))
        for one in done:
            one.result()
    assert recorder.flush()
    records = await read(path)
    assert sorted(one.rollout.spec.task["number"] for one in records) == list(range(128))
    for record in records:
        assert [step.inputs for step in record.transitions] == [
            record.rollout.spec.task["number"]
        ] * 5


async def test_a_streaming_generator_closed_from_elsewhere_raises_nothing(path: Path) -> None:
    recorder = begin_alone(path)

    async def stream() -> AsyncIterator[int]:
        async with lightningrl.rollout({"kind": "stream"}):
            for number in range(10):
                with lightningrl.step("tool", "piece"):
                    yield number

    abandoned = stream()
    assert await anext(abandoned) == 0
    await asyncio.create_task(abandoned.aclose())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType]  - an async generator has it
    assert recorder.flush()
    [record] = await read(path)
    assert record.rollout.state is RolloutState.FAILED
    assert "GeneratorExit" in str(record.attempt.failure)


def test_a_generator_is_refused_where_it_is_decorated() -> None:
    def plain() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    for one in (plain, asynchronous):
        with pytest.raises(ConfigError, match=f"generator '{one.__name__}' would end before"):
            lightningrl.rollout(one)


async def test_a_task_whose_keys_are_no_texts_is_shown(path: Path) -> None:
    recorder = begin_alone(path)
    task: Any = {("a", 1): 2}
    lightningrl.rollout(lambda _: None)(task)
    with lightningrl.rollout(task):
        pass
    assert recorder.flush()
    assert [one.rollout.spec.task for one in await read(path)] == [{"task": "{('a', 1): 2}"}] * 2


async def test_what_comes_when_a_rollout_has_ended_is_not_held(path: Path) -> None:
    recorder = begin_alone(path, memory_bytes=20_000)
    may_go_on, asked = threading.Event(), threading.Event()

    def asks() -> dict[str, Any]:
        asked.set()
        assert may_go_on.wait(30.0)
        return {"messages": ["x" * 15_000]}

    for _ in range(3):  # together more than may be held
        asked.clear()
        may_go_on.clear()
        with lightningrl.rollout():
            late = threading.Thread(
                target=lightningrl.bind(start_step), args=("llm", "m"), kwargs={"asks": asks}
            )
            late.start()
            assert asked.wait(30.0)
        may_go_on.set()
        late.join()
    assert recorder.flush()
    assert recorder.counts.dropped == {}
    assert len(await read(path)) == 3


async def test_a_sample_is_of_whole_rollouts_by_their_ids(path: Path) -> None:
    recorder = begin_alone(path, sampling_rate=0.5)
    ids: list[RolloutId] = []
    for number in range(200):
        with lightningrl.rollout({"number": number}) as one:
            ids.append(one.id)
            kept = current() is not None
            assert kept == in_sample(one.id, 0.5)
            with lightningrl.step("tool", "t"):
                lightningrl.reward(1.0)
    assert recorder.flush()
    records = await read(path)
    assert [one.rollout.id for one in records] == [one for one in ids if in_sample(one, 0.5)]
    assert all(len(one.transitions) == 1 for one in records)
    counts = recorder.counts
    assert (counts.written, counts.sampled_out) == (len(records), 200 - len(records))
    # Binomial with n=200, p=1/2: 60 is 5.7 standard deviations (7.07 each) from the mean.
    assert 60 < len(records) < 140


def test_the_whole_and_no_sample() -> None:
    ids = [RolloutId(f"live-{digits * 32}") for digits in "0f"]
    assert [in_sample(one, 0.0) for one in ids] == [False, False]
    assert [in_sample(one, 1.0) for one in ids] == [True, True]


# -- feedback ----------------------------------------------------------------------------------


async def test_feedback_is_a_reward_and_the_latest_counts(path: Path) -> None:
    recorder = begin_alone(path)
    with lightningrl.rollout() as one:
        with lightningrl.step("tool", "t") as step:
            pass
        lightningrl.final_reward(0.1)
    lightningrl.feedback(one.id, 1.0)
    lightningrl.feedback(one.id, -1.0)
    lightningrl.feedback(one.id, 3.0, name="stars", source="form")
    lightningrl.feedback(one.id, 0.5, step=step.id, name="useful")
    assert recorder.flush()
    [record] = await read(path)
    assert record.rollout.reward == -1.0
    rewards = [event for event in record.events if isinstance(event, RewardEvent)]
    assert [(r.name, r.value, r.revision, r.source) for r in rewards] == [
        ("final", 0.1, 0, "agent"),
        ("final", 1.0, 1, "user"),
        ("final", -1.0, 2, "user"),
        ("stars", 3.0, 0, "form"),
        ("useful", 0.5, 0, "user"),
    ]
    assert record.transitions[0].reward == 0.5


async def test_feedback_from_a_later_process_counts_above_the_earlier(path: Path) -> None:
    program = (
        "import lightningrl, sys\n"
        "lightningrl.record(sys.argv[1], install_adapters=False)\n"
        "if len(sys.argv) > 2:\n"
        "    lightningrl.feedback(sys.argv[2], float(sys.argv[3]))\n"
        "else:\n"
        "    with lightningrl.rollout({}) as one:\n"
        "        lightningrl.final_reward(0.0)\n"
        "    print(one.id)\n"
    )

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    rollout_id = await asyncio.to_thread(run)  # written when its interpreter ended
    await asyncio.to_thread(run, rollout_id, "2.0")
    await asyncio.to_thread(run, rollout_id, "-3.0")
    [record] = await read(path)
    assert record.rollout.reward == -3.0
    rewards = [event for event in record.events if isinstance(event, RewardEvent)]
    assert [(one.value, one.revision) for one in rewards] == [(0.0, 0), (2.0, 1), (-3.0, 2)]


async def test_feedback_for_an_unknown_rollout_is_counted(path: Path) -> None:
    recorder = begin_alone(path)
    lightningrl.feedback("live-00", 1.0)
    assert recorder.flush()
    assert recorder.counts.dropped == {"unknown rollout": 1}
    with pytest.raises(ValueError, match="finite"):
        lightningrl.feedback("live-00", float("nan"))
