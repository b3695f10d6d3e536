"""What iterations were trained on, kept for people and notebooks: `lesson/iteration-NNNNNN.parquet`.

One row a model call of the rollouts that an iteration took, in the order of groups, members and starts. Invariants:
- A file is whole or absent, whatever is killed when (not after a power cut), and holds no text and no token id: what
  was said is in the store, under the same ids.
- Log-probs stand for trained tokens alone, and both lists of a call are equally long.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lightningrl.errors import ConfigError
from lightningrl.machine.durable import publish
from lightningrl.schema import AttemptId, EventId, GroupId, RolloutId, StepId

FOLDER = "lesson"
"""Of a run's folder, where its lessons are."""

VERSION = 1
"""Of the files."""

_HEADER = b"lightningrl"
"""The key of a file's metadata under which its header stands, as JSON."""

_CALLS_PER_ROW_GROUP = 1024


class LessonHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of all its calls."""

    run: str
    iteration: int
    credit: str
    """The method, as the recipe names it."""
    credit_args: dict[str, Any] = {}
    version: int = VERSION


@dataclass(frozen=True, kw_only=True, eq=False)
class LessonCall:
    """One model call and what became of it."""

    group_id: GroupId
    task_id: str
    rollout_id: RolloutId
    member: int
    attempt_id: AttemptId
    step_id: StepId
    call_id: EventId
    place: int
    """Index among the steps of its rollout, in order of their start."""
    agent: str | None
    """With the agents around it in front: `team/maths`. `None`: nobody said."""
    policy: str
    """Alias of the policy that answered."""
    version: int
    """Of that policy."""
    reward: float
    """Final, of the rollout."""
    step_reward: float | None
    credit: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the credit was made of (`Credit.parts`); without those that the call has not."""
    state: int | None = None
    """Calls of a file with equal numbers were compared as one state. `None`: with none."""
    tokens: int
    """Sampled."""
    reason: str | None
    """Why no token of it was trained. `None`: all of them were."""
    row: int | None
    """Which row of its rollout and policy it stood in, from 0. `None`: in none, or as context."""
    engine_log_probs: NDArray[np.float32]
    """Of each trained token, as it was sampled; empty where none was."""
    trainer_log_probs: NDArray[np.float32]
    """The same by the trainer's weights before the update."""

    @property
    def trained(self) -> bool:
        """Whether its tokens were part of an update."""
        return self.reason is None


def lesson_path(run_folder: Path, iteration: int) -> Path:
    """Where an iteration's lesson is."""
    return run_folder / FOLDER / f"iteration-{iteration:06d}.parquet"


def tokenizer_path(run_folder: Path, alias: str) -> Path:
    """Where a copy of a policy's `tokenizer.json` is, by which its token ids are read."""
    return run_folder / "tokenizer" / f"{alias}.json"


def kept_lessons(run_folder: Path) -> list[int]:
    """The iterations whose lessons are kept, ascending."""
    found = (run_folder / FOLDER).glob("iteration-*.parquet")
    return sorted(int(path.stem.removeprefix("iteration-")) for path in found)


def write_lesson(
    run_folder: Path, header: LessonHeader, calls: Sequence[LessonCall], *, keep: int
) -> None:
    """Write an iteration's lesson, in place of one of an earlier start, and delete the oldest beyond `keep`.

    Args:
        run_folder: the run's.
        header: of the iteration.
        calls: any number.
        keep: files that stay, the new one included; at least 1.
    """
    path = lesson_path(run_folder, header.iteration)
    path.parent.mkdir(exist_ok=True)
    tables = [
        _table(calls[at : at + _CALLS_PER_ROW_GROUP])
        for at in range(0, len(calls), _CALLS_PER_ROW_GROUP)
    ]
    # Not synced to the disk, which can take longer than all else here: nothing in training reads it.
    _draft(path, header, tables).replace(path)
    for old in kept_lessons(run_folder)[:-keep]:
        lesson_path(run_folder, old).unlink(missing_ok=True)


def read_lesson(
    run_folder: Path,
    iteration: int,
    *,
    rollouts: Collection[RolloutId] | None = None,
    log_probs: bool = False,
) -> tuple[LessonHeader, list[LessonCall]] | None:
    """An iteration's lesson. `None`: none is kept.

    Args:
        run_folder: the run's.
        iteration: the iteration.
        rollouts: of these alone. `None`: all.
        log_probs: read them as well; else they are empty.

    Raises:
        ConfigError: the file is none of ours, of a later version, or pyarrow is not installed.
    """
    path = lesson_path(run_folder, iteration)
    if not path.is_file():
        return None
    with _opened(path) as file:
        header = _header(path, file.schema_arrow.metadata)
        columns = [one for one in _schema().names if log_probs or not one.endswith("log_probs")]
        return header, list(_calls(file, columns, rollouts))


def lesson_rollouts(run_folder: Path) -> set[RolloutId]:
    """The rollouts that any kept lesson tells of.

    Raises:
        ConfigError: see `read_lesson`.
    """
    found: set[RolloutId] = set()
    for iteration in kept_lessons(run_folder):
        path = lesson_path(run_folder, iteration)
        with _opened(path) as file:
            _header(path, file.schema_arrow.metadata)
            found.update(file.read(columns=["rollout"]).column("rollout").to_pylist())
    return found


def forget(run_folder: Path, rollouts: Collection[RolloutId]) -> int:
    """Take rollouts out of all lessons of a run, on the disk too; how many calls of theirs stood there.

    Raises:
        ConfigError: see `read_lesson`.
    """
    gone = 0
    for iteration in kept_lessons(run_folder):
        path = lesson_path(run_folder, iteration)
        with _opened(path) as file:
            header = _header(path, file.schema_arrow.metadata)
            table = file.read()
        stays = [one not in rollouts for one in table.column("rollout").to_pylist()]
        if not all(stays):
            gone += stays.count(False)
            publish(_draft(path, header, [table.filter(_arrow()[0].array(stays))]), path)
    return gone


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """The file, open.

    Raises:
        ConfigError: it is no Parquet file, or pyarrow is not installed.
    """
    pa, pq = _arrow()
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{str(path)!r} is no Parquet file: {error}") from error


def _draft(path: Path, header: LessonHeader, tables: Sequence[Any]) -> Path:
    """A file beside `path` that may take its place."""
    _, pq = _arrow()
    floats = [f"{name}_log_probs.list.element" for name in ("engine", "trainer")]
    words = [name for name in _schema().names if name not in ("parts", "call", "step")]
    schema = _schema().with_metadata({_HEADER: msgspec.json.encode(header)})
    draft = path.with_name(f".{path.name}.new")
    with pq.ParquetWriter(
        draft,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in words if not name.endswith("log_probs")],
        use_byte_stream_split=floats,
    ) as file:
        for table in tables:
            file.write_table(table.replace_schema_metadata(schema.metadata))
    return draft


def _arrow() -> tuple[Any, Any]:
    """Pyarrow and its Parquet part, needed by those who write or read lessons."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"lessons are Parquet files, which need pyarrow ({error}); install lightningrl[parquet]"
        ) from error
    return pa, pq


@cache
def _schema() -> Any:
    pa, _ = _arrow()
    log_probs = pa.list_(pa.field("element", pa.float32(), nullable=False))
    return pa.schema(
        [
            ("group", pa.string()),
            ("task", pa.string()),
            ("rollout", pa.string()),
            ("member", pa.int32()),
            ("attempt", pa.string()),
            ("step", pa.string()),
            ("call", pa.string()),
            ("place", pa.int32()),
            ("agent", pa.string()),
            ("policy", pa.string()),
            ("version", pa.int32()),
            ("reward", pa.float64()),
            ("step_reward", pa.float64()),
            ("credit", pa.float64()),
            ("parts", pa.map_(pa.string(), pa.float64())),
            ("state", pa.int32()),
            ("tokens", pa.int32()),
            ("reason", pa.string()),
            ("row", pa.int32()),
            ("engine_log_probs", log_probs),
            ("trainer_log_probs", log_probs),
        ]
    )


_FIELDS: Mapping[str, str] = {
    "group": "group_id",
    "task": "task_id",
    "rollout": "rollout_id",
    "attempt": "attempt_id",
    "step": "step_id",
    "call": "call_id",
}
"""Column -> field, where they are not named alike."""


def _table(calls: Sequence[LessonCall]) -> Any:
    pa, _ = _arrow()
    columns: list[Any] = []
    for column in _schema():
        name = str(column.name)
        values = [getattr(one, _FIELDS.get(name, name)) for one in calls]
        if name.endswith("log_probs"):
            columns.append(_lists(values))
        elif name == "parts":
            columns.append(pa.array([list(one.items()) for one in values], column.type))
        else:
            columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=_schema())


def _lists(values: Sequence[NDArray[np.float32]]) -> Any:
    pa, _ = _arrow()
    ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
    flat = np.concatenate([*values, np.zeros(0, np.float32)]).astype(np.float32)
    return pa.ListArray.from_arrays(
        pa.array(ends), pa.array(flat), type=_schema().field("engine_log_probs").type
    )


def _header(path: Path, metadata: Mapping[bytes, bytes] | None) -> LessonHeader:
    text = (metadata or {}).get(_HEADER)
    if text is None:
        raise ConfigError(f"{str(path)!r} is no lesson of a run")
    header = msgspec.json.decode(text, type=LessonHeader)
    if header.version > VERSION:
        raise ConfigError(
            f"{str(path)!r} is of version {header.version}, and this LightningRL reads {VERSION}"
        )
    return header


def _calls(
    file: Any, columns: Sequence[str], rollouts: Collection[RolloutId] | None
) -> Iterator[LessonCall]:
    pa, _ = _arrow()
    for group in range(file.num_row_groups):
        rows = None
        if rollouts is not None:
            ids = file.read_row_group(group, columns=["rollout"]).column("rollout").to_pylist()
            rows = [place for place, one in enumerate(ids) if one in rollouts]
            if not rows:
                continue
        table = file.read_row_group(group, columns=list(columns))
        if rows is not None:
            table = table.take(pa.array(rows))
        for record in table.to_pylist():
            record["parts"] = dict(record["parts"])
            for name in ("engine_log_probs", "trainer_log_probs"):
                record[name] = np.array(record.get(name) or (), np.float32)
            yield LessonCall(**{_FIELDS.get(name, name): record[name] for name in record})
