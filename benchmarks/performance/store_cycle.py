"""Whole rollouts per second: the durable cycle, and the six scenarios that Agent Lightning publishes.

The cycle is enqueue, claim, six events one by one (rewards), finish, and take: what LightningRL is asked for one
rollout of training. A scenario is so many runners, each of which claims, appends three events for each
turn and three more, and finishes; its turns are uniform up to the scenario's most. The published
scenarios also sleep, to play the agent; here they don't, so that the store alone sets the pace.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from harness.load import Connection, Load, closed_loop, drive
from harness.metering import Meter
from harness.results import Results
from store_systems import Held, Lightning, System

_EVENTS = 6
_RUNNERS = 64
_GROUP = 8


class Scenario(NamedTuple):
    """One of the six."""

    name: str
    runners: int
    most_turns: int


SCENARIOS = (
    Scenario("minimal", 32, 6),
    Scenario("medium", 100, 10),
    Scenario("mid_high", 300, 6),
    Scenario("large", 1000, 3),
    Scenario("long_queue", 256, 4),
    Scenario("heavy_trace", 512, 20),
)
"""As published with Agent Lightning 0.3.0: runners, and turns at most."""

_SPANS_A_TURN = 3


async def cycle(system: Lightning, results: Results, rounds: int, scale: float) -> None:
    """The case `cycle`: rollouts per second of wall time, and server CPU per rollout."""
    count = _GROUP * max(8, int(250 * scale))
    speeds: list[float] = []
    costs: list[float] = []
    for number in range(rounds):
        run = f"cycle {number}"
        enqueues = _enqueues(system, run, count // _GROUP)
        take = system.request("take", run=run, iteration=1)
        claim = partial(system.claim_of, run)
        with Meter(system.pid).cpu() as spent:
            loads = [
                await closed_loop(system.url, enqueues, _RUNNERS),
                await _lives(system, _RUNNERS, [_EVENTS] * count, claim, system.rewarded),
                await closed_loop(system.url, [take], 1),
            ]
        taken = system.result("take", loads[-1].answers[0])
        assert sum(len(group.rollouts) for group in taken) == count, "every rollout is taken"
        speeds.append(count / sum(load.seconds for load in loads))
        costs.append(spent.cpu_ms / count)
    results.add("cycle", system.name, "per_second", speeds, "rollouts/s", clients=_RUNNERS)
    results.add("cycle", system.name, "cpu_ms", costs, "ms", clients=_RUNNERS)


def _enqueues(system: Lightning, run: str, groups: int) -> list[bytes]:
    """A request for each group, as a trainer enqueues them."""
    return [
        system.request(
            "enqueue",
            rollouts=[
                system.rollout(run=run, task=f"{run}/{task}", member=member)
                for member in range(_GROUP)
            ],
        )
        for task in range(groups)
    ]


async def scenarios(systems: Sequence[System], results: Results, rounds: int, scale: float) -> None:
    """The cases `scenario_NAME`: rollouts per second, and server CPU per rollout."""
    for scenario in SCENARIOS:
        for system in systems:
            # A peer needs minutes for all six: one run of it, and no more rollouts than there are runners.
            ours = isinstance(system, Lightning)
            runs, least = (rounds, int(512 * scale)) if ours else (1, 0)
            count = max(scenario.runners, least)
            pairs = [await _scenario(system, scenario, seed, count) for seed in range(runs)]
            case = f"scenario_{scenario.name}"
            speeds, costs = [one for one, _ in pairs], [one for _, one in pairs]
            clients = scenario.runners
            results.add(case, system.name, "per_second", speeds, "rollouts/s", clients=clients)
            results.add(case, system.name, "cpu_ms", costs, "ms", clients=clients)


async def _scenario(
    system: System, scenario: Scenario, seed: int, count: int
) -> tuple[float, float]:
    """Rollouts per second, CPU milliseconds per rollout."""
    turns = random.Random(f"{scenario.name}/{seed}")
    events = [_SPANS_A_TURN * (turns.randint(1, scenario.most_turns) + 1) for _ in range(count)]
    enqueued = await closed_loop(system.url, [system.enqueue() for _ in range(count)], 16)
    for answer in enqueued.answers:
        system.enqueued(answer)
    with Meter(system.pid).cpu() as spent:
        load = await _lives(system, scenario.runners, events, system.claim, system.small)
    return count / load.seconds, spent.cpu_ms / count


async def _lives(
    system: System,
    runners: int,
    events: Sequence[int],
    claim: Callable[[], bytes],
    event: Callable[[Held], bytes],
) -> Load:
    """Run rollouts of so many `events` each: claim one, append to it one by one, finish it."""
    waiting = iter(events)

    async def run(connection: Connection, done: Callable[[float], None]) -> None:
        for count in waiting:
            started = time.perf_counter()
            held = system.claimed(await connection.send(claim()))
            for _ in range(count):
                await connection.send(event(held))
            await connection.send(system.finish(held))
            done(time.perf_counter() - started)

    return await drive(system.url, [run] * runners)
