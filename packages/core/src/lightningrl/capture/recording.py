"""Runs a framework's own calls and streams as steps: what adapters put around them.

Invariant: what is returned, raised and yielded is exactly what the original returns, raises and yields;
and a step that began has ended when its call or stream has, however that ends.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any, TypeVar

from lightningrl.capture.context import (
    Step,
    current,
    current_step,
    end_step,
    inside,
    note_answer,
    start_step,
    stream_inside,
)
from lightningrl.schema import StepKind

T = TypeVar("T")


def start_outermost(
    kind: StepKind,
    name: str,
    *,
    agent: str | None = None,
    inputs: Any = None,
    asks: Callable[[], Mapping[str, Any]] | None = None,
) -> Step | None:
    """Begin a step, as `start_step`. `None`: outside a rollout, or what runs is a part of such a step.

    For what frameworks make of others of its kind: a client with a cache around a client, one method that
    calls another.
    """
    around = current_step()
    if current() is None or (around is not None and around.kind is kind):
        return None
    return start_step(kind, name, agent=agent, inputs=inputs, asks=asks)


@contextmanager
def part_of(step: Step) -> Generator[None]:
    """Run the block as a part of `step`, which ends here only if the block raises."""
    with inside(step):
        try:
            yield
        except BaseException as error:
            end_step(step, error=error)
            raise


async def record(
    step: Step | None,
    call: Callable[[], Awaitable[T]],
    answer: Callable[[T], Any] | None = None,
) -> T:
    """Return what `call` returns, as `step`; `None`: as no step.

    The call may set the step's `output` or `error` before it returns.

    Args:
        step: it ends with the call.
        call: the framework's own.
        answer: of a model's call, from its result to what the model answered; see `note_answer`.
    """
    if step is None:
        return await call()
    with part_of(step):
        result = await call()
    if answer is not None:
        note_answer(step, lambda: answer(result))
    end_step(step)
    return result


async def record_stream(
    step: Step | None,
    items: AsyncIterator[T],
    last: type | tuple[type, ...],
    answer: Callable[[Any], Any] | None = None,
) -> AsyncGenerator[T, None]:
    """Yield from `items`, as `step`; `None`: as no step.

    Args:
        step: it ends with the stream.
        items: what the framework streams.
        last: the step ends with the first item of this type: consumers may read no further.
        answer: of a model's stream, from the last item to what the model answered; see `note_answer`.
    """
    if step is not None:
        items = stream_inside(step, items)
    try:
        async for item in items:
            if step is not None and isinstance(item, last):
                if answer is not None:
                    note_answer(step, lambda item=item: answer(item))
                end_step(step)
            yield item
    except BaseException as error:
        if step is not None:
            end_step(step, error=error)
        raise
    finally:
        close: Any = getattr(items, "aclose", None)
        if close is not None:
            await close()
    if step is not None:
        end_step(step)
