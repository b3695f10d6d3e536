"""From dialogues to rows: each answer is a call, and calls that continue each other share a row.

Invariant: rows are `experience.trajectory.merge`'s, as in RL; each answer's tokens are trained once or stand in the
drift report with the reason why not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np

from lightningrl.errors import ConfigError, NothingTrainable
from lightningrl.experience.drift import Drift, RolloutDrift, rollout_drift, total
from lightningrl.experience.trajectory import Row, merge
from lightningrl.experience.transition import Transition
from lightningrl.schema import (
    AttemptId,
    CallEvent,
    CallStatus,
    EventId,
    RolloutId,
    StepId,
    StepKind,
)
from lightningrl_verl.supervised.demonstrations import Demonstration
from lightningrl_verl.supervised.scribe import Scribe, UnfitError

WEIGHTLESS = "the demonstration gives it weight 0"
"""Why an answer is context alone."""

TOO_LONG = "prompt and answer are longer than max_model_len"
"""Why an answer is left out: no engine of the policy could have been asked for it."""

_WHEN = datetime.fromtimestamp(0, UTC)
"""Rows have no time; a transition must."""


@dataclass(frozen=True)
class Example:
    """What one dialogue gives to train on."""

    key: str
    """Examples of one key are held out together."""
    rows: tuple[Row, ...]
    """None where none of its answers is trained."""
    drift: RolloutDrift
    left_out: Mapping[str, int]
    """Reason -> answers that are not trained."""


@dataclass(frozen=True)
class Material:
    """What a policy is fine-tuned on, and what it is scored by."""

    train: tuple[Example, ...]
    """At least one; each with a row."""
    held_out: tuple[Example, ...]
    drift: tuple[RolloutDrift, ...]
    """Of all dialogues, those without a row included."""
    left_out: Mapping[str, int]
    """Reason -> answers that are not trained, of all dialogues."""

    @property
    def sums(self) -> Drift:
        """All of it together."""
        return total(self.drift)

    def digest(self) -> str:
        """Of every token, mask and place: equal digests are equal material, in equal order."""
        found = hashlib.sha256()
        for part in (self.train, self.held_out):
            found.update(b"part")
            for example in part:
                found.update(b"example")
                for row in example.rows:
                    found.update(len(row.token_ids).to_bytes(8, "little"))
                    found.update(row.token_ids.astype("<i4").tobytes())
                    found.update(row.mask.tobytes())
        return found.hexdigest()

    def told(self) -> str:
        """For a person: what is trained, what is held out, what is left out and what did not merge, and why."""
        sums = self.sums
        lost = _counted(self.left_out)
        broken = [f"{count} x {cause}" for cause, count in sums.breaks.items()]
        rows = sum(len(one.rows) for one in (*self.train, *self.held_out))
        return "; ".join(
            [
                f"{len(self.train)} demonstrations to train on, {len(self.held_out)} held out,"
                f" {rows} rows, {sums.trained} answer tokens",
                *([f"{sums.rendered} of them tokenised from text"] if sums.rendered else []),
                *([f"answers left out: {lost}"] if lost else []),
                *([f"answers that continue no row: {', '.join(broken)}"] if broken else []),
            ]
        )


def example_of(
    demonstration: Demonstration, scribe: Scribe, *, alias: str, longest: int
) -> Example:
    """What a dialogue gives.

    Args:
        demonstration: the dialogue.
        scribe: of the policy.
        alias: the policy's.
        longest: prompt and answer of a call, in tokens.

    Raises:
        ConfigError: the policy can't be asked this, or can't answer so; with the dialogue's place.
    """
    rollout = RolloutId(demonstration.key)
    transitions: list[Transition] = []
    for index, message in enumerate(demonstration.messages):
        if message["role"] != "assistant":
            continue
        before = demonstration.messages[:index]
        try:
            prompt = scribe.prompt(before, demonstration.tools)
            answer = scribe.answer(message, demonstration.tools)
        except UnfitError as error:
            raise ConfigError(f"{demonstration.place}: messages[{index}]: {error}") from error
        transitions.append(
            with_tokens(
                call_transition(rollout, len(transitions), {"messages": before}),
                prompt,
                answer,
                longest=longest,
                untrainable=WEIGHTLESS if message.get("weight") == 0 else None,
            )
        )
    return merged(demonstration.key, alias, transitions, range(len(transitions)))


def merged(
    key: str, alias: str, transitions: Sequence[Transition], from_text: Iterable[int]
) -> Example:
    """The rows of one dialogue's calls.

    Args:
        key: see `Example`.
        alias: the policy's.
        transitions: of one rollout, with tokens.
        from_text: indices of those that were tokenised from text.
    """
    found = merge(transitions)
    texts = set(from_text)
    tokens = sum(
        span.stop - span.start for row in found.rows for span in row.spans if span.index in texts
    )
    rollout = transitions[0].rollout_id if transitions else RolloutId(key)
    drift = rollout_drift(rollout, alias, found)
    reasons = Counter(one.untrainable for one in transitions if one.untrainable is not None)
    return Example(key, found.rows, msgspec.structs.replace(drift, rendered=tokens), reasons)


def with_tokens(
    transition: Transition,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    longest: int,
    untrainable: str | None = None,
) -> Transition:
    """A call with the given tokens; one that is too long keeps its answer, to be counted, and joins no row."""
    ids = np.asarray(answer, "<i4")
    fits = len(prompt) + len(answer) <= longest
    return msgspec.structs.replace(
        transition,
        prompt_bytes=np.asarray(prompt, "<i4").tobytes() if fits else b"",
        token_bytes=ids.tobytes(),
        # Supervised updates compare with no log-prob.
        logprob_bytes=np.zeros(len(ids), "<f4").tobytes(),
        untrainable=untrainable if fits else TOO_LONG,
    )


def call_transition(rollout: RolloutId, index: int, request: dict[str, object]) -> Transition:
    """A call of a dialogue that nobody recorded, without its tokens."""
    step = StepId(f"{rollout}-{index}")
    attempt = AttemptId(rollout)
    call = CallEvent(
        id=EventId(step), attempt_id=attempt, at=_WHEN, step_id=step, agent=None, policy="",
        model="", endpoint="", version_start=0, version_end=0,
        request=json.dumps(request).encode(), sampling=None, prompt_ids=b"", choices=(),
        prompt_tokens=0, completion_tokens=0, latency_ms=0.0, held_ms=0.0, upstream_retries=0,
        status=CallStatus.DELIVERED, http_status=200, error=None,
    )  # fmt: skip
    return Transition(
        step_id=step,
        rollout_id=rollout,
        attempt_id=attempt,
        kind=StepKind.LLM,
        name="",
        agent=None,
        parent_id=None,
        started_at=_WHEN,
        call=call,
    )


def check_trained(examples: Sequence[Example]) -> None:
    """Refuse material none of which may be trained.

    Raises:
        NothingTrainable: with the reasons, counted.
    """
    if not any(example.rows for example in examples):
        raise NothingTrainable(
            f"of {len(examples)} demonstrations no answer may be trained:"
            f" {_counted(left_out(examples)) or 'there is none'}"
        )


def left_out(examples: Iterable[Example]) -> Counter[str]:
    """Reason -> answers of them that are not trained."""
    reasons: Counter[str] = Counter()
    for example in examples:
        reasons.update(example.left_out)
    return reasons


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common())
