"""The output head in fp32, at the positions that are asked for.

Logits of 20 have an error of 0.06 in bf16, which log-probs would have too; hidden states in bf16 cost far less.
Invariant: engine and trainer compute logits by the same arithmetic, from weights rounded alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def exact_head(head: torch.nn.Module, keep: Callable[[Tensor], Tensor]) -> None:
    """Have an output head see `keep(states)` alone, and compute in fp32 whatever its weights are kept in."""

    def before(module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        del module
        return (keep(inputs[0]),)

    head.register_forward_pre_hook(before)
    if not isinstance(head, torch.nn.Linear):
        return

    def forward(states: Tensor) -> Tensor:
        if states.dtype == head.weight.dtype == torch.float32:
            return torch.nn.functional.linear(states, head.weight, head.bias)
        bias = None if head.bias is None else head.bias.float()
        with torch.autocast(states.device.type, enabled=False):
            return torch.nn.functional.linear(states.float(), head.weight.float(), bias)

    head.forward = forward
