"""What a benchmark says about its tiny policy, and the digest that names one build of it.

Invariant: two specs with equal digests give the same policy for the same seed. A function has no
value to compare, so the demonstrations count by what they produce.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from lightningrl.errors import ConfigError

Segment = tuple[str, bool]
"""Text in the chat format, and whether it is an action: what the policy itself is to write."""

Demonstration = Callable[[random.Random], list[Segment]]
"""Draws one demonstration, as a pure function of the generator."""

_DIGEST_DEMONSTRATIONS = 256
"""Demonstrations that enter the digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinySpec:
    """A tiny policy: its words, its demonstrations, its shape and its warm start."""

    name: str
    """Names the folder; letters, digits and dashes."""
    words: tuple[str, ...]
    """Word pieces, most with a leading space, that get a token of their own."""
    demonstration: Demonstration
    """Draws one demonstration."""
    architecture: Literal["llama", "qwen2"] = "llama"
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    context: int = 256
    """Longest sequence, in tokens; a longer demonstration is an error."""
    updates: int = 600
    """Optimiser updates of the warm start."""
    batch_size: int = 32
    """Demonstrations in one update."""
    learning_rate: float = 2e-3
    """Peak of AdamW's rate; linear warm-up, then linear decay to 5 %."""
    warmup_updates: int = 30
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a spec that can't be built."""
        positive = ("hidden_size", "intermediate_size", "layers", "heads", "context", "updates")
        for field in (*positive, "batch_size", "learning_rate"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"tiny policy {self.name!r}: {field} must be above 0")
        if self.hidden_size % (2 * self.heads):
            raise ConfigError(
                f"tiny policy {self.name!r}: hidden_size {self.hidden_size} must be a multiple of"
                f" twice the {self.heads} heads, for rotary embeddings"
            )
        if not self.name.replace("-", "").isalnum():
            raise ConfigError(f"tiny policy name {self.name!r} may hold letters, digits and dashes")

    def figures(self) -> dict[str, object]:
        """Return every field that is data, for the record of a build."""
        figures = asdict(self)
        del figures["demonstration"], figures["words"]
        return figures

    def digest(self) -> str:
        """Return a hexadecimal digest of all fields, the demonstrations by what they produce."""
        rng = random.Random("digest")
        drawn = [self.demonstration(rng) for _ in range(_DIGEST_DEMONSTRATIONS)]
        content = json.dumps([self.figures(), self.words, drawn], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
