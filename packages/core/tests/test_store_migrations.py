"""Tables of an older version are led to this one, whose migrations give what `schema.sql` gives."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.errors import ConfigError, StoreLocked
from lightningrl.schema import Mode, RolloutState
from lightningrl.store import open_store
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.store.databases import check_database, upgrade_database
from lightningrl.store.migrations import migrations
from lightningrl.store.queries import schema
from lightningrl.store.versions import SCHEMA_VERSION
from lightningrl_testkit.postgres import PostgresServer
from lightningrl_testkit.records import group

VERSION_1 = Path(__file__).parent / "data" / "store_version_1.sql"
MOVES = ("rollout_moves", "attempt_moves")


def program(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["db", *arguments])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that LightningRL made when its tables had version 1."""
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.read_text())
    return path


@pytest.fixture
def old_postgres(postgres_url: str) -> str:
    """A schema of version 1, with one queued rollout."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(migrations("postgres")[0].encode(), prepare=False)
        connection.execute("INSERT INTO meta VALUES ('schema_version', '1'), ('secret', 'secret')")
        connection.execute(
            "INSERT INTO rollouts (id, run, mode, iteration, variant, task_id, group_id, member,"
            " created_us, spec) VALUES ('r', 'run', 'train', 1, '', 'task', 'g', 0, 1, '\\x00')"
        )
    return postgres_url


class TestTables:
    def test_sqlite_by_migration_equals_sqlite_from_scratch(self) -> None:
        assert described_sqlite(*migrations("sqlite")) == described_sqlite(schema("sqlite"))

    def test_postgres_by_migration_equals_postgres_from_scratch(
        self, postgres: PostgresServer
    ) -> None:
        with postgres.schema() as one, postgres.schema() as other:
            migrated = described_postgres(one, *migrations("postgres"))
            assert migrated == described_postgres(other, schema("postgres"))

    def test_a_file_of_version_1_equals_one_from_scratch_after_the_upgrade(self, old: Path) -> None:
        upgrade_database(old)
        with closing(sqlite3.connect(old)) as connection:
            assert description(connection) == described_sqlite(schema("sqlite"))


def described_sqlite(*scripts: str) -> dict[str, object]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in scripts:
            connection.executescript(script)
        return description(connection)


def description(connection: sqlite3.Connection) -> dict[str, object]:
    """Every object by its definition: of a table the set of its columns and rules, in any order."""
    found: dict[str, object] = {}
    for kind, name, sql in connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    ):
        text = " ".join(re.sub(r"--[^\n]*", "", sql).replace('"', "").split())
        found[f"{kind} {name}"] = set(definitions(text)) if kind == "table" else text
    for table in MOVES:
        found[f"rows of {table}"] = set(connection.execute(f"SELECT * FROM {table}"))
    return found


def definitions(table: str) -> Generator[str]:
    """The parts of a CREATE TABLE between the commas that stand in no further brackets."""
    depth, part = 0, ""
    for character in table.partition("(")[2]:
        if character == "," and depth == 0:
            yield part.strip()
            part = ""
            continue
        depth += {"(": 1, ")": -1}.get(character, 0)
        part += character
    yield part.strip().rstrip(")").strip()


def described_postgres(url: str, *scripts: str) -> dict[str, set[tuple[object, ...]]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for script in scripts:
            connection.execute(script.encode(), prepare=False)
        row = connection.execute("SELECT current_schema()").fetchone()
        assert row is not None
        questions = {
            "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default,"
            " identity_generation FROM information_schema.columns WHERE table_schema = %s",
            "constraints": "SELECT CAST(conrelid AS regclass)::text, conname, contype::text,"
            " pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE CAST(connamespace AS regnamespace)::text = %s",
            "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s",
            "triggers": "SELECT CAST(tgrelid AS regclass)::text, tgname, pg_get_triggerdef(t.oid)"
            " FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
            " WHERE NOT tgisinternal AND CAST(c.relnamespace AS regnamespace)::text = %s",
            "functions": "SELECT proname, prosrc FROM pg_proc"
            " WHERE CAST(pronamespace AS regnamespace)::text = %s",
            "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = %s",
            "sequences": "SELECT sequencename FROM pg_sequences WHERE schemaname = %s",
        }
        found = {
            what: {
                tuple(one.replace(row[0], "") if isinstance(one, str) else one for one in answer)
                for answer in connection.execute(question.encode(), row)
            }
            for what, question in questions.items()
        }
        for table in MOVES:
            found[table] = set(connection.execute(f"SELECT * FROM {table}".encode()))
        return found


class TestUpgrade:
    async def test_what_a_file_held_is_there_after_the_upgrade(self, old: Path) -> None:
        result = program("upgrade", str(old))
        assert result.output == f"upgraded the store from schema version 1 to {SCHEMA_VERSION}\n"
        assert check_database(old) == []
        store = open_store(old)
        first, second, queued = await store.rollouts(RolloutQuery())
        assert [one.state for one in (first, second)] == [RolloutState.SUCCEEDED] * 2
        assert [one.reward for one in (first, second)] == [0.0, 0.5]
        assert [one.cursor for one in await store.ended("run")] == [1, 2]
        (attempt,) = await store.attempts([second.id])
        assert [one.id for one in (await store.events([attempt.id]))[0]] == [
            "c1",
            "reward-final-None-0",
            "l1",
        ]
        assert [one.version for one in await store.policies()] == [3]
        await goes_on(store, "run")
        assert (await store.rollouts(RolloutQuery(ids=(queued.id,))))[0].state == "running"
        await store.close()

    async def test_a_database_goes_on_after_the_upgrade(self, old_postgres: str) -> None:
        result = program("upgrade", old_postgres)
        assert result.output == f"upgraded the store from schema version 1 to {SCHEMA_VERSION}\n"
        store = open_store(old_postgres)
        assert (await store.progress("run", Mode.TRAIN, 1)).queued == 1
        await store.close()

    async def test_upgrading_again_changes_nothing(self, old: Path) -> None:
        upgrade_database(old)
        assert program("upgrade", str(old)).output == (
            f"the store has schema version {SCHEMA_VERSION} already\n"
        )

    async def test_a_store_that_is_in_use_is_not_upgraded(
        self, tmp_path: Path, postgres_url: str
    ) -> None:
        for url in (tmp_path / "store.db", postgres_url):
            store = open_store(url)
            with pytest.raises(StoreLocked):
                upgrade_database(url)
            await store.close()
            assert upgrade_database(url) == SCHEMA_VERSION


async def goes_on(store: Store, run: str) -> None:
    (claim,) = await store.claim("worker", run=run)
    assert claim.attempt.number == 1


class TestRefusals:
    def test_an_older_store_is_refused_naming_both_versions_and_the_command(
        self, old: Path, old_postgres: str
    ) -> None:
        for url in (old, old_postgres):
            message = rf"version 1.* version {SCHEMA_VERSION}.*lightningrl db upgrade"
            with pytest.raises(ConfigError, match=message):
                open_store(url)

    async def test_a_newer_store_is_refused_naming_both_versions(self, postgres_url: str) -> None:
        await open_store(postgres_url).close()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
        for refused in (open_store, upgrade_database, check_database):
            with pytest.raises(ConfigError, match=rf"version 99.* version {SCHEMA_VERSION}"):
                refused(postgres_url)

    def test_another_program_s_database_is_refused_and_not_changed(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE theirs (x int)")
            for refused in (open_store, upgrade_database, check_database):
                with pytest.raises(ConfigError, match="not a LightningStore"):
                    refused(postgres_url)
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
            )
            assert tables.fetchall() == [("theirs",)]

    def test_a_server_s_url_is_no_database(self) -> None:
        result = program("check", "http://127.0.0.1:8787")
        assert "path or URL of its database" in result.output

    def test_no_url_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LIGHTNINGRL_STORE", raising=False)
        assert "set LIGHTNINGRL_STORE" in program("check").output


class TestCheck:
    async def test_a_sound_store_has_no_problem(
        self, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for url in (str(tmp_path / "store.db"), postgres_url):
            store = open_store(url)
            await store.enqueue(group(2))
            await store.claim("worker")
            await store.close()
            monkeypatch.setenv("LIGHTNINGRL_STORE", url)
            result = program("check")
            assert result.exit_code == 0, result.output
            assert result.output.startswith("the store is in order")

    async def test_what_breaks_a_rule_is_named(self, tmp_path: Path, postgres_url: str) -> None:
        broken = "UPDATE rollouts SET attempts = 7"
        path = tmp_path / "store.db"
        for url in (path, postgres_url):
            store = open_store(url)
            await store.enqueue(group(1))
            await store.close()
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(broken)
        with psycopg.connect(postgres_url) as connection:
            connection.execute(broken)
        for url in (path, postgres_url):
            result = program("check", str(url))
            assert result.exit_code == 1
            assert "number of attempts" in result.output
            assert "1 problems found" in result.output

    @pytest.mark.parametrize("payload", ["C1", "28B52FFD00"])  # no msgpack; the beginning of zstd
    async def test_an_event_that_can_t_be_read_is_named(self, old: Path, payload: str) -> None:
        upgrade_database(old)
        with closing(sqlite3.connect(old)) as connection, connection:
            connection.execute("DROP TRIGGER events_stay")
            connection.execute(f"UPDATE events SET payload = X'{payload}' WHERE id = 'l1'")
        problems = check_database(old)
        assert len(problems) == 2
        assert all("can't be read" in one for one in problems)
