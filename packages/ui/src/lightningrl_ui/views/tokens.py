"""The sampled tokens of a rollout, each with what is known of it, and where its rows broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.errors import NotFound
from lightningrl.experience.trainable import EMPTY
from lightningrl.experience.trained_calls import Lens, as_seen, lenses
from lightningrl.experience.trajectory import UNTAKEN, Break, Merge, merge
from lightningrl.experience.transition import Transition
from lightningrl.lessons import LessonCall
from lightningrl.schema import CallEvent, Rollout, StepId
from lightningrl.store import Store
from lightningrl.traces import AttemptRecord, read_attempts
from lightningrl_ui.reading_tokens import TokenReader
from lightningrl_ui.sources import Run
from lightningrl_ui.views.lesson import RolloutLesson, rollout_lesson
from lightningrl_ui.views.rollout import find_rollout
from lightningrl_ui.views.steps import lane_of

AT_ONCE = 2000
"""Tokens of one answer of the server; the others follow when they are scrolled to."""

_BEFORE = 4
"""Tokens read before a part's first, so that a character that began there is whole."""

_WINDOW = 12
"""Tokens shown before a break."""

BY = {
    "logprob": "log-prob",
    "gap": "engine-trainer gap",
    "credit": "credit",
    "version": "policy version",
    "mask": "trained or not",
}
"""What tokens are coloured by -> its title."""

LEGENDS = {
    "logprob": "from 0 (no colour: certain) to -5 nats or less (orange: a surprise)",
    "gap": "absolute difference of the engine's and the trainer's log-prob, from 0 to 0.5 nats or more (orange)",
    "credit": "orange below 0, blue above 0; full at the rollout's largest",
    "version": "a colour per version of the policy",
    "mask": "blue is trained; dashed is not, with the reason above it",
}

_LOG_PROB_NATS, _GAP_NATS, _SHADES = 5.0, 0.5, 9

CAUSES = {
    "retokenised": "where the model's own answer stood its prompt has other tokens: the answer's text was tokenised"
    " again, or changed",
    "edited": "its prompt has other tokens than the row, not in the model's answers: the history was changed",
    "truncated": "its prompt ends inside the row: the history was cut",
    "stopped": "where a stop text had cut the model's answer its prompt has other tokens: the rest was never sent back",
    "template": "the messages go on, but the chat template writes what came before otherwise, such as without thoughts",
}
"""Cause of a break -> what it means."""


@dataclass(frozen=True)
class Piece:
    """Tokens that look alike."""

    shade: str
    """CSS class."""
    text: str
    told: str
    """For whoever points at it."""


@dataclass(frozen=True)
class Broke:
    """A call whose prompt did not continue the row before it."""

    cause: str
    why: str
    position: int
    before: str
    """Text up to there, of both."""
    expected: str
    found: str


@dataclass(frozen=True)
class CallTokens:
    """One model call."""

    step: Transition
    call: CallEvent
    lesson: LessonCall | None
    lane: str
    tokens: int
    """Sampled."""
    reason: str | None
    """Why it was not trained. `None`: it was, or nothing is against it."""
    row: str
    """Where it stands among the rows, as text."""
    broke: Broke | None
    others: int
    """Further answers of the same call, which were left out."""
    pieces: tuple[Piece, ...]
    next: int | None
    """The first token that `pieces` lack. `None`: they have all."""


@dataclass(frozen=True)
class TokensView:
    """A rollout's tokens."""

    rollout: Rollout
    record: AttemptRecord
    lesson: RolloutLesson
    calls: tuple[CallTokens, ...]
    readable: bool
    """Whether all policies' tokenizers are here."""


class _Colour:
    """Colours the tokens of one rollout."""

    def __init__(self, by: str, lesson: RolloutLesson) -> None:
        self._by = by
        self._most = max([abs(one.credit) for one in lesson.calls.values()], default=0.0)

    def of_call(self, one: Transition, found: LessonCall | None, trained: bool) -> tuple[str, str]:
        """Class and text of all tokens of a call, by what its tokens have in common."""
        assert one.call is not None
        if self._by == "version":
            version = one.call.version_end
            return f"v{version % 4}", f"version {version}"
        if self._by == "mask":
            return ("c4", "trained") if trained else ("u", "not trained")
        if found is None:
            return "u", "credit not known"
        level = _level(abs(found.credit), self._most)
        return f"{'w' if found.credit < 0 else 'c'}{level}", f"credit {found.credit:+.4g}"

    def of_token(
        self, one: Transition, found: LessonCall | None
    ) -> Callable[[int], tuple[str, str]] | None:
        """Class and text of a token by its place. `None`: all tokens of the call are alike."""
        if self._by not in ("logprob", "gap"):
            return None
        engine = one.logprobs
        trainer = found.trainer_log_probs if found is not None else ()

        def told(place: int) -> tuple[str, str]:
            own = float(engine[place]) if place < len(engine) else None
            other = float(trainer[place]) if place < len(trainer) else None
            said = [] if own is None else [f"engine {own:.4f}"]
            said += [] if other is None else [f"trainer {other:.4f}"]
            texts = [f"{', '.join(said)} nats"] if said else []
            texts += [] if found is None else [f"credit {found.credit:+.4g}"]
            gap = None if own is None or other is None else abs(own - other)
            value, most = (
                (gap, _GAP_NATS)
                if self._by == "gap"
                else (None if own is None else -own, _LOG_PROB_NATS)
            )
            shade = "u" if value is None else f"w{_level(value, most)}"
            return shade, ", ".join(texts) or "no log-prob"

        return told


def _level(value: float, most: float) -> int:
    return round(_SHADES * min(1.0, max(0.0, value / most))) if most else 0


async def tokens_view(
    store: Store,
    run: Run,
    ident: str,
    *,
    by: str,
    attempt: int | None = None,
    call: str | None = None,
    start: int = 0,
) -> TokensView:
    """The tokens of a rollout's calls, the first `AT_ONCE` of them.

    Args:
        store: the run's.
        run: the run.
        ident: of the rollout.
        by: one of `BY`.
        attempt: its number. `None`: the last.
        call: of this call alone. `None`: of all.
        start: of that call's tokens the first that is shown.

    Raises:
        NotFound: there is no such rollout, attempt or call.
    """
    rollout, record, lesson = await _read(store, run, ident, attempt)
    teller = _Teller(run, record, lesson, by)
    room, found = AT_ONCE, list[CallTokens]()
    for place, one in enumerate(record.transitions):
        if one.call is not None and call in (None, one.call.id):
            stop = min(len(one.token_ids), start + room)
            found.append(teller.call(place, one.call, start, stop))
            room -= max(0, stop - start)
    if call is not None and not found:
        raise NotFound(f"rollout {ident!r} has no call {call!r} that counts")
    return TokensView(rollout, record, lesson, tuple(found), teller.readable)


TOKEN_COLUMNS = ("step", "agent", "policy", "version", "call", "place", "id", "text", "engine_log_prob", "trainer_log_prob", "credit", "trained", "reason")  # fmt: skip


async def token_rows(
    store: Store, run: Run, ident: str, attempt: int | None
) -> Iterator[tuple[Any, ...]]:
    """Every sampled token of an attempt as a row of `TOKEN_COLUMNS`; arguments and errors as of `tokens_view`."""
    _, record, lesson = await _read(store, run, ident, attempt)
    teller = _Teller(run, record, lesson, "mask")
    return (row for place in range(len(record.transitions)) for row in teller.rows(place))


async def _read(
    store: Store, run: Run, ident: str, attempt: int | None
) -> tuple[Rollout, AttemptRecord, RolloutLesson]:
    rollout = await find_rollout(store, run, ident)
    (records,) = await read_attempts(store, [rollout])
    chosen = [one for one in records if attempt in (None, one.attempt.number)]
    if not chosen:
        raise NotFound(f"rollout {ident!r} has no attempt {'' if attempt is None else attempt}")
    return rollout, chosen[-1], await rollout_lesson(store, run, rollout, log_probs=True)


class _Teller:
    """Tells what became of an attempt's calls."""

    def __init__(self, run: Run, record: AttemptRecord, lesson: RolloutLesson, by: str) -> None:
        looks = _lenses(run, record)
        self._steps = record.transitions
        self._by_id = {one.step_id: one for one in record.transitions}
        self._seen = [as_seen(one, looks) for one in record.transitions]
        self._merged = {
            alias: merge([lens.look(one) for one in record.transitions])
            for alias, lens in looks.items()
        }
        self._lesson = lesson
        self._colour = _Colour(by, lesson)
        self._folder = run.folder
        self._readers: dict[str, TokenReader] = {}

    @property
    def readable(self) -> bool:
        """Whether the tokenizers of all calls so far are here."""
        return all(one.known for one in self._readers.values())

    def call(self, place: int, call: CallEvent, start: int, stop: int) -> CallTokens:
        """The call of the step at `place`, with its tokens [start, stop)."""
        one, reader = self._steps[place], self._reader(call.policy)
        found = self._lesson.calls.get(call.id)
        rows = self._merged.get(call.policy)
        return CallTokens(
            step=one,
            call=call,
            lesson=found,
            lane=lane_of(one, self._by_id),
            tokens=len(one.token_ids),
            reason=self._reason(place),
            row="" if rows is None else _row(rows, place),
            broke=None if rows is None else _broke(rows, one, reader),
            others=len(call.choices) - 1,
            pieces=_pieces(one, found, self._colour, reader, start, stop),
            next=stop if stop < len(one.token_ids) else None,
        )

    def rows(self, place: int) -> Iterator[tuple[Any, ...]]:
        """A row per sampled token of the step at `place`; none of one that is no call."""
        one = self._steps[place]
        if one.call is None:
            return
        found = self._lesson.calls.get(one.call.id)
        own = (one.step_id, lane_of(one, self._by_id), one.call.policy, one.call.version_end, one.call.id)  # fmt: skip
        credit = (None, None) if found is None else (found.credit, found.trained)
        ids: list[int] = one.token_ids.tolist()
        texts = self._reader(one.call.policy).pieces(ids)
        logs = (one.logprobs, found.trainer_log_probs if found is not None else ())
        for n, (ident, text) in enumerate(zip(ids, texts, strict=True)):
            said = (float(each[n]) if n < len(each) else None for each in logs)
            yield (*own, n, ident, text, *said, *credit, self._reason(place))

    def _reason(self, place: int) -> str | None:
        """Why the call of the step at `place` was not trained. `None`: it was, or nothing is against it."""
        one = self._steps[place]
        found = self._lesson.calls.get(one.call.id) if one.call is not None else None
        return found.reason if found is not None else self._seen[place].untrainable or _no_tokens(one)  # fmt: skip

    def _reader(self, policy: str) -> TokenReader:
        if policy not in self._readers:
            self._readers[policy] = TokenReader(self._folder, policy)
        return self._readers[policy]


def _no_tokens(one: Transition) -> str | None:
    return None if one.token_bytes else EMPTY


def _lenses(run: Run, record: AttemptRecord) -> Mapping[str, Lens]:
    """Of the recipe's policies; where it names none, of those that answered, as if all were trained."""
    if run.recipe is not None and run.recipe.recipe.policies:
        return lenses(run.recipe.recipe.policies, code=False)
    aliases = {one.call.policy for one in record.transitions if one.call is not None}
    return {alias: Lens(alias, frozenset(), 0) for alias in aliases}


def _row(merged: Merge, place: int) -> str:
    for number, row in enumerate(merged.rows):
        indices = [span.index for span in row.spans]
        if place in indices:
            return f"{'begins' if indices[0] == place else 'continues'} row {number}"
    return "in no row, or as context"


def _broke(merged: Merge, one: Transition, reader: TokenReader) -> Broke | None:
    found = {broken.step_id: broken for broken in merged.breaks}.get(StepId(one.step_id))
    return None if found is None else _as_text(found, one, reader)


def _as_text(found: Break, one: Transition, reader: TokenReader) -> Broke:
    ids = one.prompt_ids[max(0, found.position - _WINDOW) : found.position]
    return Broke(
        cause=found.cause,
        why=CAUSES[found.cause],
        position=found.position,
        before=reader.text(ids.tolist()),
        expected=reader.text(found.expected),
        found=reader.text(found.found),
    )


def _pieces(
    one: Transition,
    found: LessonCall | None,
    colour: _Colour,
    reader: TokenReader,
    start: int,
    stop: int,
) -> tuple[Piece, ...]:
    """Tokens [start, stop) of a call; those that look alike by nature as one piece."""
    if start >= stop:
        return ()
    ids: list[int] = one.token_ids[max(0, start - _BEFORE) : stop].tolist()
    texts = [_visible(text) for text in reader.pieces(ids)][start - stop :]
    each = colour.of_token(one, found)
    if each is None:
        trained = found is not None and found.trained
        shade, told = colour.of_call(one, found, trained)
        return (Piece(shade, "".join(texts), f"tokens {start} to {stop - 1}: {told}"),)
    pieces: list[Piece] = []
    for place, text in zip(range(start, stop), texts, strict=True):
        shade, told = each(place)
        pieces.append(Piece(shade, text or "◌", f"token {place}, id {ids[place - stop]}: {told}"))
    return tuple(pieces)


def _visible(text: str) -> str:
    """A piece whose line ends are seen."""
    return text.replace("\n", "⏎\n")


def left_out(calls: Sequence[CallTokens]) -> list[tuple[str, int, int]]:
    """Reason -> calls and tokens that were not trained for it, the most tokens first."""
    calls_for, tokens_for = Counter[str](), Counter[str]()
    for one in calls:
        if one.reason is not None:
            calls_for[one.reason] += 1
            tokens_for[one.reason] += one.tokens
        if one.others > 0:
            every = sum(len(choice.token_ids) // 4 for choice in one.call.choices)
            calls_for[UNTAKEN] += one.others
            tokens_for[UNTAKEN] += every - one.tokens
    found = [(why, count, tokens_for[why]) for why, count in calls_for.items()]
    return sorted(found, key=lambda one: -one[2])
