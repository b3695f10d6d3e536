"""The programs of `docs/how-to/use-any-language-or-sdk.md` are agents: their calls are recorded."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightningrl.schema import Dialect
from lightningrl_testkit.gateway import open_rig
from lightningrl_testkit.model_server import ModelServer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "use-any-language-or-sdk.md"
FILES = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    "agent.sh": ("bash", Dialect.CHAT),
    "agent.mjs": ("node", Dialect.RESPONSES),
    "agent.py": (sys.executable, Dialect.ANTHROPIC),
}


def test_the_page_has_these_programs() -> None:
    assert {name for name, _ in FILES.findall(PAGE.read_text(encoding="utf-8"))} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_of_the_page_is_an_agent(tmp_path: Path, name: str) -> None:
    command, dialect = PROGRAMS[name]
    needed = [command, "curl"] if name == "agent.sh" else [command]
    for one in needed:
        if shutil.which(one) is None:
            pytest.skip(f"{one} is not installed")
    program = tmp_path / name
    program.write_text(dict(FILES.findall(PAGE.read_text(encoding="utf-8")))[name], "utf-8")
    with ModelServer() as engine:
        async with open_rig(tmp_path) as rig:
            await rig.register(engine.url)
            claim = await rig.claim()
            url = rig.attempt_url(claim)
            environment = {
                "PATH": f"{Path(sys.executable).parent}:{_path(needed)}",
                "HOME": str(tmp_path),
                "OPENAI_BASE_URL": url,
                "OPENAI_API_KEY": claim.key,
                "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
                "ANTHROPIC_API_KEY": claim.key,
            }

            def run() -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [command, str(program)], env=environment, capture_output=True, text=True
                )

            done = await asyncio.to_thread(run)
            assert done.returncode == 0, done.stderr
            assert "Hallo" in done.stdout
            [call] = await rig.calls(claim)
    assert call.dialect is dialect
    assert call.choices[0].untrainable is None


def _path(needed: list[str]) -> str:
    """Where the programs are, and nothing else."""
    return ":".join(str(Path(shutil.which(one) or one).parent) for one in needed)
