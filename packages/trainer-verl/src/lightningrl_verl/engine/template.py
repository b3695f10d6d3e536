"""What a model's chat template needs changed in requests, found by rendering with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightningrl.conversation.rewriting.template import Render, rules_of
from lightningrl.schema import RewriteRules
from lightningrl_verl.engine.prompts import template_message, templated
from lightningrl_verl.machine.quiet import quiet


class Template(NamedTuple):
    """A model's chat template, and what follows from it."""

    text: str | None
    """Jinja. `None`: the model has none."""
    rules: RewriteRules


def read_template(model: Path, variables: Mapping[str, Any] | None = None) -> Template:
    """The chat template of a Hugging Face folder; `variables` are set in all requests."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.chat_template is None:
        return Template(None, RewriteRules())
    return Template(tokenizer.get_chat_template(), rules_of(renderer(tokenizer, variables)))


def renderer(tokenizer: PreTrainedTokenizerBase, always: Mapping[str, Any] | None = None) -> Render:
    """The tokenizer's chat template over messages as the embedded engine, and vLLM, hand them to it; `always` are set."""

    def render(
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
    ) -> str:
        told = {**(always or {}), **variables}
        return templated(tokenizer, [template_message(one) for one in messages], tools, told)

    return render
