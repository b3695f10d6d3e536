"""Errors that a reward function catches are heard, and nobody else's."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lightningrl.runner.resolve import awaitable
from lightningrl.runner.swallowed import heard, swallowed

pytestmark = pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else traces")


def swallows() -> float:
    try:
        raises()
    except ValueError:
        return 0.0
    return 1.0


def raises() -> None:
    raise ValueError("signal only works in main thread")


async def swallows_later() -> float:
    await asyncio.sleep(0)
    return swallows()


class Judge:
    def __call__(self) -> float:
        return swallows()


def earns() -> float:
    return float(sum(one for one in (one for one in range(3))))  # its loops end by StopIteration


def lets_others_catch() -> float:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.nullcontext())
    return float(hasattr(sys, "no such name"))  # C code catches an AttributeError


async def errors_of(function: Callable[..., Any]) -> list[str]:
    with swallowed() as caught:
        await awaitable(heard(function), "reward")()
    return caught


@pytest.mark.parametrize(
    "function", [swallows, swallows_later, Judge()], ids=["plain", "async", "object"]
)
async def test_what_it_catches_is_heard_once_with_its_place(function: Callable[..., Any]) -> None:
    (one,) = await errors_of(function)
    assert one.startswith("ValueError: signal only works in main thread, in line ")
    assert one.endswith("(swallows)")
    assert sys.gettrace() is None


@pytest.mark.parametrize("function", [earns, lets_others_catch, dict])
async def test_what_goes_well_says_nothing(function: Callable[..., Any]) -> None:
    assert await errors_of(function) == []


async def test_functions_at_the_same_time_are_heard_apart() -> None:
    both = threading.Barrier(2, timeout=30)

    def one() -> float:
        both.wait()
        return swallows()

    def other() -> float:
        both.wait()
        return earns()

    first, second = await asyncio.gather(errors_of(one), errors_of(other))
    assert (len(first), len(second)) == (1, 0)
    several = await asyncio.gather(*(errors_of(swallows_later) for _ in range(3)))
    assert [len(one) for one in several] == [1, 1, 1]


async def test_only_the_first_are_listened_to() -> None:
    function = heard(swallows, most=1)
    for expected in (1, 0):
        with swallowed() as caught:
            function()
        assert len(caught) == expected


async def test_what_is_raised_is_raised() -> None:
    with pytest.raises(ValueError, match="signal"), swallowed():
        heard(raises)()
    assert sys.gettrace() is None
