"""What nobody here knows of a request is left out of what the engine gets, and named, wherever it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.gateway.dialects import FIELDS
from lightningrl.schema import Claim, LogEvent, LogTopic
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import ModelServer

HI: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
F: dict[str, Any] = {"type": "function", "name": "f", "parameters": SCHEMA}
CITED = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "a"},
    "citations": {"enabled": True},
}
BASE: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "m", "messages": HI},
    "responses": {"model": "m", "input": "Hi"},
    "messages": {"model": "m", "messages": HI, "max_tokens": 99},
    "completions": {"model": "m", "prompt": "Hi"},
}


async def ask(rig: GatewayRig, route: str, fields: dict[str, Any], key: str) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{rig.url}/v1/{route}",
            json={**BASE[route], **fields},
            headers={"authorization": f"Bearer {key}"},
        ) as response,
    ):
        return response.status, await response.read()


async def log_of(rig: GatewayRig, claim: Claim) -> list[str]:
    """What the attempt's log says of unknown fields."""
    [events] = await rig.store.events([claim.attempt.id])
    logs = (one for one in events if isinstance(one, LogEvent))
    return [one.message for one in logs if one.topic is LogTopic.UNKNOWN_FIELD]


@pytest.mark.parametrize("route", FIELDS)
async def test_what_nobody_knows_is_left_out_with_one_line_for_each_field(
    tmp_path: Path, route: str
) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            for fields in ({}, {"unheard_of": 1}, {"unheard_of": 2}):
                assert (await ask(rig, route, fields, claim.key))[0] == 200
            plain, *asked = (arrival.body for arrival in engine.arrivals)
        calls = await rig.calls(claim)
        [line] = await log_of(rig, claim)
        async with aiohttp.ClientSession() as session, session.get(f"{rig.url}/metrics") as answer:
            assert "lightningrl_gateway_unknown_fields_total 2.0" in await answer.text()
    assert asked == [plain, plain]
    assert "'unheard_of'" in line
    assert [call.choices[0].untrainable for call in calls] == [None] * 3
    assert b"unheard_of" in calls[1].request  # the record keeps the agent's own body


@pytest.mark.parametrize("route", FIELDS)
async def test_a_run_may_refuse_what_nobody_knows(tmp_path: Path, route: str) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url, refuse_unknown=True)
            status, body = await ask(rig, route, {"unheard_of": 1}, (await rig.claim()).key)
            assert engine.calls == 0
    assert status == 400
    assert "unheard_of" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("route", "fields", "path"),
    [
        ("responses", {"reasoning": {"effort": "low", "context": "x"}}, "reasoning.context"),
        ("responses", {"text": {"verbosity": "low", "tone": "x"}}, "text.tone"),
        ("responses", {"tools": [{**F, "defer_loading": True}]}, "tools[].defer_loading"),
        ("messages", {"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        (
            "messages",
            {"thinking": {"type": "enabled", "between_tools": True}},
            "thinking.between_tools",
        ),
        (
            "responses",
            {
                "tools": [
                    {"type": "namespace", "name": "n", "tools": [{**F, "defer_loading": True}]}
                ]
            },
            "tools[].tools[].defer_loading",
        ),
        (
            "responses",
            {"input": [*HI, {"type": "additional_tools", "tools": [{**F, "defer_loading": True}]}]},
            "input[].tools[].defer_loading",
        ),
        ("responses", {"input": [{**HI[0], "mood": "x", "name": None}]}, "input[].mood"),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "m": 1}]}]},
            "input[].content[].m",
        ),
        ("messages", {"messages": [{**HI[0], "mood": "x"}]}, "messages[].mood"),
        (
            "messages",
            {"system": [{"type": "text", "text": "a", "citations": None, "mood": "x"}]},
            "system[].mood",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [CITED]}]},
            "messages[].content[].citations",
        ),
        (
            "messages",
            {
                "messages": [
                    *HI,
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "c", "content": [CITED]}
                        ],
                    },
                ]
            },
            "messages[].content[].content[].citations",
        ),
    ],
)
async def test_unknown_fields_within_fields_are_told_too(
    tmp_path: Path, route: str, fields: dict[str, Any], path: str
) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            assert (await ask(rig, route, fields, claim.key))[0] == 200
        assert [path in line for line in await log_of(rig, claim)] == [True]


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": {"edits": []}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"container": {"skills": []}},
        {"mcp_servers": []},
        {"thread": None},
        {"tools": [{"name": "f", "input_schema": SCHEMA, "eager_input_streaming": True}]},
    ],
)
async def test_fields_of_anthropics_that_ask_for_nothing_pass(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with open_rig(tmp_path) as rig:
        with ModelServer() as engine:
            await rig.register(engine.url)
            claim = await rig.claim()
            assert (await ask(rig, "messages", fields, claim.key))[0] == 200
        assert await log_of(rig, claim) == []
