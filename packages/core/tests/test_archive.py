"""A run's file as Parquet holds what the file of JSON lines holds, and arrives the same."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from lightningrl import archive
from lightningrl.archive import export_run, import_run, parquet
from lightningrl.archive.columns import Structs
from lightningrl.errors import ConfigError
from lightningrl.schema import AttemptId, AttemptState, CallEvent, Choice, Sampling
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group
from lightningrl_testkit.store_transfer import ROLLOUTS, fill, reads


async def exported(folder: Path) -> Path:
    """A run's file as Parquet, of a store with a rollout in every state."""
    store = SqliteStore.open(folder / "origin.db")
    await fill(store)
    assert await export_run(store, "run", folder / "run.parquet") == ROLLOUTS
    await store.close()
    return folder / "run.parquet"


async def test_a_run_is_read_the_same_where_it_was_loaded(tmp_path: Path) -> None:
    path = await exported(tmp_path)
    origin = SqliteStore.open(tmp_path / "origin.db")
    store = SqliteStore.open(tmp_path / "other.db")
    run, new = await import_run(store, path)
    assert (run, new > 9) == ("run", True)
    assert await reads(store) == await reads(origin)
    assert await import_run(store, path) == ("run", 0)
    # Both formats hold the same: what came by Parquet leaves as the JSON lines that it would have been.
    await export_run(store, "run", tmp_path / "again.jsonl")
    await export_run(origin, "run", tmp_path / "run.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "run.jsonl").read_bytes()
    await store.close()
    await origin.close()


async def test_token_ids_and_log_probs_are_columns_of_numbers(tmp_path: Path) -> None:
    path = await exported(tmp_path)
    table = pq.read_table(path)
    calls = table.filter(pa.compute.equal(table["record"], "call"))["call"].combine_chunks()
    assert calls.field("prompt_ids").type == pa.list_(pa.int32())
    # Conversations stand whole: 40 ids a turn.
    assert [len(one) for one in calls.field("prompt_ids").to_pylist()][:4] == [40, 80, 120, 160]
    (choice,) = calls.field("choices").to_pylist()[0]
    expected = call(AttemptId("a"), "0").choices[0]
    assert choice["token_ids"] == np.frombuffer(expected.token_ids, "<i4").tolist()
    assert choice["logprobs"] == np.frombuffer(expected.logprobs, "<f4").tolist()
    times = calls.field("at").to_pylist()
    assert all(isinstance(one, datetime.datetime) for one in times)
    assert set(table["record"].to_pylist()) == {
        "resource", "rollout", "attempt", "call", "reward", "log", "completed", "ledger",
    }  # fmt: skip


def test_every_kind_of_number_and_none_comes_back_to_the_bit() -> None:
    odd = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], "<u4").tobytes()  # NaN, -inf, -0, tiny
    plain = call(AttemptId("a"), "1")
    choice = Choice(
        index=1, message=b'"\xff"', finish_reason=None, token_ids=odd, logprobs=odd, untrainable="x"
    )
    events = [
        plain,
        replace(plain, sampling=Sampling(seed=7)),
        replace(plain, choices=(plain.choices[0], choice)),
        replace(plain, choices=(), agent="\0é😀"),
    ]
    column = Structs(CallEvent)
    assert column.values(column.array(events)) == events
    assert column.values(column.array(events)[1:3]) == events[1:3]
    assert column.values(column.array([])) == []


async def test_a_large_run_is_written_in_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr(parquet, "_READ_ROWS", 7)
    store = SqliteStore.open(tmp_path / "origin.db")
    await store.enqueue(group(2))
    for claim in await store.claim("worker", limit=2):
        for number in range(30):
            await store.append([call(claim.attempt.id, str(number), prompt=range(500))])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    path = tmp_path / "run.parquet"
    await export_run(store, "run", path)
    assert pq.ParquetFile(path).num_row_groups > 5  # 60 calls of 2,000 bytes of ids and more
    other = SqliteStore.open(tmp_path / "other.db")
    await import_run(other, path)
    attempts = [one.id for one in await store.attempts([one.id for one in group(2)])]
    assert await other.events(attempts) == await store.events(attempts)
    await other.close()
    await store.close()


async def test_a_file_that_is_not_whole_or_not_ours_is_refused(tmp_path: Path) -> None:
    path = await exported(tmp_path)
    whole = path.read_bytes()
    store = SqliteStore.open(tmp_path / "other.db")
    path.write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match="not whole"):
        await import_run(store, path)
    pq.write_table(pa.table({"record": ["rollout"]}), path)
    with pytest.raises(ConfigError, match="is no run that"):
        await import_run(store, path)
    path.write_bytes(whole)
    table = pq.read_table(path)
    header = table.schema.metadata[b"lightningrl"].replace(b'"version":1', b'"version":99')
    pq.write_table(table.replace_schema_metadata({b"lightningrl": header}), path)
    with pytest.raises(ConfigError, match="version 99"):
        await import_run(store, path)
    assert await store.runs() == []
    await store.close()


async def test_an_unknown_suffix_is_refused_and_an_error_leaves_no_file(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.parquet"):
        await export_run(store, "run", tmp_path / "run.csv")
    await store.close()
    for suffix in archive.SUFFIXES:
        with pytest.raises(Exception, match="closed"):
            await export_run(store, "run", tmp_path / f"run{suffix}")
    assert [one.name for one in tmp_path.iterdir() if "run" in one.name] == []


async def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await exported(tmp_path)
    store = SqliteStore.open(tmp_path / "store.db")
    # What Python itself does for a module that is not there.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("lightningrl.archive.parquet", "lightningrl.archive.columns"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(archive, "parquet")
    for work in (export_run(store, "run", tmp_path / "new.parquet"), import_run(store, path)):
        with pytest.raises(ConfigError, match=r"install lightningrl\[parquet\]"):
            await work
    await store.close()
