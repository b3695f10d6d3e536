"""The contract of `lightningrl.store.base.Store`, as tests that every implementation passes.

::

    class TestMyStore(StoreContract):
        @pytest_asyncio.fixture
        async def store(self):
            store = MyStore(...)      # empty
            yield store
            await store.close()

No test waits for time to pass: a lease or deadline of zero seconds has run out at once.
"""

from __future__ import annotations

import pytest

from lightningrl_testkit.store_arguments import ArgumentClaims
from lightningrl_testkit.store_deletion import DeletionClaims
from lightningrl_testkit.store_events import EventClaims
from lightningrl_testkit.store_gateways import GatewayClaims
from lightningrl_testkit.store_ledger import LedgerClaims
from lightningrl_testkit.store_lifecycle import LifecycleClaims
from lightningrl_testkit.store_live import LiveClaims
from lightningrl_testkit.store_operator import OperatorClaims
from lightningrl_testkit.store_policies import PolicyClaims
from lightningrl_testkit.store_queries import QueryClaims
from lightningrl_testkit.store_reading import ReadingClaims
from lightningrl_testkit.store_resources import ResourceClaims
from lightningrl_testkit.store_rewards import RewardClaims
from lightningrl_testkit.store_transfer import TransferClaims
from lightningrl_testkit.store_waiting import WaitingClaims


@pytest.mark.asyncio
class StoreContract(
    LifecycleClaims,
    EventClaims,
    RewardClaims,
    ResourceClaims,
    ReadingClaims,
    QueryClaims,
    WaitingClaims,
    LedgerClaims,
    LiveClaims,
    OperatorClaims,
    DeletionClaims,
    TransferClaims,
    GatewayClaims,
    PolicyClaims,
    ArgumentClaims,
):
    """Subclass it and override the fixture `store` with an empty store."""
