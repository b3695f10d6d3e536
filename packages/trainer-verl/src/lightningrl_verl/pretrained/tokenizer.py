"""A tokenizer from what a GGUF file says, as an ordinary Hugging Face tokenizer.

transformers has a conversion of its own, which takes no end token, no pad token and no pre-tokenizer from the
file (`integrations/ggml.py` at 5.9): the end token of SmolLM2 came out as `<|im_start|>`, and digits were merged.

Invariant: equal vocabularies give equal tokenizers.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lightningrl_verl.pretrained.gguf_file import Vocabulary
from lightningrl_verl.pretrained.pre_tokenizers import PRE_TOKENIZERS


def build_tokenizer(
    vocabulary: Vocabulary, *, template: str | None, context: int
) -> PreTrainedTokenizerFast:
    """Return the tokenizer; bytes without a token are dropped, as the published ones do.

    Args:
        vocabulary: as read from the file.
        template: chat template.
        context: longest sequence of the model, in tokens.
    """
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=list(vocabulary.merges)))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[vocabulary.pre_tokenizer].build()
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(one, special=True, normalized=False) for one in vocabulary.control]
    )
    tokenizer.add_tokens([AddedToken(one, normalized=False) for one in vocabulary.added])
    named = {"bos_token": vocabulary.begin, "unk_token": vocabulary.unknown}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=vocabulary.end,
        pad_token=vocabulary.pad,
        **{name: token for name, token in named.items() if token is not None},
        additional_special_tokens=list(vocabulary.control),
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        padding_side="left",
    )
    fast.chat_template = template
    return fast
