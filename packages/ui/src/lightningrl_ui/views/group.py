"""The members of a group side by side, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightningrl.schema import GroupId, RewardEvent, Rollout
from lightningrl.store import Store
from lightningrl.traces import AttemptRecord, late_rewards, read_attempts
from lightningrl_ui.sources import Run
from lightningrl_ui.views.iteration import GroupLine, Member, group_lines
from lightningrl_ui.views.steps import StepView, attempt_view


@dataclass(frozen=True)
class Column:
    """One member."""

    member: Member
    attempts: int
    rewards: tuple[RewardEvent, ...]
    """Every reward of the attempt that decided it, in order of arrival."""
    late: frozenset[str]
    """Ids of those that came after an iteration had taken it."""
    steps: tuple[StepView, ...]
    """Of that attempt, in order of their start."""


@dataclass(frozen=True)
class Cell:
    """What one member did in a row."""

    step: StepView | None
    """`None`: it had ended."""
    shared: str
    """How its text begins in every member; only in the row of the first difference."""
    rest: str


@dataclass(frozen=True)
class Row:
    """The steps at one place."""

    place: int
    first_difference: bool
    """Up to here all members did the same."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class GroupView:
    """A group."""

    line: GroupLine
    task: dict[str, object]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


async def group_view(store: Store, run: Run, first: Rollout) -> GroupView:
    """The group of a rollout."""
    spec = first.spec
    (line,) = await group_lines(store, run, spec.mode, spec.iteration, group=GroupId(spec.group_id))
    members = [one.rollout for one in line.members]
    records = await read_attempts(store, members)
    entries = await store.ledger(run.name, group_id=line.group_id)
    columns = tuple(
        _column(
            member, attempts, frozenset(r.id for a in attempts for r in late_rewards(entries, a))
        )
        for member, attempts in zip(line.members, records, strict=True)
    )
    return GroupView(line, dict(spec.task), columns, _rows(columns))


def _column(member: Member, attempts: Sequence[AttemptRecord], late: frozenset[str]) -> Column:
    if not attempts:
        return Column(member, 0, (), late, ())
    record = attempts[-1]
    steps = sorted(attempt_view(record).steps, key=lambda one: one.starts)
    rewards = tuple(event for event in record.events if isinstance(event, RewardEvent))
    return Column(member, len(attempts), rewards, late, tuple(steps))


def _rows(columns: Sequence[Column]) -> tuple[Row, ...]:
    rows: list[Row] = []
    differed = False
    for place in range(max((len(one.steps) for one in columns), default=0)):
        steps = [one.steps[place] if place < len(one.steps) else None for one in columns]
        differs = not differed and len({_did(step) for step in steps}) > 1
        differed = differed or differs
        texts = [step.action if step is not None else "" for step in steps]
        shared = _alike(texts) if differs else 0
        cells = tuple(
            Cell(step, text[:shared], text[shared:])
            for step, text in zip(steps, texts, strict=True)
        )
        rows.append(Row(place, differs, cells))
    return tuple(rows)


def _did(step: StepView | None) -> tuple[str, str, str] | None:
    return None if step is None else (step.transition.kind.value, step.lane, step.action)


def _alike(texts: Sequence[str]) -> int:
    """How many characters all texts begin with alike."""
    first, last = min(texts), max(texts)
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return len(first) if count is None else count
