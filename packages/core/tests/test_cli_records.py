"""`export --to`, `export --tasks`, `import`, `retry` and `delete`: a run's records in an operator's hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from lightningrl.archive import export_run
from lightningrl.cli import commands
from lightningrl.schema import AttemptState, Failure, FailureKind, Mode, Rollout
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

T = TypeVar("T")

FAILED = Failure(FailureKind.AGENT, "ValueError: no")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three tasks: two rollouts failed, one succeeded."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: run\nagent: m:f\n", encoding="utf-8")
    in_store(folder / "store.db", fill)
    return folder


async def fill(store: Store) -> None:
    for task in ("a", "b", "c"):
        await store.enqueue(group(1, task=task))
    for failure in (FAILED, None, FAILED):
        (claim,) = await store.claim("worker")
        await store.append([call(claim.attempt.id, "1"), reward(claim.attempt.id, 1.0)])
        state = AttemptState.SUCCEEDED if failure is None else AttemptState.FAILED
        await store.finish(claim.attempt.id, state, failure=failure)


def in_store(path: Path, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """What `work` makes of the store at `path`."""

    async def done() -> T:
        store = SqliteStore.open(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(done())


def rollouts(folder: Path) -> list[Rollout]:
    return in_store(folder / "store.db", lambda store: store.rollouts(RolloutQuery()))


def states(folder: Path) -> list[str]:
    return [one.state.value for one in sorted(rollouts(folder), key=lambda one: one.spec.task_id)]


def program(*arguments: object, **more: Any) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments], **more)


def test_a_run_s_records_go_to_a_file_and_into_another_store(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "run.jsonl", tmp_path / "other.db"
    exported = program("export", folder, "--to", file)
    assert exported.output == f"exported 3 rollouts to {file}\n"
    kinds = [json.loads(line)["record"] for line in file.read_text().splitlines()]
    assert kinds[:5] == ["header", "rollout", "attempt", "event", "event"]
    assert kinds[-2:] == ["completed", "footer"]
    imported = program("import", file, "--into", other)
    assert imported.output == "loaded 6 records of run\n"  # three rollouts, and their completion
    found = in_store(other, lambda store: store.rollouts(RolloutQuery()))
    assert found == rollouts(folder)
    assert program("import", file, "--into", other).output == "loaded 0 records of run\n"


def test_records_go_through_a_server_as_well(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    assert program("export", folder, "--to", file).exit_code == 0
    environment = {"LIGHTNINGRL_KEY": "the key"}
    with ServerProcess(tmp_path / "served.db", admin_key="the key") as server:
        at_server = {"env": environment}
        assert program("import", file, "--server", server.url, **at_server).exit_code == 0
        again = tmp_path / "again.jsonl"
        options = ("--to", again, "--server", server.url)
        assert program("export", "run", *options, **at_server).exit_code == 0
        assert again.read_bytes() == file.read_bytes()
        retried = program("retry", "run", "--server", server.url, **at_server)
        assert retried.output == "queued 2 rollouts of run again\n"
        deleted = program("delete", "run", "--yes", "--server", server.url, **at_server)
        assert deleted.output.startswith("deleted 3 rollouts\nnot reached")


def test_the_tasks_become_a_file_of_data(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    assert program("export", folder, "--tasks", file).output == f"exported 3 tasks to {file}\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"question": task, "member": None, "id": task} for task in ("a", "b", "c")
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "run.csv"], "must end in .jsonl"),
        (["--to", "run.jsonl", "--iteration", "1"], "about models"),
        (["--server", "http://127.0.0.1:9"], "records, no models"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    folder: Path, options: list[str], told: str
) -> None:
    result = program("export", folder, *options)
    assert result.exit_code == 2
    assert told in result.output


def test_a_file_of_something_else_is_not_imported(folder: Path, tmp_path: Path) -> None:
    result = program("import", folder / "recipe.yaml", "--into", tmp_path / "other.db")
    assert result.exit_code == 2
    assert "is no line of a run" in result.output
    assert program("import", folder / "recipe.yaml").exit_code == 2


def test_failed_rollouts_are_queued_again(folder: Path) -> None:
    (first,) = (one for one in rollouts(folder) if one.spec.task_id == "a")
    one = program("retry", folder, "--rollout", first.id)
    assert one.output == f"queued 1 rollout of {folder} again\n"
    assert states(folder) == ["queued", "succeeded", "failed"]
    assert program("retry", folder, "--mode", "val").output.startswith("queued 0")
    assert program("retry", folder).output.startswith("queued 1")
    assert states(folder) == ["queued", "succeeded", "queued"]


def test_rollouts_are_deleted_only_if_that_is_meant(folder: Path) -> None:
    first = rollouts(folder)[0].id
    assert program("delete", folder, "--rollout", first, input="n\n").exit_code == 1
    assert len(rollouts(folder)) == 3
    asked = program("delete", folder, "--rollout", first, input="y\n")
    assert "deleted 1 rollout\n" in asked.output
    assert program("delete", folder, "--yes").output.startswith("deleted 2 rollouts\n")
    assert rollouts(folder) == []


def test_what_is_old_is_deleted_by_mode(folder: Path) -> None:
    async def enqueue(store: Store) -> None:
        await store.enqueue(group(2, mode=Mode.LIVE))
        await store.cancel([one.id for one in group(2, mode=Mode.LIVE)])

    in_store(folder / "store.db", enqueue)
    assert "deleted 0" in program("delete", folder, "--yes", "--older-than", "7d").output
    options = ("--yes", "--older-than", "0s", "--mode", "live")
    assert program("delete", folder, *options).output.startswith("deleted 2 rollouts\n")
    assert len(rollouts(folder)) == 3  # training that no iteration has committed stays
    wrong = program("delete", folder, "--yes", "--older-than", "a week")
    assert (wrong.exit_code, "write 30s" in wrong.output) == (2, True)
    assert program("delete", folder, "--yes", "--mode", "live").exit_code == 2


def test_a_store_s_file_shrinks_by_what_was_deleted(folder: Path) -> None:
    path = folder / "store.db"

    async def much(store: Store) -> None:
        large = group(2, task="large", mode=Mode.LIVE)
        await store.enqueue(large)
        ids = [one.id for one in large]
        for claim in await store.claim("worker", rollout_ids=ids, limit=2):
            for number in range(50):
                event = call(claim.attempt.id, str(number), prompt=range(number, number + 1000))
                await store.append([event])
            await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)

    in_store(path, much)
    kept = rollouts(folder)[:3]
    assert "deleted 2" in program("delete", folder, "--yes", "--older-than", "0s").output
    large = path.stat().st_size
    assert large > 150_000  # a hundred prompts of 4,000 bytes, of which a half compresses away
    with ServerProcess(path):
        refused = program("db", "shrink", path)
        assert (refused.exit_code, "is being written by" in refused.output) == (1, True)
    shrunk = program("db", "shrink", path)
    assert shrunk.output == f"the file had {large} bytes, now {path.stat().st_size}\n"
    assert path.stat().st_size < large / 2
    assert not path.with_name("store.db-wal").exists()
    assert rollouts(folder) == kept
    assert program("db", "check", path).exit_code == 0
    missing = program("db", "shrink", folder / "missing.db")
    assert (missing.exit_code, "there is no store" in missing.output) == (1, True)
    other = program("db", "shrink", "postgresql://host/database")
    assert (other.exit_code, "autovacuum" in other.output) == (2, True)


def test_the_file_of_a_conversation_costs_what_its_turns_add(tmp_path: Path) -> None:
    async def talked(store: Store, turns: int) -> int:
        await store.enqueue(group(run=f"of {turns}"))
        (claim,) = await store.claim("worker")
        for turn in range(turns):
            request = b'{"messages":[%s]}' % b",".join(
                b'"message %d%s"' % (number, b"." * 200) for number in range(turn + 1)
            )
            event = call(
                claim.attempt.id, str(turn), prompt=range(100 * (turn + 1)), request=request
            )
            await store.append([event])
        file = tmp_path / f"{turns}.jsonl"
        await export_run(store, f"of {turns}", file)
        return file.stat().st_size

    async def both(store: Store) -> tuple[int, int]:
        return await talked(store, 20), await talked(store, 40)

    short, long = in_store(tmp_path / "store.db", both)
    assert long < 2.1 * short  # whole, 40 turns would take four times as much as 20
