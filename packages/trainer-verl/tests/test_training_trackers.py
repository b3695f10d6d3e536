"""TensorBoard, Weights & Biases and MLflow themselves, writing to this machine alone."""

import asyncio
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warm_process import WarmProcess

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl_verl.training.trackers import trackers

# Their own deprecations are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

LINES: list[dict[str, Any]] = [
    {"iteration": 0, "val/reward": 0.25, "train/reward": None},
    {"iteration": 1, "train/reward": 0.5, "drift/breaks_by_cause": {"edited": 2}},
    {"iteration": 2, "train/reward": 0.75},
]


def recipe(*names: str, **guards: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": {"policy": {"model": "m"}},
            "trackers": list(names),
            "guards": guards,
        }
    )


_PREFIXES = ("WANDB_", "MLFLOW_", "TENSORBOARD_")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of developers may have an account."""
    for name in list(os.environ):
        if name.startswith(_PREFIXES):
            monkeypatch.delenv(name)


def write(folder: Path, one: Recipe, lines: list[dict[str, Any]], known: int = 0) -> None:
    """A start of the run that knows the first `known` lines and writes the others."""

    async def start() -> None:
        async with trackers(one, folder, lines[:known]) as opened:
            for line in lines[known:]:
                await opened.log(line)

    asyncio.run(start())


def killed(folder: Path, name: str) -> None:
    """A start that writes the first two lines and dies by `kill -9`."""
    program = f"""
import asyncio, os, signal
from pathlib import Path
from lightningrl_verl.training.trackers import trackers
from lightningrl.recipe import parse_recipe
recipe = parse_recipe({{"name": "demo", "agent": "a:b", "policies": {{"policy": {{"model": "m"}}}},
                       "trackers": [{name!r}]}})
async def start():
    async with trackers(recipe, Path({str(folder)!r}), []) as opened:
        for line in {LINES[:2]!r}:
            await opened.log(line)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(start())
"""
    folder.parent.mkdir(exist_ok=True)
    said = folder.parent / "said.txt"
    process = WarmProcess(
        program, [], folder=folder.parent, environment=os.environ, outputs=(said, said)
    )
    assert process.wait(120) == -signal.SIGKILL, said.read_text()


def test_nothing_is_opened_where_the_recipe_names_none(tmp_path: Path) -> None:
    write(tmp_path / "trackers", recipe(), LINES)
    assert not (tmp_path / "trackers").exists()


def tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    assert "drift/breaks_by_cause/edited" in read.Tags()["scalars"]
    # Starts within one second are read in the order of their process ids.
    return sorted((event.step, event.value) for event in read.Scalars("train/reward"))


def mlflow(folder: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'lightningrl'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["name"] == "demo"
    history = client.get_metric_history(run.info.run_id, "train/reward")
    return [(one.step, one.value) for one in history]


def wandb(folder: Path) -> list[tuple[int, float]]:
    from wandb import teardown
    from wandb.proto.wandb_internal_pb2 import Record

    teardown()  # its service may still be writing, as at the end of a process it is waited for
    found: list[tuple[int, float]] = []
    runs: set[str] = set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in _records(path.read_bytes()):
            record = Record.FromString(content)
            if record.WhichOneof("record_type") == "run":
                runs.add(record.run.run_id)
            found += [
                (record.history.step.num, float(item.value_json))
                for item in record.history.item
                if "train/reward" in (item.key, *item.nested_key)
            ]
    assert len(runs) == 1
    return found


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log with W&B's header of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            yield whole
            whole = b""


READERS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


@pytest.mark.parametrize(
    "name",
    # MLflow takes ten seconds to load; the test below has it go on after a kill.
    [pytest.param(one, marks=pytest.mark.long if one == "mlflow" else ()) for one in READERS],
)
def test_no_line_is_doubled_by_a_run_that_goes_on(name: str, tmp_path: Path) -> None:
    write(tmp_path, recipe(name), LINES[:2])
    # The second start knows two lines and has another guard; it writes a third line.
    write(tmp_path, recipe(name, patience=9), LINES, known=2)
    assert READERS[name](tmp_path) == [(1, 0.5), (2, 0.75)]
    # What the libraries themselves leave in the environment is theirs.
    assert not {"TENSORBOARD_DIR", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI"} & os.environ.keys()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_lines_outlast_a_killed_trainer_and_those_it_lacks_are_handed_over(
    name: str, tmp_path: Path
) -> None:
    killed(tmp_path, name)
    # The last line was written to metrics.jsonl, and the trainer died before it came here.
    write(tmp_path, recipe(name), LINES, known=3)
    assert READERS[name](tmp_path) == [(1, 0.5), (2, 0.75)]


def test_a_tracker_that_cannot_be_started_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(RunError, match=r"\['mlflow'\] could not be started"):
        write(tmp_path, recipe("mlflow"), LINES)
