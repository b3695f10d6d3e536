"""A recording process: switched on and off, its store away, forked, killed: nothing is lost unsaid."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import lightningrl
from lightningrl.capture.context import current
from lightningrl.errors import ConfigError
from lightningrl.schema import RolloutState
from lightningrl.store import RolloutQuery, open_store
from lightningrl_testkit.production import begin_alone, read

pytestmark = pytest.mark.usefixtures("forked", "process_in_production")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.db"


async def test_memory_is_bounded_and_what_does_not_fit_is_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = open_store(path)  # another writer: the recorder can't open the file
    recorder = begin_alone(path, memory_bytes=20_000)
    for number in range(50):
        with (
            lightningrl.rollout({"number": number}),
            lightningrl.step("tool", "t", inputs="x" * 1000),
        ):
            pass
    with (
        lightningrl.rollout({"large": True}),
        lightningrl.step("tool", "t", inputs="x" * 30_000),
        lightningrl.step("tool", "after"),
    ):
        pass
    assert not recorder.flush(0.01)
    # The writer may not have had its turn yet.
    while "can't be written now" not in caplog.text:
        assert not recorder.flush(0.01)
    counts = recorder.counts
    assert counts.waiting + counts.dropped["no room"] == 51
    assert 5 <= counts.waiting <= 20  # each is above 1,000 bytes and below 4,000
    assert "no room" in caplog.text
    await holder.close()
    assert recorder.flush(30.0)
    records = await read(path)
    assert [one.rollout.spec.task["number"] for one in records] == list(range(counts.waiting))
    # There is room again.
    with lightningrl.rollout({"number": 99}):
        pass
    assert recorder.flush()
    assert (await read(path))[-1].rollout.spec.task == {"number": 99}


class Blocked:
    """Says when it was reached, and goes on when it may."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, record: Any) -> Any:
        self.reached.set()
        assert self.may_go_on.wait(30.0)
        return record


async def test_a_writer_that_hangs_holds_nobody_up(path: Path) -> None:
    hook = Blocked()
    recorder = begin_alone(path, redact=hook)
    with lightningrl.rollout():
        pass
    assert hook.reached.wait(30.0)
    for _ in range(100):  # all of them while the writer stands still
        with lightningrl.rollout(), lightningrl.step("tool", "t"):
            pass
    assert recorder.counts.waiting == 101
    hook.may_go_on.set()
    assert recorder.flush(30.0)
    assert len(await read(path)) == 101


RECORDING = """
import os, signal, sys
import lightningrl
recorder = lightningrl.record(sys.argv[1], install_adapters=False)
for number in range(5):
    with lightningrl.rollout({"number": number}):
        with lightningrl.step("tool", "t"):
            pass
assert recorder.flush(30.0)
print("acknowledged", flush=True)
with lightningrl.rollout({"number": 5}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RECORDING, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "acknowledged\n")
    records = await read(path)
    assert [one.rollout.spec.task["number"] for one in records] == list(range(5))
    assert all(len(one.transitions) == 1 for one in records)


FORKING = """
import os, sys, threading
import lightningrl
recorder = lightningrl.record(sys.argv[1], install_adapters=False)
with lightningrl.rollout({"who": "parent"}):
    with lightningrl.step("tool", "before"):
        pass
    child = os.fork()
    if child == 0:
        with lightningrl.step("tool", "in the child"):
            pass
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
async def test_a_forked_child_writes_nothing_of_its_parents(path: Path) -> None:
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FORKING, str(path)], check=True, timeout=60
    )
    [record] = await read(path)
    assert record.rollout.state is RolloutState.SUCCEEDED
    assert [step.name for step in record.transitions] == ["before"]


async def test_several_processes_record_to_one_postgresql_database(postgres_url: str) -> None:
    recorder = begin_alone(postgres_url)  # a writer beside the others
    program = (
        "import lightningrl, sys\n"
        "recorder = lightningrl.record(sys.argv[1], install_adapters=False)\n"
        "for number in range(4):\n"
        "    with lightningrl.rollout({'number': number}) as one:\n"
        "        lightningrl.final_reward(0.0)\n"
        "    lightningrl.feedback(one.id, float(number))\n"
        "assert recorder.flush(60.0)\n"
    )
    command = [sys.executable, "-c", program, postgres_url]
    others = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]
    with lightningrl.rollout({"number": 4}):
        pass
    assert [await one.wait() for one in others] == [0, 0]
    assert recorder.flush(60.0)
    store = open_store(postgres_url, read_only=True)
    found = await store.rollouts(RolloutQuery(run="live"))
    await store.close()
    assert sorted(one.spec.task["number"] for one in found) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    rewards = {(one.spec.task["number"], one.reward) for one in found}
    assert rewards == {(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, None)}
    assert recorder.counts.dropped == {}


ENDING = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import lightningrl
lightningrl.record(sys.argv[1], install_adapters=False)
main_ends = threading.Event()
threading._register_atexit(main_ends.set)
begun = threading.Barrier(3)
def work(number):
    with lightningrl.rollout({"number": number}):
        begun.wait()
        main_ends.wait()
threading.Thread(target=work, args=(0,)).start()
ThreadPoolExecutor(1).submit(work, 1)
begun.wait()
"""


async def test_rollouts_under_way_when_the_main_thread_ends_are_recorded(path: Path) -> None:
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", ENDING, str(path)], check=True, timeout=60
    )
    records = await read(path)
    assert sorted(one.rollout.spec.task["number"] for one in records) == [0, 1]


LATER = """
import sys, threading
import lightningrl
lightningrl.record(sys.argv[1], install_adapters=False)
def work(number, **how):
    with lightningrl.rollout({"number": number}):
        begun.wait()
        threading.main_thread().join()
        if how:
            threading.Event().wait()
begun = threading.Barrier(3)
threading.Thread(target=work, args=(0,)).start()
threading.Thread(target=work, args=(1,), kwargs={"for": "ever"}, daemon=True).start()
begun.wait()
"""


async def test_one_that_ends_later_is_recorded_and_one_that_does_not_is_said(path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LATER, str(path)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert [one.rollout.spec.task["number"] for one in await read(path)] == [0]
    assert done.stderr == "the process ends before 1 rollout(s), which are not recorded\n"


# -- how it is switched on and off ---------------------------------------------------------------


async def test_the_environment_says_where_and_how_much(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNINGRL_RECORD", f"sqlite:{path}")
    monkeypatch.setenv("LIGHTNINGRL_RECORD_SAMPLING_RATE", "0")
    recorder = lightningrl.record(install_adapters=False)
    assert recorder is not None
    with lightningrl.rollout():
        assert current() is None
    assert recorder.counts.sampled_out == 1
    monkeypatch.setenv("LIGHTNINGRL_RECORD_SAMPLING_RATE", "2")
    with pytest.raises(ConfigError, match="LIGHTNINGRL_RECORD_SAMPLING_RATE"):
        lightningrl.record()


def test_off_means_that_the_program_just_runs(path: Path) -> None:
    assert lightningrl.record(install_adapters=False) is None
    with lightningrl.rollout({"a": 1}) as one:
        assert current() is None
        lightningrl.reward(1.0)
        lightningrl.final_reward(1.0)
    lightningrl.feedback(one.id, 1.0)
    assert not path.exists()


def test_without_record_there_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="record"), lightningrl.rollout():
        pass
    with pytest.raises(ConfigError, match="record"):
        lightningrl.feedback("live-0", 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 1.5},
        {"memory_bytes": 0},
        {"redact": "a text"},
        {"store": "redis://here"},
        {"store": "/no/such/folder/traffic.db"},
    ],
)
def test_mistakes_are_errors_at_once(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        lightningrl.record(**{"store": path, "install_adapters": False, **wrong})


def test_a_recorder_that_is_replaced_is_flushed(path: Path, tmp_path: Path) -> None:
    begin_alone(path)
    with lightningrl.rollout({"number": 1}):
        pass
    begin_alone(tmp_path / "other.db")
    assert [one.rollout.spec.task for one in asyncio.run(read(path))] == [{"number": 1}]
