"""The contract of `lightningrl.store.base.Store`, as tests that every implementation passes.

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

from lightningrl_testkit.store_events import EventClaims
from lightningrl_testkit.store_ledger import LedgerClaims
from lightningrl_testkit.store_lifecycle import LifecycleClaims
from lightningrl_testkit.store_reading import ReadingClaims


@pytest.mark.asyncio
class StoreContract(LifecycleClaims, EventClaims, ReadingClaims, LedgerClaims):
    """Subclass it and override the fixture `store` with an empty store."""
