"""One policy and its optimizer, from the driver's side: rows go out to the ranks, numbers come back.

Invariant: what an update does to the weights depends on its rows and their rollouts, not on their number,
on the passes that they were cut into, or on the ranks that they were dealt to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import Tensor

from lightningrl.errors import RunError
from lightningrl_verl.worker.backend_config import BackendConfig, compose_verl_config
from lightningrl_verl.worker.batch import (
    FloatArray,
    TrainingRow,
    align_next,
    to_batch,
    token_budget,
    whole_mask,
)
from lightningrl_verl.worker.loss import update_metrics
from lightningrl_verl.worker.mini_batches import cut_by_rollout
from lightningrl_verl.worker.ranks import Launcher, Order, ThisProcess, deal

if TYPE_CHECKING:
    from tensordict import TensorDict

_Item = TypeVar("_Item")


class VerlBackend:
    """A policy and its optimizer, trained by verl's workers on one or more ranks.

    Not safe for concurrent calls: the trainer owns it.
    """

    def __init__(self, config: BackendConfig, launcher: Launcher | None = None) -> None:
        """Load the policy (and with a KL penalty a frozen copy of it).

        Args:
            config: how it is trained.
            launcher: where its ranks run. `None`: it has one, in this process.

        Raises:
            ConfigError: an override is wrong, the device is absent, or verl already runs on another.
        """
        self.config = config
        self._verl = compose_verl_config(config).actor_rollout_ref.actor
        self.ranks = (launcher or ThisProcess()).policy(config)
        self.vocabulary: int = self.ranks.all("vocabulary")
        """Token ids run from 0 to one less."""

    def log_probs(
        self, rows: Sequence[TrainingRow], temperature: float | None = None
    ) -> list[FloatArray]:
        """Log-probs of the rows' trained tokens under the current weights.

        Args:
            rows: at least one.
            temperature: of the distribution; None for the one rollouts are sampled at.

        Returns:
            Per row (T,) float32 aligned with `token_ids`, 0 where not masked.

        Raises:
            RunError: there are no rows, one can't be trained, or a rank has died.
        """
        orders = self._deal([range(len(rows))], rows)
        batches = [share_out(rows, {}, order) for order in orders]
        self._annotate(batches, rows, temperature)
        scored: list[FloatArray] = self.ranks.each("log_probs", batches)
        return gather(rows, orders, scored)

    def update(
        self,
        rows: Sequence[TrainingRow],
        old_log_probs: Sequence[FloatArray],
        weights: Sequence[FloatArray] | None = None,
    ) -> dict[str, float]:
        """Train on rows, once per `ppo_epochs` and mini-batch, then advance the learning rate.

        Args:
            rows: their `advantages` have the loss weights multiplied in. They may be any number. With M
                mini-batches each is scaled by M, so that a rollout's share of a gradient is the same
                whatever M is, and whatever rows it has.
            old_log_probs: per row (T,), what the ratio compares with: the engine's own log-probs
                when the rows are on-policy, else `log_probs(rows)` of before the update.
            weights: per row (T,), importance weights that multiply each token's loss. `None`: 1.

        Returns:
            `loss`, `grad_norm` (before clipping), `lr` (as used), `ratio_max`, and as token means
            `pg_clipfrac`, `ppo_kl` and, where computed, `entropy` and `kl`; all of them means over
            mini-batches.

        Raises:
            RunError: there are no rows, one can't be trained, the gradient is not finite, or a rank has
                died.
        """
        batches, _ = self._update_batches(rows, old_log_probs, weights)
        measured, learning_rate = self.ranks.each("update", batches)[0]
        return update_metrics(measured, learning_rate)

    @property
    def scores_in_update(self) -> bool:
        """Whether an update is one step over all rows, whose forward pass shows log-probs of before it."""
        optimiser = self.config.optimiser
        once = optimiser.ppo_epochs == optimiser.mini_batches == 1
        return once and not self.ranks.all("has_dropout")

    def update_and_score(
        self, rows: Sequence[TrainingRow], old_log_probs: Sequence[FloatArray]
    ) -> tuple[dict[str, float], list[FloatArray]]:
        """As `update`, where `scores_in_update`; and what `log_probs` would have given before it.

        Raises:
            RunError: as `update`.
        """
        batches, orders = self._update_batches(rows, old_log_probs, None)
        found = self.ranks.each("update_and_score", batches)
        measured, learning_rate, _ = found[0]
        scored = gather(rows, orders, [of_rank for _, _, of_rank in found])
        return update_metrics(measured, learning_rate), scored

    def _update_batches(
        self,
        rows: Sequence[TrainingRow],
        old_log_probs: Sequence[FloatArray],
        weights: Sequence[FloatArray] | None,
    ) -> tuple[list[TensorDict], list[Order]]:
        """What each rank trains on, and which rows these are."""
        from verl.utils import tensordict_utils

        cut = cut_by_rollout([row.rollout_id for row in rows], self.config.optimiser.mini_batches)
        scaled = [row.advantages * np.float32(len(cut)) for row in rows]
        fields = {"old_log_probs": old_log_probs, "advantages": scaled}
        if weights is not None:
            fields["rollout_is_weights"] = weights
        orders = self._deal(cut, rows)
        batches = [share_out(rows, fields, order) for order in orders]
        self._annotate(batches, rows, None)
        # verl takes mini-batches of one size, counted over all ranks.
        size = len(orders[0]) // len(cut) * self.ranks.size
        for batch in batches:
            tensordict_utils.assign_non_tensor(
                batch,
                mini_batch_size=size,
                global_batch_size=size,
                epochs=self.config.optimiser.ppo_epochs,
            )
        return batches, orders

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The current weights under their Hugging Face names: whole, fp32, detached, adapters merged in.

        They may share storage with the live weights: copy them before the next update.
        """
        named: list[tuple[str, Tensor]] = self.ranks.all("weights")
        return iter(named)

    def save(self, directory: Path, former: Path | None = None) -> None:
        """Write all that a resume needs, and the weights in Hugging Face form, below `directory`.

        It is written in place; make the folder atomic by renaming it.

        Args:
            directory: to write.
            former: what was saved before, if it is still there: weights that are not trained are linked from it.
        """
        self.ranks.all("save", directory.resolve(), former and former.resolve())

    def load(self, directory: Path) -> bool:
        """Restore weights, optimizer, learning rate and the ranks' random states.

        Returns:
            False if another number of ranks wrote the checkpoint: then the weights and the learning rate
            are restored, and the optimizer's moments begin anew.

        Raises:
            RunError: `directory` holds no checkpoint.
        """
        return self.ranks.all("load", directory.resolve())

    def imitate(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Take one optimiser step on what the rows' masks mark, then advance the learning rate.

        Every trained token weighs the same, whichever row it stands in; advantages count for nothing. The backend's
        loss must be `SUPERVISED`.

        Returns:
            `loss` (mean surprise of the trained tokens before the step, nats), `grad_norm` (before clipping), `lr`.

        Raises:
            RunError: as `update`.
        """
        from verl.utils import tensordict_utils

        orders = self._deal([range(len(rows))], rows)
        batches = [share_out(rows, {}, order) for order in orders]
        self._annotate(batches, rows, 1.0)
        size = len(orders[0]) * self.ranks.size
        for batch, order in zip(batches, orders, strict=True):
            batch["loss_mask"] = whole_mask(_in_order(rows, order))
            tensordict_utils.assign_non_tensor(
                batch, mini_batch_size=size, global_batch_size=size, epochs=1
            )
        measured, learning_rate = self.ranks.each("update", batches)[0]
        return update_metrics(measured, learning_rate)

    def close(self) -> None:
        """Let go of the weights; the backend can't be used afterwards."""
        self.ranks.close()

    def _deal(self, batches: Sequence[Sequence[int]], rows: Sequence[TrainingRow]) -> list[Order]:
        if not rows:
            raise RunError("there are no rows to train on; skip the update of this iteration")
        return deal(batches, [len(row.token_ids) for row in rows], self.ranks.size)

    def _annotate(
        self, batches: Sequence[TensorDict], rows: Sequence[TrainingRow], temperature: float | None
    ) -> None:
        from verl.utils import tensordict_utils

        budget = token_budget(int(self._verl.ppo_max_token_len_per_gpu), rows)
        entropy = bool(self._verl.calculate_entropy) or float(self._verl.entropy_coeff) != 0.0
        for batch in batches:
            tensordict_utils.assign_non_tensor(
                batch,
                temperature=self.config.temperature if temperature is None else temperature,
                max_token_len_per_gpu=budget,
                calculate_entropy=entropy and "old_log_probs" in batch,
                compute_loss=False,
            )


def gather(
    rows: Sequence[TrainingRow], orders: Sequence[Order], scored: Sequence[FloatArray]
) -> list[FloatArray]:
    """What the ranks said of their rows' tokens, in the order of `rows`, aligned as by `align_next`.

    Args:
        rows: all rows.
        orders: which of them each rank had.
        scored: per rank, of each token's successor, its rows end to end.
    """
    found = {
        index: aligned
        for order, of_rank in zip(orders, scored, strict=True)
        for index, aligned in zip(order, align_next(_in_order(rows, order), of_rank), strict=True)
    }
    return [found[index] for index in range(len(rows))]


def share_out(
    rows: Sequence[TrainingRow], fields: Mapping[str, Sequence[FloatArray]], order: Order
) -> TensorDict:
    """One rank's rows as verl takes them, by `to_batch`."""
    return to_batch(
        _in_order(rows, order), {name: _in_order(of, order) for name, of in fields.items()}
    )


def _in_order(items: Sequence[_Item], order: Sequence[int | None]) -> list[_Item | None]:
    return [None if at is None else items[at] for at in order]
