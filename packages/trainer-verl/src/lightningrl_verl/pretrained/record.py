"""The file by which a model folder tells where it came from; checkpoints and exports carry it along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "pretrained_model.json"
"""The file that says what the folder is."""


def read_record(model: Path) -> Mapping[str, Any]:
    """What a folder's record says; empty where it has none."""
    try:
        return json.loads((model / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
