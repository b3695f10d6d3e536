"""How a byte-level BPE tokenizer cuts text before it merges, by llama.cpp's name, with cuts that are known.

The names and their patterns: `src/llama-vocab.cpp` of llama.cpp; in Hugging Face's terms they are what the
published tokenizers of these families hold.

Invariant: no merge crosses a cut, so a wrong one gives other token ids than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 47, "b": -3.5}}\n</tool_call>'
_CALL_CUT = '< tool _ call > Ċ {" name ": Ġ" add ", Ġ" arguments ": Ġ{" a ": Ġ 4 7 , Ġ" b ": Ġ- 3 . 5 }} Ċ </ tool _ call >'


@dataclass(frozen=True, slots=True)
class PreTokenizerKind:
    """One way to cut."""

    build: Callable[[], PreTokenizer]
    golden: Mapping[str, str]
    """Text -> its pieces in the byte alphabet, separated by blanks; blanks of the text are `Ġ`, newlines `Ċ`."""


def _smollm() -> PreTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _gpt2() -> PreTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False)


def _qwen2() -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    parts = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    cut = Split(Regex("|".join(parts)), "isolated")
    return Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: Mapping[str, PreTokenizerKind] = {
    "smollm": PreTokenizerKind(
        _smollm,
        {
            "\n\n7": "ĊĊ 7",
            "I can't add 4712 and 3.5.\n": "I Ġcan 't Ġadd Ġ 4 7 1 2 Ġand Ġ 3 . 5 . Ċ",
            "  x\t=  1": "Ġ Ġx ĉ = ĠĠ 1",
            _CALL: _CALL_CUT,
        },
    ),
    "gpt-2": PreTokenizerKind(
        _gpt2,
        {
            "\n\n7": "Ċ Ċ 7",
            "I can't add 4712 and 3.5.\n": "I Ġcan 't Ġadd Ġ4712 Ġand Ġ3 . 5 . Ċ",
        },
    ),
    "qwen2": PreTokenizerKind(
        _qwen2,
        {
            "\n\n7": "ĊĊ 7",
            "I can't add 4712 and 3.5.\n": "I Ġcan 't Ġadd Ġ 4 7 1 2 Ġand Ġ 3 . 5 .Ċ",
            _CALL: '<tool _call >Ċ {" name ": Ġ" add ", Ġ" arguments ": Ġ{" a ": Ġ 4 7 , Ġ" b ": Ġ- 3 . 5 }}Ċ </ tool _call >',
        },
    ),
}
"""By llama.cpp's name."""
