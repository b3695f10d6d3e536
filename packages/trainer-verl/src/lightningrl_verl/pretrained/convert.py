"""From a GGUF file to a Hugging Face folder, once.

transformers computes the weights and the configuration; the tokenizer is ours (`tokenizer.py`).

Invariant: a converted folder has passed every check of `verify.py`, as it is loaded from the disk, and its
configuration is in the file's shape. Numbers are the file's, in fp32, to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import re
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lightningrl.errors import ConfigError
from lightningrl_verl.machine.built_folder import BuiltFolder, build_once, code_digest, file_digest
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.pretrained.gguf_file import GgufModel, read_gguf
from lightningrl_verl.pretrained.record import RECORD
from lightningrl_verl.pretrained.tokenizer import build_tokenizer
from lightningrl_verl.pretrained.verify import (
    check_cuts,
    check_template,
    check_tokenizer,
    unwritable_bytes,
)

_LIBRARIES = ("gguf", "tokenizers", "torch", "transformers")
"""Whose versions may change the result."""


def convert(file: Path, root: Path, *, licence: str | None = None) -> BuiltFolder:
    """Return the folder of a GGUF file, converting it if it is not there; that takes about a minute.

    Args:
        file: the GGUF file.
        root: folder of the folders that are built.
        licence: where the file itself does not say.

    Raises:
        ConfigError: the file can't be converted, or a check fails.
        RunError: the folder found is damaged.
    """
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    source = file_digest(file)
    decides = [source, versions, code_digest(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)

    def write(draft: Path) -> Mapping[str, Any]:
        started = time.perf_counter()
        model = read_gguf(file)
        _write(draft, model)
        return {
            **describe_file(model, licence),
            "file": {"name": file.name, "bytes": file.stat().st_size, "sha256": source},
            "versions": versions,
            "seconds": round(time.perf_counter() - started, 2),
        }

    return build_once(
        root / f"{stem}-{digest[:16]}", what="model", record=RECORD, digest=digest, write=write
    )


def describe_file(model: GgufModel, licence: str | None) -> dict[str, Any]:
    """What a record says of a GGUF file."""
    note = f"dequantised from {model.quantised}: not bit for bit the published model"
    return {
        "name": model.path.stem,
        "called": model.name,
        "licence": model.licence or licence,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "context": model.shape.context,
        "tensor_types": model.tensor_types,
        "note": note if model.quantised else None,
        "unwritable_bytes": sorted(unwritable_bytes(model.vocabulary)),
    }


def write_tokenizer(draft: Path, model: GgufModel) -> None:
    """Write the tokenizer of a GGUF file into a folder that has a configuration, and check it.

    Raises:
        ConfigError: a check fails.
    """
    _tokenizer(model).save_pretrained(draft)
    # As everyone else will load it: which class reads the files depends on the configuration.
    with quiet():
        loaded = AutoTokenizer.from_pretrained(draft)
    with _refusing(model):
        check_tokenizer(loaded, model.vocabulary)
        _check_template(loaded, model)


def check_before(model: GgufModel) -> None:
    """Find out what can be found without the weights and the disk.

    Raises:
        ConfigError: a check fails.
    """
    with _refusing(model):
        unwritable_bytes(model.vocabulary)
        tokenizer = _tokenizer(model)
        check_cuts(tokenizer, model.vocabulary)
        _check_template(tokenizer, model)


def _tokenizer(model: GgufModel) -> PreTrainedTokenizerFast:
    return build_tokenizer(model.vocabulary, template=model.template, context=model.shape.context)


def _check_template(tokenizer: PreTrainedTokenizerBase, model: GgufModel) -> None:
    # A file may have none: then the recipe must give one, which is checked when it is put on.
    if model.template is not None:
        check_template(tokenizer)


@contextlib.contextmanager
def _refusing(model: GgufModel) -> Generator[None]:
    """Name the file in errors."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{str(model.path)!r} is refused: {error}") from error


def _write(draft: Path, model: GgufModel) -> None:
    check_before(model)
    # Its progress bar is no logger's and goes to stderr.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        weights: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model.path.parent, gguf_file=model.path.name, dtype=torch.float32
        )
    _check_shape(weights.config, model)
    tokens = model.vocabulary.tokens
    begin = model.vocabulary.begin
    special = {
        "bos_token_id": None if begin is None else tokens.index(begin),
        "eos_token_id": tokens.index(model.vocabulary.end),
        "pad_token_id": tokens.index(model.vocabulary.pad),
    }
    weights.config.update(special)
    weights.generation_config = GenerationConfig(**special)
    with quiet():
        weights.save_pretrained(draft)
    write_tokenizer(draft, model)


def _check_shape(config: PreTrainedConfig, model: GgufModel) -> None:
    """See that transformers has read the file as it says.

    Raises:
        ConfigError: it has not.
    """
    shape = model.shape
    wanted = {
        "model_type": model.architecture,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_epsilon,
        "vocab_size": len(model.vocabulary.tokens),
        "tie_word_embeddings": shape.tied_head,
    }
    found = {name: getattr(config, name) for name in wanted}
    wanted["rope_theta"] = shape.rope_theta
    found["rope_theta"] = (config.rope_parameters or {}).get("rope_theta")
    wrong = {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}
    if wrong:
        raise ConfigError(
            f"{str(model.path)!r}: transformers reads (found, in the file) {wrong}; it can't be converted"
        )
