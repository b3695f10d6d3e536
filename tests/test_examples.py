"""What stands under `examples/`: agents that run without us, tasks whose splits share nothing, recipes that can be trained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_docs import blocks

from lightningrl.recipe import load_recipe
from lightningrl.user_input.references import load_object
from lightningrl_testkit.model_server import Answer, ModelServer
from lightningrl_verl.start.preflight import check

ADDITION = Path(__file__).parents[1] / "examples" / "addition"
MY_AGENT = ADDITION.with_name("my-agent")

RUN = """
import asyncio, sys
before = set(sys.modules)
from addition import generate
from {module} import solve
print(asyncio.run(solve(generate("test", 1, 0)[0])))
print([name for name in set(sys.modules) - before if name.startswith("lightningrl")])
"""
AGENTS = ("addition", "addition_graph")


@pytest.fixture(scope="module")
def addition() -> ModuleType:
    generate = load_object("addition:generate", what="data", folder=ADDITION)
    return sys.modules[generate.__module__]


@pytest.mark.parametrize(
    ("module", "answers"),
    [
        ("addition", ["It is 42."]),
        ("addition_graph", ["I am not sure.", "It is 42."]),  # it asks again
    ],
)
def test_an_agent_runs_against_any_endpoint_without_us(
    module: str, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(answers)
    with ModelServer(lambda _: Answer(next(left))) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(module=module)],
            cwd=ADDITION,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.splitlines() == ["It is 42.", "[]"]
    assert next(left, None) is None


def test_no_addition_is_in_two_splits(addition: ModuleType) -> None:
    sizes = {"train": 2000, "val": 64, "test": 200}
    pairs = {
        split: {frozenset(row["id"].split("-")[1:]) for row in addition.generate(split, size, 7)}
        for split, size in sizes.items()
    }
    assert not pairs["train"] & (pairs["val"] | pairs["test"])
    assert not pairs["val"] & pairs["test"]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("82", 1.0), ("47 + 35 = 82.", 1.0), ("82 is 47 plus 35", 0.0), ("no idea", 0.0), (None, 0.0)],
)
def test_the_last_number_counts(addition: ModuleType, answer: str | None, reward: float) -> None:
    assert addition.last_number_is_right({"answer": "82"}, answer, None) == reward


@pytest.mark.parametrize("module", AGENTS)
def test_its_recipe_can_be_trained(module: str) -> None:
    plan = check(load_recipe(ADDITION / "laptop.yaml", (f"agent={module}:solve",)))
    assert len(plan.splits.val) == 64
    assert plan.trained == ("policy",)


def test_the_smallest_recipe_is_the_one_that_the_documents_explain() -> None:
    shown = {one.file: one.text for one in blocks(Path("docs/how-to/train-your-own-agent.md"))}
    for name in ("my_agent.py", "recipe.yaml"):
        assert shown[name] == (MY_AGENT / name).read_text(encoding="utf-8"), name
    for name in ("train.jsonl", "val.jsonl"):
        assert (MY_AGENT / name).read_text(encoding="utf-8").startswith(shown[name] or "-"), name
    [short] = [one.text for one in blocks(Path("README.md")) if one.file == "my_agent.py"]
    assert short == shown["my_agent.py"]


def test_the_smallest_recipe_can_be_trained_and_its_splits_share_nothing() -> None:
    plan = check(load_recipe(MY_AGENT / "recipe.yaml"))
    assert (len(plan.splits.train), len(plan.splits.val)) == (200, 32)
    pairs = [
        {frozenset(re.findall(r"\d+", row["question"])) for _, row in split}
        for split in (plan.splits.train, plan.splits.val)
    ]
    assert not pairs[0] & pairs[1]
