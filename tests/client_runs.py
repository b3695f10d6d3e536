"""One third-party client against a real gateway: its program is run as a rollout's command, and what came is counted.

A program prints a line for each thing that it tries: what, the text that it got, and, where the client says so, the
tokens of its prompts and answers, apart by tabs.

Invariant: what is said of a client is what the gateway recorded, and what the program printed of it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from client_environments import search_path
from client_scripts import SCRIPTS
from uv_tool import ROOT

from lightningrl.capture.variables import for_attempt
from lightningrl.schema import CallEvent, CallStatus, Claim, LogEvent, LogTopic, Sampling
from lightningrl_testkit.contexts import rollout_context
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer

FOLDER = ROOT / "tests" / "clients"
RUN_SECONDS = 200
PRODUCT = "8641969"
"""What all programs ask for, 1234567 times 7."""
_START = {"py": "python", "mjs": "node", "sh": "bash"}


@dataclass(frozen=True, kw_only=True)
class Client:
    """A row of `clients.toml`, whose comments say what each field means."""

    name: str
    language: str
    packages: list[str]
    in_suite: bool = False
    script: str = "agent"
    calls: int
    dialects: list[str]
    refused: int = 0
    line: str = ""
    without: str = ""

    @property
    def program(self) -> Path:
        """What is run."""
        [program] = (FOLDER / "programs").glob(f"{self.name}.*")
        return program


def load_clients() -> dict[str, Client]:
    """The table, by name."""
    table = tomllib.loads((FOLDER / "clients.toml").read_text("utf-8"))
    return {name: Client(name=name, **row) for name, row in table.items()}


@dataclass(frozen=True)
class Try:
    """A line that a program printed."""

    what: str
    text: str
    tokens: tuple[int, int] | None
    """Of prompts and answers. `None`: the client doesn't say."""


@dataclass
class Seen:
    """What came of one run."""

    status: int
    said: str
    """The end of what it wrote."""
    tries: list[Try]
    calls: list[CallEvent]
    engine_calls: int
    """Requests that the engine got."""
    tool_results: int
    """Requests that the engine got with a tool's result in them."""
    unidentified: dict[str, int]
    """Where requests came from that no rollout could be told for -> how many."""
    logs: list[LogEvent] = field(default_factory=list[LogEvent])

    @property
    def streamed(self) -> int:
        """Calls that asked for a stream."""
        return sum(bool(json.loads(one.request).get("stream")) for one in self.calls)

    @property
    def untrainable(self) -> dict[str, int]:
        """Reason -> calls that can't be trained."""
        reasons = (one.choices[0].untrainable for one in self.calls if one.choices)
        return dict(Counter(one for one in reasons if one is not None))

    def lines(self, topic: LogTopic) -> list[str]:
        """What the attempt's log says of something."""
        return [one.message for one in self.logs if one.topic is topic]


async def run_client(client: Client, command: Path, modules: Path | None, folder: Path) -> Seen:
    """Run a client's program in `folder`.

    Args:
        client: whose program.
        command: the interpreter that has its packages.
        modules: a `node_modules` that has them.
        folder: of the run, empty.
    """
    program = folder / f"agent{client.program.suffix}"
    shutil.copy(client.program, program)
    if modules is not None:
        (folder / "node_modules").symlink_to(modules)
    with ModelServer(SCRIPTS[client.script]) as engine:
        async with open_rig(folder) as rig:
            await rig.register(engine.url)
            claim = await rig.claim(Sampling(temperature=1.0))
            context = rollout_context(
                rollout_id=claim.rollout.id,
                attempt_id=claim.attempt.id,
                server_url=rig.url,
                key=claim.key,
            )
            folders = [command.parent] if modules is None else [command.parent, modules / ".bin"]
            environment = {
                "PATH": search_path(*folders),
                "HOME": str(folder),
                "LANG": "C.UTF-8",
                "OPENAI_AGENTS_DISABLE_TRACING": "true",  # as a runner's command has it
                **for_attempt(context),
            }
            done = await asyncio.to_thread(_run, [str(command), program.name], folder, environment)
            return await _seen(rig, claim, engine, done)


def _run(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        timeout=RUN_SECONDS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


async def _seen(
    rig: GatewayRig, claim: Claim, engine: ModelServer, done: subprocess.CompletedProcess[str]
) -> Seen:
    [events] = await rig.store.events([claim.attempt.id])
    bodies = [json.dumps(one.body).replace(",", "") for one in engine.arrivals]
    return Seen(
        status=done.returncode,
        said=f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}",
        tries=_tries(done.stdout),
        calls=[one for one in events if isinstance(one, CallEvent)],
        engine_calls=engine.calls,
        tool_results=sum(PRODUCT in one for one in bodies),
        unidentified=rig.gateway.unidentified,
        logs=[one for one in events if isinstance(one, LogEvent)],
    )


def _tries(stdout: str) -> list[Try]:
    found: list[Try] = []
    for line in stdout.splitlines():
        what, *rest = line.split("\t")
        if rest:
            tokens = (int(rest[1]), int(rest[2])) if len(rest) == 3 else None
            found.append(Try(what, rest[0], tokens))
    return found


def check(client: Client, seen: Seen) -> None:
    """Every call is in the rollout and was answered, tools ran, texts and counts are the engine's."""
    assert seen.status == 0, seen.said
    assert seen.tries, seen.said
    assert [one for one in seen.tries if PRODUCT not in one.text.replace(",", "")] == [], seen.said
    assert {one.status for one in seen.calls} == {CallStatus.DELIVERED}
    choices = [one for call in seen.calls for one in call.choices]
    assert all(len(one.token_ids) == len(one.logprobs) > 0 for one in choices)
    assert len(seen.calls) == seen.engine_calls == client.calls
    assert seen.unidentified == {}
    assert sorted({one.dialect.value for one in seen.calls}) == client.dialects
    assert seen.tool_results > 0
    assert len(seen.lines(LogTopic.REFUSED)) == client.refused
    sums = _sums_in_a_row(seen.calls)
    assert [one for one in seen.tries if one.tokens and one.tokens not in sums] == []


def _sums_in_a_row(calls: Sequence[CallEvent]) -> set[tuple[int, int]]:
    """What the tokens of calls that follow each other add up to, for each such sequence."""
    sums: set[tuple[int, int]] = set()
    for first in range(len(calls)):
        counts = [(one.prompt_tokens, one.completion_tokens) for one in calls[first:]]
        sums |= set(accumulate(counts, lambda one, two: (one[0] + two[0], one[1] + two[1])))
    return sums


def outcome(client: Client, seen: Seen, versions: dict[str, str], today: str) -> dict[str, Any]:
    """What the reference keeps of a run."""
    beside = ("openai", "anthropic", "litellm", "httpx", "langchain-core")
    package = client.packages[0]
    name = package.partition("[")[0].partition("==")[0]
    name = name if client.language == "python" else package.rpartition("@")[0]
    return {
        "package": name,
        "version": versions[name],
        "on": today,
        "beside": {one: versions[one] for one in beside if one in versions and one != name},
        "tries": [one.what for one in seen.tries],
        "calls": dict(sorted(Counter(one.dialect.value for one in seen.calls).items())),
        "streamed": seen.streamed,
        "usage": any(one.tokens for one in seen.tries),
        "untrainable": dict(sorted(seen.untrainable.items())),
        "unknown_fields": sorted(set(seen.lines(LogTopic.UNKNOWN_FIELD))),
    }
