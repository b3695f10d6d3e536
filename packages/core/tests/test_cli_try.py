"""`lightningrl try` runs a real agent against an endpoint, by the real server and worker."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from lightningrl.cli import commands
from lightningrl.cli.trial import trial_policies
from lightningrl.errors import ConfigError
from lightningrl.recipe import Recipe, parse_recipe, rewrite_rules
from lightningrl.schema import Endpoint, RewriteRules
from lightningrl_testkit.model_server import ModelServer

pytest.importorskip("openai")

AGENT = """
import contextlib
import os
import urllib.request

import openai

async def ask(model, question):
    client = openai.AsyncOpenAI()
    messages = [{"role": "user", "content": question}]
    answer = await client.chat.completions.create(model=model, messages=messages)
    return answer.choices[0].message.content

async def solve(task):
    return await ask("gpt-x", task["question"])

async def solve_silently(task):
    await solve(task)

async def ask_two(task):
    await ask("gpt-y", task["question"])
    return await ask("gpt-x", task["question"])

said = []

async def remember(task):
    print("an agent prints")
    said.append({"role": "user", "content": task["question"]})
    client = openai.AsyncOpenAI()
    answer = await client.chat.completions.create(model="gpt-x", messages=said)
    said.append({"role": "assistant", "content": answer.choices[0].message.content})
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with contextlib.suppress(urllib.error.HTTPError):  # of a client that nobody knows
        urllib.request.urlopen(urllib.request.Request(url, b"{}", {"authorization": "Bearer x"}))

async def fail(task):
    raise ValueError("the agent's own mistake")

def score(task, output, trace):
    return float(output == task["question"])
"""
RECIPE = """
name: trial
agent: agent_of_the_trial:solve
reward: agent_of_the_trial:score
data: {train: {source: tasks.jsonl}, val: {source: tasks.jsonl}}
policies: {policy: {model: somewhere}}
"""
RULES = """
def is_trained(request):
    return request["messages"][-1]["content"] != "2+2"
"""
TASKS = '{"id": "a", "question": "1+1"}\n{"id": "b", "question": "2+2"}\n{"question": "3+3"}\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "agent_of_the_trial.py").write_text(AGENT, encoding="utf-8")
    (tmp_path / "tasks.jsonl").write_text(TASKS, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def attempt(recipe: Path, url: str, *options: str) -> Result:
    return CliRunner().invoke(commands, ["try", str(recipe), "--policy", url, *options])


# -- the command --------------------------------------------------------------------------------


def test_an_agent_that_is_wired_up_exits_with_0(recipe: Path) -> None:
    with ModelServer() as engine:
        result = attempt(recipe, engine.url, "--tasks", "2", "--model", "big")
        calls = engine.calls
        asked = {arrival.body["model"] for arrival in engine.arrivals}
    assert result.exit_code == 0, result.output
    # The first task once more at the end.
    rollouts = re.findall(r"task (\w+) #(\d) · succeeded · reward 1\.000", result.output)
    assert rollouts == [("a", "0"), ("b", "0"), ("a", "1")]
    assert "call gpt-x 1+1" in result.output
    assert "3 of 3 rollouts have a reward, 3 a joined model call" in result.output
    assert "redirected: 3 calls for model 'gpt-x' to policy 'big'" in result.output
    assert "trainable: 3 calls" in result.output
    assert "✓ the agent is wired up, with warnings" in result.output
    assert "! all rewards equal\n  all 3 rollouts, of 2 tasks, earned 1" in result.output
    assert calls == 3
    assert asked == {"big"}  # what the endpoint calls its model


def test_what_the_recipe_leaves_out_is_told_and_is_no_problem(recipe: Path) -> None:
    (recipe.parent / "rules_of_the_trial.py").write_text(RULES, encoding="utf-8")
    with ModelServer() as engine:
        rule = "policies.policy.train_when=rules_of_the_trial:is_trained"
        result = attempt(recipe, engine.url, "--tasks", "2", rule)
    assert result.exit_code == 0, result.output
    assert "trainable: 2 calls" in result.output  # of 1+1, twice
    left_out = "not trainable: 1 call, a function leaves it out (policies.NAME.train_when)"
    assert left_out in " ".join(result.output.split())


def test_state_and_a_lost_call_are_told_to_programs_as_well(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ModelServer() as engine:
        result = attempt(
            recipe, engine.url, "--tasks", "1", "--json", "agent=agent_of_the_trial:remember"
        )
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert (said["wired"], said["rollouts"], said["trainable"]) == (False, 2, 2)
    assert said["redirected"] == [{"model": "gpt-x", "policy": "policy", "calls": 2}]
    kinds = {one["kind"]: one["level"] for one in said["findings"]}
    assert kinds == {"refused requests": "problem", "carried-over state": "problem"}
    printed = capfd.readouterr()
    assert "an agent prints" not in printed.out  # where the object goes, and nothing else
    assert "an agent prints" in printed.err


def test_rewards_that_come_later_are_not_waited_for(recipe: Path) -> None:
    with ModelServer() as engine:
        feedback = attempt(
            recipe, engine.url, "--tasks", "2", "--no-repeat", "await_rewards=[user]"
        )
        final = attempt(
            recipe, engine.url, "--tasks", "1", "--no-repeat", "await_rewards=[final]", "await_seconds=60",
            "reward=null", "agent=agent_of_the_trial:solve_silently",
        )  # fmt: skip
    assert feedback.exit_code == 0, feedback.output
    assert "2 of 2 rollouts have a reward" in feedback.output
    assert "awaited: rewards user, which nobody gives here" in feedback.output
    assert final.exit_code == 0, final.output
    assert "0 of 1 rollout have a reward, 1 a joined model call" in final.output
    assert "awaited: rewards final" in final.output


def test_several_models_of_which_none_is_declared_are_listed(recipe: Path) -> None:
    with ModelServer() as engine:
        result = attempt(recipe, engine.url, "--tasks", "1", "agent=agent_of_the_trial:ask_two")
    assert result.exit_code == 1
    assert "✗ several models" in result.output
    assert "no policy says which of them it answers for: 'gpt-y' (2 calls), 'gpt-x' (2 calls)" in (
        " ".join(result.output.split())
    )


def test_an_agent_that_raises_is_shown_with_its_traceback(recipe: Path) -> None:
    with ModelServer() as engine:
        result = attempt(recipe, engine.url, "--tasks", "1", "agent=agent_of_the_trial:fail")
    assert result.exit_code == 1
    assert "agent: ValueError: the agent's own mistake" in result.output
    assert 'agent_of_the_trial.py", line' in result.output
    assert "0 of 1 rollout have a reward" in result.output  # nothing succeeded: it is not repeated
    assert "✗ rollouts fail\n  1 of the last 1 rollout failed" in result.output


def test_an_agent_that_is_not_there_is_a_wrong_recipe(recipe: Path) -> None:
    result = attempt(recipe, "http://127.0.0.1:9/v1", "agent=agent_of_the_trial:sovle")
    assert result.exit_code == 2
    assert "the agent can't be loaded; the lines above say why" in result.stderr


def test_a_split_that_the_recipe_lacks_is_named(recipe: Path) -> None:
    result = attempt(recipe, "http://127.0.0.1:9/v1", "--split", "test")
    assert result.exit_code == 2
    assert "the recipe has no data.test" in result.stderr


# -- policies -----------------------------------------------------------------------------------

ENDPOINT = Endpoint("http://engine/v1")


def recipe_with(policies: dict[str, dict[str, object]]) -> Recipe:
    return parse_recipe({"name": "trial", "agent": "m:f", "policies": policies})


def test_a_recipe_without_policies_gets_one_that_answers_every_call() -> None:
    (policy,) = trial_policies(recipe_with({}), ENDPOINT, None)
    assert (policy.name, policy.run, policy.replaces) == ("policy", "trial", ())


def test_a_model_name_takes_the_place_of_the_alias() -> None:
    declared = recipe_with({"policy": {"model": "m", "replaces": ["gpt-x"]}})
    (policy,) = trial_policies(declared, ENDPOINT, "big")
    assert (policy.name, policy.replaces) == ("big", ("policy", "gpt-x"))
    # One that declares nothing answers every call as long as it replaces nothing.
    (policy,) = trial_policies(recipe_with({"policy": {"model": "m"}}), ENDPOINT, "big")
    assert (policy.name, policy.replaces) == ("big", ())


def test_requests_are_rewritten_as_in_training() -> None:
    """As for a policy at a URL, whose chat template nobody sees either."""
    said = {
        "name": "trial",
        "agent": "m:f",
        "gateway": {"pin": ["nonce=\\w+"], "hosted_tools": "drop"},
    }
    policy = {
        "model": "m",
        "constrained": "free",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    recipe = parse_recipe({**said, "policies": {"policy": policy}})
    (one,) = trial_policies(recipe, ENDPOINT, "big")
    both = RewriteRules(pin=("nonce=\\w+",), drop_hosted=True)
    variables = {"enable_thinking": False}
    assert one.rules == structs.replace(both, free=True, variables=variables)
    (one,) = trial_policies(parse_recipe({**said, "policies": {}}), ENDPOINT, None)
    assert one.rules == both
    seen = RewriteRules(put_back=True, lost=("tool",))
    assert rewrite_rules(recipe, "policy", seen) == structs.replace(
        one.rules, free=True, variables=variables, put_back=True, lost=("tool",)
    )


def test_one_model_name_is_not_two_policies() -> None:
    two = recipe_with({"policy": {"model": "m"}, "judge": {"model": "m"}})
    assert len(trial_policies(two, ENDPOINT, None)) == 2
    with pytest.raises(ConfigError, match=r"has 2 policies \(policy, judge\)"):
        trial_policies(two, ENDPOINT, "big")
