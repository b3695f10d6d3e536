"""Tiny policies and a reward for the loop, named in recipes by `loop_policy:NAME`."""

from __future__ import annotations

from typing import Any

from lightningrl_bench_math.policy import tiny_spec


def wide() -> dict[str, Any]:
    """The math benchmark's, with attention heads of 32: the narrowest that vLLM's attention takes."""
    return {**tiny_spec(), "name": "wide", "hidden_size": 128}


def quick() -> dict[str, Any]:
    """The same hardly trained, to try out the script."""
    return {**wide(), "name": "quick", "updates": 40, "batch_size": 16}


def even_length(task: object, output: str, trace: object) -> float:
    """1 for an output of an even number of characters: any policy earns it now and then, so that there is a signal."""
    del task, trace
    return float(len(output) % 2 == 0)
