"""Trajectories in ATIF: what its RFC asks of them, in a description of our own, and what they tell of a rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner

from lightningrl.archive.atif import export_trajectories
from lightningrl.cli import commands
from lightningrl.schema import Claim
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall, answer_ids, in_turn

COUNT, TEXT, NUMBERS = int, str, (int, float)
SHAPES: dict[str, dict[str, Any]] = {
    "trajectory": {
        "schema_version!": TEXT,
        "session_id!": TEXT,
        "agent!": "agent",
        "steps!": ["step"],
        "notes": TEXT,
        "final_metrics": "final",
        "extra": dict,
    },
    "agent": {"name!": TEXT, "version!": TEXT, "model_name": TEXT, "extra": dict},
    "final": {
        "total_prompt_tokens": COUNT,
        "total_completion_tokens": COUNT,
        "total_cached_tokens": COUNT,
        "total_cost_usd": NUMBERS,
        "total_steps": COUNT,
        "extra": dict,
    },
    "step": {
        "step_id!": COUNT,
        "timestamp": TEXT,
        "source!": TEXT,
        "model_name": TEXT,
        "reasoning_effort": (str, float),
        "message!": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": ["tool_call"],
        "observation": "observation",
        "metrics": "metrics",
        "extra": dict,
    },
    "tool_call": {"tool_call_id!": TEXT, "function_name!": TEXT, "arguments!": dict},
    "observation": {"results!": ["result"]},
    "result": {"source_call_id": TEXT, "content": TEXT, "subagent_trajectory_ref": list},
    "metrics": {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "cached_tokens": COUNT,
        "cost_usd": NUMBERS,
        "prompt_token_ids": [int],
        "completion_token_ids": [int],
        "logprobs": [float],
        "extra": dict,
    },
}
"""Object -> its fields, and no others; `!`: it must be there; a text names an object, a list is of what it holds."""
OF_AGENTS = {"model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics"}


def check(value: Any, shape: Any) -> None:
    """Whether a value has its shape."""
    if isinstance(shape, list):
        assert isinstance(value, list)
        for one in value:
            check(one, shape[0])
    elif isinstance(shape, str):
        fields = {name.rstrip("!"): one for name, one in SHAPES[shape].items()}
        needed = {name.rstrip("!") for name in SHAPES[shape] if name.endswith("!")}
        assert needed <= set(value) <= set(fields), (shape, value)
        for name, one in value.items():
            check(one, fields[name])
    else:
        assert isinstance(value, shape), (shape, value)


def check_trajectory(found: dict[str, Any]) -> None:
    """What the format asks for beyond its shape."""
    check(found, "trajectory")
    assert found["steps"]
    assert [one["step_id"] for one in found["steps"]] == list(range(1, len(found["steps"]) + 1))
    for step in found["steps"]:
        assert step["source"] in ("system", "user", "agent")
        assert step["source"] == "agent" or not OF_AGENTS & set(step)
        asked = {call["tool_call_id"] for call in step.get("tool_calls", ())}
        results = step.get("observation", {"results": ()})["results"]
        assert {one["source_call_id"] for one in results if "source_call_id" in one} <= asked
        metrics = step.get("metrics", {})
        for name, count in (("prompt", "prompt_tokens"), ("completion", "completion_tokens")):
            if f"{name}_token_ids" in metrics:
                assert len(metrics[f"{name}_token_ids"]) == metrics[count]
        if "logprobs" in metrics:
            assert len(metrics["logprobs"]) == len(metrics["completion_token_ids"])


async def agents_calls(rig: GatewayRig, claim: Claim) -> None:
    """An agent that uses a tool by chat completions, and then asks by Responses for something else."""
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
    ]
    async with openai.AsyncOpenAI(
        base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0
    ) as client:
        first = await client.chat.completions.create(model="m", messages=messages)
        message = first.choices[0].message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": "c", "content": "yes"}
        messages += [message, result]
        await client.chat.completions.create(model="m", messages=messages)
        await client.responses.create(model="m", input="Bye")


async def test_a_rollout_is_a_trajectory_with_token_ids_and_log_probs(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    script = in_turn(
        Answer("Let me look.", tool_calls=(ToolCall("c", "weather", '{"city": "B"}'),)),
        Answer("It rains."),
    )
    async with open_rig(tmp_path) as rig:
        with ModelServer(script) as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            await agents_calls(rig, claim)
            await rig.claim()  # calls nothing, and the format asks for a step
        assert await export_trajectories(rig.store, "run", path) == 1
    [line] = path.read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    check_trajectory(found)
    assert found["session_id"] == claim.attempt.id
    steps = found["steps"]
    assert [(one["source"], one["message"]) for one in steps] == [
        ("system", "Be brief."),
        ("user", "Rain?"),
        ("agent", "Let me look."),
        ("agent", "It rains."),
        ("user", "Bye"),
        ("agent", "Let me look."),
    ]
    assert steps[2]["tool_calls"] == [
        {"tool_call_id": "c", "function_name": "weather", "arguments": {"city": "B"}}
    ]
    assert steps[2]["observation"] == {"results": [{"content": "yes", "source_call_id": "c"}]}
    metrics = steps[3]["metrics"]
    assert metrics["completion_token_ids"] == answer_ids(Answer("It rains."))
    assert metrics["extra"] == {"policy": "policy", "policy_version": 0}
    assert found["final_metrics"]["total_steps"] == 6


async def test_log_probs_that_are_none_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    unknown = {"content": [{"token": "x", "logprob": one} for one in (None, -0.5, -0.5)]}
    async with open_rig(tmp_path) as rig:
        with ModelServer(lambda _: Answer("Yo", extra={"logprobs": unknown})) as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            async with openai.AsyncOpenAI(
                base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0
            ) as client:
                hi: list[Any] = [{"role": "user", "content": "Hi"}]
                await client.chat.completions.create(model="m", messages=hi)
        assert await export_trajectories(rig.store, "run", path) == 1
    metrics = json.loads(path.read_text(encoding="utf-8"))["steps"][-1]["metrics"]
    assert "logprobs" not in metrics
    assert metrics["completion_token_ids"] == answer_ids(Answer("Yo"))


@pytest.mark.parametrize(
    "options", [["--format", "atif"], ["--format", "atif", "--to", "x.parquet"]]
)
def test_trajectories_need_a_file_for_lines(options: list[str]) -> None:
    result = CliRunner().invoke(commands, ["export", "nowhere", *options])
    assert result.exit_code != 0
    assert "FILE.jsonl" in result.output
