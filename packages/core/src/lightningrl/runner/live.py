"""Rollouts that the user's own code drives: `@lightningrl.rollout` and `with lightningrl.rollout(...)`.

Invariant: the block or function behaves as it would without us (same result, same exception), and when
it has ended all that it emitted is stored and the attempt is finished.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from lightningrl.capture.context import RolloutContext, in_rollout
from lightningrl.capture.jsonable import jsonable
from lightningrl.errors import ConfigError
from lightningrl.runner.driver import LiveDriver, driver_for
from lightningrl.schema import RolloutId

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SERVER_VARIABLE = "LIGHTNINGRL_SERVER"
"""URL of `lightningrl serve`, where `server` is not given."""
KEY_VARIABLE = "LIGHTNINGRL_KEY"
"""The runner's or admin's key, where `key` is not given."""


class LiveRollout:
    """One rollout that lasts as long as a block; or, as a decorator, one for each call.

    Works with `with` and `async with`, and on plain and coroutine functions.
    """

    def __init__(
        self,
        task: Mapping[str, Any],
        *,
        run: str,
        server: str | None,
        key: str | None,
        timeout_seconds: float,
    ) -> None:
        self.output: Any = None
        """What the block made of the task; stored as the attempt's output."""
        self._task = dict(task)
        self._run = run
        self._server = server
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._driver: LiveDriver | None = None
        self._context: RolloutContext | None = None
        self._entered = ExitStack()

    @property
    def id(self) -> RolloutId:
        """The rollout's id, within the block.

        Raises:
            RuntimeError: the block has not begun.
        """
        if self._context is None:
            raise RuntimeError("the rollout has no id before its block begins")
        return self._context.rollout_id

    def __enter__(self) -> Self:
        """Begin the rollout.

        Raises:
            ConfigError: no server is named, or the run has no policy there.
            StoreUnavailable: the server can't be reached.
        """
        driver = self._open_driver()
        began = driver.submit(driver.begin(self._task, self._run, self._timeout_seconds))
        return self._enter(began.result())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it; an exception of the block is recorded and passes on."""
        driver, context = self._exit()
        driver.submit(driver.end(context, self.output, error)).result()

    async def __aenter__(self) -> Self:
        """As `__enter__`, without holding up the event loop."""
        driver = self._open_driver()
        return self._enter(
            await driver.result_of(driver.begin(self._task, self._run, self._timeout_seconds))
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `__exit__`, without holding up the event loop."""
        driver, context = self._exit()
        await driver.result_of(driver.end(context, self.output, error))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make each call of `function` a rollout, its arguments the task, its result the output."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def async_call(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with self._again(args, kwargs) as one:
                    one.output = result = await function(*args, **kwargs)
                return result

            return cast("Callable[P, R]", async_call)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._again(args, kwargs) as one:
                one.output = result = function(*args, **kwargs)
            return result

        return call

    def _again(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LiveRollout:
        """The rollout of one call: a single mapping is the task itself."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Mapping):
            task: Mapping[str, Any] = jsonable(args[0])
        else:
            task = {"args": jsonable(args), "kwargs": jsonable(kwargs)}
        return LiveRollout(
            task,
            run=self._run,
            server=self._server,
            key=self._key,
            timeout_seconds=self._timeout_seconds,
        )

    def _open_driver(self) -> LiveDriver:
        server = self._server or os.environ.get(SERVER_VARIABLE)
        if not server:
            raise ConfigError(
                f"no server for a live rollout: give server=..., or set {SERVER_VARIABLE} to the URL of "
                "`lightningrl serve`"
            )
        self._driver = driver_for(server, self._key or os.environ.get(KEY_VARIABLE))
        return self._driver

    def _enter(self, context: RolloutContext) -> Self:
        self._context = context
        self._entered.enter_context(in_rollout(context))
        return self

    def _exit(self) -> tuple[LiveDriver, RolloutContext]:
        self._entered.close()
        assert self._driver is not None
        assert self._context is not None  # both are there since the block began
        return self._driver, self._context


@overload
def rollout(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def rollout(
    task: Mapping[str, Any] | None = None,
    /,
    *,
    run: str = "live",
    server: str | None = None,
    key: str | None = None,
    timeout_seconds: float = 600.0,
) -> LiveRollout: ...


def rollout(
    task: Mapping[str, Any] | Callable[..., Any] | None = None,
    /,
    *,
    run: str = "live",
    server: str | None = None,
    key: str | None = None,
    timeout_seconds: float = 600.0,
) -> Any:
    """Record what the user's own code does as a rollout: as a decorator or around a block.

    Model calls of the block go to the server's gateway, as in a runner; `openai` clients only need to
    call a model that a policy of `run` names or replaces. A number or `Reward` as the function's result
    (or as `output` of the block) is the final reward, unless `final_reward` was called. Live rollouts
    are kept and never trained on.

    Args:
        task: what the rollout is about; or, as a bare decorator, the function.
        run: whose policies answer. Its queue must be free of runners: they would lease the rollout.
        server: URL of `lightningrl serve`. `None`: the variable `LIGHTNINGRL_SERVER`.
        key: the server's key. `None`: the variable `LIGHTNINGRL_KEY`.
        timeout_seconds: the attempt's longest time; its calls are refused after that.
    """
    if callable(task):
        return rollout(run=run, server=server, key=key, timeout_seconds=timeout_seconds)(task)
    return LiveRollout(task or {}, run=run, server=server, key=key, timeout_seconds=timeout_seconds)
