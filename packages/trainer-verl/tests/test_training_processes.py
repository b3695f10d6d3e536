"""Child processes: kept alive, given up with their last lines, gone with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightningrl.errors import RunError
from lightningrl_verl.machine.processes import Child

ECHO = "import os,sys,time; print(os.getpid(), flush=True); time.sleep(600)"


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = Child(
        "sleeper",
        lambda _: [sys.executable, "-c", ECHO],
        log=tmp_path / "log",
        environment={},
        on_line=lambda line: pids.put_nowait(int(line)),
    )
    async with child:
        first = await pids.get()
        os.kill(first, signal.SIGKILL)
        second = await pids.get()
        assert second != first
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_a_child_that_keeps_dying_ends_the_run_with_its_last_lines(tmp_path: Path) -> None:
    child = Child(
        "runner",
        lambda _: [sys.executable, "-c", "raise SystemExit('no module named agent')"],
        log=tmp_path / "log",
        environment={},
    )
    async with child:
        with pytest.raises(RunError, match="no module named agent"):
            await asyncio.wait_for(child.failure, 60)


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    reads_pipe = "import os,sys; print(os.getpid(), flush=True); os.read(int(sys.argv[1]), 1)"
    parent = f"""
import asyncio, sys
from pathlib import Path
from lightningrl_verl.machine.processes import Child
async def main():
    child = Child("c", lambda pipe: [sys.executable, "-c", {reads_pipe!r}, str(pipe)],
        log=Path({str(tmp_path / "log")!r}), environment={{}}, on_line=lambda l: print(l, flush=True))
    async with child:
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    while _alive(pid):
        pass


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"
