"""A runner's variables stand in the place of the user's, and whose a call is decides which of them it leaves with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import openai
import pytest
from openai._models import FinalRequestOptions as OpenaiOptions

from lightningrl.capture import variables
from lightningrl.capture.carrying import reward_open, rollout_open
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.capture.context import RolloutContext
from lightningrl.capture.variables import NAMES, point_at, take_changed, users
from lightningrl.errors import ConfigError
from lightningrl.recipe import parse_recipe
from lightningrl.runner.process import _look_at_variables
from lightningrl.settings import check_names
from lightningrl_testkit.contexts import rollout_context

SERVER = "http://127.0.0.1:8787"
ATTEMPT = f"{SERVER}/rollouts/r1/attempts/a1"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a runner's, where the user had a key and a base URL of OpenAI's, and a key of Anthropic's."""
    for name in (*NAMES, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(f"LIGHTNINGRL_USER_{name}", "")
        monkeypatch.delenv(f"LIGHTNINGRL_USER_{name}")
    monkeypatch.setattr(variables, "_pointed_at", None)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-user")
    monkeypatch.setenv("OPENAI_API_BASE", "https://models.example/v1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "ant-user")
    point_at(SERVER)
    install_client_patch()
    yield
    uninstall_client_patch()


def context() -> RolloutContext:
    return rollout_context(server_url=SERVER, key="attempt-key", aliases=frozenset({"policy"}))


def by_openai(route: str, client: openai.OpenAI | None = None) -> tuple[str, str]:
    """URL and key of a request that a client made here sends; it is one of the client's own making else."""
    options = OpenaiOptions.construct(method="post", url=route, json_data={"model": "m"})
    request = (client or openai.OpenAI())._build_request(options)
    return str(request.url), request.headers["authorization"].removeprefix("Bearer ")


def by_anthropic(route: str) -> tuple[str, str]:
    import anthropic
    from anthropic._models import FinalRequestOptions as AnthropicOptions

    options = AnthropicOptions.construct(method="post", url=route, json_data={"model": "m"})
    request = anthropic.Anthropic()._build_request(options)
    return str(request.url), request.headers["x-api-key"]


def test_all_that_clients_read_points_at_the_server_and_the_users_values_stay(runner: None) -> None:
    told = {name: os.environ[name] for name in NAMES}
    assert told == {
        "OPENAI_BASE_URL": f"{SERVER}/v1",
        "OPENAI_API_BASE": f"{SERVER}/v1",
        "ANTHROPIC_BASE_URL": SERVER,
        "ANTHROPIC_API_URL": SERVER,
        "ANTHROPIC_API_BASE": SERVER,
        "OPENAI_API_KEY": "lightningrl-placeholder",
        "ANTHROPIC_API_KEY": "lightningrl-placeholder",
        "ANTHROPIC_AUTH_TOKEN": "",  # one that is not set is not added
    }
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "127.0.0.1"
    assert os.environ["LIGHTNINGRL_USER_OPENAI_API_KEY"] == "sk-user"
    assert os.environ["LIGHTNINGRL_USER_OPENAI_API_BASE"] == "https://models.example/v1"
    assert "LIGHTNINGRL_USER_OPENAI_BASE_URL" not in os.environ
    check_names({name: "" for name in os.environ if name.startswith("LIGHTNINGRL_USER_")})
    point_at("http://127.0.0.1:9999")  # a runner within a runner
    assert users("OPENAI_API_KEY") == "sk-user"


def test_whose_call_it_is_is_decided_when_it_is_made(runner: None) -> None:
    made_at_import = openai.OpenAI()
    users_own = ("https://models.example/v1/embeddings", "sk-user")
    judge = ("https://models.example/v1/chat/completions", "sk-user")
    with rollout_open(context()):
        for client in (None, made_at_import):
            assert by_openai("/chat/completions", client) == (
                f"{ATTEMPT}/v1/chat/completions",
                "attempt-key",
            )
            assert by_openai("/responses/r-1/cancel", client)[1] == "attempt-key"
            assert by_openai("/embeddings", client) == users_own
        assert by_openai("/moderations")[0] == "https://models.example/v1/moderations"
        assert by_anthropic("/v1/messages") == (f"{ATTEMPT}/v1/messages", "attempt-key")
        assert by_anthropic("/v1/messages/count_tokens")[1] == "attempt-key"
        assert by_anthropic("/v1/files") == ("https://api.anthropic.com/v1/files", "ant-user")
    with reward_open():
        assert by_openai("/chat/completions", made_at_import) == judge
        assert by_openai("/embeddings") == users_own
        assert by_anthropic("/v1/messages") == ("https://api.anthropic.com/v1/messages", "ant-user")
    # Outside both a model call is of nobody, and is refused.
    assert by_openai("/chat/completions") == (
        f"{SERVER}/v1/chat/completions",
        "lightningrl-placeholder",
    )
    assert by_openai("/embeddings") == users_own


def test_the_placeholder_goes_to_no_other_host(runner: None) -> None:
    elsewhere = openai.OpenAI(base_url="https://other.example/v1")
    own_key = openai.OpenAI(api_key="sk-other")
    with rollout_open(context()):
        assert by_openai("/chat/completions", elsewhere) == (
            "https://other.example/v1/chat/completions",
            "sk-user",
        )
    with reward_open():
        assert by_openai("/chat/completions", own_key)[1] == "sk-other"


def test_without_a_key_of_the_users_a_judge_is_refused(
    runner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNINGRL_USER_OPENAI_API_KEY")
    options = OpenaiOptions.construct(
        method="post", url="/chat/completions", json_data={"model": "m"}
    )
    with reward_open():
        request = openai.OpenAI()._build_request(options)
    assert str(request.url) == f"{SERVER}/v1/chat/completions"
    assert request.headers["x-lightningrl-outside"] == "reward"
    with rollout_open(context()):
        assert by_openai("/embeddings") == (f"{ATTEMPT}/v1/embeddings", "attempt-key")


def test_what_the_agents_module_sets_is_the_users(runner: None) -> None:
    os.environ["OPENAI_API_KEY"] = "sk-from-dotenv"
    assert take_changed() == {}
    assert os.environ["OPENAI_API_KEY"] == "lightningrl-placeholder"
    assert users("OPENAI_API_KEY") == "sk-from-dotenv"
    os.environ["OPENAI_BASE_URL"] = "https://api.openai.com/v1"
    assert take_changed() == {"OPENAI_BASE_URL": "https://api.openai.com/v1"}
    assert os.environ["OPENAI_BASE_URL"] == f"{SERVER}/v1"


def test_a_module_that_changes_the_base_url_is_told_before_the_first_rollout(
    runner: None, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"name": "run", "agent": "m:f"}
    os.environ["OPENAI_API_BASE"] = "https://api.openai.com/v1"
    with pytest.raises(
        ConfigError, match=r"OPENAI_API_BASE to 'https://api.openai.com/v1'.*replaces"
    ):
        _look_at_variables(parse_recipe(plain))
    _look_at_variables(parse_recipe(plain))  # all is put back
    policies = {"policy": {"tiny": "m:f", "replaces": ["gpt-4o-mini"]}}
    os.environ["OPENAI_API_BASE"] = "https://api.openai.com/v1"
    _look_at_variables(parse_recipe({**plain, "policies": policies}))
    assert "replaces" in caplog.text
