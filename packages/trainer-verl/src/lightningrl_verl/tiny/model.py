"""Small language models in a standard shape, with weights drawn from a seed.

Invariant: the same spec, vocabulary and seed give the same weights, and the global random state of
torch is left as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lightningrl_verl.tiny.spec import TinySpec
from lightningrl_verl.tiny.tokenizer import END, PAD, SPECIAL_TOKENS

_INITIALIZER_RANGE = 0.04
"""Standard deviation of the drawn weights; Llama's 0.02 suits widths of thousands."""


def build_model(spec: TinySpec, vocabulary_size: int, *, seed: int) -> PreTrainedModel:
    """Return a model in `spec`'s shape with tied embeddings, in float32."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads,
        "max_position_embeddings": spec.context,
        "initializer_range": _INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "bos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**shape))
        return Qwen2ForCausalLM(Qwen2Config(**shape))
