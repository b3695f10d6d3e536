"""Rollouts that the user's own code drives: `@lightningrl.rollout` and `with lightningrl.rollout(...)`.

Invariant: the block or function behaves as it would without us (same result, same exception), and when
it has ended all that it emitted is stored and the attempt is finished; where `lightningrl.record` was
called, all that it emitted is on its way to be, or is counted as lost, and nothing was waited for.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from lightningrl.capture.carrying import rollout_open
from lightningrl.capture.client import install_client_patch
from lightningrl.capture.context import RolloutContext, current, in_rollout
from lightningrl.capture.jsonable import json_map, jsonable
from lightningrl.capture.rewards import emit_rewards
from lightningrl.errors import AgentError, ConfigError
from lightningrl.recorder import Recorder, active, is_called
from lightningrl.recorder.recorder import new_rollout_id
from lightningrl.runner.driver import LiveDriver, driver_for
from lightningrl.runner.outcome import judge, user_traceback
from lightningrl.schema import Failure, FailureKind, RolloutId
from lightningrl.settings import client_key, server_url

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class LiveRollout:
    """One rollout that lasts as long as a block; or, as a decorator, one for each call.

    Works with `with` and `async with`, and on plain and coroutine functions.
    """

    def __init__(
        self,
        task: Mapping[str, Any],
        *,
        run: str | None,
        server: str | None,
        key: str | None,
        timeout_seconds: float,
        patch_clients: bool,
    ) -> None:
        self.output: Any = None
        """What the block made of the task; stored as the attempt's output."""
        self._task = dict(task)
        self._run = run
        self._server = server
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._patch_clients = patch_clients
        self._driver: LiveDriver | None = None
        self._recorder: Recorder | None = None
        self._context: RolloutContext | None = None
        self._id: RolloutId | None = None
        self._entered = ExitStack()

    @property
    def id(self) -> RolloutId:
        """The rollout's id, within the block.

        Raises:
            RuntimeError: the block has not begun.
        """
        if self._id is None:
            raise RuntimeError("the rollout has no id before its block begins")
        return self._id

    def __enter__(self) -> Self:
        """Begin the rollout.

        Raises:
            ConfigError: no server is named, or the run has no policy there.
            StoreUnavailable: the server can't be reached.
        """
        if self._is_recorded():
            return self._enter_recorded()
        driver = self._open_driver()
        began = driver.submit(driver.begin(self._task, self._run_name, self._timeout_seconds))
        return self._enter(began.result())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it; an exception of the block is recorded and passes on."""
        if self._driver is None:
            self._exit_recorded(error)
            return
        driver, context = self._exit(self._driver)
        driver.submit(driver.end(context, self.output, error)).result()

    async def __aenter__(self) -> Self:
        """As `__enter__`, without holding up the event loop."""
        if self._is_recorded():
            return self._enter_recorded()
        driver = self._open_driver()
        begun = driver.begin(self._task, self._run_name, self._timeout_seconds)
        return self._enter(await driver.result_of(begun))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `__exit__`, without holding up the event loop."""
        if self._driver is None:
            self._exit_recorded(error)
            return
        driver, context = self._exit(self._driver)
        await driver.result_of(driver.end(context, self.output, error))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make each call of `function` a rollout, its arguments the task, its result the output.

        Raises:
            ConfigError: it is a generator, whose body runs after its call.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"@lightningrl.rollout on the generator {function.__name__!r} would end before its body"
                " begins; put `with lightningrl.rollout(...)` into the body"
            )
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
            task: Mapping[str, Any] = json_map(args[0])
        else:
            task = {"args": jsonable(args), "kwargs": jsonable(kwargs)}
        return LiveRollout(
            task,
            run=self._run,
            server=self._server,
            key=self._key,
            timeout_seconds=self._timeout_seconds,
            patch_clients=self._patch_clients,
        )

    @property
    def _run_name(self) -> str:
        return self._run or "live"

    def _is_recorded(self) -> bool:
        """Whether the block goes where `lightningrl.record` says, and not to a server's gateway."""
        if self._server is not None:
            return False
        return active() is not None or (is_called() and server_url() is None)

    # -- through a server ----------------------------------------------------------------------

    def _open_driver(self) -> LiveDriver:
        server = self._server or server_url()
        if not server:
            raise ConfigError(
                "no server for a live rollout: give server=..., or set LIGHTNINGRL_SERVER to the URL "
                "of `lightningrl serve`, or call lightningrl.record(...) to record without one"
            )
        if self._patch_clients:
            install_client_patch()
        self._driver = driver_for(server, self._key or client_key())
        return self._driver

    def _enter(self, context: RolloutContext) -> Self:
        self._context, self._id = context, context.rollout_id
        self._entered.enter_context(rollout_open(context))
        return self

    def _exit(self, driver: LiveDriver) -> tuple[LiveDriver, RolloutContext]:
        self._entered.close()
        assert self._context is not None  # it is there since the block began
        return driver, self._context

    # -- without one ---------------------------------------------------------------------------

    def _enter_recorded(self) -> Self:
        """Begin to record, unless the block is a part of a rollout, or not in the sample."""
        around = current()
        if around is not None:
            self._id = around.rollout_id
            return self
        self._id = new_rollout_id()
        self._recorder = active()
        if self._recorder is not None:
            self._context = self._recorder.begin(
                self._id, self._task, self._run, self._timeout_seconds
            )
        recorded = None if self._context is None else rollout_open(self._context)
        self._entered.enter_context(recorded or in_rollout(None))
        return self

    def _exit_recorded(self, error: BaseException | None) -> None:
        self._entered.close()
        if self._recorder is None or self._context is None:
            return
        failure = None
        try:
            if error is not None:
                failure = Failure(kind=FailureKind.AGENT, message=user_traceback(error))
            else:
                self._reward_output(self._context, self._recorder)
        except AgentError as wrong:
            _log.warning("%s", wrong)
            failure = Failure(kind=FailureKind.AGENT, message=str(wrong))
        finally:
            self._recorder.end(self._context, self.output, failure)

    def _reward_output(self, context: RolloutContext, recorder: Recorder) -> None:
        given = judge(
            self.output,
            recorder.rewards(context),
            by_recipe=False,
            what=f"rollout {context.rollout_id!r}",
            required=False,
        )
        if given is not None:
            emit_rewards(context, given, source="agent")


@overload
def rollout(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def rollout(
    task: Mapping[str, Any] | None = None,
    /,
    *,
    run: str | None = None,
    server: str | None = None,
    key: str | None = None,
    timeout_seconds: float = 600.0,
    patch_clients: bool = True,
) -> LiveRollout: ...


def rollout(
    task: Mapping[str, Any] | Callable[..., Any] | None = None,
    /,
    *,
    run: str | None = None,
    server: str | None = None,
    key: str | None = None,
    timeout_seconds: float = 600.0,
    patch_clients: bool = True,
) -> Any:
    """Record what the user's own code does as a rollout: as a decorator or around a block.

    Model calls of the block go to the server's gateway, as in a runner; `openai` clients only need to
    call a model that a policy of `run` names or replaces. A number or `Reward` as the function's result
    (or as `output` of the block) is the final reward, unless `final_reward` was called; `feedback` rewards
    it later. Live rollouts are kept, and trained on where the run's recipe has a section `live`.

    After `lightningrl.record(...)` the rollout is recorded as that says, and its calls go where the agent
    sends them; nothing is waited for and nothing of ours is raised. A block within a rollout is then a
    part of it.

    Args:
        task: what the rollout is about; or, as a bare decorator, the function.
        run: whose policies answer. `None`: `live`, or what `lightningrl.record` was given.
        server: URL of `lightningrl serve`, where calls go through the gateway. `None`: as
            `lightningrl.record` says if it was called, else the variable `LIGHTNINGRL_SERVER`.
        key: the server's key. `None`: the variable `LIGHTNINGRL_KEY`.
        timeout_seconds: the attempt's longest time; its calls are refused after that.
        patch_clients: whether to wrap the model clients of this process, so that their calls find the
            gateway. Without, a client is told where to call: its base URL, and `capture.CallHeaders`.
    """
    if callable(task):
        return rollout(run=run, server=server, key=key, timeout_seconds=timeout_seconds)(task)
    return LiveRollout(
        task or {},
        run=run,
        server=server,
        key=key,
        timeout_seconds=timeout_seconds,
        patch_clients=patch_clients,
    )
