"""What a GGUF file says about its model, beside the weights.

Keys are those of the GGUF specification; `tokenizer.ggml.pre` is the name by which llama.cpp knows how a
tokenizer cuts text before it merges.

Invariant: what is returned can be converted, or reading raises with the key at fault.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from lightningrl.errors import ConfigError
from lightningrl_verl.pretrained.pre_tokenizers import PRE_TOKENIZERS

T = TypeVar("T")

ARCHITECTURES = ("llama", "qwen2")
"""Values of `general.architecture` whose weights and shape are checked."""

_WHOLE = {"F32", "F16", "BF16"}
"""Types of tensors that are not quantised."""

_CONTROL, _USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    context: int
    rope_theta: float
    norm_epsilon: float
    tied_head: bool
    """Whether the head is the embedding."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary."""

    pre_tokenizer: str
    """A name in `PRE_TOKENIZERS`."""
    tokens: tuple[str, ...]
    """Their ids are their positions."""
    merges: tuple[tuple[str, str], ...]
    control: tuple[str, ...]
    """Tokens that stand for themselves and never for text."""
    added: tuple[str, ...]
    """Tokens of text that are cut out before anything else."""
    end: str
    pad: str
    begin: str | None
    unknown: str | None


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in a GGUF file."""

    path: Path
    architecture: str
    name: str | None
    licence: str | None
    shape: Shape
    vocabulary: Vocabulary
    template: str | None
    """Chat template."""
    parameters: int
    """Weights, a tied head counted once."""
    tensor_types: dict[str, int]
    """GGUF's name of a type -> tensors of it."""

    @property
    def quantised(self) -> str | None:
        """The quantised types, the commonest first. `None`: the weights are whole."""
        counted = Counter({k: n for k, n in self.tensor_types.items() if k not in _WHOLE})
        return ", ".join(kind for kind, _ in counted.most_common()) or None


def read_gguf(path: Path) -> GgufModel:
    """Read all but the weights; a vocabulary of 50,000 takes seconds.

    Raises:
        ConfigError: it is no GGUF file, lacks a key, or has an architecture or tokenizer that isn't known.
    """
    # Only now: numpy and more.
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{str(path)!r} can't be read as GGUF: {error}") from error
    keys = _Keys(path, reader)
    architecture = keys.need("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{str(path)!r} has general.architecture {architecture!r}; these can be converted:"
            f" {', '.join(ARCHITECTURES)}. Convert it elsewhere, and name its Hugging Face folder"
        )
    tensors = list(reader.tensors)
    return GgufModel(
        path=path,
        architecture=architecture,
        name=keys.get("general.name", str),
        licence=keys.get("general.license", str),
        shape=_shape(keys, architecture, {one.name for one in tensors}),
        vocabulary=_vocabulary(keys),
        template=keys.get("tokenizer.chat_template", str),
        parameters=sum(int(one.n_elements) for one in tensors),
        tensor_types=dict(Counter(one.tensor_type.name for one in tensors)),
    )


class _Keys:
    """The key-value part of a file, with types checked."""

    def __init__(self, path: Path, reader: Any) -> None:
        self._path, self._fields = path, reader.fields

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value. `None`: there is none."""
        field = self._fields.get(key)
        value: Any = None if field is None else field.contents()
        if kind is float and isinstance(value, int):
            value = float(value)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(key, f"is {value!r}")
        return cast("T | None", value)

    def need(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def wrong(self, key: str, how: str) -> ConfigError:
        """An error that names the key."""
        return ConfigError(f"{str(self._path)!r}: the GGUF key {key!r} {how}")


def _shape(keys: _Keys, architecture: str, tensors: set[str]) -> Shape:
    def whole(name: str) -> int:
        return keys.need(f"{architecture}.{name}", int)

    heads = whole("attention.head_count")
    return Shape(
        layers=whole("block_count"),
        hidden_size=whole("embedding_length"),
        intermediate_size=whole("feed_forward_length"),
        heads=heads,
        key_value_heads=keys.get(f"{architecture}.attention.head_count_kv", int) or heads,
        context=whole("context_length"),
        # llama.cpp's own default.
        rope_theta=keys.get(f"{architecture}.rope.freq_base", float) or 10_000.0,
        norm_epsilon=keys.need(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        tied_head="output.weight" not in tensors,
    )


def _vocabulary(keys: _Keys) -> Vocabulary:
    model = keys.need("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise keys.wrong(
            "tokenizer.ggml.model", f"is {model!r}; only 'gpt2', byte-level BPE, is known"
        )
    pre = keys.need("tokenizer.ggml.pre", str)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise keys.wrong(
            "tokenizer.ggml.pre",
            f"is {pre!r}, a pre-tokenizer that is not known; these are: {known}",
        )
    if keys.get("tokenizer.ggml.add_bos_token", bool):
        raise keys.wrong("tokenizer.ggml.add_bos_token", "is true, which is not supported")
    tokens: list[str] = keys.need("tokenizer.ggml.tokens", list)
    kinds: list[int] = keys.need("tokenizer.ggml.token_type", list)

    def token(name: str) -> str | None:
        key = f"tokenizer.ggml.{name}_token_id"
        number = keys.get(key, int)
        if number is not None and not 0 <= number < len(tokens):
            raise keys.wrong(key, f"is {number}, of {len(tokens)} tokens")
        return None if number is None else tokens[number]

    end = token("eos")
    if end is None:
        raise keys.wrong("tokenizer.ggml.eos_token_id", "is missing")
    merges: list[str] = keys.need("tokenizer.ggml.merges", list)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise keys.wrong("tokenizer.ggml.merges", "has an entry that is not two pieces")
    return Vocabulary(
        pre_tokenizer=pre,
        tokens=tuple(tokens),
        merges=cast("tuple[tuple[str, str], ...]", tuple(pairs)),
        control=tuple(t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL),
        added=tuple(t for t, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED),
        end=end,
        # Padding never enters a sequence that is trained or sampled; some token must stand for it.
        pad=token("padding") or end,
        begin=token("bos"),
        unknown=token("unknown"),
    )
