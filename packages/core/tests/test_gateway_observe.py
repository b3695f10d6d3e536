"""What operators see of recorded calls: counters, log lines, spans."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from lightningrl.gateway import GatewayLimits
from lightningrl.gateway.call_log import CallLog
from lightningrl.gateway.health import Health
from lightningrl.gateway.metrics import Metrics
from lightningrl.gateway.spans import Spans
from lightningrl.machine.clock import SystemClock
from lightningrl.machine.logs import JsonFormatter
from lightningrl.schema import Claim
from lightningrl_testkit.gateway import RUN, GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path, observers=(CallLog(),)) as rig:
        yield rig


async def ask(rig: GatewayRig, claim: Claim, content: str = "Hi") -> None:
    url = rig.attempt_url(claim)
    async with openai.AsyncOpenAI(base_url=url, api_key=claim.key, max_retries=0) as client:
        await client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": content}],
            extra_headers={
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "x-lightningrl-agent": "solver",
            },
        )


def refuses_secrets(request: dict[str, Any]) -> Answer:
    if "secret" in request["messages"][-1]["content"]:
        return Answer("the prompt is too long", status=400)
    return Answer("Yo")


async def one_good_and_one_failed_call(rig: GatewayRig) -> Claim:
    with ModelServer(refuses_secrets) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        await ask(rig, claim)
        with pytest.raises(openai.BadRequestError):
            await ask(rig, claim, "secret words")
    return claim


async def metrics(rig: GatewayRig) -> Callable[..., float]:
    """Looks up a sample by its name, without the common prefix, and its labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{rig.url}/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    samples = {
        (sample.name.removeprefix("lightningrl_gateway_"), frozenset(sample.labels.items())): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return lambda name, **labels: samples[name, frozenset(labels.items())].value


async def test_calls_tokens_and_refusals_are_counted(rig: GatewayRig) -> None:
    claim = await one_good_and_one_failed_call(rig)
    [good, _] = await rig.calls(claim)
    url = f"{rig.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=b"{}") as refused:
        assert refused.status == 401
    seen = await metrics(rig)
    policy = {"run": RUN, "policy": "policy"}
    by_status = [
        seen("calls_total", status=status, **policy)
        for status in ("delivered", "failed", "cancelled")
    ]
    assert by_status == [1, 1, 0]
    assert seen("tokens_total", kind="prompt", **policy) == good.prompt_tokens > 0
    assert seen("tokens_total", kind="completion", **policy) == good.completion_tokens > 0
    assert seen("call_seconds_count", **policy) == 2
    assert seen("policy_version", **policy) == 0
    assert seen("calls_in_flight", **policy) == seen("calls_held", **policy) == 0
    assert seen("endpoint_failures", endpoint=good.endpoint, **policy) == 0
    assert seen("refusals_total", code="scripted") == 1
    assert seen("refusals_total", code="unidentified") == 1
    assert seen("process_resident_memory_bytes") > 1e6


def test_refusal_codes_beyond_a_hundred_are_counted_together() -> None:
    metrics = Metrics((), Health(SystemClock(), GatewayLimits()))
    for number in (*range(102), 0):
        metrics.refused(f"code-{number}")
    samples = [
        (sample.labels["code"], sample.value)
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "lightningrl_gateway_refusals_total"
    ]
    assert len(samples) == 101
    assert dict(samples)["code-0"] == 2
    assert dict(samples)["other"] == 2  # code-100 and code-101


async def test_metrics_ask_for_the_admin_key_where_there_is_one(tmp_path: Path) -> None:
    async with (
        open_rig(tmp_path, admin_key="secret") as rig,
        aiohttp.ClientSession() as session,
    ):
        for headers, status in (({}, 401), ({"authorization": "Bearer secret"}, 200)):
            async with session.get(f"{rig.url}/metrics", headers=headers) as answer:
                assert answer.status == status


async def test_a_line_names_the_call_and_tells_nothing_of_its_content(
    rig: GatewayRig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightningrl.gateway.call_log"):
        claim = await one_good_and_one_failed_call(rig)
    records = [one for one in caplog.records if one.name == "lightningrl.gateway.call_log"]
    good, failed = (json.loads(JsonFormatter().format(one)) for one in records)
    recorded = await rig.calls(claim)
    assert [good["call"], failed["call"]] == [one.id for one in recorded]
    assert good["rollout"] == failed["rollout"] == claim.rollout.id
    assert (good["level"], good["run"], good["agent"]) == ("info", RUN, "solver")
    assert (failed["level"], failed["http_status"]) == ("warning", 400)
    assert "the prompt is too long" in failed["message"]
    assert not any(word in str(good) + str(failed) for word in ("secret words", "Yo", claim.key))


async def test_a_span_continues_the_agents_trace(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    observer = Spans(exporter)
    async with open_rig(tmp_path, observers=(observer,)) as rig:
        claim = await one_good_and_one_failed_call(rig)
        [recorded, _] = await rig.calls(claim)
    observer.flush()
    good, failed = exporter.get_finished_spans()
    assert good.name == "chat gpt-4o"
    assert good.parent is not None
    assert f"{good.context.trace_id:032x}" == TRACE
    assert f"{good.parent.span_id:016x}" == PARENT
    assert good.attributes is not None
    assert good.attributes["gen_ai.response.id"] == recorded.id
    assert good.attributes["gen_ai.usage.input_tokens"] == recorded.prompt_tokens
    assert good.attributes["gen_ai.agent.name"] == "solver"
    assert good.attributes["lightningrl.rollout"] == claim.rollout.id
    assert good.end_time - good.start_time == pytest.approx(recorded.latency_ms * 1e6, abs=1e6)
    assert failed.attributes["error.type"] == "400"
    assert "secret words" not in failed.to_json()
    assert "too long" not in failed.to_json()  # what the engine said may quote the request
    observer.close()


def test_a_record_with_an_exception_is_one_line_of_json() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord(
            "a.b", logging.ERROR, "x.py", 1, "%s broke", ("it",), (ValueError, error, None)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["logger"], told["level"], told["message"]) == ("a.b", "error", "it broke")
    assert "second" in told["error"]
