"""Settings from the environment: one table, secrets from files, unknown names refused."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from lightningrl import settings
from lightningrl.cli import commands
from lightningrl.errors import ConfigError
from lightningrl.gateway.limits import GatewayLimits, limits_of_environment


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    settings.check_names({"LIGHTNINGRL_PORT": "1", "LIGHTNINGRL_KEY_FILE": "", "PATH": ""})
    with pytest.raises(ConfigError, match=r"'LIGHTNINGRL_PROT'.*'LIGHTNINGRL_PORT'"):
        settings.check_names({"LIGHTNINGRL_PROT": "1"})


def test_a_command_refuses_an_unknown_name() -> None:
    result = CliRunner().invoke(commands, ["doctor"], env={"LIGHTNINGRL_CONCURENCY": "4"})
    assert result.exit_code == 2
    assert "LIGHTNINGRL_CONCURRENCY" in result.stderr


def test_every_variable_of_an_option_is_in_the_table() -> None:
    used: set[str] = set()
    with click.Context(commands) as context:
        for name in commands.list_commands(context):
            command = commands.get_command(context, name)
            assert command is not None
            used |= {str(one.envvar) for one in command.params if one.envvar}
    assert used <= {one.name for one in settings.SETTINGS}


def test_keys_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("new key\nold key\n")
    file.chmod(0o600)
    monkeypatch.delenv("LIGHTNINGRL_ADMIN_KEY", raising=False)
    monkeypatch.setenv("LIGHTNINGRL_ADMIN_KEY_FILE", str(file))
    assert settings.admin_keys() == ("new key", "old key")
    monkeypatch.setenv("LIGHTNINGRL_ADMIN_KEY", "another")
    with pytest.raises(ConfigError, match="both LIGHTNINGRL_ADMIN_KEY and"):
        settings.admin_keys()


def test_several_keys_stand_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_RUNNER_KEY", "one, two")
    assert settings.runner_keys() == ("one", "two")
    monkeypatch.setenv("LIGHTNINGRL_KEY", "one,two")
    with pytest.raises(ConfigError, match="a client has one"):
        settings.client_key()


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_key_file_that_everyone_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("secret")
    file.chmod(0o644)
    monkeypatch.setenv("LIGHTNINGRL_KEY_FILE", str(file))
    with pytest.raises(ConfigError, match="chmod") as refusal:
        settings.client_key()
    assert "secret" not in str(refusal.value).replace(str(file), "")


@pytest.mark.parametrize(("text", "message"), [("", "holds no key"), (None, "can't be read")])
def test_a_key_file_without_a_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    file = tmp_path / "key"
    if text is not None:
        file.write_text(text)
        file.chmod(0o600)
    monkeypatch.setenv("LIGHTNINGRL_KEY_FILE", str(file))
    with pytest.raises(ConfigError, match=message):
        settings.client_key()


@pytest.mark.parametrize("text", ["many", "-1", "0", "inf", "nan"])
def test_a_number_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_RETRY_SECONDS", text)
    with pytest.raises(ConfigError, match="LIGHTNINGRL_RETRY_SECONDS"):
        settings.retry_seconds()


def test_numbers_have_their_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    documented = {one.name: one.default.strip("`") for one in settings.SETTINGS}
    for name in ("RETRY_SECONDS", "STORE_BODY_BYTES"):
        monkeypatch.delenv(f"LIGHTNINGRL_{name}", raising=False)
        read = getattr(settings, name.lower())
        assert read() == float(documented[f"LIGHTNINGRL_{name}"])


def test_every_limit_of_the_gateway_is_a_setting_with_its_default() -> None:
    prefix = "LIGHTNINGRL_GATEWAY_"
    documented = {
        one.name: one.default.strip("`") for one in settings.SETTINGS if one.name.startswith(prefix)
    }
    defaults = {
        prefix + name.upper(): "no limit"
        if value is None
        else f"{value:g}"
        if isinstance(value, float)
        else f"{value}"
        for name, value in msgspec.structs.asdict(GatewayLimits()).items()
    }
    assert documented == defaults


def test_limits_of_the_gateway_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits_of_environment() == GatewayLimits()
    monkeypatch.setenv("LIGHTNINGRL_GATEWAY_CALLS_PER_ATTEMPT", "20")
    monkeypatch.setenv("LIGHTNINGRL_GATEWAY_UPSTREAM_SECONDS", "2.5")
    monkeypatch.setenv("LIGHTNINGRL_GATEWAY_HEALTH_SECONDS", "0")
    monkeypatch.setenv("LIGHTNINGRL_GATEWAY_HEALTH_PATH", "models")
    read = limits_of_environment()
    assert (read.calls_per_attempt, read.upstream_seconds) == (20, 2.5)
    assert (read.health_seconds, read.health_path) == (0.0, "models")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CALLS_PER_ATTEMPT", "0"),
        ("CALLS_PER_ATTEMPT", "2.5"),
        ("BODY_BYTES", "many"),
        ("UPSTREAM_SECONDS", "inf"),
        ("UPSTREAM_RETRIES", "-1"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LIGHTNINGRL_GATEWAY_{name}", text)
    with pytest.raises(ConfigError, match=f"LIGHTNINGRL_GATEWAY_{name} can't be '{text}'"):
        limits_of_environment()


def test_viewers_keys_stand_one_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_VIEWER_KEY", "key-of-all\nkey-of-two sql rag\n")
    assert settings.viewer_keys() == ("key-of-all", "key-of-two sql rag")
    # `rag` would be a key that shows every run.
    monkeypatch.setenv("LIGHTNINGRL_VIEWER_KEY", "key-of-two sql,rag")
    with pytest.raises(ConfigError, match="one key a line"):
        settings.viewer_keys()
