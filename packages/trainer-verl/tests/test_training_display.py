"""What a person sees: live on a terminal, plain lines elsewhere, a summary at the end."""

import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from lightningrl.recipe import parse_recipe
from lightningrl.schema import Progress
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.progress import Display
from lightningrl_verl.start.summary import print_summary
from lightningrl_verl.training.checkpoint import Checkpoints, State

LINES = [
    {"iteration": 0, "val/reward": 0.25, "val/reward_sampled": 0.2},
    {"iteration": 1, "train/reward": 0.3, "timing/iteration_seconds": 2.5},
    {"iteration": 2, "train/reward": 0.6, "val/reward": 0.75, "test/reward": 0.7},
]


def test_without_a_terminal_each_phase_and_each_iteration_is_one_plain_line() -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=40), "run", 2) as display:
        display.phase("load policies")
        display.end({"iteration": 0})  # nothing was measured: no line
        for line in LINES:
            display.begin(int(line["iteration"]))
            display.phase("collect [1]")
            display.rollouts(Progress(running=4))
            display.end(line)
    assert text.getvalue().split("\n") == [
        "load policies",
        "iteration 0/2: collect [1]",
        "iteration 0/2  val/reward 0.250  val/reward_sampled 0.200",
        "iteration 1/2: collect [1]",
        "iteration 1/2  train/reward 0.300  2.5 s",
        "iteration 2/2: collect [1]",
        "iteration 2/2  train/reward 0.600  val/reward 0.750  test/reward 0.700",
        "",
    ]


def test_its_log_has_each_phase_as_it_begins(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    with Display(Console(file=io.StringIO()), "run", 2, log=log) as display:
        display.phase("open engines")
        display.begin(1)
        display.phase("collect")
        display.rollouts(Progress(running=4))
        assert log.read_text(encoding="utf-8").endswith(" iteration 1: collect\n")
        display.end(LINES[1])
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "iteration 0: open engines",
        "iteration 1: collect",
        "iteration 1: ended",
    ]
    assert datetime.fromisoformat(lines[0].partition(" ")[0]).tzinfo is not None


def test_on_a_terminal_it_shows_phase_rollouts_rewards_and_seconds() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    display = Display(console, "run", 2)
    display.begin(1)
    display.end(LINES[0])
    display.end(LINES[1])
    display.phase("collect")
    display.rollouts(Progress(succeeded=3, failed=1, running=4, reward_sum=1.5, rewarded=3))
    with console.capture() as capture:
        console.print(display._render())
    shown = capture.get()
    for part in ("iteration 1/2", "collect", "rollouts 4/8, 1 failed", "reward 0.500", "s left"):
        assert part in shown
    assert "iteration 2.50" in shown
    assert "0.250" in shown


@pytest.mark.parametrize(
    ("parser", "said"), [("hermes", "--tool-call-parser hermes"), ("none", "")]
)
def test_the_summary_says_rewards_places_and_how_to_serve(
    tmp_path: Path, parser: str, said: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    state = State(iteration=2, versions={"policy": 2}, credit={}, metrics={}, history=())
    Checkpoints(folder.checkpoints, keep=2).write(state, lambda path: None)
    policy = {"model": "m", "tool_parser": parser}
    recipe = parse_recipe({"name": "run", "agent": "a:b", "policies": {"policy": policy}})
    text = io.StringIO()
    console = Console(file=text, width=200)
    assert print_summary(console, recipe, folder, ["policy"], wall_seconds=12.0)
    shown = text.getvalue()
    for part in ("0.250", "0.750", "0.700", "12 s", "vllm serve", "OPENAI_BASE_URL", said):
        assert part in shown
    assert str(tmp_path / "checkpoints" / "iteration-000002" / "huggingface") in shown
    assert "trained model" in shown


def test_the_summary_of_a_run_without_an_update_speaks_of_no_trained_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    state = State(iteration=2, versions={"policy": 0}, credit={}, metrics={}, history=())
    Checkpoints(folder.checkpoints, keep=2).write(state, lambda path: None)
    recipe = parse_recipe({"name": "run", "agent": "a:b", "policies": {"policy": {"model": "m"}}})
    text = io.StringIO()
    console = Console(file=text, width=200)
    assert not print_summary(console, recipe, folder, ["policy"], wall_seconds=12.0)
    shown = text.getvalue()
    assert "Nothing was learned" in shown
    assert f"lightningrl doctor {tmp_path}" in shown
    assert "trained model" not in shown
    assert "vllm serve" not in shown
