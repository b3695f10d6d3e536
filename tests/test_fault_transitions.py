"""Invariants 1 and 2 in their strong form: after `kill -9` of any process the transitions are the same.

The agent is deterministic and the engine scripted, so whatever is killed and started again, the succeeded
attempts of an iteration have the transitions that they have undisturbed, attempt ids and times aside, and
the ledger has every rollout once. A loop without torch stands for the trainer: it enqueues, waits, takes
and commits as the trainer does. The moment of the kill is a seeded number of calls at the engine.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from lightningrl.conversation.replaying import origin_of
from lightningrl.experience.forks import unforked
from lightningrl.gateway import GatewayClient
from lightningrl.schema import Endpoint, Policy, RolloutState
from lightningrl.store import RolloutQuery, Store, open_store
from lightningrl.traces import read_ledger
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

RUNS = int(os.environ.get("LIGHTNINGRL_FAULT_RUNS", "1"))
"""Seeded runs per kind of victim."""

RUN = "faults"
ITERATIONS, TASKS, MEMBERS, TURNS = 2, 3, 2, 3
CALLS = ITERATIONS * TASKS * MEMBERS * TURNS
"""At the engine, undisturbed: 36."""

ADMIN, RUNNER_KEY = "admin-key", "runner-key"

RECIPE = f"""
name: {RUN}
agent: my_agent:solve
policies: {{policy: {{tiny: "nothing:at_all"}}}}
runner: {{lease_seconds: 1.5}}
"""

AGENT = f"""
import openai

client = openai.AsyncOpenAI(max_retries=8)

async def solve(task):
    messages = [{{"role": "user", "content": task["question"]}}]
    for _ in range({TURNS}):
        reply = await client.chat.completions.create(model="gpt-x", messages=messages)
        said = reply.choices[0].message.content
        messages += [{{"role": "assistant", "content": said}}, {{"role": "user", "content": "Go on."}}]
    return float(len(said) % 2)
"""

RUNNER = """
import sys
from pathlib import Path
from lightningrl.runner.supervisor import run_workers
sys.exit(run_workers(Path(sys.argv[1]), sys.argv[2], key=sys.argv[3], processes=2, concurrency=4,
                     grace_seconds=1.0))
"""

# Begins again wherever it was killed, as a trainer that resumes does.
TRAINER = f"""
import asyncio, sys
from lightningrl.schema import Mode, NewRollout, group_id, rollout_id
from lightningrl.store import open_store

def batch(iteration):
    for task in range({TASKS}):
        group = group_id("{RUN}", Mode.TRAIN, iteration, str(task))
        for member in range({MEMBERS}):
            yield NewRollout(
                id=rollout_id(group, member), run="{RUN}", mode=Mode.TRAIN, iteration=iteration,
                task_id=str(task), group_id=group, member=member,
                task={{"question": f"What is task {{task}} for member {{member}}?"}},
                replay_staleness=0)

async def main(url, key, first):
    store = open_store(url, key=key)
    for iteration in range(first, first + {ITERATIONS}):
        await store.enqueue(list(batch(iteration)))
        while (now := await store.progress("{RUN}", Mode.TRAIN, iteration, seen=0)).ended < now.total:
            await store.progress(
                "{RUN}", Mode.TRAIN, iteration, seen=now.ended, wait_seconds=5.0)
        await store.take("{RUN}", iteration)
        await store.commit("{RUN}", iteration)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


FORKS = 2
"""Branches of each task: one step of one member is forked."""

FORKING = f"""
algorithm:
  iterations: {ITERATIONS}
  tasks_per_iteration: {TASKS}
  group_size: {MEMBERS}
  credit: vine
  forks: {{per_group: 1, members: {FORKS}}}
"""

# Collects as the trainer does, forks included.
FORKER = f"""
import asyncio, sys
from pathlib import Path
from lightningrl.recipe import load_recipe
from lightningrl.store import open_store
from lightningrl_verl.training.collect import collect_training

async def main(path, url, key, first):
    store, recipe = open_store(url, key=key), load_recipe(Path(path)).recipe
    tasks = [(str(task), {{"question": f"What is task {{task}}?"}}) for task in range({TASKS})]
    for iteration in range(first, first + {ITERATIONS}):
        found = await collect_training(store, recipe, tasks, iteration, on_progress=lambda _: None)
        await store.take(recipe.name, iteration, skip=found.forked.skipped)
        await store.commit(recipe.name, iteration)
    await store.close()

asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
"""


def tells(request: dict[str, Any]) -> Answer:
    """The script: every answer follows from the conversation."""
    messages = request["messages"]
    return Answer(f"Turn {len(messages)} of {messages[0]['content']} " + "so " * len(messages))


@dataclass
class Site:
    """A server, runners and a scripted engine, which outlive the seeds."""

    folder: Path
    model: ModelServer
    server: ServerProcess
    runners: subprocess.Popen[bytes]
    store: Store
    next_iteration: int = 1

    def trainer(self, first: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", TRAINER, self.server.url, ADMIN, str(first)])

    def forker(self, first: int) -> subprocess.Popen[bytes]:
        recipe = str(self.folder / "forking.yaml")
        return subprocess.Popen(
            [sys.executable, "-c", FORKER, recipe, self.server.url, ADMIN, str(first)]
        )

    def kill(self, victim: str, choice: random.Random) -> None:
        """Kill a process of that kind, or several; start another where nobody else does."""
        if victim == "server":
            port = self.server.port
            self.server.kill()
            self.server = serve(self.folder, port)
        else:
            workers = [
                one
                for one in psutil.Process(self.runners.pid).children()
                if "lightningrl.runner.process" in one.cmdline()
            ]
            for worker in choice.sample(workers, min(len(workers), choice.randint(1, 2))):
                worker.kill()

    def renew_runners(self) -> None:
        """Start runners anew: those that were killed often wait longer and longer before they do."""
        stopped(self.runners)
        self.runners = run_agents(self.folder, self.server.url)

    async def transitions(self, first: int) -> dict[tuple[int, str, int], list[tuple[Any, ...]]]:
        """(Iteration from 0, task, member) -> what counts of each transition, in their order."""
        found: dict[tuple[int, str, int], list[tuple[Any, ...]]] = {}
        for iteration in range(first, first + ITERATIONS):
            for group in await read_ledger(self.store, RUN, iteration):
                for trace in group.traces:
                    spec = trace.rollout.spec
                    found[iteration - first, spec.task_id, spec.member] = [
                        (
                            *(one.kind, one.agent, one.prompt_ids.tolist(), one.token_ids.tolist()),
                            *(one.logprobs.tolist(), one.reward, one.untrainable, trace.reward),
                        )
                        for one in trace.transitions
                    ]
        return found


def run_agents(folder: Path, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(folder / "recipe.yaml"), url, RUNNER_KEY]
    )


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def serve(folder: Path, port: int = 0) -> ServerProcess:
    return ServerProcess(folder / "store.db", port=port, admin_key=ADMIN, runner_key=RUNNER_KEY)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "forking.yaml").write_text(RECIPE + FORKING)
    (folder / "my_agent.py").write_text(AGENT)
    server = serve(folder)
    with ModelServer(tells) as model:
        runners = run_agents(folder, server.url)
        async with GatewayClient(server.url, ADMIN) as control:
            endpoints = (Endpoint(model.url),)
            await control.register(Policy(name="policy", run=RUN, version=0, endpoints=endpoints))
        store = open_store(server.url, key=ADMIN)
        site = Site(folder, model, server, runners, store)
        yield site
        await store.close()
        stopped(site.runners)
        site.server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(site: Site) -> dict[tuple[int, str, int], list[tuple[Any, ...]]]:
    """The transitions of a run that nobody disturbs."""
    with site.trainer(site.next_iteration) as trainer:
        assert await asyncio.to_thread(trainer.wait, 120) == 0
    found = await site.transitions(site.next_iteration)
    site.next_iteration += ITERATIONS
    assert sum(len(transitions) for transitions in found.values()) == CALLS
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize("victim", ["server", "runner", "trainer"])
async def test_a_killed_process_changes_no_transition(
    site: Site, undisturbed: dict[Any, Any], victim: str, seed: int
) -> None:
    first = site.next_iteration
    site.next_iteration += ITERATIONS
    if victim == "runner":
        await asyncio.to_thread(site.renew_runners)
    choice = random.Random(f"{victim}/{seed}")
    after = choice.randrange(CALLS)
    before = site.model.calls
    with site.trainer(first) as trainer:
        # New workers take their time on a busy machine.
        await site.model.arrived(before + after, patience_seconds=120.0)
        if victim == "trainer":
            trainer.kill()
        else:
            await asyncio.to_thread(site.kill, victim, choice)
        code = await asyncio.to_thread(trainer.wait, 120)
    if victim == "trainer":
        with site.trainer(first) as again:
            code = await asyncio.to_thread(again.wait, 120)
    assert code == 0
    assert await site.transitions(first) == undisturbed
    await each_rollout_is_taken_once(site.store, first)


async def each_rollout_is_taken_once(store: Store, first: int) -> None:
    entries = [
        one for one in await store.ledger(RUN) if first <= one.iteration < first + ITERATIONS
    ]
    taken = [ident for one in entries for ident in one.rollout_ids]
    assert len(taken) == len(set(taken)) == ITERATIONS * TASKS * MEMBERS
    assert all(one.committed and one.status == "taken" for one in entries)
    rollouts = await store.rollouts(RolloutQuery(run=RUN, ids=tuple(taken)))
    assert [one.state for one in rollouts] == [RolloutState.SUCCEEDED] * len(taken)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", range(max(RUNS, 2)))
async def test_killed_processes_lose_double_and_change_no_branch(site: Site, seed: int) -> None:
    """Two of the three are killed while forks of the first iteration are queued or under way."""
    first = site.next_iteration
    site.next_iteration += ITERATIONS
    choice = random.Random(f"forks/{seed}")
    victims = choice.sample(["server", "runner", "trainer"], 2)
    await asyncio.to_thread(site.renew_runners)
    # The members' calls, and some of the branches': those are one or two calls each.
    after = TASKS * MEMBERS * TURNS + choice.randrange(TASKS * FORKS)
    before = site.model.calls
    trainer = site.forker(first)
    try:
        await site.model.arrived(before + after, patience_seconds=120.0)
        for victim in victims:
            if victim == "trainer":
                trainer.kill()
                trainer.wait()
                trainer = site.forker(first)
            else:
                await asyncio.to_thread(site.kill, victim, choice)
            await asyncio.sleep(choice.uniform(0.0, 0.3))
        assert await asyncio.to_thread(trainer.wait, 120) == 0
    finally:
        trainer.kill()
        trainer.wait()
    for iteration in range(first, first + ITERATIONS):
        await branches_are_exact(site.store, iteration)


async def branches_are_exact(store: Store, iteration: int) -> None:
    """Each is there once, was taken once, and differs from its parent in nothing but whose tokens it trains."""
    entries = await store.ledger(RUN, iteration=iteration)
    taken = [ident for one in entries for ident in one.rollout_ids]
    assert len(taken) == len(set(taken)) == TASKS * (MEMBERS + FORKS)
    assert all(one.committed and one.status == "taken" for one in entries)
    stored = await store.rollouts(RolloutQuery(run=RUN, iteration=iteration))
    assert {one.id for one in stored} == set(taken)
    groups = await read_ledger(store, RUN, iteration)
    members = {one.attempt.id: one for group in unforked(groups) for one in group.traces}
    assert len(members) == TASKS * MEMBERS
    for group in groups[len(unforked(groups)) :]:
        assert [one.rollout.spec.member for one in group.traces] == list(range(FORKS))
        for branch in group.traces:
            fork = branch.rollout.spec.fork
            assert fork is not None
            assert fork.step is not None
            parent = members[fork.attempt]
            at = [one.step_id for one in parent.transitions].index(fork.step)
            assert group.group_id == f"{parent.rollout.spec.group_id}/fork/{fork.step}"
            trained = [one.untrainable is None for one in branch.transitions]
            assert trained == [False] * at + [True] * (TURNS - at)
            # The engine's answers follow from the conversation, so the same ones come again.
            assert [one.token_ids.tolist() for one in branch.transitions] == [
                one.token_ids.tolist() for one in parent.transitions
            ]
            again = [one.call.replay_of for one in branch.transitions[:at] if one.call is not None]
            assert again == [
                origin_of(one.call) for one in parent.transitions[:at] if one.call is not None
            ]
