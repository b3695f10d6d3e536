"""`credit` and `rescore` look at what a stored run was trained on, by other methods and other rules."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import commands
from lightningrl.schema import AttemptState
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward

RECIPE = """
name: run
folder: {folder}
agent: "m:f"
algorithm: {{iterations: 1, tasks_per_iteration: 1, group_size: 2, credit_args: {{normalise: mean}}}}
step_rewards:
  - {{rule: length, weight: -1.0, args: {{limit: 2}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    asyncio.run(fill(tmp_path))
    return tmp_path


async def fill(folder: Path) -> None:
    """A group of two: rewards 1 and 0; answers of 2 and 4 tokens."""
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(2))
    for member, claim in enumerate(await store.claim("worker", limit=2)):
        ident = claim.attempt.id
        request = msgspec.json.encode({"messages": [{"role": "user", "content": "q"}]})
        answer = [4, 5] * (member + 1)
        events = [call(ident, "c", answer=answer, request=request), reward(ident, 1.0 - member)]
        await store.append(events)
        await store.finish(ident, AttemptState.SUCCEEDED)
    await store.take("run", 1)
    await store.commit("run", 1)
    await store.close()


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(commands, list(words))


def rows(result: Result) -> dict[str, list[str]]:
    """First cell of each table row -> the other cells."""
    assert result.exit_code == 0, result.output
    found: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) > 1:
            found.setdefault(cells[0], cells[1:])
    return found


def test_methods_are_compared_on_what_was_trained(folder: Path) -> None:
    """By mean +-0.5; by std +-0.5 / (0.7071 + 1e-6) = 0.7071; the step rewards 0 and -1 give +-0.5."""
    found = rows(run("credit", str(folder), "--with", "gigpo,step_reward,gae"))
    assert found["broadcast"][:3] == ["0.500", "0%", "1.00"]
    # one decision each, so states can't repeat after it: the broadcast
    assert found["gigpo"][:5] == ["0.500", "0%", "1.00", "0.00", "1.00"]
    assert found["step_reward"][:3] == ["1.000", "0%", "1.00"]  # 1 + 0 and 0 - 1: mean 0
    assert "state or a critic" in found["gae"][-1]
    assert found["0"][1:] == ["0", "+0.500", "+0.500", "+1.000"]


def test_a_method_that_refuses_says_why_in_its_row(folder: Path) -> None:
    assert "rtmc compares" in " ".join(rows(run("credit", str(folder), "--with", "rtmc"))["rtmc"])


def test_an_unknown_method_rollout_or_iteration_is_refused(folder: Path) -> None:
    assert "Did you mean 'gigpo'" in run("credit", str(folder), "--with", "gigp").output
    wrong = run("credit", str(folder), "--with", "gigpo", "--rollout", "r-none")
    assert "took no rollout 'r-none'" in wrong.output
    late = run("credit", str(folder), "--with", "gigpo", "--iteration", "7")
    assert "took no rollouts for iteration 7; it took 1" in late.output


def test_rescore_computes_the_runs_rules_anew(folder: Path) -> None:
    # 0 and 4 / 2 - 1 = 1: mean 0.5; weighted -1, over two rollouts: -0.5
    found = rows(run("rescore", str(folder)))
    assert found["length"] == ["-1", "0.500", "0%"]
    assert found["per rollout, weighted, emitted ones included"][1] == "-0.500"


def test_rescore_tries_another_recipes_rules(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        'name: x\nagent: "m:f"\nstep_rewards: [{rule: format, args: {pattern: hel+o}}]\n'
    )
    assert rows(run("rescore", str(folder), "--recipe", str(other)))["format"] == [
        "1",
        "1.000",
        "0%",
    ]
    other.write_text('name: x\nagent: "m:f"\n')
    refused = run("rescore", str(folder), "--recipe", str(other))
    assert (refused.exit_code, "has no step_rewards" in refused.output) == (2, True)
