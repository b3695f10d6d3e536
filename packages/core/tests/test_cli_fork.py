"""`lightningrl fork` runs a recorded agent again, by the real server and worker, and samples from a step on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.cli.branches import policies_of
from lightningrl.cli.trial import run_trial, trial_policies
from lightningrl.errors import ConfigError
from lightningrl.recipe import load_recipe
from lightningrl.schema import Endpoint, Mode, Policy, RewriteRules, group_id, rollout_id
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall

AGENT = """
import json
import urllib.request
from pathlib import Path

import lightningrl

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

def look():
    done = lightningrl.replaying()
    assert done == ("LIGHTNINGRL_REPLAYING" in lightningrl.environment())
    if not done:
        with Path(__file__).with_name("effects.txt").open("a") as effects:
            effects.write("x")
    return Path(__file__).with_name("value.txt").read_text()

def ask(messages):
    at = lightningrl.environment()
    body = json.dumps({"model": "gpt-x", "messages": messages, "tools": [TOOL]}).encode()
    headers = {"authorization": "Bearer " + at["OPENAI_API_KEY"]}
    url = at["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return json.load(answer)["choices"][0]["message"]

def solve(task):
    messages = [{"role": "user", "content": task["question"]}]
    while True:
        said = ask(messages)
        messages.append(said)
        if not said.get("tool_calls"):
            return said["content"]
        for call in said["tool_calls"]:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": look()})

def score(task, output, trace):
    return float(output == "done")
"""
RECIPE = """
name: run
agent: agent_of_the_forks:solve
reward: agent_of_the_forks:score
policies: {policy: {model: somewhere}}
"""
TASKS = [(name, {"question": f"what of {name}?"}) for name in "ab"]


def script(request: dict[str, Any]) -> Answer:
    """Three tool calls, then an answer."""
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    if turn == 3 or ("tool" not in request["messages"][-1]["role"] and turn):
        return Answer("done")
    return Answer(tool_calls=(ToolCall(f"look-{turn}", "look", "{}"),))


@pytest.fixture(scope="module")
def engine() -> Iterator[ModelServer]:
    with ModelServer(script) as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, engine: ModelServer) -> Path:
    """A run of two rollouts, each of four calls."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "agent_of_the_forks.py").write_text(AGENT, encoding="utf-8")
    (folder / "value.txt").write_text("3 apples", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    loaded = load_recipe(folder / "recipe.yaml")
    policies = trial_policies(loaded.recipe, Endpoint(engine.url), None)
    store = folder / "store.db"
    trial = asyncio.run(run_trial(loaded, TASKS, policies, mode=Mode.TRAIN, store_path=store))
    assert [one.reward for one in trial.rollouts] == [1.0, 1.0]
    return folder


FIRST = rollout_id(group_id("run", Mode.TRAIN, 0, "a"), 0)


def fork(folder: Path, *options: str) -> str:
    result: Result = CliRunner().invoke(commands, ["fork", str(folder), *options])
    assert result.exit_code == 0, result.output
    return " ".join(re.sub(r"[│├└─]", " ", result.output).split())


def refused(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(commands, ["fork", str(folder), *options])
    assert result.exit_code != 0
    return " ".join(result.output.split())


def test_branches_replay_the_trunk_and_sample_the_rest(
    folder: Path, tmp_path: Path, engine: ModelServer
) -> None:
    effects = folder / "effects.txt"
    assert effects.read_text() == 6 * "x", "three tools of each of the run's rollouts"
    before = engine.calls
    kept = tmp_path / "kept.db"
    told = fork(
        *(folder, "--rollout", FIRST, "--step", "3", "-n", "2", "--verify"),
        *("--policy", engine.url, "--keep", str(kept)),
    )
    assert engine.calls - before == 2 * 2  # steps 3 and 4 of both
    trunk, first, second = re.split(r"branch \d · ", told)
    assert trunk.count("call gpt-x → look({})") == 2
    for branch in (first, second):
        assert branch.startswith("val · iteration 0 · task a #")
        assert "(fork) · succeeded · reward 1.000" in branch
        assert branch.count("call gpt-x") == 2
    assert told.endswith(
        "the engine renders all 2 prompts of the trunk to the recorded tokens"
        " 2 branches from step 3, mean reward 1.000"
    )
    # The tools of the trunk know that their effects are done; of each branch one is new, after step 3.
    assert effects.read_text() == (6 + 2) * "x"
    # What is kept can be looked at, and the run has got nothing.
    shown = CliRunner().invoke(commands, ["show", "run", "--server", str(kept)])
    assert shown.output.count("not trained: replayed: trained in") == 4
    shown = CliRunner().invoke(commands, ["show", str(folder)])
    assert "run: 2 succeeded" in shown.output


def test_what_a_person_says_is_the_answer_of_the_step(folder: Path, engine: ModelServer) -> None:
    before = engine.calls
    options = ("--rollout", FIRST, "--step", "2", "--policy", engine.url)
    asking = {
        "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ]
    }
    told = fork(folder, *options, "--say", json.dumps(asking))
    assert "not trained: said by a person" in told
    assert "reward 1.000" in told
    assert engine.calls == before + 2


def test_a_dry_run_says_what_replays_and_what_makes_the_others_diverge(
    folder: Path, engine: ModelServer
) -> None:
    before = engine.calls
    assert fork(folder, "--dry-run") == "2 of 2 rollouts replay exactly"
    (folder / "value.txt").write_text("4 apples", encoding="utf-8")
    told = fork(folder, "--dry-run", "--rollout", FIRST)
    assert told == (
        "0 of 1 rollout replay exactly 1 x side effect, in the output of tool 'look'"
        f" {FIRST}: call 2: line 1 of message 3 (tool), the output of tool 'look', differs: '3' became '4'"
    )
    assert engine.calls == before
    # The agent's request that no record has may be sampled all the same.
    options = ("--rollout", FIRST, "--step", "4", "--policy", engine.url)
    sampled = fork(folder, *options, "--on-divergence", "sample")
    assert "diverged: line 1 of message 3" in sampled
    assert "reward 1.000" in sampled


def test_options_that_mean_nothing_are_refused(folder: Path) -> None:
    one = ("--rollout", FIRST)
    assert "name --rollout ID and --step K, or --dry-run" in refused(folder, *one)
    assert "goes with none of the other options" in refused(folder, "--dry-run", "--step", "1")
    assert "has model steps 1 to 4, and no '5'" in refused(folder, *one, "--step", "5")
    assert "no rollout 'x' that succeeded" in refused(folder, "--rollout", "x", "--step", "1")
    assert "'store.db' is there" in refused(
        folder, *one, "--step", "1", "--keep", str(folder / "store.db")
    ).replace(f"{folder}/", "")
    assert "a message has content, tool_calls" in refused(
        folder, *one, "--step", "1", "--say", "{}"
    )


def test_a_policy_that_is_named_answers_every_call(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\nagent: m:f\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    pinned = RewriteRules(pin=("x",))
    stored = [
        Policy("a", "run", 3, (Endpoint("http://a/v1"),), replaces=("m",), rules=pinned),
        Policy("b", "run", 1, (Endpoint("http://b/v1"),), agents=("n",)),
    ]
    assert policies_of(stored, recipe, None, None, None) == stored
    (alone,) = policies_of(stored, recipe, "a", None, None)
    assert (alone.name, alone.replaces, alone.endpoints) == ("a", (), stored[0].endpoints)
    at_url = policies_of(stored, recipe, "http://c/v1", "key", None)
    assert [one.endpoints for one in at_url] == [(Endpoint("http://c/v1", "key"),)] * 2
    assert at_url[0].rules == pinned
    with pytest.raises(ConfigError, match="no policy 'c'"):
        policies_of(stored, recipe, "c", None, None)
    with pytest.raises(ConfigError, match="--model"):
        policies_of(stored, recipe, None, None, "big")
