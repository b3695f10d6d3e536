"""`lightningrl serve --policy`: a model in use on this machine, by the embedded engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lightningrl.deployment import SERVING, read_serving
from lightningrl.gateway.limits import limits_of_environment
from lightningrl.schema import Endpoint, RewriteRules
from lightningrl.server.direct import serve_direct
from lightningrl_verl.pretrained.prepare import Template, prepare, summary
from lightningrl_verl.pretrained.reference import locate
from lightningrl_verl.pretrained.template_text import template_text

if TYPE_CHECKING:
    from lightningrl_verl.engine.load import EngineSettings

_SLOTS = 16
"""Requests answered at once."""

_MOST_TOKENS = 4096
"""Longest prompt plus answer, where the model's context allows it; the engine's cache is made for it."""


def serve_model(
    reference: str,
    chat_template: str | None,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    parent_fd: int | None,
) -> None:
    """Answer OpenAI's and Anthropic's clients with a model, until SIGTERM or SIGINT.

    Args:
        reference: see `pretrained/reference.py`; paths are relative to the working directory.
        chat_template: instead of the model's own.
        host: a loopback address.
        port: 0 takes a free one.
        ready: called with the server's URL when it answers.
        parent_fd: pipe whose closing ends it.

    Raises:
        ConfigError: the model isn't there or can't be used, or the address can't be listened on.
        EngineError: the engine can't serve it.
    """
    here = Path.cwd()
    source = locate(reference, folder=here)
    template = None
    if chat_template is not None:
        template = Template(chat_template, template_text(chat_template, here))
    prepared = prepare(source, template)
    told = f"{summary(prepared)}\nloading it; it answers once the next line says where"
    Console(stderr=True).print(told, highlight=False, markup=False, soft_wrap=True)
    # Only now: torch and transformers.
    from lightningrl_verl.engine import serve_engine
    from lightningrl_verl.engine.load import load_engine
    from lightningrl_verl.pretrained.describe import load_tokenizer, parser_of

    name = str(prepared.record.get("name") or reference)
    rules = _rules(prepared.path, own=template is None)
    with contextlib.ExitStack() as stack:
        engine = load_engine(prepared.path, _settings(prepared.path), version=0)
        stack.callback(engine.close)
        engine.start()
        parser = parser_of(load_tokenizer(prepared.path))
        server = serve_engine(engine, model_name=name, parser=parser)
        stack.callback(server.close)
        serve_direct(
            Endpoint(f"{server.url}/v1", None),
            name,
            host=host,
            port=port,
            rules=rules,
            limits=limits_of_environment(),
            ready=ready,
            parent_fd=parent_fd,
        )


def _settings(model: Path) -> EngineSettings:
    import torch
    from transformers import AutoConfig

    from lightningrl_verl.engine.load import EngineSettings

    cuda = torch.cuda.is_available()
    context = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
    return EngineSettings(
        slots=_SLOTS,
        threads=None,
        max_model_len=min(context or _MOST_TOKENS, _MOST_TOKENS),
        device="cuda" if cuda else "cpu",
        dtype="bf16" if cuda else "fp32",
    )


def _rules(model: Path, *, own: bool) -> RewriteRules:
    """What training rewrote holds for the trained model too; another template has needs of its own."""
    from lightningrl_verl.engine.template import read_template

    trained = read_serving(model / SERVING) if own else None
    return read_template(model).rules if trained is None else trained.rules
