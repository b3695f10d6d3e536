"""Tiny policies: models small enough to train on a laptop, for benchmarks and tests."""

from lightningrl_verl.tiny.build import TinyPolicy, build_tiny
from lightningrl_verl.tiny.spec import TinySpec
from lightningrl_verl.tiny.tokenizer import build_tokenizer

__all__ = ["TinyPolicy", "TinySpec", "build_tiny", "build_tokenizer"]
