"""`lightningrl judge RUN`: a model judges recorded rollouts, and people say how far it can be believed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from lightningrl.checks.evidence import counted
from lightningrl.cli.stored_run import StoredRun, open_runs, open_to_change, server_options
from lightningrl.conversation.history import Recorded
from lightningrl.conversation.recorded import MESSAGES, whole_requests
from lightningrl.errors import ConfigError, RunError
from lightningrl.machine.clock import SystemClock
from lightningrl.recipe import DataSource
from lightningrl.schema import (
    FINAL,
    AttemptState,
    CallEvent,
    EventId,
    RewardEvent,
    RolloutId,
    RolloutState,
    StepKind,
    new_id,
)
from lightningrl.scoring.dialogue import shown_rollout
from lightningrl.scoring.judge import Judge
from lightningrl.scoring.scorer import JUDGE
from lightningrl.statistics import agreement
from lightningrl.store import RolloutQuery
from lightningrl.tasks import read_rows
from lightningrl.traces import AttemptRecord, read_attempts

_GOOD = 0.5
"""From this share of the scale on, a number says yes."""


@dataclass(frozen=True)
class Label:
    """What a person said of a rollout."""

    place: str
    """File and line."""
    named: Mapping[str, Any]
    """Keys of the rollout's task with their values, and its id as `rollout`; at least one."""
    good: bool


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--url", required=True, help="Of the judge's endpoint, up to and including /v1.")
@click.option("--model", required=True, help="The judge.")
@click.option(
    "--rubric",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A text file: what makes a rollout good. The judge answers with a number from 0 to 1.",
)
@click.option("--url-key", metavar="VARIABLE", help="Environment variable with the endpoint's key.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="What people said, FILE.jsonl: lines with label, 0 or 1, and the rollout's id as rollout, or keys of its task.",
)
@click.option(
    "--write", is_flag=True, help="Make the numbers the rollouts' rewards; else they are only told."
)
@server_options
def judge(
    run: str,
    url: str,
    model: str,
    rubric: Path,
    url_key: str | None,
    labels: Path | None,
    write: bool,
    server: str | None,
    key: str | None,
) -> None:
    """Have a model judge the rollouts of a run that succeeded.

    It reads the task, what was said and done, and the output. With --labels it says how far the judge agrees with people: on which share, and Cohen's kappa, which is 0 for what chance gives. RUN is a run's folder, its name in runs/, or with --server its name.
    """
    args: dict[str, Any] = {
        "url": url,
        "model": model,
        "prompt": rubric.read_text(encoding="utf-8").strip(),
        "key_env": url_key,
    }
    said = None if labels is None else read_labels(labels)
    for line in asyncio.run(_judge(run, args, said, write, server, key)):
        click.echo(line)


async def _judge(
    run: str,
    args: dict[str, Any],
    labels: Sequence[Label] | None,
    write: bool,
    server: str | None,
    key: str | None,
) -> list[str]:
    if write:
        async with open_to_change(run, server, key) as found:
            return await judge_run(found, args, labels, write=True)
    async with open_runs(run, server, key) as (found,):
        return await judge_run(found, args, labels)


async def judge_run(
    run: StoredRun, args: dict[str, Any], labels: Sequence[Label] | None, *, write: bool = False
) -> list[str]:
    """Judge a run's rollouts that succeeded; return what a person is told, in lines.

    Args:
        run: open to change where `write` is.
        args: the judge's, see `lightningrl.scoring.judge.JudgeArgs`.
        labels: what people said. `None`: nobody did.
        write: add the numbers as the rollouts' final rewards, above those that are there.

    Raises:
        ConfigError: an argument is wrong, or a label is of no rollout or of several.
        RunError: there is no rollout, or the judge gave no number at all.
    """
    cache = None if run.folder is None else run.folder / JUDGE
    asker = Judge(args, cache, where="")
    query = RolloutQuery(run=run.name, states=(RolloutState.SUCCEEDED,))
    records = {
        attempts[-1].rollout.id: _succeeded(attempts)
        for attempts in await read_attempts(run.store, await run.store.rollouts(query))
    }
    if not records:
        raise RunError(f"run {run.name!r} has no rollout that succeeded, so nothing to judge")
    compared = {} if labels is None else _rollouts_of(labels, records)
    values = await asker.of_rollouts({one: _shown(record) for one, record in records.items()})
    given = {one: value for one, value in values.items() if value is not None}
    why = [f"  {count} times {reason}" for reason, count in asker.failures.most_common(3)]
    if not given:
        raise RunError("\n".join(["the judge gave no number:", *why]))
    mean = sum(given.values()) / len(given)
    lines = [
        f"{args['model']} judged {len(given)} of {counted(len(records), 'rollout')}, mean {mean:.3f}"
    ]
    lines += [f"{len(records) - len(given)} without a number:", *why] if why else []
    if labels is not None:
        lines += _agreement(args["model"], compared, given)
    if write:
        await _write(run, records, given, source=f"judge:{args['model']}")
        lines.append(f"wrote {counted(len(given), 'reward')}")
    return lines


def read_labels(path: Path) -> list[Label]:
    """What people said.

    Raises:
        ConfigError: the file can't be read, or a line is no label.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"--labels: {str(path)!r} must end in .jsonl")
    labels: list[Label] = []
    source = DataSource(source=str(path.absolute()))
    for place, row in read_rows(source, folder=path.parent, key="--labels"):
        named = {name: value for name, value in row.items() if name != "label"}
        if not named or row.get("label") not in {0, 1}:
            raise ConfigError(
                f"{place}: a label has 'label', which is 0 or 1, and names its rollout: by 'rollout', or by keys of"
                " its task"
            )
        labels.append(Label(place, named, bool(row["label"])))
    if not labels:
        raise ConfigError(f"--labels: {str(path)!r} has no label")
    return labels


def _succeeded(attempts: Sequence[AttemptRecord]) -> AttemptRecord:
    return next(one for one in reversed(attempts) if one.attempt.state is AttemptState.SUCCEEDED)


def _rollouts_of(
    labels: Sequence[Label], records: Mapping[RolloutId, AttemptRecord]
) -> dict[RolloutId, bool]:
    """Rollout -> its label.

    Raises:
        ConfigError: a label is of no rollout or of several, or a rollout has two.
    """
    named = {one: {**record.rollout.spec.task, "rollout": one} for one, record in records.items()}
    found: dict[RolloutId, bool] = {}
    for label in labels:
        there = [one for one, keys in named.items() if _names(label, keys)]
        if len(there) != 1 or there[0] in found:
            which = "one that has a label before" if len(there) == 1 else f"{len(there)}"
            raise ConfigError(
                f"{label.place}: of the rollouts that succeeded {label.named!r} names {which}; a label is of one"
                " rollout, and a rollout has one label. 'rollout' names it by its id"
            )
        found[there[0]] = label.good
    return found


def _names(label: Label, keys: Mapping[str, Any]) -> bool:
    return all(name in keys and keys[name] == value for name, value in label.named.items())


def _shown(record: AttemptRecord) -> str:
    asked: dict[str, Sequence[Mapping[str, Any]]] = {}
    steps = [one for one in record.transitions if one.kind is StepKind.LLM]
    requests = whole_requests({one.step_id: one.inputs for one in steps if one.call is None})
    for step_id, request in requests.items():
        messages = request.get(MESSAGES) if isinstance(request, dict) else None
        if isinstance(messages, list):
            asked[step_id] = [one for one in cast("list[Any]", messages) if isinstance(one, dict)]
    counting = {one.call.id for one in steps if one.call is not None}
    earlier = Recorded()
    for event in record.events:
        if isinstance(event, CallEvent):
            if event.id in counting:
                asked[event.step_id] = earlier.messages(event)
            earlier.add(event)
    spec = record.rollout.spec
    return shown_rollout(spec.task, record.transitions, asked, record.attempt.output)


def _agreement(
    model: str, labels: Mapping[RolloutId, bool], given: Mapping[RolloutId, float]
) -> list[str]:
    both = [one for one in labels if one in given]
    if not both:
        return ["it gave no number to what has a label"]
    people = [labels[one] for one in both]
    found = agreement(people, [given[one] >= _GOOD for one in both])
    share = found.share
    kappa = "not defined, all are of one kind" if found.kappa is None else f"{found.kappa:.2f}"
    return [
        f"{model} and people agree on {share.mean:.0%} of {len(both)} labels (95 %: {share.low:.0%} to"
        f" {share.high:.0%}), Cohen's kappa {kappa}",
        f"  people alone call good: {found.first_alone}, the judge alone: {found.second_alone}",
    ]


async def _write(
    run: StoredRun,
    records: Mapping[RolloutId, AttemptRecord],
    given: Mapping[RolloutId, float],
    *,
    source: str,
) -> None:
    now = SystemClock().now()
    events: list[RewardEvent] = []
    for one, value in given.items():
        record = records[one]
        there = [
            event.revision
            for event in record.events
            if isinstance(event, RewardEvent) and (event.step_id, event.name) == (None, FINAL)
        ]
        events.append(
            RewardEvent(
                id=EventId(new_id("e")),
                attempt_id=record.attempt.id,
                at=now,
                value=value,
                source=source,
                revision=1 + max(there, default=-1),
            )
        )
    await run.store.append(events)
