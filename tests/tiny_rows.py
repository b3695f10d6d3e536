"""A policy of random weights and rows of random tokens, small enough for many updates a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 40


@dataclass(frozen=True)
class Sequence:
    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: NDArray[np.float32]
    rollout_id: str = "rollout-1"


def write_model(folder: Path, *, tied: bool) -> Path:
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"<end>": VOCAB - 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<end>"
    )
    tokenizer.pad_token = "<end>"
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            eos_token_id=VOCAB - 1,
            pad_token_id=VOCAB - 1,
        )
    ).save_pretrained(folder)
    return folder


def sequences(count: int, seed: int = 0) -> list[Sequence]:
    """Prompt, sampled tokens, a tool's result, sampled tokens; advantages of both signs."""
    draw = np.random.default_rng(seed)
    made: list[Sequence] = []
    for i in range(count):
        length = int(draw.integers(12, 30))
        mask = np.zeros(length, bool)
        mask[4:7] = mask[9:] = True
        advantages = np.where(mask, (1 if i % 2 else -1) / count, 0).astype(np.float32)
        ids = draw.integers(0, VOCAB, length).astype(np.int32)
        made.append(Sequence(ids, mask, advantages, f"rollout-{i}"))
    return made
