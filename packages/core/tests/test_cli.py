"""The program `lightningrl`: its commands, how errors leave it, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from lightningrl.cli import Commands, commands
from lightningrl.errors import ConfigError, RunError

RECIPE = 'name: n\nagent: "m:f"\n'


def run(*arguments: str, group: click.Group = commands) -> Result:
    return CliRunner().invoke(group, arguments, prog_name="lightningrl")


def with_commands(*found: click.Command, entry_group: str = "nobody.announces.this") -> Commands:
    """The program with other entry points, and commands of the test's own."""
    group = Commands("lightningrl", params=commands.params, entry_group=entry_group)
    for one in found:
        group.add_command(one)
    return group


def raising(error: Exception) -> Commands:
    @click.command("fail")
    def fail() -> None:
        raise error

    return with_commands(fail)


# -- the commands -------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_line_about_it() -> None:
    result = run("--help", group=with_commands())
    assert result.exit_code == 0
    for name in (
        "delete",
        "doctor",
        "drift",
        "export",
        "import",
        "plot",
        "retry",
        "runner",
        "serve",
        "show",
        "try",
    ):
        (line,) = [one for one in result.output.splitlines() if one.startswith(f"  {name} ")]
        assert len(line.split(maxsplit=1)[1]) > 20


@pytest.mark.parametrize(
    "command",
    ["delete", "doctor", "export", "import", "plot", "retry", "runner", "serve", "show", "try"],
)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert f"Usage: lightningrl {command}" in result.output


def test_the_version_is_the_distributions() -> None:
    assert run("--version").output == "lightningrl, version 0.1.0\n"


def test_a_command_nearly_right_gets_the_right_one_suggested() -> None:
    result = run("shwo")
    assert result.exit_code == 2
    assert "No such command 'shwo'. Did you mean 'show'?" in result.output


@pytest.mark.parametrize("command", ["train", "tiny"])
def test_without_the_trainer_its_commands_say_what_to_install(command: str) -> None:
    result = run(command, "recipe.yaml", group=with_commands())
    assert result.exit_code == 2
    assert "pip install lightningrl-verl" in result.output


# -- entry points -------------------------------------------------------------------------------


def announce(folder: Path, group: str, name: str, value: str) -> None:
    """What installing a distribution leaves behind: its entry points."""
    info = folder / "announced-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: announced\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


def test_a_command_of_another_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path, "commands.of.this.test", "greet", "greeting_of_this_test:greet")
    (tmp_path / "greeting_of_this_test.py").write_text(
        "import click\n@click.command()\ndef greet():\n    'Say it.'\n    click.echo('hello')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    group = with_commands(entry_group="commands.of.this.test")
    assert "greet" in run("--help", group=group).output
    assert run("greet", group=group).output == "hello\n"


def test_a_command_that_cannot_be_imported_breaks_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path, "broken.of.this.test", "greet", "no_such_module_here:greet")
    monkeypatch.syspath_prepend(str(tmp_path))
    group = with_commands(entry_group="broken.of.this.test")
    assert run("--help", group=group).exit_code == 0
    result = run("greet", "--loudly", "all", group=group)
    assert result.exit_code == 2
    assert "'greet' (no_such_module_here:greet) can't be loaded" in result.output


# -- errors -------------------------------------------------------------------------------------


def test_an_error_of_ours_is_one_line_and_status_1() -> None:
    result = run("fail", group=raising(RunError("it stopped; do this")))
    assert (result.exit_code, result.stderr) == (1, "Error: it stopped; do this\n")
    assert result.stdout == ""


def test_a_wrong_setting_is_status_2_as_wrong_usage_is() -> None:
    result = run("fail", group=raising(ConfigError("no such thing")))
    assert (result.exit_code, result.stderr) == (2, "Error: no such thing\n")
    assert run("show").exit_code == 2  # RUN is missing


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RunError("it stopped")
    assert run("--debug", "fail", group=raising(error)).exception is error
    monkeypatch.setenv("LIGHTNINGRL_DEBUG", "1")
    assert run("fail", group=raising(error)).exception is error


def test_an_error_that_is_not_ours_keeps_its_traceback() -> None:
    error = ZeroDivisionError("somebody's")
    assert run("fail", group=raising(error)).exception is error


# -- starting -----------------------------------------------------------------------------------


def test_starting_imports_nothing_heavy() -> None:
    code = (
        "import sys, lightningrl.cli\n"
        "heavy = ['aiohttp', 'apsw', 'numpy', 'uvicorn', 'matplotlib', 'torch', 'rich']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_installed_program_runs(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("lightningrl")
    done = subprocess.run(
        [program, "plot", "nowhere"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: there is no run 'nowhere'")
    assert "Traceback" not in done.stderr


def test_a_runner_with_a_wrong_recipe_never_starts(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + "seeds: 3\n", encoding="utf-8")
    result = run("runner", str(recipe), "--server", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "unknown recipe key 'seeds'" in result.output
