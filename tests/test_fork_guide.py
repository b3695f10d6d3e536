"""The guide's shop orders once, however often it is forked."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lightningrl.cli import commands
from lightningrl.cli.trial import run_trial, trial_policies
from lightningrl.recipe import load_recipe
from lightningrl.schema import Endpoint, Mode
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "fork-an-agent.md"


def _model(request: dict[str, Any]) -> Answer:
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    if turn == 2:
        return Answer("It is ordered.")
    what = json.dumps({"what": ("apples", "pears")[turn]})
    return Answer(tool_calls=(ToolCall(f"order-{turn}", "order", what),))


def test_a_fork_orders_only_what_is_new(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "shop.yaml").rename(tmp_path / "recipe.yaml")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    with ModelServer(_model) as engine:
        trial = asyncio.run(
            run_trial(
                loaded,
                [("a", {"wish": "Order apples and pears."})],
                trial_policies(loaded.recipe, Endpoint(engine.url), None),
                mode=Mode.TRAIN,
                store_path=tmp_path / "store.db",
            )
        )
        rollout = trial.rollouts[0].id
        at = ["--rollout", rollout, "--step", "2", "--policy", engine.url]
        done = [
            CliRunner().invoke(commands, ["fork", str(tmp_path), *options])
            for options in (["--dry-run"], at)
        ]
    assert [one.exit_code for one in done] == [0, 0], done[0].output + done[1].output
    assert "1 of 1 rollout replay exactly" in done[0].output
    assert "1 branches from step 2, mean reward 1.000" in done[1].output
    # The trunk's apples were ordered; step 2 was sampled anew, so pears are ordered once more.
    assert (tmp_path / "orders.txt").read_text().split() == ["apples", "pears", "pears"]
