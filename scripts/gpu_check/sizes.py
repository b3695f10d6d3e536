"""What is measured on what: shapes of models, loads, and how many floating-point operations they take."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Shape:
    """A model in the form of Qwen2, with tied embeddings."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied by: all but norms, biases and the embedding's look-up."""
        head = self.hidden_size // self.num_attention_heads
        queries, values = head * self.num_attention_heads, head * self.num_key_value_heads
        attention = self.hidden_size * (2 * queries + 2 * values)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    def forward_flops(self, lengths: list[int]) -> float:
        """Of one forward pass over sequences of these lengths, padding not counted.

        2 per weight and token, and for causal attention 2 * layers * hidden * T^2 per sequence: scores and
        mixed values are each 2 * T^2 / 2 * hidden. A backward pass takes twice as many (PaLM, arXiv
        2204.02311, appendix B, with attention's half that causality needs).
        """
        attention = 2 * self.num_hidden_layers * self.hidden_size
        return sum(2 * self.matrix_parameters * t + attention * t * t for t in lengths)


@dataclass(frozen=True)
class Size:
    """The loads of one check."""

    shapes: tuple[Shape, ...]
    """The first is measured in all ways, the others in training alone."""
    rows: int
    row_tokens: int
    """Of the longest row."""
    micro_batch_tokens: int
    conversations: int
    turns: int
    first_tokens: int
    """Of a conversation's first prompt."""
    turn_tokens: int
    """Sampled in a turn, and again read before the next one."""
    slots: tuple[int, ...]
    """Requests that are answered at once."""
    answer_tokens: int
    matrix: int
    """Rows and columns of the matrices whose product is the measure of the chip."""
    runs: int


# Qwen2.5's config.json of both sizes.
QWEN = Size(
    shapes=(
        Shape("0.5B", 151_936, 896, 4864, 24, 14, 2),
        Shape("1.5B", 151_936, 1536, 8960, 28, 12, 2),
    ),
    rows=64,
    row_tokens=1024,
    micro_batch_tokens=16_384,
    conversations=32,
    turns=8,
    first_tokens=256,
    turn_tokens=64,
    slots=(64, 256),
    answer_tokens=256,
    matrix=8192,
    runs=3,
)
TINY = Size(
    shapes=(Shape("tiny", 64, 32, 48, 2, 4, 2),),
    rows=4,
    row_tokens=16,
    micro_batch_tokens=256,
    conversations=2,
    turns=3,
    first_tokens=8,
    turn_tokens=4,
    slots=(4,),
    answer_tokens=8,
    matrix=64,
    runs=1,
)


def build_model(folder: Path, shape: Shape, device: str) -> None:
    """Write a random model and a tokenizer of its vocabulary to `folder`."""
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(shape.vocab_size - 1)} | {"<end>": shape.vocab_size - 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<end>"
    )
    tokenizer.pad_token = "<end>"
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=shape.vocab_size - 1,
        pad_token_id=shape.vocab_size - 1,
    )
    with torch.device(device):
        Qwen2ForCausalLM(config).save_pretrained(folder)
    gc.collect()
