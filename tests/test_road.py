"""From production to training as the page's reader goes: recorded, judged, taught, trained, compared and served.

Four random layers stand in for the model's thirty; its tokenizer and template are the real ones.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_docs import blocks, commands_in
from user_project import Project
from warm_process import CLI

from lightningrl.schema import Mode
from lightningrl.store import RolloutQuery, open_store
from lightningrl.user_input.references import load_object
from lightningrl_testkit.model_server import ModelServer
from lightningrl_testkit.production import written_bytes

pytestmark = pytest.mark.usefixtures("forked")

PAGE = Path("docs/how-to/from-production-to-training.md")
SUPPORT = Path(__file__).parents[1] / "examples" / "support"
SPREAD = """
def spread(task, output, trace):
    return float(sum(map(len, output["lines"])) % 2)
"""
"""Random layers never book: another reward, so that there is something to learn."""
ASK = """
import asyncio
from desk import Book, dialogue
task = {"guests": 2, "day": "Friday", "from": "18:00", "name": "Ada", "phone": "555-0142"}
print("\\n".join(asyncio.run(dialogue(task, Book({"Friday": {"18:00": 2}})))))
"""
FEW = (
    "algorithm.iterations=1", "algorithm.tasks_per_iteration=2", "algorithm.group_size=4", "data.val.limit=2",
    "data.test.limit=2", "sampling.train.max_tokens=12", "sampling.val.max_tokens=12", "reward=spread:spread",
    "trainer.threads=1", "engine.threads=1",
)  # fmt: skip

LITTLE = [
    f"policies.policy.warm_start.{one}"
    for one in ("epochs=1", "limit=6", "batch_size=3", "held_out=0.0")
]


@pytest.fixture(scope="module")
def vendor() -> Iterator[ModelServer]:
    """The vendor's models of the example."""
    with ModelServer(load_object("stand_in:answer", what="script", folder=SUPPORT)) as model:
        yield model


@pytest.fixture(scope="module")
def judged(vendor: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, gone with the page up to its training; what commands said is in `said.txt`."""
    folder = tmp_path_factory.mktemp("road") / "support"
    shutil.copytree(SUPPORT, folder, ignore=shutil.ignore_patterns("*.db*", "tasks.jsonl"))
    (folder / "spread.py").write_text(SPREAD, encoding="utf-8")
    environment = {name: one for name, one in os.environ.items() if "LIGHTNINGRL" not in name} | {
        "OPENAI_BASE_URL": vendor.url, "OPENAI_API_KEY": "unused", "LIGHTNINGRL_RECORD": "traffic.db",
    }  # fmt: skip
    run_ours(folder, environment, "-c", (folder / "service.py").read_text(encoding="utf-8"))
    del environment["LIGHTNINGRL_RECORD"]
    said = [
        run_ours(folder, environment, "-m", "lightningrl.cli", *words)
        for words in page_commands("show", "export", "judge", vendor=vendor)
    ]
    (folder / "said.txt").write_text("".join(said), encoding="utf-8")
    return folder


def run_ours(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run Python to its end, and return what it said."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def page_commands(*names: str, vendor: ModelServer | None = None) -> list[list[str]]:
    """The arguments of the page's commands of these names, in its order."""
    url = "" if vendor is None else vendor.url
    return [
        [word.replace("$OPENAI_BASE_URL", url) for word in words[1:] if word != "&"]
        for words in commands_in(PAGE)
        if words[0] == "lightningrl" and words[1] in names and len(words) > 2
    ]


def test_the_pages_files_are_those_of_the_example() -> None:
    shown = [block.text for block in blocks(PAGE)]
    assert (SUPPORT / "support.py").read_text(encoding="utf-8") in shown
    assert (SUPPORT / "support.yaml").read_text(encoding="utf-8") in shown


def test_the_agent_imports_nothing_of_us() -> None:
    tree = ast.parse((SUPPORT / "support.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    from_where = {ast.unparse(node).split()[1].split(".")[0] for node in imports}
    assert from_where == {"functools", "typing", "langchain", "langchain_openai"}


async def test_what_was_recorded_becomes_tasks_and_rewards_without_a_phone_number(
    judged: Path,
) -> None:
    tasks = [json.loads(line) for line in (judged / "tasks.jsonl").read_text().splitlines()]
    assert [one["guest"] for one in tasks] == list(range(60))
    assert {one["phone"] for one in tasks} == {"[phone]"}
    # A UUID may end a group in 555, behind other digits.
    assert not re.search(rb"(?<![0-9a-f])555-\d{4}", written_bytes(judged / "traffic.db"))
    said = (judged / "said.txt").read_text(encoding="utf-8")
    [told] = [one.text for one in blocks(PAGE) if one.text.startswith("hasty-judge")]
    assert told in said  # agreement and kappa of both judges, as the page says them
    store = open_store(str(judged / "traffic.db"), read_only=True)
    rollouts = await store.rollouts(RolloutQuery(run="live", mode=Mode.LIVE))
    await store.close()
    # careful-judge, mean 0.700 of 60.
    assert sorted(one.reward or 0.0 for one in rollouts) == [0.0] * 18 + [1.0] * 42


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_what_was_judged_good_is_learned_trained_compared_and_served(
    judged: Path, project: Project, pytestconfig: pytest.Config
) -> None:
    from smollm2 import stand_in_of  # torch, which the other tests here do without

    road = replace(project, folder=judged)
    model = f"policies.policy.model={shlex.quote(str(stand_in_of(pytestconfig)))}"

    def walk(words: Sequence[str]) -> str:
        own = [] if words[0] == "train" else [model]  # it names the model that was taught
        little = LITTLE if words[0] == "sft" else []
        done = road.program(CLI, *words[:2], *own, *little, *FEW, *words[2:])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    steps = page_commands("eval", "sft", "train")
    assert [words[0] for words in steps] == ["eval", "sft", "eval", "train", "eval"]
    said = [walk(words) for words in steps]
    # Guests 6 to 9 are validated and tested on; the judge calls all four dialogues good.
    assert "warm start of 'policy': 4 live rollouts are left out" in said[1]
    assert "warm start of 'policy': 6 demonstrations to train on" in said[1]
    _is_served(road)


def _is_served(road: Project) -> None:
    """The agent's file works on the model that was trained."""
    [words] = page_commands("serve")
    url_file = road.folder / "url"
    options = words[1 : words.index("--port")]
    serving = road.start_cli("serve", *options, "--port", "0", "--url-file", str(url_file))
    while not url_file.exists():
        assert serving.poll() is None, road.output
        time.sleep(0.1)
    url = url_file.read_text(encoding="utf-8")
    environment = {**road.environment, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "unused"}
    assert run_ours(road.folder, environment, "-c", ASK).startswith("guest: When is a table for 2")
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 0
