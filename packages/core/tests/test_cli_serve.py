"""`lightningrl serve` as a process, and the commands that look at a run through it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.gateway import GatewayClient
from lightningrl.schema import AttemptState, Endpoint, Policy
from lightningrl.store import open_store
from lightningrl_testkit.records import call, group, reward

PROGRAM = Path(sys.executable).with_name("lightningrl")


@contextmanager
def served(folder: Path, *options: str, **variables: str) -> Generator[tuple[str, Path]]:
    """The URL of a server process, and its URL file; ended by SIGTERM."""
    url_file = folder / "url"
    arguments = [str(folder / "new" / "store.db"), "--port", "0", "--url-file", str(url_file)]
    process = subprocess.Popen(
        [PROGRAM, "serve", *arguments, *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        try:
            yield line.split()[-1], url_file
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def program(*arguments: str, key: str | None = None) -> Result:
    return CliRunner().invoke(commands, arguments, env={"LIGHTNINGRL_KEY": key})


async def one_rollout(url: str, key: str | None = None) -> None:
    store = open_store(url, key=key)
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker", run="run")
    await store.append([call(claim.attempt.id, "c"), reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()


def test_a_served_run_is_shown_by_its_name(tmp_path: Path) -> None:
    with served(tmp_path) as (url, url_file):
        asyncio.run(one_rollout(url))
        assert url_file.read_text() == url
        result = program("show", "run", "--server", url)
        assert result.exit_code == 0, result.output
        assert "succeeded · reward 1.000" in result.output
        unknown = program("show", "rnu", "--server", url)
        assert unknown.exit_code == 1
        assert f"{url} has no run 'rnu'. Did you mean 'run'?" in unknown.stderr


def test_the_doctor_looks_at_all_runs_of_a_server_and_at_its_engines(tmp_path: Path) -> None:
    async def prepare(url: str) -> None:
        await one_rollout(url)
        store = open_store(url)
        await store.enqueue(group(1, run="waiting"))
        await store.close()
        async with GatewayClient(url) as gateway:
            endpoint = Endpoint("http://127.0.0.1:9/v1")
            await gateway.register(Policy("policy", "waiting", 0, (endpoint,)))

    with served(tmp_path) as (url, _):
        asyncio.run(prepare(url))
        result = program("doctor", "--server", url)
        assert result.exit_code == 1
        assert "run: nothing wrong found" in result.output
        assert "waiting: 1 problem" in result.output  # no call has failed at the engine yet
        assert "✗ no runner" in result.output
        assert program("doctor", "run", "--server", url).exit_code == 0


def test_the_admin_key_opens_the_server_and_nothing_else_does(tmp_path: Path) -> None:
    with served(tmp_path, LIGHTNINGRL_ADMIN_KEY="secret") as (url, _):
        asyncio.run(one_rollout(url, key="secret"))
        assert program("show", "run", "--server", url, key="secret").exit_code == 0
        refused = program("show", "run", "--server", url, key="wrong")
        assert refused.exit_code == 1
        assert refused.stderr.startswith("Error: ")
        assert "secret" not in refused.output


def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        result = program("show", "run", "--server", url)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert url in result.stderr


def test_other_machines_are_let_in_only_with_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNINGRL_ADMIN_KEY", raising=False)
    result = program("serve", str(tmp_path / "store.db"), "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "set LIGHTNINGRL_ADMIN_KEY, or listen on 127.0.0.1" in result.stderr
