"""Contract tests for stores and adapters, and the real parts that they run against."""

import pytest

# Before they are imported: a failing contract then shows both sides of its comparison.
pytest.register_assert_rewrite("lightningrl_testkit.adapter", "lightningrl_testkit.store")
