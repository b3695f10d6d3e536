"""What a model is, and what its chat template makes of each kind of message, in words for people.

Invariant: text goes through the renderer that the engine uses, so what is shown is what a model is given.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightningrl_verl.engine.chat import BadRequestError, ChatRequest
from lightningrl_verl.engine.prompts import PromptRenderer
from lightningrl_verl.machine.built_folder import weights_digest
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.pretrained.prepare import Prepared

_USER = {"role": "user", "content": "USER-TEXT"}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "TOOL_NAME", "arguments": '{"x": "ARGUMENT"}'},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "TOOL_NAME",
        "description": "TOOL-TEXT",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of message, and the texts in it that must reach the model."""

    kind: str
    before: Sequence[Mapping[str, Any]]
    added: Sequence[Mapping[str, Any]]
    """Messages after `before`; none: the tools are what is added."""
    sentinels: tuple[str, ...]
    tools: bool = False


CASES = (
    Case("system", (), ({"role": "system", "content": "SYSTEM-TEXT"}, _USER), ("SYSTEM-TEXT",)),
    Case("developer", (), ({"role": "developer", "content": "DEVELOPER-TEXT"}, _USER), ("DEVELOPER-TEXT",)),
    Case("user", (), (_USER,), ("USER-TEXT",)),
    Case("assistant", (_USER,), ({"role": "assistant", "content": "ANSWER-TEXT"},), ("ANSWER-TEXT",)),
    Case("a second system", (_USER,), ({"role": "system", "content": "LATER-TEXT"},), ("LATER-TEXT",)),
    Case("tools", (_USER,), (), ("TOOL_NAME", "TOOL-TEXT"), tools=True),
    Case("a tool call", (_USER,), ({"role": "assistant", "content": "", "tool_calls": [_CALL]},),
         ("TOOL_NAME", "ARGUMENT")),
    Case("its result", (_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}),
         ({"role": "tool", "tool_call_id": "call_1", "content": "RESULT-TEXT"},), ("RESULT-TEXT",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the template makes of one case."""

    kind: str
    text: str
    """What it writes for what is added; what it says where it refuses."""
    verdict: str
    """`written`, `vanishes`, `in part` or `refused`."""


def renderings(tokenizer: PreTrainedTokenizerBase) -> list[Rendering]:
    """What the tokenizer's chat template makes of each of `CASES`; what opens the answer is left away."""
    renderer = PromptRenderer(tokenizer)

    def prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> str:
        request = ChatRequest(
            model="",
            messages=msgspec.Raw(msgspec.json.encode(messages)),
            tools=msgspec.Raw(msgspec.json.encode(tools)),
        )
        ids = renderer.render(request)[0]
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    try:
        closed = str(tokenizer.apply_chat_template([_USER], tokenize=False))
        opening = prompt([_USER], []).removeprefix(closed)
    except Exception:  # noqa: BLE001 - a template is a program of the model's author; each case tells
        opening = ""
    return [_rendering(case, lambda *asked: prompt(*asked).removesuffix(opening)) for case in CASES]


def _rendering(case: Case, text: Any) -> Rendering:
    try:
        whole = text([*case.before, *case.added], [_TOOL] if case.tools else [])
    except BadRequestError as error:
        return Rendering(case.kind, error.message, "refused")
    written = [one for one in case.sentinels if one in whole]
    if not written:
        return Rendering(case.kind, "", "vanishes")
    shown = whole
    if case.before:
        # A template that takes them only together has the whole shown.
        with contextlib.suppress(BadRequestError):
            shown = _difference(text(case.before, []), whole)
    verdict = "written" if len(written) == len(case.sentinels) else "in part"
    return Rendering(case.kind, shown, verdict)


def _difference(before: str, after: str) -> str:
    """What `after` has between the beginning and the end that it shares with `before`."""
    limit = min(len(before), len(after))
    start = next((n for n in range(limit) if before[n] != after[n]), limit)
    stop = next((n for n in range(limit - start) if before[-1 - n] != after[-1 - n]), limit - start)
    return after[start : len(after) - stop]


def writes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model is told of the tools that it may call."""
    return any(one.kind == "tools" and one.verdict == "written" for one in renderings(tokenizer))


_CALL_MARKS = {"<tool_call>": "hermes", "<call>": "compact"}
"""What a call begins with -> the parser that reads it."""


def parser_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The shipped parser of the form in which the template writes calls; `none` where it writes none that is known."""
    [call] = [one.text for one in renderings(tokenizer) if one.kind == "a tool call"]
    return next((parser for mark, parser in _CALL_MARKS.items() if mark in call), "none")


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder."""
    with quiet():
        return AutoTokenizer.from_pretrained(model)


def facts(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a model is: name of a fact -> the fact."""
    record, path = prepared.record, prepared.path
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    file: Mapping[str, Any] = record.get("file", {})
    weights = sorted(path.glob("*.safetensors"))
    size = sum(one.stat().st_size for one in weights)
    special = {
        "begins": tokenizer.bos_token,
        "ends": tokenizer.eos_token,
        "pads": tokenizer.pad_token,
    }
    found = {
        "model": prepared.source.origin,
        "name": record.get("called"),
        "licence": record.get("licence")
        or prepared.source.licence
        or _card_licence(path)
        or "not told",
        "converted from": f"{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}"
        if file
        else None,
        "note": record.get("note"),
        "folder": str(path),
        "weights": f"{size:,} bytes, sha256 {weights_digest(path)}" if weights else None,
        "parameters": f"{record.get('parameters') or _parameters(weights):,}",
        "architecture": config.get("model_type"),
        "context": f"{config.get('max_position_embeddings') or 0:,} tokens",
        "vocabulary": f"{len(tokenizer):,} tokens",
        "special tokens": ", ".join(f"{what} {token}" for what, token in special.items() if token),
        "chat template": record.get("chat_template") or "the model's own",
        "dropped bytes": " ".join(f"{one:02x}" for one in record.get("unwritable_bytes", []))
        or None,
    }
    return {name: str(fact) for name, fact in found.items() if fact is not None}


def _parameters(weights: Sequence[Path]) -> int:
    total = 0
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                count = 1
                for size in tensors.get_slice(name).get_shape():
                    count *= size
                total += count
    return total


def _card_licence(path: Path) -> str | None:
    """`license:` of a model card's front matter."""
    card = path / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8").splitlines()
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    found = [line.partition(":")[2].strip() for line in head if line.startswith("license:")]
    return found[0] if found else None
