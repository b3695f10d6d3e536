"""The critic of one policy, from the driver's side: what it expects of each call.

A value is read at the last token of the call's prompt. The critic is verl's value model, trained by verl's clipped value loss. Invariant: one number per call, given before
the call's first token was sampled, and a loss that is the mean over calls, however long their answers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightningrl.errors import RunError
from lightningrl.experience.trajectory import Row
from lightningrl.recipe import Critic
from lightningrl_verl.worker.backend import gather, share_out
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.batch import FloatArray, token_budget
from lightningrl_verl.worker.ranks import Launcher, Order, ThisProcess, deal

if TYPE_CHECKING:
    from tensordict import TensorDict


@dataclass(frozen=True)
class _Calls:
    """A row as the critic sees it: the mask marks where each call's answer begins."""

    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: FloatArray
    rollout_id: str


class VerlCritic:
    """A value model and its optimizer. Not safe for concurrent calls."""

    def __init__(
        self, config: BackendConfig, critic: Critic, launcher: Launcher | None = None
    ) -> None:
        """Load the policy's initial weights under a new head.

        Args:
            config: how the policy is trained.
            critic: how the critic is.
            launcher: where its ranks run. `None`: it has one, in this process.

        Raises:
            ConfigError: the device is absent, or verl already runs on another.
        """
        self._settings = critic
        self._tokens = config.max_tokens_per_micro_batch
        self._ranks = (launcher or ThisProcess()).critic(config, critic)

    def values(self, rows: Sequence[Row]) -> list[list[float]]:
        """Per row, the value of each of its spans.

        Raises:
            RunError: there are no rows, or one has no span.
        """
        return [
            [float(aligned[span.start]) for span in row.spans]
            for row, aligned in zip(rows, self._aligned(rows), strict=True)
        ]

    def update(
        self,
        rows: Sequence[Row],
        values: Sequence[Sequence[float]],
        targets: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        """Fit the values to their targets, `epochs` times.

        Args:
            rows: at least one.
            values: per row and span, what `values` gave when credit was computed.
            targets: aligned with them.

        Returns:
            `vf_loss` (half the mean square error, clipped), `vf_clipfrac`, `grad_norm`, of which the
            first two are means over the epochs.

        Raises:
            RunError: there are no rows, or the loss is not finite.
        """
        from verl.utils import tensordict_utils
        from verl.utils.metric import reduce_metrics

        seen = [_calls(row) for row in rows]
        fields = {"values": _placed(rows, values), "returns": _placed(rows, targets)}
        orders = self._deal(seen)
        batches = [share_out(seen, fields, order) for order in orders]
        self._annotate(batches, seen)
        size = len(orders[0]) * self._ranks.size
        for batch in batches:
            tensordict_utils.assign_non_tensor(
                batch,
                mini_batch_size=size,
                global_batch_size=size,
                epochs=self._settings.epochs,
            )
        measured: dict[str, Any] = self._ranks.each("update", batches)[0]
        reduced: dict[str, Any] = reduce_metrics(measured)
        names = ("critic/vf_loss", "critic/vf_clipfrac", "grad_norm")
        metrics = {name.removeprefix("critic/"): float(reduced[name]) for name in names}
        if not np.isfinite(list(metrics.values())).all():
            raise RunError(
                f"the critic's update diverged ({metrics}); resume from the last checkpoint with a lower"
                " 'critic.learning_rate'"
            )
        return metrics

    def save(self, directory: Path) -> None:
        """Write all that a resume needs into `directory`."""
        self._ranks.all("save", directory.resolve())

    def load(self, directory: Path) -> bool:
        """Restore weights, optimizer and the ranks' random states.

        Returns:
            False if another number of ranks wrote the checkpoint: then the optimizer's moments begin anew.

        Raises:
            RunError: `directory` holds no checkpoint.
        """
        return self._ranks.all("load", directory.resolve())

    def close(self) -> None:
        """Let go of the weights; the critic can't be used afterwards."""
        self._ranks.close()

    def _deal(self, rows: Sequence[_Calls]) -> list[Order]:
        lengths = [len(row.token_ids) for row in rows]
        return deal([range(len(rows))], lengths, self._ranks.size)

    def _aligned(self, rows: Sequence[Row]) -> list[FloatArray]:
        seen = [_calls(row) for row in rows]
        orders = self._deal(seen)
        batches = [share_out(seen, {}, order) for order in orders]
        self._annotate(batches, seen)
        return gather(seen, orders, self._ranks.each("values", batches))

    def _annotate(self, batches: Sequence[TensorDict], rows: Sequence[_Calls]) -> None:
        from verl.utils import tensordict_utils

        for batch in batches:
            tensordict_utils.assign_non_tensor(
                batch,
                max_token_len_per_gpu=token_budget(self._tokens, rows),
                compute_loss=False,
                # Of a policy's logits; verl reads it of every batch.
                temperature=1.0,
                calculate_entropy=False,
            )


def _calls(row: Row) -> _Calls:
    mask = np.zeros(len(row.token_ids), np.bool_)
    mask[[span.start for span in row.spans]] = True
    return _Calls(row.token_ids, mask, row.advantages, row.rollout_id)


def _placed(rows: Sequence[Row], numbers: Sequence[Sequence[float]]) -> list[FloatArray]:
    """Per row (T,), the number of each span at its first token, 0 elsewhere."""
    placed: list[FloatArray] = []
    for row, of_row in zip(rows, numbers, strict=True):
        array = np.zeros(len(row.token_ids), np.float32)
        array[[span.start for span in row.spans]] = of_row
        placed.append(array)
    return placed
