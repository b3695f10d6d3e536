"""What must be true of a tokenizer and its chat template before a model is used.

Invariant: a check that fails is a ConfigError that shows the first text it failed on; nothing is repaired.
"""

from __future__ import annotations

from itertools import islice
from typing import cast

from transformers import PreTrainedTokenizerBase

from lightningrl.errors import ConfigError
from lightningrl_verl.pretrained.gguf_file import Vocabulary
from lightningrl_verl.pretrained.pre_tokenizers import PRE_TOKENIZERS
from lightningrl_verl.pretrained.texts import draw_texts

TEXTS = 10_000
_SEED = 0
_BATCH = 1000
_ANSWER = "Zygote answers 42"
"""A text that no template holds."""


def byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in a byte-level vocabulary (GPT-2's `encoder.py`)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(0x100 + place) for place, byte in enumerate(others)
    }


_NEEDED = frozenset([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)])
"""Bytes of UTF-8 that texts consist of: ASCII, every script in use, and emoji. Left out are control characters
and planes 4 to 16, of which the vocabulary of a published model may lack some."""


def unwritable_bytes(vocabulary: Vocabulary) -> frozenset[int]:
    """Bytes that no token stands for, which a tokenizer drops without a word.

    Raises:
        ConfigError: a byte that ordinary texts need is among them.
    """
    known = set(vocabulary.tokens)
    missing = frozenset(byte for byte, char in byte_alphabet().items() if char not in known)
    if needed := sorted(missing & _NEEDED):
        raise ConfigError(
            f"the vocabulary has no token for the bytes {[hex(one) for one in needed[:8]]}, which texts need"
        )
    return missing


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Check a tokenizer as it is loaded from its folder.

    Raises:
        ConfigError: its end or pad token is not the file's, a text does not survive, or is cut in other places
            than the model was trained on.
    """
    for name, wanted in (("eos_token", vocabulary.end), ("pad_token", vocabulary.pad)):
        if getattr(tokenizer, name) != wanted:
            raise ConfigError(f"the {name} is {getattr(tokenizer, name)!r}, in the file {wanted!r}")
    check_cuts(tokenizer, vocabulary)
    unwritable = unwritable_bytes(vocabulary)
    drawn = draw_texts(TEXTS, seed=_SEED, unwritable=unwritable)
    while texts := list(islice(drawn, _BATCH)):
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        back = tokenizer.batch_decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        for text, read in zip(texts, back, strict=True):
            if text != read:
                raise ConfigError(
                    f"a text does not survive the tokenizer: {text!r} came back as {read!r}"
                )


def check_cuts(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """See that texts with digits, newlines and a tool call are cut where the model's family cuts them.

    Raises:
        ConfigError: one is not.
    """
    known = set(vocabulary.tokens)
    for text, cut in PRE_TOKENIZERS[vocabulary.pre_tokenizer].golden.items():
        if not any(one in text for one in vocabulary.added):
            _check_cut(tokenizer, text, cut.split(" "), known)


def _check_cut(
    tokenizer: PreTrainedTokenizerBase, text: str, pieces: list[str], known: set[str]
) -> None:
    """See that the tokens of a text are its pieces: one that is a token as one, others in parts."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = cast("list[str]", tokenizer.convert_ids_to_tokens(cast("list[int]", ids)))
    rest = list(tokens)
    for piece in pieces:
        part = rest.pop(0) if rest else ""
        while rest and len(part) < len(piece) and piece not in known:
            part += rest.pop(0)
        if part != piece:
            raise ConfigError(f"{text!r} must be cut into {pieces}, but the tokens are {tokens}")
    if rest:
        raise ConfigError(f"{text!r} must be cut into {pieces}, but the tokens are {tokens}")


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the chat template and the tokenizer agree on where an answer begins and ends.

    Raises:
        ConfigError: there is no template, it fails, or they do not.
    """
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the model has no chat template; give one by 'chat_template', such as 'hermes'"
        )
    question = [{"role": "user", "content": "Is it?"}]
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    try:
        prompt = _text(tokenizer, question, opened=True)
        whole = _text(tokenizer, answered, opened=False)
    except Exception as error:  # a template is a program of the model's author: anything may come
        raise ConfigError(f"the chat template fails: {type(error).__name__}: {error}") from error
    before, found, after = whole.partition(_ANSWER)
    end = str(tokenizer.eos_token)
    if not found:
        raise ConfigError("the chat template leaves the assistant's answers out")
    if not after.startswith(end):
        raise ConfigError(
            f"the end token is {end!r}, but the chat template ends a turn by {after[:20]!r}: answers would"
            " not end where the model learned to end them"
        )
    if before != prompt:
        raise ConfigError(
            f"the chat template opens an answer by {prompt[-30:]!r}, but writes a given one after"
            f" {before[-30:]!r}: later prompts would not continue earlier ones"
        )


def _text(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, opened: bool
) -> str:
    return cast(
        "str",
        tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False),
    )
