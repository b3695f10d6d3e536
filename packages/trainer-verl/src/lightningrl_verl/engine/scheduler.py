"""Which request holds which slot, and one turn of work: admit, prefill, decode, sample.

Invariants: a slot belongs to at most one request; requests are admitted in order of arrival; a request
leaves its slot as soon as it ends, fails or is cancelled. Everything here runs on the worker thread.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightningrl_verl.engine.errors import EngineError, NonFiniteLogitsError
from lightningrl_verl.engine.sampling import SamplingRow, sample
from lightningrl_verl.engine.slot_model import SlotModel

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


class SlotPool:
    """The free slots, each with the tokens whose keys and values it still holds."""

    def __init__(self, slots: int) -> None:
        """All slots start free and empty."""
        self._held: dict[int, list[int]] = {slot: [] for slot in range(slots)}

    def __len__(self) -> int:
        """How many slots are free."""
        return len(self._held)

    def take(self, prompt: list[int]) -> tuple[int, int]:
        """Takes the slot that holds the longest whole beginning of `prompt`, else the longest idle one.

        Returns:
            The slot, and how many tokens of the prompt need no prefill (at least one always does).
        """
        best, reused = next(iter(self._held)), 0
        for slot, held in self._held.items():
            size = len(held)
            if reused < size < len(prompt) and prompt[:size] == held:
                best, reused = slot, size
        del self._held[best]
        return best, reused

    def give(self, slot: int, held: list[int]) -> None:
        """Frees a slot; `held` are the tokens it may be reused for (empty = none)."""
        self._held[slot] = held

    def forget(self) -> None:
        """Drops what the slots hold: their keys and values belong to former weights."""
        self._held = {slot: [] for slot in self._held}


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
            for batch in self._admit():
                self._prefill(batch)
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

    def _admit(self) -> Iterable[list[tuple[int, Request, int]]]:
        """Gives free slots to waiting requests and groups them by how much they have to prefill."""
        admitted: list[tuple[int, Request, int]] = []
        while self.waiting and len(self._pool):
            request = self.waiting.popleft()
            if not request.cancelled:
                slot, start = self._pool.take(request.prompt)
                admitted.append((slot, request, start))
        # Of like kind and length side by side: a pass without any reuse reads no slots, and padding is
        # paid for like tokens.
        admitted.sort(key=lambda item: (item[2] > 0, len(item[1].prompt) - item[2]))
        batch: list[tuple[int, Request, int]] = []
        for item in admitted:
            width = len(item[1].prompt) - item[2]
            mixed = bool(batch) and (batch[0][2] > 0) != (item[2] > 0)
            if batch and (mixed or width * (len(batch) + 1) > PREFILL_TOKENS):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _prefill(self, batch: list[tuple[int, Request, int]]) -> None:
        now = time.perf_counter()
        for slot, request, start in batch:
            request.admitted = now
            self.active[slot] = request
            self.reused_tokens += start
        slots = [slot for slot, _, _ in batch]
        tails = [request.prompt[start:] for _, request, start in batch]
        self.prefill_tokens += sum(map(len, tails))
        logits = self.model.prefill(slots, tails, [start for _, _, start in batch])
        self._take(slots, *sample(logits, [request.row for _, request, _ in batch]))

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
            if token in request.stops or len(request.tokens) >= request.limit:
                self._finish(slot, request)

    def _finish(self, slot: int, request: Request) -> None:
        request.close_span(self.version)
        now = time.perf_counter()
        completion = Completion(
            token_ids=tuple(request.tokens),
            logprobs=tuple(request.logprobs),
            finish_reason="stop" if request.tokens[-1] in request.stops else "length",
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
