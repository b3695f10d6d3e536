"""What checks look at, and what they find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

from lightningrl.experience.transition import Transition
from lightningrl.recipe import Recipe
from lightningrl.schema import (
    Attempt,
    CallEvent,
    CallStatus,
    LogEvent,
    LogTopic,
    Policy,
    Rollout,
    Worker,
)
from lightningrl.traces import AttemptRecord

MOST_COUNTED = 1000
"""Queued rollouts that are counted: how many more there are changes nothing."""


class Place(StrEnum):
    """Who examines a run."""

    TRY = "try"
    TRAIN = "train"
    DOCTOR = "doctor"


class Level(StrEnum):
    """How bad a finding is."""

    PROBLEM = "problem"
    """Something is lost, or can't be learned: `try` and `doctor` exit with 1."""
    WARNING = "warning"
    """It may be meant, or costs more than it must; the exit code is that of everything else."""


class Finding(msgspec.Struct, frozen=True):
    """Something that a check found."""

    kind: str
    """The check's name for it, stable for programs."""
    level: Level
    evidence: str
    """What was found: ids, counts, texts that can be looked up."""
    remedy: str
    """What to do about it."""


@dataclass(frozen=True)
class Engine:
    """One endpoint of a policy, as it answered when it was asked."""

    policy: str
    url: str
    problem: str | None
    """What went wrong. `None`: it answered."""


@dataclass(frozen=True)
class Operations:
    """What a run's store and engines said at one instant, while rollouts may still be run."""

    now: datetime
    """The store's clock."""
    waiting: int
    """Rollouts that are queued, counted up to `MOST_COUNTED`."""
    running: tuple[Attempt, ...]
    """Attempts that run, as far as the store knows."""
    workers: tuple[Worker, ...]
    """Seen within the last half minute."""
    policies: tuple[Policy, ...]
    engines: tuple[Engine, ...]

    @property
    def active(self) -> bool:
        """Whether rollouts are still to be run."""
        return self.waiting > 0 or bool(self.running)


@dataclass(frozen=True)
class Evidence:
    """Some rollouts of one run that have ended, and what is known besides."""

    run: str
    rollouts: tuple[tuple[AttemptRecord, ...], ...]
    """The attempts of each, oldest first; in the order in which the rollouts are to be named."""
    recipe: Recipe | None = None
    """`None`: only a server is known, and servers don't hold recipes."""
    unidentified: Mapping[str, int] = field(default_factory=dict[str, int])
    """Origin -> requests at the gateway that were refused since nothing said which attempt they are of; under an empty
    text those of which only the number is known."""
    operations: Operations | None = None
    """`None`: nobody asked for it; checks of a run under way pass."""
    code: bool = False
    """Whether functions that the recipe names may be run: by who runs its agent, or trains by it."""

    @property
    def decisive(self) -> list[AttemptRecord]:
        """Of each rollout the attempt that decided it."""
        return [records[-1] for records in self.rollouts if records]

    @property
    def transitions(self) -> Iterator[Transition]:
        """The steps of the attempts that decided."""
        for record in self.decisive:
            yield from record.transitions

    @property
    def attempts(self) -> Iterator[AttemptRecord]:
        """All attempts."""
        for records in self.rollouts:
            yield from records

    @property
    def ended(self) -> list[tuple[Rollout, AttemptRecord]]:
        """The rollouts, each with the attempt that decided it."""
        return [(record.rollout, record) for record in self.decisive]

    @property
    def calls(self) -> Iterator[CallEvent]:
        """The calls of all attempts."""
        for record in self.attempts:
            for event in record.events:
                if isinstance(event, CallEvent):
                    yield event


def delivered(record: AttemptRecord) -> list[CallEvent]:
    """The attempt's calls that were answered, in order of arrival."""
    return [
        event
        for event in record.events
        if isinstance(event, CallEvent) and event.status is CallStatus.DELIVERED
    ]


def logs(record: AttemptRecord, topic: LogTopic) -> Iterator[LogEvent]:
    """The attempt's log lines of one topic."""
    for event in record.events:
        if isinstance(event, LogEvent) and event.topic is topic:
            yield event


def counted(number: int, noun: str) -> str:
    """`3 rollouts`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
