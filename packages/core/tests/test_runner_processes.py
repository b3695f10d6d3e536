"""Runner processes against a real server process, killed by real signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lightningrl.gateway import GatewayClient
from lightningrl.schema import (
    Endpoint,
    GroupId,
    Mode,
    NewRollout,
    Policy,
    RolloutId,
    RolloutState,
)
from lightningrl.store import RolloutQuery, Store, open_store
from lightningrl_testkit.model_server import ModelServer

pytestmark = pytest.mark.usefixtures("forked")

RUN = "processes"
KEY = "admin-key"

SERVER = """
import sys
from lightningrl.keys import AccessKeys
from lightningrl.server import serve
serve(sys.argv[1], port=int(sys.argv[2]), keys=AccessKeys(admin=(sys.argv[3],)),
      ready=lambda url: print(url, flush=True))
"""

RUNNER = """
import sys
from pathlib import Path
from lightningrl.runner.supervisor import run_workers
sys.exit(run_workers(Path(sys.argv[1]), sys.argv[2], key=sys.argv[3], processes=2, concurrency=4,
                     grace_seconds=1.0))
"""

RECIPE = f"""
name: {RUN}
agent: my_agent:solve
policies: {{policy: {{tiny: "nothing:at_all"}}}}
runner: {{lease_seconds: 1.5}}
"""

AGENT = """
import asyncio, os, pathlib
import openai

assert os.environ["OPENAI_API_KEY"] == "lightningrl-placeholder"
assert os.environ["ANTHROPIC_API_KEY"] == "lightningrl-placeholder"
assert os.environ["OPENAI_BASE_URL"] == os.environ["ANTHROPIC_BASE_URL"] + "/v1"
assert "LIGHTNINGRL_KEY" not in os.environ
client = openai.AsyncOpenAI(max_retries=0)

async def solve(task):
    await client.chat.completions.create(
        model="gpt-x", messages=[{"role": "user", "content": "hello"}])
    if task["wait_for"]:
        pathlib.Path(task["called"]).touch()
        while not pathlib.Path(task["wait_for"]).exists():
            await asyncio.sleep(0.05)
    return 1.0
"""


@dataclass
class Site:
    """A server process with a policy, and a recipe beside it."""

    folder: Path
    url: str
    store: Store

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    async def enqueue(self, count: int, *, wait_for: Path | None = None) -> None:
        await self.store.enqueue(
            [
                NewRollout(
                    id=RolloutId(f"r{index}"),
                    run=RUN,
                    mode=Mode.TRAIN,
                    iteration=1,
                    task_id=f"t{index}",
                    group_id=GroupId(f"g{index}"),
                    member=0,
                    task={
                        "wait_for": str(wait_for) if wait_for else None,
                        "called": str(self.folder / f"called-{index}"),
                    },
                )
                for index in range(count)
            ]
        )

    async def called(self, count: int) -> None:
        """Return when `count` agents have made their call, and wait."""
        while len(list(self.folder.glob("called-*"))) < count:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)

    async def ended(self, count: int) -> None:
        """Return when `count` rollouts have ended."""
        while True:
            progress = await self.store.progress(
                RUN, Mode.TRAIN, 1, seen=count - 1, wait_seconds=5.0
            )
            if progress.ended >= count:
                return


@contextmanager
def server_process(store: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVER, str(store), str(port), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def runner_process(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", RUNNER, str(site.recipe), site.url, KEY]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()


def workers_of(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(runner.pid).children()
    return [one for one in children if "lightningrl.runner.process" in one.cmdline()]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "my_agent.py").write_text(AGENT)
    with ModelServer() as model, server_process(tmp_path / "store.db") as (_, url):
        store = open_store(url, key=KEY)
        async with GatewayClient(url, KEY) as control:
            await control.register(
                Policy(name="policy", run=RUN, version=0, endpoints=(Endpoint(model.url),))
            )
        yield Site(tmp_path, url, store)
        await store.close()


async def test_processes_run_everything_and_end_when_told(site: Site) -> None:
    await site.enqueue(12)
    with runner_process(site) as runner:
        await site.ended(12)
        runner.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(runner.wait, 30) == 0
    rollouts = await site.store.rollouts(RolloutQuery(run=RUN))
    assert [(one.state, one.reward) for one in rollouts] == [(RolloutState.SUCCEEDED, 1.0)] * 12


async def test_a_killed_worker_costs_an_attempt_and_no_rollout(site: Site) -> None:
    go = site.folder / "go"
    await site.enqueue(4, wait_for=go)
    with runner_process(site) as runner:
        await site.called(4)
        for worker in workers_of(runner):
            worker.kill()
        go.touch()
        await site.ended(4)
    rollouts = await site.store.rollouts(RolloutQuery(run=RUN))
    assert [one.state for one in rollouts] == [RolloutState.SUCCEEDED] * 4
    assert all(one.attempts >= 2 for one in rollouts)


async def test_workers_do_not_outlive_a_killed_supervisor(site: Site) -> None:
    await site.enqueue(1, wait_for=site.folder / "never")
    with runner_process(site) as runner:
        await site.called(1)
        workers = workers_of(runner)
        assert len(workers) == 2
        runner.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 30)
        assert alive == []
    [rollout] = await site.store.rollouts(RolloutQuery(run=RUN))
    assert rollout.state is RolloutState.QUEUED  # released, not left to its lease


async def test_a_runner_survives_a_killed_server(site: Site) -> None:
    go = site.folder / "go"
    await site.enqueue(2, wait_for=go)
    port = int(site.url.rpartition(":")[2])
    with runner_process(site):
        await site.called(2)
        [server] = [
            one
            for one in psutil.Process().children()
            if str(site.folder / "store.db") in one.cmdline()
        ]
        server.kill()
        await asyncio.to_thread(server.wait)
        go.touch()  # the agents end while nobody can be told
        with server_process(site.folder / "store.db", port):
            await site.ended(2)
            rollouts = await site.store.rollouts(RolloutQuery(run=RUN))
    assert [(one.state, one.reward, one.attempts) for one in rollouts] == [
        (RolloutState.SUCCEEDED, 1.0, 1)
    ] * 2


async def test_a_wrong_recipe_ends_the_runner_with_its_reason(site: Site) -> None:
    site.recipe.write_text(RECIPE.replace("my_agent:solve", "my_agent:sovle"))
    with runner_process(site) as runner:
        _, errors = await asyncio.to_thread(runner.communicate)
    assert runner.returncode == 78
    assert "'my_agent' has no attribute 'sovle'. Did you mean 'solve'?" in errors.decode()
