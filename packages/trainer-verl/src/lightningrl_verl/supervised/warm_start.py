"""A warm start: the folder that a policy starts from once it has learned from demonstrations, built once.

Invariant: the folder's name holds a digest of everything that decides its weights; tokenizer, template and settings in it
are those of the model that it was made from, file by file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from lightningrl.errors import RunError
from lightningrl.recipe import WarmStart
from lightningrl_verl.machine.built_folder import BuiltFolder, build_once, file_digest
from lightningrl_verl.supervised.rows import Material
from lightningrl_verl.supervised.tuition import Tuition
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.learner import Learner

RECORD = "warm_start.json"
"""The file that says what the folder is; written last."""

Progress = Callable[[int, int, Metrics], None]
"""Called as (updates done, updates in all, `sft/*` of the last one)."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf")
"""What the result has files of its own for."""

_NOT_DECISIVE = ("model_path", "ranks", "rollout")
"""Of the backend's configuration: where things are, not what is computed."""


@dataclass(frozen=True)
class Place:
    """Where a warm start is, or will be."""

    path: Path
    digest: str
    """Of everything that decides its weights."""

    def found(self) -> BuiltFolder | None:
        """The warm start. `None`: it is not there.

        Raises:
            RunError: the folder is damaged.
        """
        return self._folder(lambda _: {}) if self.path.exists() else None

    def build(self, base: Path, learner: Learner, figures: Mapping[str, Any]) -> BuiltFolder:
        """Write what a learner has learned on `base`; on the learners' thread."""

        def write(draft: Path) -> Mapping[str, Any]:
            _write_model(draft, base, learner)
            return figures

        return self._folder(write)

    def _folder(self, write: Callable[[Path], Mapping[str, Any]]) -> BuiltFolder:
        return build_once(
            self.path, what="warm start", record=RECORD, digest=self.digest, write=write
        )


def place_of(
    root: Path,
    alias: str,
    base: Path,
    material: Material,
    settings: WarmStart,
    config: BackendConfig,
) -> Place:
    """Where a warm start is, whether it was made yet or not.

    Args:
        root: folder of all of them.
        alias: the policy's.
        base: Hugging Face folder of the model that learns.
        material: what it learns from.
        settings: the recipe's section.
        config: what it is trained with.
    """
    decisive = {
        "base": folder_digest(base),
        "material": material.digest(),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "config": {
            field.name: msgspec.to_builtins(getattr(config, field.name))
            for field in fields(config)
            if field.name not in _NOT_DECISIVE
        },
        "versions": _versions(),
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return Place(root / f"{alias}-{digest[:16]}", digest)


async def build_warm_start(
    place: Place, base: Path, tuition: Tuition, settings: WarmStart, progress: Progress
) -> BuiltFolder:
    """Teach the whole course and write the folder. Cancelling it leaves nothing behind.

    Raises:
        RunError: training diverged, or a rank has died.
    """
    started = time.monotonic()
    before = await tuition.score()
    metrics: Metrics = {}
    for number in range(1, tuition.course.updates + 1):
        metrics = await tuition.update(number)
        progress(number, tuition.course.updates, metrics)
    after = await tuition.score()
    material = tuition.material
    figures = {
        "what": "A model that was fine-tuned on demonstrations before reinforcement learning.",
        "demonstrations": len(material.train),
        "held_out": len(material.held_out),
        "updates": tuition.course.updates,
        "tokens": sum(row.trained_tokens for one in material.train for row in one.rows),
        "last_loss": metrics["sft/loss"],
        "val_loss_before": before.get("sft/val_loss"),
        "val_loss_after": after.get("sft/val_loss"),
        "seconds": round(time.monotonic() - started, 2),
        "settings": msgspec.to_builtins(settings),
        "left_out": dict(material.left_out),
        "drift": msgspec.to_builtins(material.sums),
        "versions": _versions(),
    }
    learner = tuition.learner
    return await learner.call(lambda _: place.build(base, learner, figures))


def folder_digest(folder: Path) -> str:
    """A digest of a model folder: of every file in it that is not hidden, by name."""
    found = hashlib.sha256()
    for path in _files(folder):
        found.update(f"{path.name} {file_digest(path)}\n".encode())
    return found.hexdigest()


def _write_model(draft: Path, base: Path, learner: Learner) -> None:
    """The base's files with the learner's weights."""
    saved = draft / ".saved"
    learner.save(saved, None)
    weights = [path for pattern in _WEIGHTS[:2] for path in (saved / "huggingface").glob(pattern)]
    if not weights:
        raise RunError(f"the learner exported no weights to {str(saved)!r}")
    for path in _files(base):
        if path.name != RECORD and not any(path.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(path, draft / path.name)
    for path in weights:
        path.replace(draft / path.name)
    shutil.rmtree(saved)
    config = json.loads((draft / "config.json").read_text("utf-8"))
    # Weights are exported in fp32, and a loader believes the configuration.
    config.pop("torch_dtype", None)
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lightningrl-verl", "verl", "torch", "transformers")}
