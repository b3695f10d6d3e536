"""`policies.NAME.chat_template`: a model folder that is as another one, but for its chat template.

Everything that reads a policy's model reads a folder, so the template is put into one, and then holds for the
engine, the trainer, checkpoints, exports and vLLM alike. Weights are linked, not copied, where the disk can.

Invariant: the folder's weights, vocabulary and configuration are those of the other one, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightningrl.errors import ConfigError
from lightningrl_verl.machine.built_folder import BuiltFolder, build_once, code_digest, file_digest
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.pretrained.record import RECORD, read_record
from lightningrl_verl.pretrained.template_text import HERMES
from lightningrl_verl.pretrained.verify import check_template

_PLACES = ("chat_template.jinja", "chat_template.json", RECORD)
"""Files of a model folder that hold its template or tell of it."""

_LINKED_BYTES = 2**20
"""Files of at least this size are linked."""

_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", re.DOTALL)


def with_template(model: Path, name: str, template: str, root: Path) -> BuiltFolder:
    """Return a folder with another chat template, building it if it is not there.

    Args:
        model: the Hugging Face folder.
        name: what the recipe calls the template.
        template: its text.
        root: folder of the folders that are built.

    Raises:
        ConfigError: the template does not suit the model.
        RunError: the folder found is damaged.
    """
    said = read_record(model)
    contents = _contents(model, said)
    decides = [contents, template, code_digest(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{said.get('name') or model.name}-{Path(name).stem}")

    def write(draft: Path) -> Mapping[str, Any]:
        for file in _files(model):
            if file.name not in _PLACES:
                _link(file, draft / file.name)
        text = template
        if name == HERMES:
            # Python's `ascii` is how Jinja reads texts: it escapes what is not ASCII.
            system = ascii(_default_system(model))
            text = f"{{%- set default_system = {system} -%}}\n{template}"
        _put_template(draft, text)
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(draft)
        _check_marks(tokenizer, name)
        check_template(tokenizer)
        kept = {key: value for key, value in said.items() if key not in ("digest", "files")}
        return {**kept, "from": {"folder": str(model), "digest": contents}, "chat_template": name}

    return build_once(
        root / f"{stem}-{digest[:16]}", what="model", record=RECORD, digest=digest, write=write
    )


def _files(model: Path) -> list[Path]:
    return sorted(one for one in model.iterdir() if one.is_file() and not one.name.startswith("."))


def _contents(model: Path, said: Mapping[str, Any]) -> str:
    """A digest of the folder: that of its name, where it was built, else of its files."""
    # A checkpoint carries the record of the model that it began as; only the built folder is named so.
    if "digest" in said and model.name.endswith(str(said["digest"])[:16]):
        return str(said["digest"])
    content = hashlib.sha256()
    for file in _files(model):
        content.update(f"{file.name} {file_digest(file)}\n".encode())
    return content.hexdigest()


def _link(file: Path, place: Path) -> None:
    if file.stat().st_size >= _LINKED_BYTES:
        try:
            os.link(file.resolve(), place)
        except OSError:
            pass  # another disk, or one without links
        else:
            return
    shutil.copyfile(file, place)


def _put_template(draft: Path, text: str) -> None:
    """Make `text` the only template of the folder."""
    path = draft / "tokenizer_config.json"
    if not path.is_file():
        raise ConfigError("chat_template: the model's folder has no tokenizer_config.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (draft / "chat_template.jinja").write_text(text, encoding="utf-8")


def _default_system(model: Path) -> str | None:
    """What the model's own template says where there is no system message. `None`: nothing."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.chat_template is None:
        return None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    found = _SYSTEM.match(str(text))
    return None if found is None else found[1]


def _check_marks(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """A template in ChatML is of use for a model that knows its marks.

    Raises:
        ConfigError: the tokenizer has none.
    """
    if name != HERMES:
        return
    for mark in ("<|im_start|>", "<|im_end|>"):
        if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) != 1:
            raise ConfigError(
                f"chat_template: 'hermes' writes {mark}, which is no token of this model; give a file"
                " with a template of its own form"
            )
