"""Build a tiny policy once, and find it again.

Invariant: a folder with a policy's final name is whole. It is written under a temporary name, synced,
and renamed; `tiny_policy.json` holds the digest of every other file, and a folder that does not match
it is an error, never a policy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lightningrl.errors import RunError
from lightningrl.machine.durable import publish
from lightningrl_verl.machine.quiet import without_progress_bars
from lightningrl_verl.tiny.model import build_model
from lightningrl_verl.tiny.spec import TinySpec
from lightningrl_verl.tiny.tokenizer import build_tokenizer
from lightningrl_verl.tiny.warm_start import Progress, WarmStart, warm_start

RECORD = "tiny_policy.json"
"""The file that says what the folder is; written last."""

DESCRIPTION = (
    "A tiny policy, warm-started on noisy demonstrations for demonstration purposes. It knows the"
    " words of one benchmark, does about half of its task right, and is no language model beyond it."
)


@dataclass(frozen=True, slots=True)
class TinyPolicy:
    """A tiny policy on disk."""

    path: Path
    """Hugging Face folder: safetensors weights, configuration, tokenizer."""
    parameters: int
    """Weights, the tied embedding counted once."""
    seconds: float
    """Wall seconds that the build took, in the call that made it."""
    action_loss: float
    """Mean cross-entropy of action tokens, in nats, at the end of the warm start."""
    demonstrations: int
    """Demonstrations seen in the warm start."""
    built: bool
    """Whether this call built it; False if it was found."""


def build_tiny(
    spec: TinySpec,
    directory: str | Path,
    *,
    seed: int,
    threads: int,
    progress: Progress | None = None,
) -> TinyPolicy:
    """Return the policy of `spec` and `seed` under `directory`, building it if it is not there.

    The folder's name holds a digest of the spec, the seed, this package's code and the versions of
    torch and transformers, so whatever changes the result changes the name.

    Args:
        spec: what to build.
        directory: folder of all tiny policies; made if missing.
        seed: draws the weights and the demonstrations.
        threads: torch threads of the warm start.
        progress: called after every update of a warm start.

    Raises:
        RunError: if the policy found is damaged, or the warm start fails.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    digest = _digest(spec, seed)
    path = root / f"{spec.name}-{digest[:16]}"
    if path.exists():
        return _found(path, digest)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=root))
    try:
        _write(draft, spec, seed, threads, digest, progress)
        built = _publish(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _found(path, digest, built=built)


def _write(
    draft: Path, spec: TinySpec, seed: int, threads: int, digest: str, progress: Progress | None
) -> None:
    """Build the policy of `spec` and `seed` in the folder `draft`."""
    started = time.perf_counter()
    tokenizer = build_tokenizer(spec.words, context=spec.context)
    model = build_model(spec, len(tokenizer), seed=seed)
    result = warm_start(model, tokenizer, spec, seed=seed, threads=threads, progress=progress)
    with without_progress_bars():
        model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    record = {
        "what": DESCRIPTION,
        "digest": digest,
        "seed": seed,
        "threads": threads,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
        **_figures(result),
        "spec": spec.figures(),
        "versions": _versions(),
        "files": {file.name: _file_digest(file) for file in sorted(draft.iterdir())},
    }
    (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _figures(result: WarmStart) -> dict[str, float | int]:
    """Return the figures of a warm start for the record."""
    return {
        "action_loss": round(result.action_loss, 4),
        "demonstrations": result.demonstrations,
        "tokens": result.tokens,
    }


def _publish(draft: Path, path: Path) -> bool:
    """Give `draft` its final name; False if another build was first."""
    try:
        publish(draft, path)
    except OSError:
        # A folder that is not empty can't be replaced: another process has built the same policy.
        if not path.is_dir():
            raise
        return False
    return True


def _found(path: Path, digest: str, *, built: bool = False) -> TinyPolicy:
    """Return the policy in `path`, after a check that the folder is whole."""
    try:
        record: dict[str, Any] = json.loads((path / RECORD).read_text(encoding="utf-8"))
        whole = record["digest"] == digest and all(
            _file_digest(path / name) == wanted for name, wanted in record["files"].items()
        )
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"tiny policy {str(path)!r} is damaged: delete the folder") from error
    if not whole:
        raise RunError(f"tiny policy {str(path)!r} does not match its {RECORD}: delete the folder")
    return TinyPolicy(
        path=path,
        parameters=record["parameters"],
        seconds=record["seconds"],
        action_loss=record["action_loss"],
        demonstrations=record["demonstrations"],
        built=built,
    )


def _digest(spec: TinySpec, seed: int) -> str:
    """Return the digest of everything that decides what is built."""
    content = hashlib.sha256()
    content.update(json.dumps([spec.digest(), seed, _versions()]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        content.update(source.read_bytes())
    return content.hexdigest()


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that compute the weights."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
