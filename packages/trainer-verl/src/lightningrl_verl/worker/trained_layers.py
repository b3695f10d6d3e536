"""Training the last layers of a policy alone.

Invariant: what is not trained has no gradient, no moments, and its initial value in every export.
"""

from __future__ import annotations

from typing import Any

import torch

from lightningrl.errors import ConfigError


def train_last(model: Any, layers: int) -> None:
    """Freeze all of a Hugging Face causal LM but its last layers and the norm behind them.

    As many layers as there are train everything, embeddings and head included.

    Raises:
        ConfigError: the model has fewer layers, or none that can be told apart.
    """
    decoder = model.get_decoder()
    found: Any = getattr(decoder, "layers", None)
    if not isinstance(found, torch.nn.ModuleList):
        raise ConfigError(
            f"trainer.train_layers: {type(model).__name__} does not say which its layers are; leave it out"
        )
    if layers > len(found):
        raise ConfigError(
            f"trainer.train_layers: 'last {layers}' of a model with {len(found)} layers; name at most"
            " as many"
        )
    if layers == len(found):
        return
    model.requires_grad_(False)
    found[len(found) - layers :].requires_grad_(True)
    norm = getattr(decoder, "norm", None)
    if isinstance(norm, torch.nn.Module):
        norm.requires_grad_(True)


def trained_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that have gradients."""
    return {name for name, one in model.named_parameters() if one.requires_grad}
