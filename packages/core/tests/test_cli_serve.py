"""`lightningrl serve` as a process, and the commands that look at a run through it."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import openai
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.gateway import GatewayClient
from lightningrl.schema import AttemptState, Endpoint, Mode, Policy
from lightningrl.store import RolloutQuery, open_store
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.records import call, group, reward

PROGRAM = Path(sys.executable).with_name("lightningrl")


@contextmanager
def served(folder: Path, *options: str, **variables: str) -> Generator[tuple[str, Path]]:
    """The URL of a server process, and its URL file; ended by SIGTERM. Its log is `folder/log`."""
    url_file = folder / "url"
    arguments = [str(folder / "new" / "store.db"), "--port", "0", "--url-file", str(url_file)]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [PROGRAM, "serve", *arguments, *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | variables,
    )
    with log, process:
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


def test_a_server_deletes_what_is_old_or_too_much(tmp_path: Path) -> None:
    async def fill(url: str) -> None:
        await one_rollout(url)
        store = open_store(url)
        await store.enqueue(group(2, mode=Mode.LIVE))
        await store.enqueue(group(2, mode=Mode.VAL))
        for mode in (Mode.LIVE, Mode.VAL):
            await store.cancel([one.id for one in group(2, mode=mode)])
        await store.close()

    async def modes_after(url: str, expected: int) -> list[str]:
        store = open_store(url)
        found = await store.rollouts(RolloutQuery())
        while len(found) > expected:  # the server may not be through yet
            found = await store.rollouts(RolloutQuery())
        await store.close()
        return sorted(one.spec.mode.value for one in found)

    with served(tmp_path) as (url, _):
        asyncio.run(fill(url))
        assert asyncio.run(modes_after(url, 5)) == ["live", "live", "train", "val", "val"]
    with served(tmp_path, "--delete-older-than", "0s", "--delete-mode", "live") as (url, _):
        assert asyncio.run(modes_after(url, 3)) == ["train", "val", "val"]
    variables = {"LIGHTNINGRL_DELETE_DOWN_TO": "0", "LIGHTNINGRL_DELETE_MODE": "live val"}
    with served(tmp_path, "--log-level", "info", **variables) as (url, _):
        assert asyncio.run(modes_after(url, 1)) == ["train"]
    assert "deleted 2 rollouts by age or size" in (tmp_path / "log").read_text()
    wrong = program("serve", str(tmp_path / "s.db"), "--delete-mode", "live")
    assert (wrong.exit_code, "--delete-mode goes with" in wrong.output) == (2, True)
    wrong = program("serve", str(tmp_path / "s.db"), "--delete-older-than", "long")
    assert (wrong.exit_code, "--delete-older-than 'long' is no age" in wrong.output) == (2, True)


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


class Collector(BaseHTTPRequestHandler):
    """Takes what OpenTelemetry sends."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.bodies.append(
            gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
        )
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


async def one_call(url: str, engine: str) -> str:
    """Have one model call recorded; return its event's id."""
    policy = Policy(name="policy", run="run", version=0, endpoints=(Endpoint(engine),))
    async with GatewayClient(url) as gateway:
        await gateway.register(policy)
    store = open_store(url)
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker", run="run")
    async with openai.AsyncOpenAI(base_url=f"{url}/keys/{claim.key}/v1", api_key="none") as agent:
        await agent.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "Hi"}]
        )
    [[event]] = await store.events([claim.attempt.id])
    await store.close()
    return event.id


def test_a_recorded_call_is_logged_as_json_and_exported_as_a_span(tmp_path: Path) -> None:
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    options = ("--log-level", "info", "--log-format", "json", "--otel")
    with (
        ModelServer() as engine,
        served(tmp_path, *options, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as (url, _),
    ):
        call_id = asyncio.run(one_call(url, engine.url))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [line] = [line for line in lines if line["logger"] == "lightningrl.gateway.call_log"]
    assert (line["call"], line["run"], line["http_status"]) == (call_id, "run", 200)
    collector.shutdown()
    collector.server_close()
    assert any(call_id.encode() in body for body in Collector.bodies)
