"""A small word tokenizer with a compact chat template, as an ordinary Hugging Face tokenizer.

Text is cut greedily into the longest known piece: whole words as " word", else single characters, and
digits always one by one. Invariants, each checked by a test:

- decode(encode(text)) is `text` for printable ASCII, newline and tab; any other character is `<unk>`.
- The template appends: rendering a conversation, its answer and what follows starts with the rendered
  conversation and the answer as it was sampled. So the token ids of a later prompt continue those of
  an earlier one, and every turn merges into one training row.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from lightningrl.errors import ConfigError

PAD, UNK, END = "<pad>", "<unk>", "<end>"
SPECIAL_TOKENS = (PAD, UNK, "<user>", "<asst>", "<call>", "<ans>", "<tool>", END)
"""Their ids are their positions."""

CHARACTERS = "\t\n" + "".join(c for c in map(chr, range(0x20, 0x7F)) if c in string.printable)
"""Every character that has a token of its own."""

# A piece never crosses one of these cuts, so an unknown character costs one <unk> and not a sentence,
# and the greedy search stays within a word instead of being quadratic in the text.
_CUTS = " ?[A-Za-z_]+|[^A-Za-z_]"
_WORD = re.compile(" ?[A-Za-z_]+")

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro call(function) -%}
<call>
{%- if tools and tools | length > 1 -%}{{ function.name ~ ' ' }}{%- endif -%}
{%- if function.arguments is string -%}{{ function.arguments }}
{%- elif function.arguments | length == 1 and (function.arguments.values() | first) is string -%}
{{ function.arguments.values() | first }}
{%- else -%}{{ function.arguments | tojson }}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set content = text(message.content) -%}
{%- if message.role == 'user' -%}{{ '<user> ' ~ content }}
{%- elif message.role == 'tool' -%}{{ '<tool>' ~ content }}
{%- elif message.role == 'assistant' -%}
<asst>
{%- if content or not message.tool_calls -%}{{ '<ans>' ~ content }}{%- endif -%}
{%- for tool_call in message.tool_calls or [] -%}{{ call(tool_call.function) }}{%- endfor -%}
<end>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<asst>{%- endif -%}
"""
"""System text is left out. A call is `<call>ARGUMENTS<end>`: the bare value where the only argument is
text, else JSON; with several tools declared, the tool's name and a space come first."""


def build_tokenizer(words: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows `words` beside single characters.

    Args:
        words: pieces such as " apples" (with its leading space) or "ba" (a syllable).
        context: longest sequence of the model, in tokens.

    Raises:
        ConfigError: if a piece is no word, or stands twice.
    """
    if wrong := [word for word in words if not _WORD.fullmatch(word)]:
        raise ConfigError(
            f"word pieces {wrong[:5]!r} must be letters or _, with at most one leading space"
        )
    if len(set(words)) != len(words):
        raise ConfigError("a word piece stands twice: remove the duplicates from the spec's words")
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *CHARACTERS, *words])
    tokenizer = Tokenizer(
        WordPiece(
            {piece: number for number, piece in enumerate(pieces)},
            unk_token=UNK,
            continuing_subword_prefix="",
            max_input_chars_per_word=10_000,
        )
    )
    tokenizer.pre_tokenizer = Split(Regex(_CUTS), "isolated")
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, UNK, END)],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
