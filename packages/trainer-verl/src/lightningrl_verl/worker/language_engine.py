"""verl's FSDP2 engine of a policy, with a forward pass that computes no more than an update needs.

On a CPU rows of a pass are packed, each beginning that they share once (`shared_rows.py`), and the output head
sees trained positions alone: of a small model with a large vocabulary it is the largest part, and most tokens of a
row are prompt. Invariant: log-probs, entropies and gradients are those of verl's own forward pass up to rounding;
a model whose attention is not full and causal keeps verl's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from verl.utils import tensordict_utils, torch_functional
from verl.utils.device import get_device_name
from verl.workers.config.optimizer import build_optimizer
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from lightningrl_verl.engine.head import exact_head
from lightningrl_verl.worker.packed_attention import ATTENTION
from lightningrl_verl.worker.shared_rows import PackedRows, pack
from lightningrl_verl.worker.token_log_probs import token_log_probs
from lightningrl_verl.worker.trained_layers import train_last

PACKS = "packs_rows"
"""Field of a batch whose rows are packed."""

_train_last: ContextVar[int | None] = ContextVar("train_last", default=None)

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the probe: largest error of logits relative to their size."""


@contextmanager
def training_last(layers: int | None) -> Generator[None]:
    """Have policies that are built meanwhile train their last layers alone; `None`: all of their weights."""
    token = _train_last.set(layers)
    try:
        yield
    finally:
        _train_last.reset(token)


# verl's decorator hides the class from type checkers.
_VerlEngine: Any = transformer_impl.FSDPEngineWithLMHead


class LanguageEngine(_VerlEngine):
    """verl's engine, with that forward pass where the model allows it."""

    _packs = False
    _selected: Tensor | None = None
    """Packed places whose logits are wanted; `None`: those of all tokens."""

    def initialize(self) -> None:
        """Build the model as verl does; then see whether its rows can be packed."""
        super().initialize()
        if get_device_name() == "cpu" and not self.use_remove_padding:
            module: Any = self.module
            exact_head(module.get_output_embeddings(), self._kept)
            self._packs = self._can_pack(module)
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    def _build_module(self) -> Any:
        module = super()._build_module()
        last = _train_last.get()
        if last is not None:
            train_last(module, last)
        return module

    def _build_optimizer(self, module: Any) -> Any:
        """Of what is trained alone, so that nothing else has moments."""
        trained = [one for one in module.parameters() if one.requires_grad]
        return build_optimizer(trained, self.optimizer_config)

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable[..., Any], forward_only: bool = False
    ) -> Any:
        """As verl's; says to whoever cuts the batch how its rows will be computed."""
        tensordict_utils.assign_non_tensor(data, **{PACKS: self._packs})
        return super().forward_backward_batch(data, loss_function, forward_only)

    def prepare_model_inputs(
        self, micro_batch: TensorDict
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of a pass, packed."""
        self._selected = None
        if not self._packs:
            return super().prepare_model_inputs(micro_batch)
        fields: Any = micro_batch
        rows = [row.numpy() for row in fields["input_ids"].unbind()]
        packed = pack(rows)
        wanted = _Wanted(rows, [mask.numpy() for mask in fields["loss_mask"].unbind()], packed)
        self._selected = wanted.places
        inputs = self._inputs(packed)
        return inputs, {"wanted": wanted, "temperature": micro_batch["temperature"]}

    def prepare_model_outputs(
        self,
        output: Any,
        output_args: dict[str, Any],
        micro_batch: TensorDict,
        logits_processor_func: Any,
    ) -> dict[str, Tensor]:
        """Log-probs, and entropies where asked for, of the trained tokens; 0 for all others."""
        wanted: _Wanted | None = output_args.get("wanted")
        if wanted is None:
            return super().prepare_model_outputs(
                output, output_args, micro_batch, logits_processor_func
            )
        logits: Tensor = output.logits[0]
        temperature = output_args["temperature"]
        if isinstance(temperature, Tensor):
            logits = logits / temperature[wanted.rows, None]
        elif temperature != 1:
            logits = logits / temperature
        found = {"log_probs": token_log_probs(logits, wanted.labels)}
        if tensordict_utils.get_non_tensor_data(micro_batch, "calculate_entropy", default=False):
            found["entropy"] = self._entropy(logits)
        ids: Any = micro_batch["input_ids"]
        return {
            name: torch.nested.nested_tensor_from_jagged(wanted.spread(of_trained), ids.offsets())
            for name, of_trained in found.items()
        }

    def _entropy(self, logits: Tensor) -> Tensor:
        entropy = torch_functional.entropy_from_logits
        if self.engine_config.entropy_checkpointing:
            return checkpoint(entropy, logits)  # pyright: ignore[reportReturnType] # untyped
        return entropy(logits)

    def _inputs(self, packed: PackedRows) -> dict[str, Any]:
        return {
            "input_ids": torch.from_numpy(packed.tokens)[None],
            "position_ids": torch.from_numpy(packed.positions)[None],
            "attention_mask": None,
            "packed": packed,
        }

    def _kept(self, states: Tensor) -> Tensor:
        """What of the last hidden states the head is to see."""
        return states if self._selected is None else states.index_select(1, self._selected)

    @torch.no_grad()
    def _can_pack(self, module: Any) -> bool:
        """Whether two packed rows give the logits that each gives alone; then they are packed from now on."""
        before: str = module.config._attn_implementation  # transformers' own name for it
        if before != "sdpa":  # which `verl: model.override_config` may say
            return False
        vocabulary = int(module.config.get_text_config().vocab_size)
        first = np.arange(24, dtype=np.int64) % vocabulary
        rows = [first, np.concatenate([first[:20], first[:3]])]
        module.eval()
        plain = [module(input_ids=torch.from_numpy(row)[None]).logits[0] for row in rows]
        packed = pack(rows)
        try:
            module.set_attn_implementation(ATTENTION)
            together = module(**self._inputs(packed), use_cache=False).logits[0]
        except (NotImplementedError, TypeError, ValueError):
            module.set_attn_implementation(before)
            return False
        limit = _TOLERANCE.get(self._autocast_dtype, _TOLERANCE[torch.bfloat16])
        fits = all(
            float((together[where] - alone).norm()) <= limit * float(alone.norm())
            for where, alone in zip(packed.places, plain, strict=True)
        )
        if not fits:
            module.set_attn_implementation(before)
        return fits


class _Wanted:
    """The trained tokens of a pass: where their logits are, and where their numbers belong."""

    def __init__(
        self,
        rows: list[np.ndarray[Any, Any]],
        masks: list[np.ndarray[Any, Any]],
        packed: PackedRows,
    ) -> None:
        """Each mask stands at the end of its row, whose tokens before it are not trained."""
        offsets = np.cumsum([0, *map(len, rows)])
        flat: list[Any] = []
        of_row: list[Any] = []
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            # A token is predicted by the one before it, so the first of a row can't be.
            trained = np.flatnonzero(mask) + len(row) - len(mask)
            flat.append(offsets[index] + trained[trained > 0] - 1)
            of_row.append(np.full(len(flat[-1]), index))
        # Of fillers alone nothing is wanted; a token keeps the head in the graph, as other ranks have it.
        at = np.concatenate(flat) if any(map(len, flat)) else np.zeros(1, np.int64)
        where = np.concatenate(packed.places)
        tokens = np.concatenate(rows)
        self._size = len(tokens)
        self._at = torch.from_numpy(at)
        self.rows = torch.from_numpy(
            np.concatenate(of_row) if len(at) == sum(map(len, flat)) else at
        )
        self.places = torch.from_numpy(where[at])
        self.labels = torch.from_numpy(tokens[at + 1])

    def spread(self, of_trained: Tensor) -> Tensor:
        """Numbers of the trained tokens at the places of all tokens, end to end."""
        return of_trained.new_zeros(self._size).index_put((self._at,), of_trained)


def register() -> None:
    """Have verl build policies by this engine. Calling it again changes nothing."""
    known: Any = EngineRegistry._engines["language_model"][
        "fsdp2"
    ]  # verl has no way to replace one
    known["cpu"] = known["cuda"] = LanguageEngine
