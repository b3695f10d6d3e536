"""A tiny policy is built once, reproducibly, and a damaged one is never used."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightningrl.errors import ConfigError, RunError
from lightningrl_verl.tiny import TinySpec, build_tiny, build_tokenizer
from lightningrl_verl.tiny.model import build_model
from lightningrl_verl.tiny.spec import Segment
from lightningrl_verl.tiny.warm_start import warm_start


def _echo(rng: random.Random) -> list[Segment]:
    """Draw a digit that is to be repeated: learnt in a few dozen updates."""
    digit = rng.randint(0, 9)
    return [(f"<user> say {digit}<asst>", False), (f"<ans>{digit}<end>", True)]


def _shout(rng: random.Random) -> list[Segment]:
    """Draw a demonstration that differs from every echo."""
    return [("<user> say 1<asst>", False), (f"<ans>{rng.randint(0, 9)}!<end>", True)]


SPEC = TinySpec(
    name="echo",
    words=(" say",),
    demonstration=_echo,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    context=32,
    updates=160,
    batch_size=16,
    learning_rate=1e-2,
    warmup_updates=5,
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def _weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_a_built_policy_has_learnt_its_demonstrations(tmp_path: Path) -> None:
    policy = build_tiny(SPEC, tmp_path, seed=0, threads=1)
    assert policy.built
    assert policy.action_loss < 0.4  # three action tokens, one of ten digits: ln(10) / 3 = 0.77
    assert policy.demonstrations == 160 * 16
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    model = AutoModelForCausalLM.from_pretrained(policy.path)
    assert sum(weight.numel() for weight in model.parameters()) == policy.parameters
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say 7"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    sampled = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    assert tokenizer.decode(sampled) == "<user> say 7<asst><ans>7<end>"


def test_the_record_says_what_the_policy_is(tmp_path: Path) -> None:
    policy = build_tiny(replace(SPEC, updates=2), tmp_path, seed=3, threads=1)
    record = json.loads((policy.path / "tiny_policy.json").read_text(encoding="utf-8"))
    assert record["what"].startswith("A tiny policy, warm-started on noisy demonstrations")
    assert record["seed"] == 3
    assert record["spec"]["updates"] == 2
    assert record["parameters"] == policy.parameters
    assert record["digest"].startswith(policy.path.name.removeprefix("echo-"))


def test_a_second_build_finds_the_first(tmp_path: Path) -> None:
    spec = replace(SPEC, updates=2)
    first = build_tiny(spec, tmp_path, seed=0, threads=1)
    before = _weights(first.path)
    second = build_tiny(spec, tmp_path, seed=0, threads=1)
    assert (first.built, second.built) == (True, False)
    assert replace(second, built=True) == first
    assert _weights(second.path) == before


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    spec = replace(SPEC, updates=5)
    torch.manual_seed(1)
    first = build_tiny(spec, tmp_path / "a", seed=0, threads=1)
    torch.manual_seed(2)
    second = build_tiny(spec, tmp_path / "b", seed=0, threads=1)
    other = build_tiny(spec, tmp_path / "b", seed=1, threads=1)
    assert _weights(first.path) == _weights(second.path)
    assert _weights(first.path) != _weights(other.path)


def test_building_leaves_the_random_state_of_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(SPEC, 40, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_both_architectures_are_built_with_tied_embeddings(
    architecture: Literal["llama", "qwen2"],
) -> None:
    model = build_model(replace(SPEC, architecture=architecture), 40, seed=0)
    assert model.config.model_type == architecture
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_whatever_changes_the_policy_changes_its_digest() -> None:
    digests = {
        SPEC.digest(),
        replace(SPEC, updates=161).digest(),
        replace(SPEC, words=(" say", " pen")).digest(),
        replace(SPEC, demonstration=_shout).digest(),
    }
    assert len(digests) == 4
    assert replace(SPEC).digest() == SPEC.digest()


def test_a_damaged_policy_is_refused_by_name(tmp_path: Path) -> None:
    spec = replace(SPEC, updates=2)
    policy = build_tiny(spec, tmp_path, seed=0, threads=1)
    weights = policy.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match=f"{policy.path.name}.*does not match.*delete the folder"):
        build_tiny(spec, tmp_path, seed=0, threads=1)
    weights.unlink()
    with pytest.raises(RunError, match="damaged: delete the folder"):
        build_tiny(spec, tmp_path, seed=0, threads=1)


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, updates: int, loss: float) -> None:
        raise Interrupted

    spec = replace(SPEC, updates=2)
    with pytest.raises(Interrupted):
        build_tiny(spec, tmp_path, seed=0, threads=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert build_tiny(spec, tmp_path, seed=0, threads=1).built


def test_progress_counts_every_update(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    spec = replace(SPEC, updates=3)
    build_tiny(
        spec, tmp_path, seed=0, threads=1, progress=lambda done, n, _: seen.append((done, n))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_loss_that_is_not_finite_ends_the_warm_start() -> None:
    tokenizer = build_tokenizer(SPEC.words, context=SPEC.context)
    model = build_model(SPEC, len(tokenizer), seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError, match="'echo': the loss of update 0 is nan"):
        warm_start(model, tokenizer, SPEC, seed=0, threads=1)


def test_a_demonstration_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="8 tokens, more than its context of 7"):
        build_tiny(replace(SPEC, context=7), tmp_path, seed=0, threads=1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"updates": 0}, "updates must be above 0"),
        ({"hidden_size": 30}, "hidden_size 30 must be a multiple"),
        ({"name": "a/b"}, "name 'a/b' may hold"),
    ],
)
def test_a_spec_that_can_not_be_built_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(SPEC, **change)  # pyright: ignore[reportArgumentType]
