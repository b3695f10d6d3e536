"""Records the calls of `openai` and `anthropic` clients as steps, where no gateway does.

All calls of a client, its retries within, are one call of `request` of one of two classes, since openai 1.66
and anthropic 0.49; what streams them has one method that makes their items, `__stream__`.

Invariant: a call within an `llm` step is that step's own and is not recorded again: a framework's adapter has
begun it, or the user. What is returned, raised and yielded is what the client returns, raises and yields; a
stream's step ends with it.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from lightningrl.capture.client import SDKS, Sdk, model_of
from lightningrl.capture.context import Step, current, end_step, note_answer
from lightningrl.capture.importing import OnImport
from lightningrl.capture.patching import Patches, family
from lightningrl.capture.recording import part_of, start_outermost
from lightningrl.capture.wire import ROUTES, answered, answered_in_parts, asked
from lightningrl.errors import ConfigError
from lightningrl.schema import Dialect, StepKind

_log = logging.getLogger(__name__)

_CALL = "_lightningrl_call"

_imports = OnImport()
_hooked: list[Patches] = []
"""One for each package that is hooked."""


def record_client_calls() -> None:
    """Record from now on; a second time changes nothing.

    A client package that the program has not imported is hooked when it does. One that doesn't have what is
    hooked stays as it is, and a line in the log says so.
    """
    for sdk in SDKS:
        if sdk.is_installed():
            _imports.act(sdk.module, functools.partial(_hook, sdk))


def forget_client_calls() -> None:
    """Undo that."""
    _imports.forget()
    while _hooked:
        _hooked.pop().undo()


def _hook(sdk: Sdk, module: ModuleType) -> None:
    patches = Patches()
    streaming = importlib.import_module(f"{sdk.package}._streaming")
    try:
        for base, make in (
            (module.SyncAPIClient, functools.partial(_record_request, sdk)),
            (module.AsyncAPIClient, functools.partial(_record_async_request, sdk)),
        ):
            patches.replace(base, "request", make)
            # Who instruments a client's class (OpenInference does) has put what was inherited then into it.
            for owner in family(base):
                patches.replace_own(owner, "request", make)
        patches.replace(streaming.Stream, "__stream__", _record_stream)
        patches.replace(streaming.AsyncStream, "__stream__", _record_async_stream)
    except (AttributeError, ConfigError):
        patches.undo()
        # Raised here it would be the import that fails, in a program that only wants to be watched.
        _log.exception("the model calls of %s clients can't be recorded", sdk.package)
    else:
        _hooked.append(patches)


@dataclass(slots=True, eq=False)
class _Call:
    """A call that is recorded."""

    step: Step
    dialect: Dialect
    items: list[Any] = field(default_factory=list[Any])
    """Of a stream: what came so far."""

    def end_stream(self, error: BaseException | None = None) -> None:
        """Nothing more comes; what is said of a stream that has ended changes nothing."""
        if self.step.ended:
            return
        note_answer(
            self.step,
            lambda: answered_in_parts(self.dialect, [_plain(one) for one in self.items]),
        )
        end_step(self.step, error=error)


def _begin(sdk: Sdk, options: Any) -> _Call | None:
    """Begin the step of a request. `None`: it is not recorded."""
    context = current()
    if context is None or context.has_gateway or options.method.lower() != "post":
        return None
    route, _, _ = str(options.url).partition("?")
    dialect = ROUTES.get(route.removeprefix(sdk.prefix))
    if dialect is None:
        return None
    step = start_outermost(
        StepKind.LLM,
        model_of(options) or sdk.package,
        asks=lambda: asked(dialect, {**options.json_data, **(options.extra_json or {})}),
    )
    return None if step is None else _Call(step, dialect)


def _answered(call: _Call, result: Any, *, stream: bool) -> Any:
    """Note what the client returns: an answer ends the step, a stream takes it along.

    By its response, of which users who asked for that one make the stream themselves. Another's proxy of a stream
    says what that is by `__wrapped__`.
    """
    own = getattr(result, "__wrapped__", result)
    if hasattr(type(own), "__stream__"):
        vars(own.response)[_CALL] = call
    elif stream:
        vars(own.http_response)[_CALL] = call
    else:
        note_answer(call.step, lambda: answered(call.dialect, _plain(own)))
        end_step(call.step)
    return result


def _plain(result: Any) -> Mapping[str, Any]:
    """A response or event as it came; of a raw response, which users parse themselves, its body."""
    if hasattr(result, "to_dict"):
        return result.to_dict(mode="json", warnings=False)
    return cast("Mapping[str, Any]", result.http_response.json())


def _bound(original: Callable[..., Any], client: Any) -> Callable[..., Any]:
    """The method of a client; another's wrapper of it must be told whose it is by being bound."""
    return cast("Any", original).__get__(client, type(client))


def _record_request(sdk: Sdk, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        asks = _bound(original, self)
        call = _begin(sdk, options)
        if call is None:
            return asks(cast_to, options, *args, **kwargs)
        with part_of(call.step):
            result = asks(cast_to, options, *args, **kwargs)
        return _answered(call, result, stream=bool(kwargs.get("stream")))

    return request


def _record_async_request(sdk: Sdk, original: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        asks = _bound(original, self)
        call = _begin(sdk, options)
        if call is None:
            return await asks(cast_to, options, *args, **kwargs)
        with part_of(call.step):
            result = await asks(cast_to, options, *args, **kwargs)
        return _answered(call, result, stream=bool(kwargs.get("stream")))

    return request


def _record_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    # A generator, so that the call is looked for when the stream is read: it begins before that is known.
    @functools.wraps(original)
    def read(self: Any) -> Any:
        call: _Call | None = vars(self.response).get(_CALL)
        with closing(original(self)) as items:
            if call is None:
                yield from items
                return
            try:
                for item in items:
                    call.items.append(item)
                    yield item
            except BaseException as error:
                call.end_stream(error)
                raise
        call.end_stream()

    return read


def _record_async_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def read(self: Any) -> Any:
        return _AsyncItems(self, original(self))

    return read


class _AsyncItems:
    """What an asynchronous stream yields.

    No generator around the client's own: a collector that finds both closes both, and the loop of the user's
    program would complain that the inner one is closed twice at once.
    """

    def __init__(self, stream: Any, items: AsyncGenerator[Any, None]) -> None:
        self._stream = stream
        self._items = items
        self._call: _Call | None = None
        """Known once the stream is read: it begins before its call is."""

    def __aiter__(self) -> _AsyncItems:
        return self

    async def __anext__(self) -> Any:
        call = self._call = vars(self._stream.response).get(_CALL)
        try:
            item = await anext(self._items)
        except BaseException as error:
            self._end(None if isinstance(error, StopAsyncIteration) else error)
            raise
        if call is not None:
            call.items.append(item)
        return item

    async def aclose(self) -> None:
        self._end(GeneratorExit())
        await self._items.aclose()

    def __del__(self) -> None:
        self._end(GeneratorExit())

    def _end(self, error: BaseException | None) -> None:
        if self._call is not None:
            self._call.end_stream(error)
