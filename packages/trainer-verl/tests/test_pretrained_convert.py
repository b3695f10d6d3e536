"""A GGUF file becomes a Hugging Face folder of the same numbers, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from tiny_gguf import TEMPLATE, TinyGguf
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lightningrl.cli import commands
from lightningrl.errors import ConfigError, RunError
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.pretrained.chat_template import with_template
from lightningrl_verl.pretrained.convert import convert, describe_file
from lightningrl_verl.pretrained.gguf_file import read_gguf
from lightningrl_verl.pretrained.record import read_record
from lightningrl_verl.pretrained.verify import check_template, check_tokenizer


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyGguf, Path, Path]:
    """What a file says, the file, and its folder."""
    folder = tmp_path_factory.mktemp("converted")
    tiny = TinyGguf(quantised=True)
    file = tiny.write(folder / "tiny.Q4_1.gguf")
    return tiny, file, convert(file, folder / "models").path


def test_weights_are_the_files_to_the_bit(converted: tuple[TinyGguf, Path, Path]) -> None:
    tiny, _, path = converted
    found = load_file(path / "model.safetensors")
    assert found.keys() == tiny.weights.keys()
    for name, wanted in tiny.weights.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], wanted), name


def test_shape_and_special_tokens_are_the_files(converted: tuple[TinyGguf, Path, Path]) -> None:
    _, _, path = converted
    model = AutoModelForCausalLM.from_pretrained(path)
    config = model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.max_position_embeddings)
    assert shape == (2, 2, 1024)
    assert config.rope_parameters["rope_theta"] == 50_000.0
    assert config.tie_word_embeddings
    assert (config.eos_token_id, config.pad_token_id) == (2, 2)
    assert model.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n7")["input_ids"]) == ["ĊĊ", "7"]


def test_the_record_tells_licence_size_digest_and_what_is_lost(
    converted: tuple[TinyGguf, Path, Path],
) -> None:
    tiny, file, path = converted
    record = read_record(path)
    assert record["licence"] == "mit"
    assert record["note"] == "dequantised from Q4_1: not bit for bit the published model"
    assert record["file"]["bytes"] == file.stat().st_size
    assert len(record["file"]["sha256"]) == 64
    assert record["parameters"] == sum(weight.size for weight in tiny.weights.values())
    assert record["unwritable_bytes"] == []
    assert path.name == f"tiny.Q4_1-{record['digest'][:16]}"


def test_it_is_converted_once_and_a_damaged_folder_is_refused(
    converted: tuple[TinyGguf, Path, Path], tmp_path: Path
) -> None:
    _, file, path = converted
    found = convert(file, path.parent)
    assert (found.built, found.path) == (False, path)
    shutil.copytree(path, tmp_path / path.name)
    with (tmp_path / path.name / "config.json").open("a") as config:
        config.write(" ")
    with pytest.raises(RunError, match=r"does not match its pretrained_model\.json"):
        convert(file, tmp_path)


def test_whole_weights_need_no_note(tmp_path: Path) -> None:
    model = read_gguf(TinyGguf().write(tmp_path / "a.gguf"))
    told = describe_file(model, None)
    assert (told["note"], told["tensor_types"]) == (None, {"F32": 20})


_REFUSED: dict[str, tuple[TinyGguf, str]] = {
    "end": (TinyGguf(end=1), r"the end token is '<\|im_start\|>', but .* ends a turn by '<\|im_end\|>"),
    "architecture": (TinyGguf(architecture="gemma3"), "general.architecture 'gemma3'.*llama, qwen2"),
    "pre": (TinyGguf(pre="deepseek"), "'tokenizer.ggml.pre' is 'deepseek'.*smollm, gpt-2, qwen2"),
    "bytes": (TinyGguf(without=("Ċ", "z")), r"no token for the bytes \['0xa', '0x7a'\]"),
    "template": (TinyGguf(template=TEMPLATE.replace("' + message['content'] + '", "")), "leaves .* out"),
    "opening": (TinyGguf(template=TEMPLATE.replace("assistant\n' }}", "assistant: ' }}")), "not continue"),
    "fails": (TinyGguf(template="{{ raise_exception('no') }}"), "the chat template fails: TemplateError: no"),
}  # fmt: skip


@pytest.mark.parametrize("what", _REFUSED)
def test_what_can_not_be_trusted_is_refused(what: str, tmp_path: Path) -> None:
    tiny, reason = _REFUSED[what]
    file = tiny.write(tmp_path / "refused.gguf")
    with pytest.raises(ConfigError, match=reason):
        convert(file, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.gguf"
    file.write_bytes(b"not a model" * 100)
    with pytest.raises(ConfigError, match="can't be read as GGUF"):
        convert(file, tmp_path / "models")


def test_without_a_pad_token_the_end_token_stands_for_it(tmp_path: Path) -> None:
    model = read_gguf(TinyGguf(pad=None).write(tmp_path / "a.gguf"))
    assert (model.vocabulary.end, model.vocabulary.pad) == ("<|im_end|>", "<|im_end|>")


def test_a_template_that_ends_turns_otherwise_is_refused(
    converted: tuple[TinyGguf, Path, Path], tmp_path: Path
) -> None:
    _, _, path = converted
    other = TEMPLATE.replace("'<|im_end|>' + ", "'</s>' + ")
    with pytest.raises(ConfigError, match=r"the end token is '<\|im_end\|>', but .* by '</s>"):
        with_template(path, "other.jinja", other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_template_of_ones_own_shares_the_weights(
    converted: tuple[TinyGguf, Path, Path], tmp_path: Path
) -> None:
    _, _, path = converted
    brief = TEMPLATE.replace("Be brief.", "Be kind.")
    built = with_template(path, "kind.jinja", brief, tmp_path)
    assert with_template(path, "kind.jinja", brief, tmp_path).path == built.path
    assert (built.path / "chat_template.jinja").read_text(encoding="utf-8") == brief
    assert read_record(built.path)["licence"] == "mit"
    one, other = path / "model.safetensors", built.path / "model.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_show_says_what_it_is_and_what_vanishes(converted: tuple[TinyGguf, Path, Path]) -> None:
    _, _, path = converted
    done = CliRunner().invoke(commands, ["model", "show", str(path)])
    assert done.exit_code == 0, done.output
    for part in (
        "licence",
        "mit",
        "1,024 tokens",
        "ends <|im_end|>",
        "not bit for bit",
        "vanishes",
    ):
        assert part in done.output, part


def _composed(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "NFC"}


def _digits_together(state: dict[str, Any]) -> None:
    state["pre_tokenizer"] = state["pre_tokenizer"]["pretokenizers"][-1]


def _merged_less(state: dict[str, Any]) -> None:
    state["model"]["merges"] = []


_WRONG: tuple[tuple[Callable[[dict[str, Any]], None], str], ...] = (
    (_composed, "a text does not survive the tokenizer"),
    (_digits_together, r"must be cut into \['ĊĊ', '7'\], but the tokens are \['Ċ', 'Ċ', '7'\]"),
    (_merged_less, r"must be cut into \['ĊĊ', '7'\]"),
)


@pytest.mark.parametrize(("change", "reason"), _WRONG)
def test_a_tokenizer_that_cuts_or_writes_otherwise_is_found_out(
    converted: tuple[TinyGguf, Path, Path],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    _, file, path = converted
    vocabulary = read_gguf(file).vocabulary
    wrong = _changed(path, tmp_path, change)
    with pytest.raises(ConfigError, match=reason):
        check_tokenizer(wrong, vocabulary)


def test_an_end_token_of_another_turn_is_found_out(
    converted: tuple[TinyGguf, Path, Path], tmp_path: Path
) -> None:
    _, file, path = converted
    tokenizer = _changed(path, tmp_path, lambda _: None)
    tokenizer.eos_token = "<|im_start|>"
    with pytest.raises(ConfigError, match="answers would not end"):
        check_template(tokenizer)
    with pytest.raises(ConfigError, match="the eos_token is"):
        check_tokenizer(tokenizer, read_gguf(file).vocabulary)


def _changed(
    path: Path, folder: Path, change: Callable[[dict[str, Any]], None]
) -> PreTrainedTokenizerBase:
    """The tokenizer of `path`, with another `tokenizer.json`."""
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text((path / name).read_text(encoding="utf-8"), encoding="utf-8")
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with quiet():
        return AutoTokenizer.from_pretrained(folder)
