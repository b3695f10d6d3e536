"""The order of the files: those that take longest begin, so that no process is left alone with one at the end.

Garbage is not looked for while tests are collected: a million objects that stay.

And Hypothesis's profile `suite`: the same examples each time. They are found once, so that a few are as good as many;
`make test-long` draws new ones.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from warm_twin import Twin

ROOT = Path(__file__).parent

LONGEST = (
    "tests/test_ray.py",
    "tests/test_chatter.py",
    "tests/test_faults.py",
    "tests/test_quickstart.py",
    "tests/test_bad_input.py",
    "tests/test_train.py",
    "packages/trainer-verl/tests/test_training_trackers.py",
    "tests/test_live_training.py",
    "tests/test_algorithm_runs.py",
    # Far from the other one that starts Ray, whose node must be up within 30 seconds.
    "packages/trainer-verl/tests/test_ray_ranks.py",
    "tests/test_production.py",
    "tests/test_wheels.py",
    "packages/trainer-verl/tests/test_backend.py",
    "packages/trainer-verl/tests/test_critic.py",
    "packages/core/tests/test_store_contract.py",
    "packages/adapter-openai-agents/tests/test_openai_agents_contract.py",
    "tests/test_docs.py",
    "tests/test_check_cases.py",
    "tests/test_warm_start.py",
    "tests/test_policies.py",
    "packages/core/tests/test_runner_processes.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the profile, where it is asked for: to import Hypothesis takes two seconds."""
    gc.disable()
    # The environments of `make test-oldest` have no such option.
    if config.getoption("--hypothesis-profile", None) == "suite":
        from hypothesis import settings

        settings.register_profile("suite", settings.get_profile("ci"), max_examples=40)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in this order; everything else stays as it was found."""
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """From here on garbage is collected as ever."""
    gc.enable()


@pytest.fixture(scope="session")
def _twin() -> Iterator[Twin]:
    from warm_twin import Twin

    twin = Twin()
    yield twin
    twin.end()


@pytest.fixture(scope="module")
def forked(request: pytest.FixtureRequest) -> Iterator[None]:
    """On Linux, the module's programs of ours are forked from a process that has core loaded, not loaded anew."""
    if sys.platform != "linux":
        yield
        return
    twin: Twin = request.getfixturevalue("_twin")
    with twin.forking():
        yield
