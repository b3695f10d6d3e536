"""The trainer's side of vLLM servers, against an HTTP server that answers as vLLM 0.32.0 does."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import Recipe, VllmServers, parse_recipe
from lightningrl_verl.serving.engines import load_engines
from lightningrl_verl.serving.http_engine import HttpEngine
from lightningrl_verl.serving.vllm_servers import VllmEngines


class Answering:
    """A server with vLLM's routes, which notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.refused: dict[str, int] = {}
        """Route -> status."""
        self.model = "policy"
        of_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # named by the base
                self._reply({"data": [{"id": of_server.model}]})

            def do_POST(self) -> None:  # named by the base
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                of_server.asked.append(self.path)
                if self.path == "/update_weights":
                    (path,) = body["update_info"]["paths"]
                    of_server.loaded.append(load_file(path))
                if self.path == "/v1/completions":
                    # The log-prob of a token is minus its id; the likeliest token, 9, stands beside it.
                    entries = [
                        {str(one): {"logprob": -one}, "9": {"logprob": 0}}
                        for one in body["prompt"][1:]
                    ]
                    self._reply({"choices": [{"prompt_logprobs": [None, *entries]}]})
                else:
                    self._reply({})

            def _reply(self, answer: object) -> None:
                self.send_response(of_server.refused.get(self.path, 200))
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers() -> Iterator[tuple[Answering, Answering]]:
    pair = Answering(), Answering()
    yield pair
    for one in pair:
        one.close()


class OfZeros:
    """A learner whose weights are zeros."""

    async def call(self, function):
        return function(self)

    def named_parameters(self):
        return iter([("weight", torch.zeros(2))])


def recipe(policy: dict[str, object]) -> Recipe:
    return parse_recipe({"name": "run", "agent": "a:b", "policies": {"policy": policy}})


def engines(folder: Path, *servers: Answering) -> VllmEngines:
    (folder / "model").mkdir()
    save_file({"weight": torch.ones(2)}, folder / "model" / "model.safetensors")
    of_policy = VllmServers(urls=tuple(one.url for one in servers))
    return VllmEngines(
        recipe({"model": "model"}), "policy", of_policy,
        model=folder / "model", version=4, folder=folder / "shared",
    )  # fmt: skip


UPDATE = [
    "/pause?mode=abort", "/start_weight_update", "/update_weights", "/finish_weight_update",
    "/reset_prefix_cache", "/resume",
]  # fmt: skip


async def test_servers_begin_with_the_runs_weights_and_take_each_version(
    tmp_path: Path, servers: tuple[Answering, Answering]
):
    served = engines(tmp_path, *servers)
    endpoints = await served.open()
    assert [one.url for one in endpoints] == [f"{server.url}/v1" for server in servers]
    await served.take_weights(OfZeros(), 5)  # pyright: ignore[reportArgumentType]
    assert served.version == 5
    for server in servers:
        assert server.asked == ["/init_weight_transfer_engine", *UPDATE, *UPDATE]
        assert [one["weight"].tolist() for one in server.loaded] == [[1, 1], [0, 0]]
    # What is no longer needed is gone, all of it at the end.
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["run-policy-5.safetensors"]
    served.close()
    assert not list((tmp_path / "shared").iterdir())


async def test_what_a_killed_start_left_goes_with_the_next_one(
    tmp_path: Path, servers: tuple[Answering, Answering]
):
    shared = tmp_path / "shared"
    shared.mkdir()
    # The last two are of another policy and of a person.
    for name in ("run-policy-7", "run-policy-begin-old", "run-policy-2-7", "run-policy-mine"):
        (shared / f"{name}.safetensors").touch()
    served = engines(tmp_path, *servers)
    await served.open()
    assert sorted(path.name for path in shared.iterdir()) == [
        "run-policy-2-7.safetensors",
        "run-policy-begin-model.safetensors",
        "run-policy-mine.safetensors",
    ]


def test_what_engines_of_another_kind_left_goes_as_well(tmp_path: Path):
    left = tmp_path / "policy" / "model"
    left.mkdir(parents=True)
    one = recipe({"model": "model", "vllm": {"urls": ["http://127.0.0.1:9"]}})
    place = tmp_path / "policy"
    load_engines(one, "policy", None, model=tmp_path, version=0, place=place, logs=tmp_path)
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", "does not answer: IncompleteRead"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 99\r\n\r\nout of", "its answer broke off"),
        (b"garbage\r\n\r\n", "does not answer: BadStatusLine"),
        (
            b'HTTP/1.1 200 OK\r\n\r\n{"choices":[{"prompt_logprobs":null}]}',
            "log-probs as vLLM does",
        ),
        (b'HTTP/1.1 200 OK\r\n\r\n{"choices":[]}', "log-probs as vLLM does"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"choices":[{"prompt_logprobs":[null,{}]}]}', "as vLLM does"),
    ],
)
def test_a_broken_answer_is_an_error_that_names_the_server(answer: bytes, complaint: str):
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:

        def reply() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass  # an unread rest of the request would break the connection off instead

        replied = thread.submit(reply)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(RunError, match=f"vLLM server at {url} .*{complaint}"):
            HttpEngine("vLLM server", url, "policy").score([1], [2])
        replied.result()


async def test_a_refusal_leaves_every_server_paused(
    tmp_path: Path, servers: tuple[Answering, Answering]
):
    served = engines(tmp_path, *servers)
    await served.open()
    servers[1].refused["/update_weights"] = 500
    with pytest.raises(RunError, match=r"lightningrl_files"):
        await served.take_weights(OfZeros(), 5)  # pyright: ignore[reportArgumentType]
    assert served.version == 4
    assert all(server.asked.count("/resume") == 1 for server in servers)


async def test_what_is_wrong_with_a_server_is_said_before_anything_is_loaded(
    tmp_path: Path, servers: tuple[Answering, Answering]
):
    served = engines(tmp_path, *servers)
    servers[0].model = "other"
    with pytest.raises(RunError, match="--served-model-name policy"):
        await served.open()
    servers[0].model = "policy"
    servers[0].refused["/init_weight_transfer_engine"] = 404
    with pytest.raises(RunError, match="VLLM_SERVER_DEV_MODE=1"):
        await served.open()
    assert "/pause?mode=abort" not in servers[0].asked


def test_scores_are_those_of_the_prompts_own_tokens(
    tmp_path: Path, servers: tuple[Answering, Answering]
):
    (first, _) = engines(tmp_path, *servers).scorers()
    assert first([1, 2], [3, 9]) == [-3, 0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"vllm": {"urls": []}}, "at least one server"),
        ({"vllm": {"urls": ["http://a"]}, "trainable": False}, "by its 'url'"),
        ({"vllm": {"urls": ["http://a"]}, "tool_parser": "hermes"}, "--tool-call-parser"),
        ({"vllm": {"url": ["http://a"]}}, "urls"),
    ],
)
def test_what_servers_do_not_use_is_refused(policy: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        recipe({"model": "m", **policy})


def test_keys_of_engines_that_no_policy_has_are_refused():
    policies = {"policy": {"model": "m", "vllm": {"urls": ["http://a"]}}}
    tree = {"name": "run", "agent": "a:b", "policies": policies, "engine": {"replicas": 2}}
    with pytest.raises(ConfigError, match="none of its keys has an effect"):
        parse_recipe(tree)
    frozen = {"model": "n", "trainable": False}
    assert parse_recipe({**tree, "policies": {**policies, "judge": frozen}}).engine.replicas == 2


def test_vllm_finds_the_backend_by_its_entry_point():
    (found,) = entry_points(group="vllm.general_plugins", name="lightningrl")
    assert found.value == "lightningrl_verl.serving.inside_vllm:register"
    assert callable(found.load())
