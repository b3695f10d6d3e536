"""A service whose users rate answers trains the policy that answers them, exactly, whatever is killed.

The recipe and the service are those of `docs/how-to/train-on-live-traffic.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exact_run import left_over
from test_faults import DIES_AT
from transformers import AutoModelForCausalLM
from user_project import Project

from lightningrl.schema import Mode, RolloutId
from lightningrl.store import LedgerEntry, RolloutQuery, open_store
from lightningrl.traces import AttemptRecord, read_attempts
from lightningrl_testkit.ports import held_port
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.training.checkpoint import Checkpoints

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = r"^```{language}\n(.*?)^```$"
ITERATIONS = 2

AGENT = "from lightningrl_bench_math.agent import solve\n"
"""The agent that is trained: AutoGen's, with nothing of ours in it."""

# Sixteen people at a time, who like answers of even length. Every fourth of them never says so.
USERS = """
import asyncio, sys
from service import answer, rate
from lightningrl.errors import LightningError

async def person(number):
    while True:
        try:
            said, ident = await answer(f"tom has {number} apples and eats 2. how many are left?")
        except Exception as error:
            print(type(error).__name__, flush=True)
            await asyncio.sleep(0.2)
            continue
        if number % 4:
            rate(ident, 5 if len(said) % 2 == 0 else 1)

async def main():
    await asyncio.gather(*(person(number) for number in range(16)))

asyncio.run(main())
"""


@pytest.fixture
def port() -> Iterator[int]:
    """Where the service reaches the trainer, whichever start of it."""
    with held_port() as port:
        yield port


def make_service(
    project: Project, port: int, *, algorithm: dict[str, Any], **changes: Any
) -> tuple[Path, dict[str, str]]:
    """The page's files beside the project's, with a tiny policy; the recipe, and the service's environment."""
    page = (DOCS / "how-to" / "train-on-live-traffic.md").read_text(encoding="utf-8")
    [service], [written] = (
        re.findall(BLOCK.format(language=language), page, re.MULTILINE | re.DOTALL)
        for language in ("python", "yaml")
    )
    (project.folder / "service.py").write_text(service, encoding="utf-8")
    (project.folder / "support_agent.py").write_text(AGENT, encoding="utf-8")
    (project.folder / "users.py").write_text(USERS, encoding="utf-8")
    recipe: dict[str, Any] = yaml.safe_load(written)
    [policy] = recipe["policies"].values()
    policy |= {"tiny": "quick_project:spec", "tool_parser": "compact", "max_model_len": 256}
    del policy["model"]
    recipe["live"] |= {"min_rollouts": 8, "max_rollouts": 16}
    recipe["gateway"] |= {"host": "127.0.0.1", "port": port}
    recipe["algorithm"] |= {"max_staleness": 1, **algorithm}
    recipe |= {
        "sampling": {"train": {"temperature": 0.8, "max_tokens": 16}},
        "guards": {"min_tool_calls": None},
        "optimiser": {"learning_rate": 1.0e-3},
        "trainer": {"threads": 1, "keep_checkpoints": 10},
        **changes,
    }
    path = project.folder / "live.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = {
        **project.environment,
        "LIGHTNINGRL_SERVER": f"http://127.0.0.1:{port}",
        "LIGHTNINGRL_KEY": "of the service",
        "LIGHTNINGRL_RETRY_SECONDS": "1",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",  # a vendor that must never be asked
        "OPENAI_API_KEY": "of the vendor",
    }
    return path, environment


def test_a_trainer_killed_before_its_checkpoint_trains_the_same_live_rollouts(
    project: Project, port: int
) -> None:
    project = replace(project, name="support")
    recipe, environment = make_service(project, port, algorithm={"iterations": ITERATIONS})
    trainer = {**project.environment, "LIGHTNINGRL_KEY": "of the service"}
    with users(project, environment):
        training = replace(project, environment=trainer)
        killed = training.program(DIES_AT, str(recipe), "checkpoint", str(sys.maxsize))
        assert killed.returncode == -signal.SIGKILL
        assert left_over(project) == []
        before = asyncio.run(ledger_of(project))
        done = training.train(str(recipe))
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"are answered at {environment['LIGHTNINGRL_SERVER']}" in done.stdout
    ledger = asyncio.run(ledger_of(project))
    # Iteration 2 had taken and not committed when its trainer was killed.
    assert [one.committed for one in before if one.iteration == 2]
    assert not any(one.committed for one in before if one.iteration == 2)
    for iteration in (1, 2):
        assert taken(ledger, iteration) == taken(before, iteration)
    asyncio.run(check_ledger(project, ledger))
    check_metrics(project, ledger)
    assert weights_differ(project)
    assert left_over(project) == []


@pytest.mark.long
def test_an_iteration_trains_on_live_rollouts_beside_its_tasks(project: Project, port: int) -> None:
    project = replace(project, name="support")
    source = {"source": "lightningrl_bench_math.tasks:generate"}
    data = {"train": {**source, "args": {"split": "train", "count": 8, "seed": 1}}}
    tasks = {"tasks_per_iteration": 2, "group_size": 4}
    recipe, environment = make_service(
        project, port, algorithm={"iterations": 2, **tasks}, data=data, reward="quick_project:short"
    )
    trainer = {**project.environment, "LIGHTNINGRL_KEY": "of the service"}
    with users(project, environment):
        done = replace(project, environment=trainer).train(str(recipe))
        assert done.returncode == 0, done.stdout + done.stderr
    ledger = asyncio.run(ledger_of(project))
    for line in project.metrics()[1:]:
        sizes = Counter(len(ids) for _, ids in taken(ledger, line["iteration"]) if ids)
        assert sizes == {4: 2, 1: line["live/rollouts"]}
        assert line["train/rollouts"] == 8 + line["live/rollouts"]
    assert project.metrics()[-1]["policy_version"] > 0


@contextlib.contextmanager
def users(project: Project, environment: dict[str, str]) -> Generator[None]:
    """People use the service until the block ends."""
    log = project.folder / "users.txt"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "users.py"],
            cwd=project.folder, env=environment, stdout=output, stderr=output,
        ) as process,
    ):  # fmt: skip
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()


async def ledger_of(project: Project) -> list[LedgerEntry]:
    store = open_store(project.run / "store.db", read_only=True)
    try:
        return await store.ledger("support")
    finally:
        await store.close()


def taken(ledger: list[LedgerEntry], iteration: int) -> list[tuple[str, tuple[RolloutId, ...]]]:
    return [(one.status, one.rollout_ids) for one in ledger if one.iteration == iteration]


async def check_ledger(project: Project, ledger: list[LedgerEntry]) -> None:
    """Each rewarded rollout at most once; what was trained is live, fresh and sampled as the recipe says."""
    store = open_store(project.run / "store.db", read_only=True)
    try:
        rollouts = await store.rollouts(RolloutQuery(run="support"))
        records = await read_attempts(store, rollouts)
    finally:
        await store.close()
    versions = [line["policy_version"] for line in project.metrics()]
    by_id: dict[RolloutId, AttemptRecord] = {of[-1].rollout.id: of[-1] for of in records if of}
    assert all(one.committed for one in ledger)
    ids = [ident for one in ledger for ident in one.rollout_ids]
    assert len(ids) == len(set(ids))
    groups = Counter(one.group_id for one in ledger)
    assert set(groups.values()) == {1}
    given = {one.id: one.spec.iteration for one in rollouts if one.spec.iteration}
    assert len(given) == len(ledger)
    for entry in ledger:
        for ident in entry.rollout_ids:
            record = by_id[ident]
            assert record.rollout.spec.mode is Mode.LIVE
            assert given[ident] == entry.iteration
            calls = [one.call for one in record.transitions if one.call is not None]
            assert calls
            assert all(one.sampling and one.sampling.temperature == 0.8 for one in calls)
            # An iteration trains the version that the one before left, and max_staleness is 1.
            trained = versions[entry.iteration - 1]
            assert trained - 1 <= min(one.version_start for one in calls)
            assert max(one.version_end for one in calls) <= trained


def check_metrics(project: Project, ledger: list[LedgerEntry]) -> None:
    newest = Checkpoints(RunFolder(project.run).checkpoints, keep=10).newest()
    assert newest is not None
    assert [iteration for iteration, _ in newest[1].history] == [1, 2]
    lines = project.metrics()
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    # A batch that people all rate alike has no signal, and leaves the version.
    assert lines[-1]["policy_version"] >= 1
    docs = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for line in lines[1:]:
        trained = taken(ledger, line["iteration"])
        count = sum(status == "taken" for status, _ in trained)
        assert 8 <= line["live/rollouts"] == line["train/rollouts"] == count <= 16
        skipped = sum(line["live/skipped_by_reason"].values())
        assert skipped == sum(status == "skipped" for status, _ in trained)
        assert line["live/reward"] == line["train/reward"]
        assert [name for name in line if f"`{name}`" not in docs] == []


def weights_differ(project: Project) -> bool:
    folder = project.run / "checkpoints"
    first, last = (
        AutoModelForCausalLM.from_pretrained(folder / name / "huggingface").state_dict()
        for name in ("iteration-000001", f"iteration-{ITERATIONS:06d}")
    )
    return any(not torch.equal(first[name], last[name]) for name in first)
