"""The output head in fp32, at the positions that are asked for.

Logits of 20 have an error of 0.06 in bf16, which log-probs would have too; hidden states in bf16 cost far less.
Invariant: engine and trainer compute logits by the same arithmetic, from weights rounded alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor


def exact_head(
    head: torch.nn.Module, keep: Callable[[Tensor], Tensor], *, serves: bool = False
) -> None:
    """Have an output head see `keep(states)` alone, and compute in fp32 whatever its weights are kept in.

    With `serves` it has no gradients, and keeps weights of fp32 until its own are changed: made anew for each token,
    they would take a large share of its time.
    """

    def before(module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        del module
        return (keep(inputs[0]),)

    head.register_forward_pre_hook(before)
    if not isinstance(head, torch.nn.Linear):
        return
    kept = _Kept()

    def forward(states: Tensor) -> Tensor:
        # Asked for anew each time: what shards a model puts other parameters in their place.
        bias = cast("Tensor | None", head.bias)
        if states.dtype == head.weight.dtype == torch.float32:
            return torch.nn.functional.linear(states, head.weight, bias)
        weight = kept.of(head.weight) if serves else head.weight.float()
        with torch.autocast(states.device.type, enabled=False):
            return torch.nn.functional.linear(
                states.float(), weight, None if bias is None else bias.float()
            )

    head.forward = forward  # pyright: ignore[reportAttributeAccessIssue] # its argument has another name


class _Kept:
    """A weight in fp32, as long as it stays what it is."""

    def __init__(self) -> None:
        self._state: tuple[int, int] | None = None
        self._weight = torch.empty(0)

    def of(self, weight: Tensor) -> Tensor:
        state = (weight.data_ptr(), weight._version)  # pyright: ignore[reportPrivateUsage] # torch's count of changes
        if state != self._state:
            self._state, self._weight = state, weight.float()
        return self._weight
