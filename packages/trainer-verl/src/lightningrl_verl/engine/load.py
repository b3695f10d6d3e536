"""A `torch` engine from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lightningrl.recipe import Recipe
from lightningrl_verl.engine.torch_engine import TorchEngine
from lightningrl_verl.machine.quiet import quiet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a recipe says about the engine of one policy."""

    slots: int
    threads: int | None
    max_model_len: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["fp32", "bf16"]


def engine_settings(recipe: Recipe, alias: str) -> EngineSettings:
    """Those of the policy `alias`."""
    return EngineSettings(
        slots=recipe.engine.slots,
        threads=recipe.engine.threads,
        max_model_len=recipe.policies[alias].max_model_len,
        device=recipe.trainer.device,
        dtype=recipe.trainer.precision,
    )


def load_engine(model: Path, settings: EngineSettings, version: int) -> TorchEngine:
    """An engine with the weights of a folder, not started yet."""
    with quiet():
        weights: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model, dtype=DTYPES[settings.dtype], attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
    weights.to(torch.device(settings.device))  # pyright: ignore[reportArgumentType] - transformers' wrapper hides `self`
    return TorchEngine(
        weights,
        tokenizer,
        slots=settings.slots,
        max_model_len=settings.max_model_len,
        threads=settings.threads,
        version=version,
    )
