"""Production beside OpenInference, Langfuse, Sentry and LangSmith, in either order: every call is recorded, once."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from uv_tool import ROOT, needs_uv, uv

from lightningrl.schema import StepKind
from lightningrl_testkit.gateway import open_rig
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.production import read

pytestmark = [pytest.mark.long, needs_uv]

PROGRAM = ROOT / "tests" / "observers" / "program.py"
PACKAGES = (
    *(
        "openai==3.57.0",
        "anthropic==2.15.0",
        "langfuse==5.2.0",
        "sentry-sdk==2.75.0",
        "langsmith==0.15.1",
    ),
    *(
        "openinference-instrumentation-openai==0.1.66",
        "openinference-instrumentation-anthropic==3.1.0",
    ),
)
CALLS = (6, 5)
"""Those of the program's two rollouts."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with all of them, which is thrown away."""
    folder = tmp_path_factory.mktemp("observers")
    made = uv("venv", "--quiet", str(folder / "env"))
    assert made.returncode == 0, made.stderr
    found = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    core = str(ROOT / "packages" / "core")
    done = uv("pip", "install", "--quiet", "--python", str(found), core, *PACKAGES)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("peer", ["openinference", "langfuse", "sentry", "langsmith", "everything"])
async def test_every_call_is_recorded_once(
    peer: str, order: str, python: Path, tmp_path: Path
) -> None:
    (tmp_path / "vendor").mkdir()
    store = tmp_path / "traffic.db"
    with ModelServer() as engine:
        async with open_rig(tmp_path / "vendor") as rig:
            await rig.register(engine.url, name="gpt-x")
            claim = await rig.claim()
            arguments = [peer, order, str(store), rig.attempt_url(claim), claim.key]
            done = await asyncio.to_thread(
                subprocess.run,
                [str(python), str(PROGRAM), *arguments],
                env={**os.environ, "LANGSMITH_TRACING": "false", "LIGHTNINGRL_SERVER": ""},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert len(await rig.calls(claim)) == sum(CALLS)
    found = [
        [step.output for step in record.transitions if step.kind is StepKind.LLM]
        for record in await read(store)
    ]
    assert tuple(map(len, found)) == CALLS
    assert all("hello" in str(output) for outputs in found for output in outputs)
    assert int(done.stdout) in (sum(CALLS), -1)  # -1: the peer can't be asked
