"""Which request holds which slot, and one turn of work: admit, prefill, decode, sample.

Invariants: a slot belongs to at most one request; requests are admitted in order of arrival; a request
leaves its slot as soon as it ends, fails or is cancelled. Everything here runs on the worker thread.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightningrl_verl.engine.errors import EngineError, NonFiniteLogitsError
from lightningrl_verl.engine.prompt_slots import Seat, SlotPool
from lightningrl_verl.engine.sampling import SamplingRow, sample
from lightningrl_verl.engine.slot_model import SlotModel
from lightningrl_verl.engine.stop_texts import StopTexts

PREFILL_TOKENS = 4096
"""Most tokens, padding included, in one prefill pass (one longer prompt goes alone)."""

TURNS_PER_ADMISSION = 4
"""Turns over which new requests are gathered, so that they share a prefill: on a small model a prefill
of one request costs as much as a decode step of all."""

ADMIT_AT_ONCE = 8
"""With fewer active requests than this nobody is kept waiting."""


@dataclass(frozen=True, slots=True)
class WeightSpan:
    """A stretch of an answer that was sampled under one set of weights."""

    version: int
    """The policy version."""
    start: int
    """Index of the first token in the answer."""
    end: int
    """Index after the last token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer."""

    token_ids: tuple[int, ...]
    """As sampled, with the token that ended the answer."""
    logprobs: tuple[float, ...]
    """Natural log-probs, aligned with `token_ids`, of the distribution each was drawn from."""
    finish_reason: Literal["stop", "length"]
    """`length`: `max_tokens` were drawn, or the context is full."""
    stop_text: str | None
    """The text that ended the answer. `None`: a token or the limit did."""
    spans: tuple[WeightSpan, ...]
    """Cover `token_ids` without gaps; more than one only if weights were swapped meanwhile."""
    queue_ms: float
    """From the call until its prompt was prefilled."""
    total_ms: float
    """From the call until the last token was drawn."""

    @property
    def version_start(self) -> int:
        """The policy version of the first token."""
        return self.spans[0].version

    @property
    def version_end(self) -> int:
        """The policy version of the last token."""
        return self.spans[-1].version


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to a completion."""

    prompt: list[int]
    row: SamplingRow
    stops: frozenset[int]
    """Tokens that end the answer."""
    limit: int
    """Most tokens to draw, at least 1."""
    future: asyncio.Future[Completion]
    """Belongs to `loop`; resolved there alone."""
    loop: asyncio.AbstractEventLoop
    stop_texts: StopTexts | None = None
    """Texts that end the answer. `None`: none do."""
    cancelled: bool = False
    """Set by the waiting side; seen at the next turn."""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    spans: list[WeightSpan] = field(default_factory=list[WeightSpan])
    """Closed ones; the open one starts where the last of these ends."""
    created: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0

    def close_span(self, version: int) -> None:
        """Stamps the tokens drawn since the last span."""
        start = self.spans[-1].end if self.spans else 0
        if len(self.tokens) > start:
            self.spans.append(WeightSpan(version, start, len(self.tokens)))


Outcome: TypeAlias = Completion | EngineError


class Scheduler:
    """Runs requests over a `SlotModel`."""

    def __init__(self, model: SlotModel, version: int) -> None:
        """Starts idle, with weights called `version`."""
        self.model = model
        self.version = version
        self.waiting: deque[Request] = deque()
        self.active: dict[int, Request] = {}
        """By slot."""
        self.generated_tokens = 0
        self.prefill_tokens = 0
        self.reused_tokens = 0
        self.finished = 0
        self._pool = SlotPool(model.slots)
        self._turns_since_admission = 0
        self._outcomes: list[tuple[Request, Outcome]] = []

    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self.active or self.waiting)

    def turn(self) -> list[tuple[Request, Outcome]]:
        """Admits what fits, draws one token for every active request; returns those that ended."""
        self._drop_cancelled()
        self._turns_since_admission += 1
        if len(self.active) < ADMIT_AT_ONCE or self._turns_since_admission >= TURNS_PER_ADMISSION:
            self._turns_since_admission = 0
            self._admit()
        if self.active:
            self._decode()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def use_version(self, version: int) -> None:
        """Called after the model's weights were changed."""
        for request in self.active.values():
            request.close_span(self.version)
        self._pool.forget()
        self.version = version

    def drain(self) -> list[Request]:
        """Gives up every request, with its slot."""
        requests = [*self.active.values(), *self.waiting]
        for slot in self.active:
            self._pool.give(slot, [])
        self.active.clear()
        self.waiting.clear()
        return requests

    def forget(self) -> None:
        """Called when keys and values are gone."""
        self._pool.forget()

    def _drop_cancelled(self) -> None:
        for slot in [slot for slot, request in self.active.items() if request.cancelled]:
            self._release(slot)

    def _admit(self) -> None:
        """Gives free slots to waiting requests, and prefills them."""
        admitted: list[Request] = []
        while self.waiting and len(admitted) < len(self._pool):
            request = self.waiting.popleft()
            if not request.cancelled:
                admitted.append(request)
        if not admitted:
            return
        placed = self._pool.take([request.prompt for request in admitted])
        for wave in range(1 + max(seat.wave for _, seat in placed)):
            of_wave = [(seat, admitted[index]) for index, seat in placed if seat.wave == wave]
            for seat, _ in of_wave:
                if seat.source is not None:
                    self.model.copy(seat.source, seat.slot, seat.start)
            for batch in _batches(of_wave):
                self._prefill(batch)

    def _prefill(self, batch: Sequence[tuple[Seat, Request]]) -> None:
        now = time.perf_counter()
        for seat, request in batch:
            request.admitted = now
            self.active[seat.slot] = request
            self.reused_tokens += seat.start
        slots = [seat.slot for seat, _ in batch]
        tails = [request.prompt[seat.start :] for seat, request in batch]
        self.prefill_tokens += sum(map(len, tails))
        logits = self.model.prefill(slots, tails, [seat.start for seat, _ in batch])
        self._take(slots, *sample(logits, [request.row for _, request in batch]))

    def _decode(self) -> None:
        slots = sorted(self.active)
        requests = [self.active[slot] for slot in slots]
        newest = [request.tokens[-1] for request in requests]
        held = [len(request.prompt) + len(request.tokens) - 1 for request in requests]
        logits = self.model.decode(slots, newest, held)
        self._take(slots, *sample(logits, [request.row for request in requests]))

    def _take(self, slots: list[int], tokens: list[int], logprobs: list[float]) -> None:
        """Appends one drawn token to each slot's request, and ends those that are done."""
        self.generated_tokens += len(slots)
        all_finite = math.isfinite(sum(logprobs))
        for slot, token, logprob in zip(slots, tokens, logprobs, strict=True):
            request = self.active[slot]
            if not all_finite and not math.isfinite(logprob):
                self._outcomes.append((request, self._non_finite(request)))
                self._release(slot, failed=True)
                continue
            request.tokens.append(token)
            request.logprobs.append(logprob)
            ended = token in request.stops
            stop_text = None
            if request.stop_texts is not None and not ended:
                stop_text = request.stop_texts.found(request.tokens)
            if ended or stop_text is not None or len(request.tokens) >= request.limit:
                self._finish(slot, request, stop_text)

    def _finish(self, slot: int, request: Request, stop_text: str | None) -> None:
        request.close_span(self.version)
        now = time.perf_counter()
        completion = Completion(
            token_ids=tuple(request.tokens),
            logprobs=tuple(request.logprobs),
            finish_reason="length"
            if stop_text is None and request.tokens[-1] not in request.stops
            else "stop",
            stop_text=stop_text,
            spans=tuple(request.spans),
            queue_ms=(request.admitted - request.created) * 1e3,
            total_ms=(now - request.created) * 1e3,
        )
        self._outcomes.append((request, completion))
        self.finished += 1
        self._release(slot)

    def _release(self, slot: int, *, failed: bool = False) -> None:
        request = self.active.pop(slot)
        # The last token was drawn but never fed back. Keys and values that span a swap, or come from
        # weights that gave NaN, must not serve another request.
        current = all(span.version == self.version for span in request.spans)
        clean = bool(request.tokens) and current and not failed
        self._pool.give(slot, [*request.prompt, *request.tokens[:-1]] if clean else [])

    def _non_finite(self, request: Request) -> NonFiniteLogitsError:
        return NonFiniteLogitsError(
            f"the model gave NaN or infinite scores for token {len(request.tokens)} of an answer to a "
            f"prompt of {len(request.prompt)} tokens under policy version {self.version}: its weights "
            "have most likely diverged; swap in finite ones"
        )


def _batches(placed: Sequence[tuple[Seat, Request]]) -> Iterator[list[tuple[Seat, Request]]]:
    """Cuts requests into prefill passes by how much they have to prefill."""

    def width(item: tuple[Seat, Request]) -> int:
        return len(item[1].prompt) - item[0].start

    # Of like kind and length side by side: a pass without any reuse reads no slots, and padding is paid
    # for like tokens.
    batch: list[tuple[Seat, Request]] = []
    for item in sorted(placed, key=lambda one: (one[0].start > 0, width(one))):
        mixed = bool(batch) and (batch[0][0].start > 0) != (item[0].start > 0)
        if batch and (mixed or width(item) * (len(batch) + 1) > PREFILL_TOKENS):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
