"""Contract tests for stores and adapters, and the real parts that they run against."""

import pytest

# Before they are imported: a failing contract then shows both sides of its comparison.
for _module in (
    "adapter_manners",
    "adapter_rollouts",
    "adapter_steps",
    "store_events",
    "store_ledger",
    "store_lifecycle",
    "store_reading",
):
    pytest.register_assert_rewrite(f"lightningrl_testkit.{_module}")
