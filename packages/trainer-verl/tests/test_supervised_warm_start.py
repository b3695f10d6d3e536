"""A warm start is made once, from a model's own files, and found again by all that decides it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe, parse_recipe
from lightningrl_verl.supervised.course import Course
from lightningrl_verl.supervised.demonstrations import Demonstration
from lightningrl_verl.supervised.prepare import prepare
from lightningrl_verl.supervised.rows import Material
from lightningrl_verl.supervised.tuition import Tuition
from lightningrl_verl.supervised.warm_start import build_warm_start, place_of
from lightningrl_verl.tiny import TinySpec, build_tiny
from lightningrl_verl.tiny.spec import Segment
from lightningrl_verl.worker.from_recipe import supervised_config
from lightningrl_verl.worker.learner import Learner

torch.set_num_threads(1)


def _echo(rng: random.Random) -> list[Segment]:
    return [("<user> say<asst>", False), (f"<ans>{rng.randint(0, 9)}<end>", True)]


SPEC = TinySpec(
    name="echo", words=(" say",), demonstration=_echo, hidden_size=32, intermediate_size=64,
    layers=2, heads=2, context=64, updates=2, batch_size=4,
)  # fmt: skip

DIALOGUES = [
    Demonstration(
        f"d:{number}",
        str(number),
        ({"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": "yes"}),
        (),
    )
    for number in range(8)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(SPEC, tmp_path_factory.mktemp("tiny"), seed=0, threads=1).path


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def _recipe(base: Path, **changes: Any) -> Recipe:
    warm_start = {
        "demonstrations": "d.jsonl", "learning_rate": 1e-2, "epochs": 3, "batch_size": 4,
        "held_out": 0.25, **changes,
    }  # fmt: skip
    policy = {
        "model": str(base), "tool_parser": "compact", "max_model_len": 64, "warm_start": warm_start,
    }  # fmt: skip
    return parse_recipe({"name": "demo", "policies": {"policy": policy}})


def _material(recipe: Recipe, base: Path) -> Material:
    return prepare(DIALOGUES, base, recipe.policies["policy"], alias="policy", seed=recipe.seed)


def _place(root: Path, base: Path, recipe: Recipe, material: Material) -> Any:
    settings = recipe.policies["policy"].warm_start
    assert settings is not None
    config = supervised_config(recipe, "policy", base, 6)
    return place_of(root, "policy", base, material, settings, config)


async def test_it_has_the_models_own_files_and_what_was_learned(
    base: Path, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    recipe = _recipe(base)
    settings = recipe.policies["policy"].warm_start
    assert settings is not None
    material = _material(recipe, base)
    course = Course(settings, len(material.train), seed=0)
    assert course.updates == 6  # 6 of 8 dialogues in updates of 3, thrice
    place = _place(tmp_path, base, recipe, material)
    assert place.found() is None
    learner = Learner(thread, None)
    await learner.start(supervised_config(recipe, "policy", base, course.updates), None, None, 1)
    seen: list[tuple[int, int]] = []
    made = await build_warm_start(
        place, base, Tuition(learner, material, course), settings,
        lambda done, updates, _: seen.append((done, updates)),
    )  # fmt: skip
    assert seen == [(number, 6) for number in range(1, 7)]
    assert made.built
    assert made.record["val_loss_after"] < made.record["val_loss_before"]
    for file in base.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            assert (made.path / file.name).read_bytes() == file.read_bytes(), file.name
    weights = dict(AutoModelForCausalLM.from_pretrained(made.path, dtype="auto").named_parameters())
    learned = dict(learner.backend.named_parameters())
    assert all(torch.equal(learned[name], weight) for name, weight in weights.items())
    AutoTokenizer.from_pretrained(made.path)
    again = place.found()
    assert again is not None
    assert (again.path, again.built) == (made.path, False)
    (made.path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"warm start .* does not match its warm_start\.json"):
        place.found()


def test_whatever_changes_the_weights_changes_the_name(base: Path, tmp_path: Path) -> None:
    recipe = _recipe(base)
    material = _material(recipe, base)

    def name(of: Recipe = recipe, shown: Material = material) -> str:
        return _place(tmp_path, base, of, shown).path.name

    other = replace(material, train=material.train[:-1])
    bf16 = msgspec.structs.replace(
        recipe, trainer=msgspec.structs.replace(recipe.trainer, dtype="bf16")
    )
    names = [
        name(), name(_recipe(base, epochs=2)), name(_recipe(base, learning_rate=1e-3)),
        name(_recipe(base, seed=1)), name(shown=other), name(bf16),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    # How often it is scored changes nothing.
    assert name(_recipe(base, score_every=1)) == name()
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in base.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert _place(tmp_path, copied, recipe, material).path.name == name()
    (copied / "config.json").write_text("{}", encoding="utf-8")
    assert _place(tmp_path, copied, recipe, material).path.name != name()
