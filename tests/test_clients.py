"""Third-party clients, each by its real package: every call lands in its rollout, and tools, streams and counts are right.

Four run in the workspace's environment. All of them run in environments of their own by `make test-clients`, which
keeps what came of each (`LIGHTNINGRL_KEEP_CLIENTS=1`) for `docs/reference/clients.md`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from client_environments import (
    node_environment,
    node_versions,
    python_environment,
    python_versions,
)
from client_runs import FOLDER, check, load_clients, outcome, run_client

CLIENTS = load_clients()
IN_SUITE = [name for name, client in CLIENTS.items() if client.in_suite]
RESULTS = FOLDER / "results.json"


@pytest.mark.parametrize("name", IN_SUITE)
async def test_a_client_of_the_workspace(tmp_path: Path, name: str) -> None:
    seen = await run_client(CLIENTS[name], Path(sys.executable), None, tmp_path)
    check(CLIENTS[name], seen)


@pytest.mark.clients
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_in_its_own_environment(tmp_path: Path, name: str) -> None:
    client = CLIENTS[name]
    program = "bash" if client.program.suffix == ".sh" else "node"
    if client.language == "python":
        command, modules = python_environment(name, client.packages), None
        versions = python_versions(command)
    else:
        found = shutil.which(program)
        if found is None or shutil.which("npm") is None:
            pytest.skip(f"{program} and npm are needed")
        command, modules = Path(found), node_environment(name, client.packages)
        versions = node_versions(modules)
    seen = asyncio.run(run_client(client, command, modules, tmp_path))
    check(client, seen)
    if os.environ.get("LIGHTNINGRL_KEEP_CLIENTS"):
        kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
        kept[name] = outcome(client, seen, versions, datetime.now(UTC).date().isoformat())
        RESULTS.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")


def test_each_client_has_a_program_and_a_result() -> None:
    programs = sorted(path.stem for path in (FOLDER / "programs").iterdir())
    assert programs == sorted(CLIENTS)
    assert sorted(json.loads(RESULTS.read_text("utf-8"))) == sorted(CLIENTS)


def test_most_clients_run_as_they_are() -> None:
    assert len(CLIENTS) >= 30
    assert len(IN_SUITE) == 4
    assert sum(not client.line for client in CLIENTS.values()) >= 27


def test_versions_are_exact() -> None:
    exact = {"python": "==", "node": "@"}
    loose = [
        one
        for client in CLIENTS.values()
        for one in client.packages
        if not one.startswith("--") and exact[client.language] not in one[1:]
    ]
    assert loose == []
