"""What the trainer's builder of tiny policies needs to make one for this benchmark.

Invariant: plain data and one function; nothing of the trainer is imported, so that the agent's
environment needs no torch. Used as
`build_tiny(TinySpec(**tiny_spec()), folder, seed=0, threads=1)`.
"""

from __future__ import annotations

from typing import Any

from lightningrl_bench_math.demonstrations import demonstration
from lightningrl_bench_math.tasks import vocabulary


def tiny_spec() -> dict[str, Any]:
    """Return the keyword arguments of `lightningrl_verl.tiny.TinySpec` for the math benchmark."""
    return {
        "name": "math",
        "words": tuple(f" {word}" for word in vocabulary()),
        "demonstration": demonstration,
        "layers": 3,
        "updates": 640,
        "learning_rate": 2e-3,
    }
