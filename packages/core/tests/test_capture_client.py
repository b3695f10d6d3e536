"""The `openai` client inside and outside a rollout: what is rewritten, and what is left alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import openai
import pytest
from openai._base_client import BaseClient

import lightningrl
from lightningrl.capture.client import (
    check_signature,
    install_client_patch,
    uninstall_client_patch,
)
from lightningrl.capture.context import (
    RolloutContext,
    end_step,
    in_rollout,
    inside,
    start_step,
)
from lightningrl.capture.sink import BufferSink
from lightningrl.errors import ConfigError
from lightningrl.schema import LogEvent, LogTopic, RolloutId
from lightningrl_testkit.contexts import rollout_context

ORIGINAL = BaseClient.__dict__["_build_request"]

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
}


class Wire(ThreadingHTTPServer):
    """Answers every request alike and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.fail = 0
        """How many of the next requests get status 500."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Wire
    protocol_version: ClassVar[str] = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers))
        status = 500 if self.server.fail > 0 else 200
        self.server.fail -= 1
        body = json.dumps(REPLY).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    assert install_client_patch()
    yield
    uninstall_client_patch()


def make_context(server_url: str, *aliases: str) -> tuple[RolloutContext, BufferSink]:
    sink = BufferSink()
    context = rollout_context(
        rollout_id=RolloutId("r/1"),
        server_url=server_url,
        key="attempt-key",
        sink=sink,
        aliases=frozenset(aliases),
    )
    return context, sink


def ask(base_url: str, model: str = "m", *, max_retries: int = 0) -> None:
    client = openai.OpenAI(base_url=base_url, api_key="users-key", max_retries=max_retries)
    with client:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])


ATTEMPT_PATH = "/rollouts/r%2F1/attempts/a1/v1/chat/completions"


def test_the_placeholder_url_goes_to_the_attempt_under_its_key(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    with in_rollout(context):
        ask(f"{wire.url}/v1")
    [(path, headers)] = wire.requests
    assert path == ATTEMPT_PATH
    assert headers["authorization"] == "Bearer attempt-key"
    assert context.model_calls == 1


def test_an_alias_goes_to_the_attempt_whatever_its_client(wire: Wire) -> None:
    context, _ = make_context(wire.url, "policy")
    with in_rollout(context):
        ask("http://127.0.0.1:9/elsewhere", "policy")
    assert [path for path, _ in wire.requests] == [ATTEMPT_PATH]


def test_everything_else_goes_out_untouched_and_is_named_once(wire: Wire) -> None:
    context, sink = make_context("http://127.0.0.1:9", "policy")
    with in_rollout(context), lightningrl.step("agent", "a", agent="a"):
        ask(f"{wire.url}/v1", "judge")
        ask(f"{wire.url}/v1", "judge")
        ask(f"{wire.url}/v1", "embedder")
    for path, headers in wire.requests:
        assert path == "/v1/chat/completions"
        assert headers["authorization"] == "Bearer users-key"
        assert not [name for name in headers if name.startswith("x-lightningrl")]
    logs = [one for one in sink.events if isinstance(one, LogEvent)]
    assert {log.topic for log in logs} == {LogTopic.OUTSIDE}
    assert [log.message.split(",")[0] for log in logs] == [
        "the agent called 'judge' at '127.0.0.1'",
        "the agent called 'embedder' at '127.0.0.1'",
    ]
    assert context.model_calls == 0


def test_outside_a_rollout_nothing_is_touched(wire: Wire) -> None:
    context, _ = make_context(wire.url, "policy")
    ask(f"{wire.url}/v1", "policy")
    with in_rollout(context):
        context.closed = True
        ask(f"{wire.url}/v1", "policy")
    for path, headers in wire.requests:
        assert path == "/v1/chat/completions"
        assert headers["authorization"] == "Bearer users-key"


def test_a_call_names_its_model_step_agent_and_state(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    with in_rollout(context):
        step = start_step("llm", "m", agent="Prüfer")
        with inside(step):
            lightningrl.state("hall")
            ask(f"{wire.url}/v1")
    [(_, headers)] = wire.requests
    assert headers["x-lightningrl-step"] == step.id
    assert headers["x-lightningrl-agent"] == "Pr%C3%BCfer"
    assert headers["x-lightningrl-state"] == "hall"


def test_a_call_names_the_agents_around_its_own(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    with (
        in_rollout(context),
        lightningrl.step("agent", "x", agent="a/b"),
        lightningrl.step("tool", "t"),
        lightningrl.step("agent", "y", agent="c"),
    ):
        ask(f"{wire.url}/v1")
    [(_, headers)] = wire.requests
    assert headers["x-lightningrl-agent"] == "a%2Fb/c"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a\nb", "a%EF%BF%BDb"),
        ("a\ud800", "a%5Cud800"),
        ("a" * 300, "a" * 256),
    ],
)
def test_an_agent_name_that_no_header_can_hold_is_made_to_fit(
    wire: Wire, name: str, header: str
) -> None:
    context, _ = make_context(wire.url)
    with in_rollout(context), lightningrl.step("agent", "x", agent=name):
        ask(f"{wire.url}/v1")
    [(_, headers)] = wire.requests
    assert headers["x-lightningrl-agent"] == header


def test_a_model_step_stands_for_one_call_and_its_retries(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    wire.fail = 1
    with in_rollout(context):
        step = start_step("llm", "m")
        with inside(step):
            ask(f"{wire.url}/v1", max_retries=1)
            ask(f"{wire.url}/v1")  # a client that asks twice: the second answer supersedes nothing
    first, retry, second = [headers["x-lightningrl-step"] for _, headers in wire.requests]
    assert first == retry == step.id
    assert second != step.id


def test_a_model_step_that_ended_stands_for_no_later_call(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    with in_rollout(context):
        step = start_step("llm", "m")
        end_step(step)
        with inside(step):
            ask(f"{wire.url}/v1")
    [(_, headers)] = wire.requests
    assert headers["x-lightningrl-step"] != step.id


def test_without_a_model_step_a_call_shares_an_id_with_its_retries_alone(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    wire.fail = 1
    with in_rollout(context), lightningrl.step("tool", "search") as tool:
        ask(f"{wire.url}/v1", max_retries=1)
        ask(f"{wire.url}/v1")
    first, retry, second = [headers["x-lightningrl-step"] for _, headers in wire.requests]
    assert first == retry
    assert len({first, second, tool.id}) == 3
    assert context.model_calls == 2


async def test_the_async_client_is_rewritten_too(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    async with openai.AsyncOpenAI(base_url=f"{wire.url}/v1", api_key="users-key") as client:
        with in_rollout(context):
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}]
            )
    assert [path for path, _ in wire.requests] == [ATTEMPT_PATH]


def test_installing_twice_is_once_and_uninstalling_restores() -> None:
    wrapped = BaseClient.__dict__["_build_request"]
    assert wrapped is not ORIGINAL
    assert install_client_patch()
    assert BaseClient.__dict__["_build_request"] is wrapped
    uninstall_client_patch()
    assert BaseClient.__dict__["_build_request"] is ORIGINAL
    uninstall_client_patch()
    assert BaseClient.__dict__["_build_request"] is ORIGINAL


def test_another_signature_is_refused_at_install() -> None:
    def _build_request(self: object, options: object, extra: object) -> None: ...

    for method in (_build_request, None):
        with pytest.raises(ConfigError, match=f"openai {openai.__version__}.*can't be captured"):
            check_signature(method, "openai", "1.66")
    check_signature(ORIGINAL, "openai", "1.66")


# -- other routes and clients ------------------------------------------------------------------


def test_responses_go_to_the_attempt_as_chat_completions_do(wire: Wire) -> None:
    context, _ = make_context(wire.url)
    with (
        in_rollout(context),
        openai.OpenAI(base_url=f"{wire.url}/v1", api_key="users-key") as client,
    ):
        client.responses.create(model="m", input="x")
    assert [path for path, _ in wire.requests] == ["/rollouts/r%2F1/attempts/a1/v1/responses"]


@pytest.mark.parametrize("deployment", [None, "gpt"])
def test_an_azure_client_goes_to_the_attempt_and_its_key_stays_at_home(
    wire: Wire, deployment: str | None
) -> None:
    context, _ = make_context(wire.url, "my/gpt")
    with (
        in_rollout(context),
        openai.AzureOpenAI(
            azure_endpoint="http://127.0.0.1:9",
            azure_deployment=deployment,
            api_key="azure-key",
            api_version="2024-10-21",
            max_retries=0,
        ) as client,
    ):
        client.chat.completions.create(model="my/gpt", messages=[{"role": "user", "content": "x"}])
    [(path, headers)] = wire.requests
    assert path.partition("?")[0] == ATTEMPT_PATH
    assert headers["authorization"] == "Bearer attempt-key"
    assert "azure-key" not in headers.values()


def ask_anthropic(base_url: str, model: str = "m") -> None:
    import anthropic

    with anthropic.Anthropic(base_url=base_url, api_key="users-key", max_retries=0) as client:
        client.messages.create(
            model=model, max_tokens=9, messages=[{"role": "user", "content": "x"}]
        )


def test_an_anthropic_client_goes_to_the_attempt_under_its_key(wire: Wire) -> None:
    context, _ = make_context(wire.url, "policy")
    with in_rollout(context):
        ask_anthropic(wire.url)
        ask_anthropic("http://127.0.0.1:9", "policy")
    for path, headers in wire.requests:
        assert path == "/rollouts/r%2F1/attempts/a1/v1/messages"
        assert headers["authorization"] == "Bearer attempt-key"
        assert headers["x-api-key"] == "attempt-key"
    assert context.model_calls == 2


def test_another_anthropic_host_is_left_alone_and_named(wire: Wire) -> None:
    context, sink = make_context("http://127.0.0.1:9", "policy")
    with in_rollout(context):
        ask_anthropic(wire.url, "judge")
    [(path, headers)] = wire.requests
    assert path == "/v1/messages"
    assert "users-key" in headers["authorization"]
    [log] = [one for one in sink.events if isinstance(one, LogEvent)]
    assert log.message.startswith("the agent called 'judge' at '127.0.0.1'")
