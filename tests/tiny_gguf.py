"""A GGUF file of a random Llama with two layers, laid out as llama.cpp's converter does, for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

END, START, TEXT_END = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
SPECIAL = (TEXT_END, START, END)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, HIDDEN, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 96

Array = NDArray[np.float32]


@dataclass
class TinyGguf:
    """What the file is to say; tests change it before it is written."""

    architecture: str = "llama"
    pre: str = "smollm"
    end: int = 2
    pad: int | None = 2
    template: str | None = TEMPLATE
    quantised: bool = False
    """Whether the feed-forward weights are Q4_1."""
    without: tuple[str, ...] = ()
    """Tokens to put another in the place of."""
    weights: dict[str, Array] = field(default_factory=dict[str, Array])
    """Hugging Face's name -> the weights, once written."""

    def write(self, path: Path) -> Path:
        """Write the file; the same each time."""
        writer = GGUFWriter(path, self.architecture)
        writer.add_name("Tiny")
        writer.add_license("mit")
        writer.add_block_count(LAYERS)
        writer.add_context_length(1024)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(50_000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        vocabulary = self._add_tokenizer(writer)
        writer.add_vocab_size(vocabulary)
        self._add_weights(writer, vocabulary)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add_tokenizer(self, writer: GGUFWriter) -> int:
        tokens, merges = _vocabulary()
        tokens = [f"<unused {n}>" if one in self.without else one for n, one in enumerate(tokens)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
        writer.add_token_merges(merges)
        writer.add_add_bos_token(False)
        writer.add_eos_token_id(self.end)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        if self.template is not None:
            writer.add_chat_template(self.template)
        return len(tokens)

    def _add_weights(self, writer: GGUFWriter, vocabulary: int) -> None:
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Array:
            return rng.normal(0, 0.05, shape).astype(np.float32)

        def add(hf: str, name: str, weight: Array, heads: int | None = None) -> None:
            self.weights[hf] = weight
            stored = weight if heads is None else _interleaved(weight, heads)
            if self.quantised and "ffn_gate" in name:
                kind = GGMLQuantizationType.Q4_1
                packed = gguf.quantize(stored, kind)
                self.weights[hf] = gguf.dequantize(packed, kind)
                writer.add_tensor(name, packed, raw_dtype=kind)
            else:
                writer.add_tensor(name, stored)

        kv = HIDDEN // HEADS * KV_HEADS
        add("model.embed_tokens.weight", "token_embd.weight", draw(vocabulary, HIDDEN))
        add("model.norm.weight", "output_norm.weight", 1 + draw(HIDDEN))
        for n in range(LAYERS):
            hf, own = f"model.layers.{n}", f"blk.{n}"
            add(
                f"{hf}.self_attn.q_proj.weight", f"{own}.attn_q.weight", draw(HIDDEN, HIDDEN), HEADS
            )
            add(f"{hf}.self_attn.k_proj.weight", f"{own}.attn_k.weight", draw(kv, HIDDEN), KV_HEADS)
            add(f"{hf}.self_attn.v_proj.weight", f"{own}.attn_v.weight", draw(kv, HIDDEN))
            add(f"{hf}.self_attn.o_proj.weight", f"{own}.attn_output.weight", draw(HIDDEN, HIDDEN))
            add(f"{hf}.mlp.gate_proj.weight", f"{own}.ffn_gate.weight", draw(INNER, HIDDEN))
            add(f"{hf}.mlp.up_proj.weight", f"{own}.ffn_up.weight", draw(INNER, HIDDEN))
            add(f"{hf}.mlp.down_proj.weight", f"{own}.ffn_down.weight", draw(HIDDEN, INNER))
            add(f"{hf}.input_layernorm.weight", f"{own}.attn_norm.weight", 1 + draw(HIDDEN))
            add(f"{hf}.post_attention_layernorm.weight", f"{own}.ffn_norm.weight", 1 + draw(HIDDEN))


def _interleaved(weight: Array, heads: int) -> Array:
    """Rows as llama.cpp's rotary embedding wants them: the two halves of each head in turns."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _vocabulary() -> tuple[list[str], list[str]]:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    trainer = BpeTrainer(
        vocab_size=420, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=ByteLevel.alphabet(),
    )  # fmt: skip
    texts = ["what is 12 plus 30? the answer is\n\n42.", '{"name": "add", "arguments": {"a": 1}}']
    tokenizer.train_from_iterator(texts * 20, trainer)
    state: Any = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in state["merges"]]
