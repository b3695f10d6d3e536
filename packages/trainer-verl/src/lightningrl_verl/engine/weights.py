"""Replacing all weights of a model at once, or none.

Invariant: `plan` touches nothing; every parameter has exactly one source in a plan, of its own shape.
A tied parameter has several names: any of them will do, and if several are given they must agree.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightningrl_verl.engine.errors import WeightSwapError

_SHOWN = 4
"""How many names an error lists."""


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What goes where."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    """Target in the model, and its source, of equal shapes; dtype and device may differ."""

    def changes_nothing(self) -> bool:
        """Whether every target already holds its source's values (after rounding to its dtype)."""
        return all(torch.equal(target, source.to(target)) for target, source in self.pairs)

    @torch.no_grad()
    def apply(self) -> None:
        """Copies every source into its target."""
        for target, source in self.pairs:
            target.copy_(source)


def plan(model: torch.nn.Module, named_tensors: Iterable[tuple[str, Tensor]]) -> WeightPlan:
    """Matches tensors with the model's parameters.

    Args:
        model: The model to be changed.
        named_tensors: Every parameter by the name it has in `model`; persistent buffers may come too.

    Raises:
        WeightSwapError: A name is unknown, missing or given twice, a shape differs, or two names of one
            tied parameter hold different values.
    """
    offered: dict[str, Tensor] = {}
    for name, tensor in named_tensors:
        if name in offered:
            raise WeightSwapError(f"weight {name!r} was given twice")
        offered[name] = tensor
    names_of = _names_by_tensor(model)
    _refuse("unknown weights", offered.keys() - {name for _, names in names_of for name in names})
    parameters = {id(parameter) for parameter in model.parameters()}
    missing = [n[0] for t, n in names_of if id(t) in parameters and offered.keys().isdisjoint(n)]
    _refuse("missing weights", missing)
    matched = [(target, [n for n in names if n in offered]) for target, names in names_of]
    return WeightPlan(tuple((t, _agreed(t, n, offered)) for t, n in matched if n))


def digest(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names and values, bit by bit, in the order given; another dtype has another one.

    A checksum per weight is enough, since nobody forges them, and takes a third of a hash's time.
    """
    found = hashlib.sha256()
    for name, tensor in named_tensors:
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(values.data)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksum}\n".encode())
    return found.hexdigest()


def _names_by_tensor(model: torch.nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Each parameter and persistent buffer once, with all its names."""
    groups: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(groups.values())


def _agreed(target: Tensor, names: Sequence[str], offered: dict[str, Tensor]) -> Tensor:
    first = offered[names[0]]
    for name in names:
        if offered[name].shape != target.shape:
            raise WeightSwapError(
                f"weight {name!r} has shape {tuple(offered[name].shape)}, "
                f"the model's has {tuple(target.shape)}"
            )
        if offered[name] is not first and not torch.equal(offered[name], first):
            raise WeightSwapError(f"{names[0]!r} and {name!r} are tied but their values differ")
    return first


def _refuse(what: str, names: Iterable[str]) -> None:
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise WeightSwapError(f"{what}: {', '.join(map(repr, listed[:_SHOWN]))}{more}")
