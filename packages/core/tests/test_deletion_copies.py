"""What is deleted stands nowhere any more: in no table, in no byte of the store's files, in no copy beside it."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.lessons import lesson_rollouts, read_lesson, write_lesson
from lightningrl.recipe import StepReward
from lightningrl.schema import (
    AttemptState,
    Claim,
    EventId,
    Failure,
    FailureKind,
    NewRollout,
    RolloutId,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.scoring import Scorer
from lightningrl.store.compression import MAGIC, unpack
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import read_ledger
from lightningrl_testkit.lessons import lesson_call, lesson_header
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_testkit.records import call, group, log, reward

ROLLOUTS = 24
SECRET = "sentinel-{}-"
"""What stands in every text of a rollout, with its member's number."""


def noise(length: int, seed: int) -> str:
    """A text that zstd does not make shorter by much, so that it stands in many pages."""
    return "".join(random.Random(seed).choices(string.printable[:90], k=length))


def spec(one: NewRollout) -> NewRollout:
    """The rollout with a secret task: of every third larger than a page."""
    secret = SECRET.format(one.member)
    large = noise(4000 if one.member % 3 == 0 else 30, one.member)
    return msgspec.structs.replace(one, task={"question": f"{secret}{large}"})


async def play(store: SqliteStore, claim: Claim) -> None:
    """A first attempt that fails, a second one of two calls and a tool."""
    attempt, secret = claim.attempt.id, SECRET.format(claim.rollout.spec.member)
    if claim.attempt.number == 1:
        await store.append([log(attempt, "l", f"{secret} log")])
        failure = Failure(FailureKind.INFRASTRUCTURE, f"ValueError: {secret}")
        await store.finish(attempt, AttemptState.FAILED, failure=failure)
        return
    said = [{"role": "user", "content": f"{secret} {noise(900, 1)}"}]
    bodies = [json.dumps({"messages": said[:1] * times}).encode() for times in (1, 2)]
    at, step = claim.attempt.started_at, StepId("tool")
    answer = json.dumps({"role": "assistant", "content": f"{secret} answer"}).encode()
    first = call(attempt, "1", request=bodies[0])
    choice = msgspec.structs.replace(first.choices[0], message=answer)
    await store.append([
        msgspec.structs.replace(first, choices=(choice,)),
        call(attempt, "2", request=bodies[1]),
        StepStartEvent(id=EventId("s"), attempt_id=attempt, at=at, step_id=step, kind=StepKind.TOOL,
                       name="search", parent_id=None, agent=None, inputs={"q": secret}),
        StepEndEvent(id=EventId("e"), attempt_id=attempt, at=at, step_id=step, output=secret * 200),
        reward(attempt, float(claim.rollout.spec.member)),
    ])  # fmt: skip
    await store.finish(attempt, AttemptState.SUCCEEDED, output=f"{secret} output")


async def fill(folder: Path) -> list[RolloutId]:
    """A committed iteration; a judge has looked at it, and its lesson is there. Ids by member."""
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue([spec(one) for one in group(ROLLOUTS)])
    while claims := await store.claim("worker", limit=ROLLOUTS):
        for claim in claims:
            await play(store, claim)
    await store.take("run", 1)
    await store.commit("run", 1)
    taken = await read_ledger(store, "run", 1)
    with ModelServer(lambda request: Answer("0.5")) as server:
        args = {"url": server.url, "model": "judge", "prompt": "Is it right?"}
        judged = StepReward(rule="judge", args=args)
        await Scorer([judged], run_folder=folder).score(taken)
    for path in (folder / "judge").glob("*.json"):  # as a judge that repeats what it read
        answer = json.loads(path.read_text())
        member = [one.id for one in group(ROLLOUTS)].index(answer["rollout"])
        path.write_text(json.dumps(answer | {"said": SECRET.format(member)}))
    await store.close()
    ids = [one.id for one in group(ROLLOUTS)]
    calls = [lesson_call(ident, task_id=SECRET.format(place)) for place, ident in enumerate(ids)]
    write_lesson(folder, lesson_header(1), calls, keep=1)
    return ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: run\nagent: m:f\n", encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "iteration-000001").mkdir()
    asyncio.run(fill(tmp_path))
    return tmp_path


def delete(folder: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(commands, ["delete", str(folder), "--yes", *arguments])
    assert done.exit_code == 0, done.output
    return done


def in_tables(folder: Path) -> Iterator[bytes]:
    """Every value of every table of the store, as it is read."""
    connection = apsw.Connection(str(folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for (name,) in names:
        for row in connection.execute(f"SELECT * FROM {name}"):
            for value in row:
                yield unpack(value) if isinstance(value, bytes) else str(value).encode()
    connection.close()


def in_bytes(folder: Path) -> Iterator[bytes]:
    """Every file of the folder as it is, and what any compressed frame in it begins with."""
    for path in (one for one in folder.rglob("*") if one.is_file()):
        content = path.read_bytes()
        yield content
        if path.suffix == ".parquet":
            yield str(pq.read_table(path).to_pylist()).encode()
        for place in _frames(content):
            yield _begun(content[place:])


def _frames(content: bytes) -> Iterator[int]:
    place = content.find(MAGIC)
    while place >= 0:
        yield place
        place = content.find(MAGIC, place + 1)


def _begun(frame: bytes) -> bytes:
    """What can be decompressed of a frame, whose end may stand on another page."""
    import zstandard

    reader, told = zstandard.ZstdDecompressor().stream_reader(frame), b""
    try:
        while more := reader.read(64):
            told += more
    except zstandard.ZstdError:
        pass
    return told


def members_told(found: Iterator[bytes]) -> set[int]:
    """Of which members a secret stands somewhere."""
    secrets = {member: SECRET.format(member).encode() for member in range(ROLLOUTS)}
    texts = list(found)
    return {member for member, one in secrets.items() if any(one in text for text in texts)}


def test_a_rollout_that_is_deleted_stands_in_no_file_and_no_table(folder: Path) -> None:
    every = set(range(ROLLOUTS))
    assert members_told(in_tables(folder)) == members_told(in_bytes(folder)) == every
    ids = [one.id for one in group(ROLLOUTS)]
    gone = [3, 4, 17]
    told = delete(folder, *(word for one in gone for word in ("--rollout", ids[one])))
    assert "deleted 3 rollouts\nand of them 3 rows of lessons, 6 answers of judges\n" in told.output
    assert f"  {folder / 'checkpoints'}: weights" in told.output
    assert "files and models that were exported" in told.output
    left = every - set(gone)
    assert members_told(in_tables(folder)) == left
    assert members_told(in_bytes(folder)) == left
    found = read_lesson(folder, 1, log_probs=True)
    assert found is not None
    assert found[0] == lesson_header(1)
    assert [one.rollout_id for one in found[1]] == [
        one for place, one in enumerate(ids) if place not in gone
    ]


def test_a_run_that_is_deleted_stands_nowhere(folder: Path) -> None:
    (folder / "judge" / "older.json").write_text('{"score": 1, "said": "of nobody"}')
    told = delete(folder)
    assert f"deleted {ROLLOUTS} rollouts" in told.output
    assert members_told(in_tables(folder)) == members_told(in_bytes(folder)) == set()
    assert list((folder / "judge").iterdir()) == []
    # Again, as after a deletion that broke off before it came to the copies.
    write_lesson(folder, lesson_header(1), [lesson_call(group()[0].id)], keep=1)
    assert "1 row of lessons" in delete(folder).output
    assert lesson_rollouts(folder) == set()


async def test_what_is_deleted_leaves_the_log_while_the_store_is_open(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    small = {member for member in range(ROLLOUTS) if member % 3}
    await store.enqueue([spec(one) for one in group(ROLLOUTS) if one.member in small])
    assert members_told(in_bytes(tmp_path)) == small
    await store.delete_rollouts([group(6)[5].id])
    for number in range(100):  # the writer rests between two of these
        if members_told(in_bytes(tmp_path)) == small - {5}:
            break
        await store.enqueue(group(1, task=f"more {number}"))
    assert members_told(in_bytes(tmp_path)) == small - {5}
    await store.close()
