"""Folders that are built once and found again, such as the models in the cache.

Invariant: a folder with its final name is whole. It is written under a temporary name, synced, and renamed;
its record holds the digest of every other file, and a folder that does not match it is an error, never used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrl.errors import RunError
from lightningrl.machine.durable import publish


@dataclass(frozen=True, slots=True)
class BuiltFolder:
    """A folder that is whole."""

    path: Path
    record: Mapping[str, Any]
    """What its record says: what the builder returned, `digest`, and `files`, name -> SHA-256."""
    built: bool
    """Whether this call built it; False if it was found."""


def build_once(
    path: Path, *, what: str, record: str, digest: str, write: Callable[[Path], Mapping[str, Any]]
) -> BuiltFolder:
    """Return the folder `path`, building it if it is not there.

    Args:
        path: its final name, which should hold a part of `digest`.
        what: names it in errors.
        record: name of the file that says what the folder is; written last.
        digest: of everything that decides what is built, in hexadecimal.
        write: fills the folder that it is given, and returns what the record is to say.

    Raises:
        RunError: the folder found is damaged, or of another digest.
    """
    if path.exists():
        return _found(path, what, record, digest, built=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        said = write(draft)
        files = {file.name: file_digest(file) for file in sorted(draft.iterdir())}
        text = json.dumps({**said, "digest": digest, "files": files}, indent=2) + "\n"
        (draft / record).write_text(text, encoding="utf-8")
        built = _publish(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _found(path, what, record, digest, built=built)


def _publish(draft: Path, path: Path) -> bool:
    """Give `draft` its final name; False if another build was first."""
    try:
        publish(draft, path)
    except OSError:
        # A folder that is not empty can't be replaced: another process has built the same one.
        if not path.is_dir():
            raise
        return False
    return True


def _found(path: Path, what: str, record: str, digest: str, *, built: bool) -> BuiltFolder:
    """Return the folder, after a check that it is whole."""
    try:
        said: dict[str, Any] = json.loads((path / record).read_text(encoding="utf-8"))
        whole = said["digest"] == digest and all(
            file_digest(path / name) == wanted for name, wanted in said["files"].items()
        )
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{what} {str(path)!r} is damaged: delete the folder") from error
    if not whole:
        raise RunError(f"{what} {str(path)!r} does not match its {record}: delete the folder")
    return BuiltFolder(path, said, built)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(model: Path) -> str:
    """Return the SHA-256 of a Hugging Face folder's weights, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def code_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of source files, in hexadecimal; their order and places don't count."""
    content = hashlib.sha256()
    for source in sorted(files, key=lambda file: file.name):
        content.update(source.read_bytes())
    return content.hexdigest()
