"""The embedded `torch` engine: continuous batching of a Hugging Face causal LM on one worker thread.

Invariants: the model is touched by the worker thread alone, so a weight swap always falls between two
forward passes; every token is stamped with the version of the weights that drew it; no call ever hangs
on a dead worker.
"""

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightningrl_verl.engine import weights
from lightningrl_verl.engine.errors import (
    EngineAsleepError,
    EngineClosedError,
    EngineDiedError,
    EngineError,
    PromptTooLongError,
    WeightSwapError,
)
from lightningrl_verl.engine.sampling import SamplingParams, SamplingRow
from lightningrl_verl.engine.scheduler import Completion, Outcome, Request, Scheduler
from lightningrl_verl.engine.slot_model import MIN_MODEL_LEN, SlotModel
from lightningrl_verl.engine.stop_texts import StopTexts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and what is going on now."""

    version: int
    """The policy version of the weights in use."""
    slots: int
    """Most requests served at once."""
    active: int
    """Requests that hold a slot."""
    queued: int
    """Requests that wait for one."""
    finished: int
    """Completions returned."""
    generated_tokens: int
    """Tokens drawn."""
    prefill_tokens: int
    """Prompt tokens computed, padding not counted."""
    reused_tokens: int
    """Prompt tokens whose keys and values were still in a slot."""


class TorchEngine:
    """Serves one model to any number of concurrent requests; see the module for its invariants.

    The model is copied, so that training the original does not change what is served. Sliding windows,
    recurrent state and the like are refused.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 64,
        max_model_len: int,
        threads: int | None = None,
        version: int = 0,
    ) -> None:
        """Copies and probes the model; the worker starts with `start`.

        Args:
            model: On the device and in the dtype to serve it.
            tokenizer: Names the end-of-sequence token; the model's generation settings may add more.
            slots: Most requests served at once.
            max_model_len: Most tokens, prompt and answer together, of one request.
            threads: Torch's intra-op threads on the worker; None = as the process has them.
            version: The policy version of the weights that `model` holds.

        Raises:
            EngineError: A number is out of range, or the model is unsupported.
        """
        if slots < 1 or max_model_len < MIN_MODEL_LEN or (threads is not None and threads < 1):
            raise EngineError(
                f"slots={slots} and threads={threads} must be at least 1, "
                f"max_model_len={max_model_len} at least {MIN_MODEL_LEN}"
            )
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._model = SlotModel(model, slots=slots, max_len=max_model_len)
        self._eos = _eos_token_ids(model, tokenizer)
        self._scheduler = Scheduler(self._model, version)
        self._threads = threads
        self._wake = threading.Condition()
        """Guards the scheduler's queue, the commands, the worker and the two states of its end."""
        self._commands: deque[_Command[Any]] = deque()
        self._worker: threading.Thread | None = None
        self._ready = threading.Event()
        self._closing = False
        self._asleep = False
        self._hollow = False
        """Whether the weights have no memory, or no values: an engine that slept has not taken any yet."""
        self._died: BaseException | None = None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end every answer."""
        return self._eos

    @property
    def version(self) -> int:
        """The policy version of the weights in use."""
        return self._scheduler.version

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text as it was sampled, special tokens kept; cleaning up would take spaces away, and warn for BPE."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def start(self) -> None:
        """Starts the worker thread; a second start is an error.

        Raises:
            EngineError: The engine was started before.
        """
        with self._wake:
            if self._worker is not None:
                raise EngineError("the engine was already started; create another one")
            self._worker = threading.Thread(target=self._work, name="torch-engine", daemon=True)
            self._worker.start()
        self._ready.wait()

    def close(self) -> None:
        """Stops the worker; requests under way fail with `EngineClosedError`. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._worker is not None:
            self._worker.join()

    def check_alive(self) -> None:
        """Returns if requests are served.

        Raises:
            EngineDiedError: The worker crashed.
            EngineClosedError: The engine was not started, or is closed.
        """
        if self._died is not None:
            raise EngineDiedError(
                f"the engine's worker died of {self._died!r}; create a new engine"
            ) from self._died
        if self._worker is None:
            raise EngineClosedError("the engine is not running: call start() first")
        if self._closing:
            raise EngineClosedError("the engine is closed")

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Samples one answer. Cancelling the awaiting task frees its slot.

        Raises:
            PromptTooLongError: The prompt leaves no room for a token within `max_model_len`.
            NonFiniteLogitsError: The model returned NaN or infinite scores.
            EngineAsleepError: It sleeps, or was put to sleep meanwhile.
            EngineDiedError: The worker crashed, before or during the call.
            EngineClosedError: The engine is not running.
        """
        room = self._room_after(prompt_ids)
        loop = asyncio.get_running_loop()
        request = Request(
            prompt=list(prompt_ids),
            row=SamplingRow(params),
            stops=self._eos.union(params.stop_token_ids),
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            future=loop.create_future(),
            loop=loop,
            stop_texts=StopTexts(params.stop, self.text_of) if params.stop else None,
        )
        with self._wake:
            self.check_alive()
            self._check_awake()
            self._scheduler.waiting.append(request)
            self._wake.notify()
        try:
            return await request.future
        finally:
            request.cancelled = True

    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[float]:
        """The log-probs of given tokens after a prompt, at temperature 1, under the current weights.

        Computed by one plain forward pass, independent of slots. No token gives an empty list.

        Raises:
            PromptTooLongError: Prompt and tokens together exceed `max_model_len`.
            EngineError: The prompt is empty, or the engine is asleep or not running.
        """
        if not token_ids:
            return []
        self._room_after([*prompt_ids, *token_ids[:-1]])
        if not prompt_ids:
            raise EngineError("the prompt is empty: the first token would have no log-prob")

        def compute() -> list[float]:
            self._check_awake()
            logits = self._model.logits([*prompt_ids, *token_ids[:-1]])[len(prompt_ids) - 1 :]
            chosen = torch.tensor(token_ids, device=logits.device)[:, None]
            return torch.log_softmax(logits.float(), dim=-1).gather(1, chosen)[:, 0].tolist()

        return self._on_worker(compute)

    def digest(self, names: Sequence[str]) -> str:
        """Of the weights in use by these names, as `weights.digest`, in the dtype that they are served in.

        Raises:
            EngineError: A name is unknown, or the engine is asleep or not running.
        """

        def compute() -> str:
            self._check_awake()
            held = self._model.model.state_dict()
            unknown = [name for name in names if name not in held]
            if unknown:
                raise EngineError(f"the model has no weight {unknown[0]!r}")
            return weights.digest((name, held[name]) for name in names)

        return self._on_worker(compute)

    def swap_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> float:
        """Replaces all weights between two decode steps, and returns how long that took in ms.

        The values are copied. A version never stands for two sets of weights: it must be above the
        current one, or equal it with equal weights (then nothing happens). Requests under way continue
        on the keys and values they have; their tokens say which version drew them. An engine that slept
        has none, and takes any of the current version or above.

        Raises:
            WeightSwapError: Names, shapes or the version do not fit; the old weights stay.
            EngineError: The engine is not running.
        """
        plan = weights.plan(self._model.model, named_tensors)

        def swap() -> float:
            started = time.perf_counter()
            current = self._scheduler.version
            same = version == current and (self._hollow or plan.changes_nothing())
            if version < current or (version == current and not same):
                raise WeightSwapError(
                    f"policy version {version} was refused: version {current} is in use, and a version "
                    f"is never used for two sets of weights; use {current + 1} or above"
                )
            if version > current or self._hollow:
                plan.apply()
                self._scheduler.use_version(version)
                self._hollow = False
            return (time.perf_counter() - started) * 1e3

        return self._on_worker(swap)

    def sleep(self) -> None:
        """Gives the memory of weights, keys and values back; requests under way fail, new ones are refused.

        Raises:
            EngineError: The engine is not running.
        """

        def free() -> None:
            with self._wake:
                self._asleep = self._hollow = True
                requests = self._scheduler.drain()
            self._scheduler.forget()
            self._model.free()
            asleep = EngineAsleepError("the engine was put to sleep; send the request again later")
            _deliver([(request, asleep) for request in requests])

        self._on_worker(free)

    def allocate_weights(self) -> None:
        """The first half of waking up: takes memory for weights, which must then be swapped in."""
        self._on_worker(self._model.allocate)

    def wake_up(self) -> None:
        """The second half: serves again.

        Raises:
            EngineError: It has no weights, or is not running.
        """

        def serve() -> None:
            if self._hollow:
                raise EngineError("the engine slept and has no weights yet; swap some in first")
            self._asleep = False

        self._on_worker(serve)

    def stats(self) -> EngineStats:
        """What the engine does and did; also of a dead one."""
        scheduler = self._scheduler
        return EngineStats(
            version=scheduler.version,
            slots=self._model.slots,
            active=len(scheduler.active),
            queued=sum(not request.cancelled for request in list(scheduler.waiting)),
            finished=scheduler.finished,
            generated_tokens=scheduler.generated_tokens,
            prefill_tokens=scheduler.prefill_tokens,
            reused_tokens=scheduler.reused_tokens,
        )

    def _check_awake(self) -> None:
        if self._asleep:
            raise EngineAsleepError("the engine sleeps; wake it up before it is asked for anything")

    def _room_after(self, prompt_ids: Sequence[int]) -> int:
        if not prompt_ids:
            raise EngineError("the prompt is empty")
        vocab = self._model.vocab_size
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocab:
            raise EngineError(f"the prompt holds a token id outside 0..{vocab - 1}")
        if len(prompt_ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens, and max_model_len={self.max_model_len} must "
                "hold at least one more; shorten it or raise max_model_len"
            )
        return self.max_model_len - len(prompt_ids)

    def _on_worker(self, function: Callable[[], T]) -> T:
        """Runs `function` between two steps of the worker, and returns or raises what it does."""
        command = _Command(function)
        with self._wake:
            self.check_alive()
            self._commands.append(command)
            self._wake.notify()
        return command.result.result()

    def _work(self) -> None:
        cause: BaseException | None = None
        try:
            try:
                if self._threads is not None:
                    _set_own_threads(self._threads)
            finally:
                self._ready.set()
            while self._wait_for_work():
                while self._commands:
                    self._commands.popleft().run()
                _deliver(self._scheduler.turn())
        except BaseException as error:  # noqa: BLE001  whatever ends this thread must reach its waiters
            cause = error
        self._end(cause)

    def _wait_for_work(self) -> bool:
        """Returns False once the engine is closing."""
        if not self._scheduler.has_work():
            with self._wake:
                self._wake.wait_for(
                    lambda: self._closing or self._commands or self._scheduler.has_work()
                )
        return not self._closing

    def _end(self, cause: BaseException | None) -> None:
        """Fails all that wait; afterwards `check_alive` refuses whatever comes."""
        with self._wake:
            self._died = cause
            self._closing = True
            requests, commands = self._scheduler.drain(), list(self._commands)
            self._commands.clear()
        try:
            self.check_alive()
        except EngineError as error:
            for command in commands:
                command.result.set_exception(error)
            _deliver([(request, error) for request in requests])


class _Command(Generic[T]):
    """A function for the worker thread, and the future of what it returns."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.result: Future[T] = Future()

    def run(self) -> None:
        try:
            self.result.set_result(self._function())
        except EngineError as error:
            self.result.set_exception(error)
        except BaseException as error:
            # The model may be half changed: the caller learns the cause, and the worker ends.
            self.result.set_exception(error)
            raise


def _deliver(outcomes: Iterable[tuple[Request, Outcome]]) -> None:
    """Resolves futures on their own loops, with one wake-up per loop."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Request, Outcome]]]
    by_loop = defaultdict(list)
    for request, outcome in outcomes:
        by_loop[request.loop].append((request, outcome))
    for loop, ended in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, ended)
        except RuntimeError:
            # The loop was closed meanwhile, and with it all who could await these futures.
            if not loop.is_closed():
                raise


def _resolve(ended: list[tuple[Request, Outcome]]) -> None:
    for request, outcome in ended:
        if request.future.done():
            continue
        if isinstance(outcome, Completion):
            request.future.set_result(outcome)
        else:
            request.future.set_exception(outcome)


def _set_own_threads(threads: int) -> None:
    """Sets torch's intra-op threads for the calling thread alone.

    Torch keeps the number per thread, and one more that threads adopt at their first operation. Setting
    writes both, so a passing thread puts the second back (ParallelOpenMP.cpp, torch 2.11).
    """
    adopted = torch.get_num_threads()
    torch.set_num_threads(threads)
    restore = threading.Thread(target=torch.set_num_threads, args=(adopted,))
    restore.start()
    restore.join()


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """End-of-sequence tokens of the tokenizer and of the model's generation settings, as in vLLM."""
    found: list[object] = [tokenizer.eos_token_id]
    configured: object = getattr(model.generation_config, "eos_token_id", None)
    found.extend(cast("list[object]", configured) if isinstance(configured, list) else [configured])
    return frozenset(token for token in found if isinstance(token, int))
