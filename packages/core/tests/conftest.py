"""What several files of tests need: a PostgreSQL server, a process in production."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightningrl_testkit.postgres import PostgresServer, running_postgres
from lightningrl_testkit.production import unrecorded


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One a session, a schema a test."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.schema() as url:
        yield url


@pytest.fixture
def process_in_production(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with unrecorded(monkeypatch):
        yield
