"""The ranks that train one model together, and which rows each of them gets.

A rank is one process' part of a model that FSDP2 shards. Invariant: all ranks get equally many rows, with
fillers that weigh nothing, so that their passes and collectives meet; a row is on exactly one rank.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightningrl.recipe import Critic
from lightningrl_verl.worker.backend_config import BackendConfig

Order = list[int | None]
"""Row indices of one rank; `None` is a filler."""


class Ranks(Protocol):
    """All ranks of one model (a `PolicyRank` or `CriticRank` each), driven from one process."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def all(self, method: str, *arguments: Any) -> Any:
        """Call a method on every rank with the same arguments; return what the first one returns.

        Raises:
            RunError: a rank has died.
        """
        ...

    def each(self, method: str, shares: Sequence[Any]) -> list[Any]:
        """Call a method on every rank, the i-th with `shares[i]`; return what each returns, in order.

        Raises:
            RunError: a rank has died.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class Launcher(Protocol):
    """Where models are put."""

    def policy(self, config: BackendConfig) -> Ranks:
        """Load a policy, and with a KL penalty a frozen copy of it.

        Raises:
            ConfigError: an override is wrong, or the device is absent.
        """
        ...

    def critic(self, config: BackendConfig, critic: Critic) -> Ranks:
        """Load a policy's initial weights as a critic, under a new head."""
        ...

    async def watch(self) -> None:
        """Never return; raise when a rank has died.

        Raises:
            RunError: with the cause.
        """
        ...

    def abandon(self) -> None:
        """Make the call under way fail, if its ranks are not in this process; called from another thread."""
        ...

    def close(self) -> None:
        """End the ranks' processes, if they are not this one."""
        ...


class ThisProcess:
    """The launcher of a machine without a cluster: one rank, in this process."""

    def policy(self, config: BackendConfig) -> Ranks:
        """Load a policy here."""
        from lightningrl_verl.worker.policy_rank import PolicyRank

        return _OneRank(PolicyRank(config))

    def critic(self, config: BackendConfig, critic: Critic) -> Ranks:
        """Load a critic here."""
        from lightningrl_verl.worker.critic_rank import CriticRank

        return _OneRank(CriticRank(config, critic))

    async def watch(self) -> None:
        """Never return: a rank that dies takes this process with it."""
        await asyncio.Event().wait()

    def abandon(self) -> None:
        """A call in this process can only be waited for."""

    def close(self) -> None:
        """Nothing is to be ended."""


class _OneRank:
    """`Ranks` of one, whose methods are called directly."""

    size = 1

    def __init__(self, rank: Any) -> None:
        self._rank = rank

    def all(self, method: str, *arguments: Any) -> Any:
        return self._method(method)(*arguments)

    def each(self, method: str, shares: Sequence[Any]) -> list[Any]:
        (share,) = shares
        return [self._method(method)(share)]

    def close(self) -> None:
        self._rank.close()

    def _method(self, name: str) -> Callable[..., Any]:
        return getattr(self._rank, name)


def deal(batches: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[Order]:
    """Deal the rows of mini-batches out, so that every rank has about equally many tokens of each.

    Args:
        batches: row indices of each mini-batch.
        lengths: tokens of each row.
        ranks: how many ranks there are.

    Returns:
        Per rank its rows of all mini-batches, in order. All mini-batches have the same number of rows on
        every rank: that of the largest one's largest share. No rows give empty orders.
    """
    most = max((-(-len(batch) // ranks) for batch in batches), default=0)
    orders: list[Order] = [[] for _ in range(ranks)]
    for batch in batches:
        for order, share in zip(orders, _shares(batch, lengths, ranks), strict=True):
            order.extend([*share, *([None] * (most - len(share)))])
    return orders


def _shares(batch: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Longest rows first, each to the rank that has fewest tokens among those with room."""
    room = -(-len(batch) // ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in sorted(batch, key=lambda index: -lengths[index]):
        rank = min(
            (rank for rank in range(ranks) if len(shares[rank]) < room), key=tokens.__getitem__
        )
        shares[rank].append(index)
        tokens[rank] += lengths[index]
    return [sorted(share) for share in shares]
