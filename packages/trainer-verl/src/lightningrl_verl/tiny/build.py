"""Build a tiny policy once, and find it again.

Invariant: a folder with a policy's final name is whole (`machine/built_folder.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lightningrl_verl.machine.built_folder import build_once, code_digest
from lightningrl_verl.machine.quiet import without_progress_bars
from lightningrl_verl.tiny.model import build_model
from lightningrl_verl.tiny.spec import TinySpec
from lightningrl_verl.tiny.tokenizer import build_tokenizer
from lightningrl_verl.tiny.warm_start import Progress, WarmStart, warm_start

RECORD = "tiny_policy.json"
"""The file that says what the folder is."""

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
    digest = _digest(spec, seed)
    found = build_once(
        Path(directory) / f"{spec.name}-{digest[:16]}",
        what="tiny policy",
        record=RECORD,
        digest=digest,
        write=lambda draft: _write(draft, spec, seed, threads, progress),
    )
    return TinyPolicy(
        path=found.path,
        parameters=found.record["parameters"],
        seconds=found.record["seconds"],
        action_loss=found.record["action_loss"],
        demonstrations=found.record["demonstrations"],
        built=found.built,
    )


def _write(
    draft: Path, spec: TinySpec, seed: int, threads: int, progress: Progress | None
) -> dict[str, Any]:
    """Build the policy of `spec` and `seed` in the folder `draft`; return what its record says."""
    started = time.perf_counter()
    tokenizer = build_tokenizer(spec.words, context=spec.context)
    model = build_model(spec, len(tokenizer), seed=seed)
    result = warm_start(model, tokenizer, spec, seed=seed, threads=threads, progress=progress)
    with without_progress_bars():
        model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    return {
        "what": DESCRIPTION,
        "seed": seed,
        "threads": threads,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
        **_figures(result),
        "spec": spec.figures(),
        "versions": _versions(),
    }


def _figures(result: WarmStart) -> dict[str, float | int]:
    """Return the figures of a warm start for the record."""
    return {
        "action_loss": round(result.action_loss, 4),
        "demonstrations": result.demonstrations,
        "tokens": result.tokens,
    }


def _digest(spec: TinySpec, seed: int) -> str:
    """Return the digest of everything that decides what is built."""
    content = hashlib.sha256()
    content.update(json.dumps([spec.digest(), seed, _versions()]).encode())
    content.update(code_digest(Path(__file__).parent.glob("*.py")).encode())
    return content.hexdigest()


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that compute the weights."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}
