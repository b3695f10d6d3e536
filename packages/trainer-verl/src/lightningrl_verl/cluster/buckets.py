"""verl's sender and receiver of weights in buckets, without the package around them, which demands vLLM.

(`verl/workers/rollout/vllm_rollout/__init__.py` raises where vLLM is absent; the module itself needs none of it.)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import verl

_NAME = "lightningrl_verl.cluster._verl_buckets"


def _load() -> ModuleType:
    assert verl.__file__ is not None
    folder = Path(verl.__file__).parent / "workers" / "rollout" / "vllm_rollout"
    spec = importlib.util.spec_from_file_location(_NAME, folder / "bucketed_weight_transfer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


_module: Any = _load()

BucketedWeightReceiver: Any = _module.BucketedWeightReceiver
BucketedWeightSender: Any = _module.BucketedWeightSender
