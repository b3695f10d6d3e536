"""A policy's weights as a Hugging Face folder, of which only what has changed is written anew.

Invariant: the folder loads as a whole by itself. Everything beside the weights is the initial model's, byte for
byte, but for the dtype that its configuration names; weights that are not trained are links to the file of the
checkpoint before, where the file system has links.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightningrl_verl.machine.links import link_or_copy

_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".index.json",
)
"""How files of weights end, in whatever form."""

_WHOLE, FROZEN, _TRAINED = (
    f"model{part}.safetensors" for part in ("", "-00001-of-00002", "-00002-of-00002")
)
_INDEX = "model.safetensors.index.json"


def export(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    model: Path,
    trained: set[str],
    former: Path | None,
) -> None:
    """Write the folder; it may be there.

    Args:
        weights: whole, by the model's own names, none of them tied to another.
        folder: to write.
        model: the initial model's folder.
        trained: names of the weights that change; others are as they were.
        former: a folder of this function's with the same other weights. `None`: there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # its former name
    _write_json(folder / "config.json", config | {"dtype": "float32"})
    if weights.keys() <= trained:
        _save(weights, folder / _WHOLE)
        return
    parts = {
        FROZEN: {name: one for name, one in weights.items() if name not in trained},
        _TRAINED: {name: one for name, one in weights.items() if name in trained},
    }
    if former is not None and (former / FROZEN).is_file():
        link_or_copy(former / FROZEN, folder / FROZEN)
    else:
        _save(parts[FROZEN], folder / FROZEN)
    _save(parts[_TRAINED], folder / _TRAINED)
    size = sum(one.numel() * one.element_size() for one in weights.values())
    places = {name: file for file, part in parts.items() for name in part}
    _write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    separate = {name: one.cpu().contiguous() for name, one in weights.items()}
    save_file(separate, path, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
