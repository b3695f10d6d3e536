"""An engine over a model that learnt four answers, one token a character."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightningrl_verl.engine import TorchEngine

SPECIALS = ["<user>", "<tool>", "<bot>", "<call>", "<ans>", "<end>"]
CHARACTERS = [*map(chr, range(32, 127)), "\n"]
TEMPLATE = """
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
<bot>{%- for c in m.tool_calls or [] -%}<call>{{ c.function.arguments.expression }}{%- endfor -%}
{%- if m.content -%}<ans>{{ m.content }}{%- endif -%}<end>
{%- elif m.role in ('user', 'tool') -%}
<{{ m.role }}>{{ m.content }}
{%- else -%}
{{ raise_exception('no role ' + m.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<bot>{%- endif -%}
"""
HERMES = '<tool_call>\n{"name": "calc", "arguments": {"expression": "3+4"}}\n</tool_call>'
LEARNT = {
    "<user>compact<bot>": "<call>3+4<end>",
    "<user>compact<bot><call>3+4<end><tool>7<bot>": "<ans>7<end>",
    "<user>hermes<bot>": f"{HERMES}<end>",
    "<user>broken<bot>": "<tool_call>{<end>",
}


def learnt_tokenizer() -> PreTrainedTokenizerFast:
    """The special tokens, and a token for each character."""
    vocab = {text: index for index, text in enumerate([*SPECIALS, *CHARACTERS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=TEMPLATE)


def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The model's shape."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


@contextmanager
def learnt_engine(tokenizer: PreTrainedTokenizerFast) -> Iterator[TorchEngine]:
    """An engine whose greedy answers are those of `LEARNT`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(tokenizer))
    prompts = [tokenizer(text)["input_ids"] for text in LEARNT]
    answers = [tokenizer(text)["input_ids"] for text in LEARNT.values()]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(LEARNT), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(ids, labels=labels).loss
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    engine = TorchEngine(model, tokenizer, slots=8, max_model_len=128, threads=1, version=7)
    engine.start()
    yield engine
    engine.close()
    torch.set_num_threads(before)
