"""What stands of a run's rollouts outside its store: lessons and judges' answers go with them, the rest is named.

Invariant: a copy goes when the store has its rollout no longer, so that a deletion which broke off is ended by doing it
again. A judge's answer that names no rollout goes too: it can be asked for anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightningrl.lessons import forget, lesson_rollouts
from lightningrl.schema import RolloutId
from lightningrl.scoring.scorer import JUDGE
from lightningrl.store import RolloutQuery, Store

_ASKED_AT_ONCE = 1000


@dataclass(frozen=True)
class Gone:
    """What was deleted beside the store's records."""

    lesson_rows: int
    answers: int
    """Of judges."""


async def delete_copies(folder: Path, store: Store) -> Gone:
    """Delete what the run's folder has of rollouts that the store has no longer.

    Raises:
        ConfigError: there are lessons, and one can't be read, or pyarrow is not installed to change them.
    """
    taught = lesson_rollouts(folder)
    answers = {path: _answer_rollout(path) for path in sorted((folder / JUDGE).glob("*.json"))}
    known = taught | set(answers.values())
    there = await _there(store, sorted(one for one in known if one is not None))
    rows = forget(folder, taught - there)
    orphans = [path for path, ident in answers.items() if ident not in there]
    for path in orphans:
        path.unlink(missing_ok=True)
    return Gone(rows, len(orphans))


def check_copies(folder: Path) -> None:
    """Refuse what could be done by halves alone.

    Raises:
        ConfigError: there are lessons, and one can't be read, or pyarrow is not installed to change them.
    """
    lesson_rollouts(folder)


def kept_copies(folder: Path) -> Iterator[str]:
    """What of a run's folder may still tell of its rollouts and is not deleted with them, a line each."""
    for name, what in (
        ("checkpoints", "weights that were trained on them"),
        ("export", "an exported model"),
        ("drift", "a few token ids of each place where conversations did not merge"),
        ("logs", "what agents and servers printed"),
        ("tensorboard", "what was logged there"),
    ):
        if any((folder / name).glob("*")):
            yield f"{folder / name}: {what}"


async def _there(store: Store, ids: list[RolloutId]) -> set[RolloutId]:
    found: set[RolloutId] = set()
    for start in range(0, len(ids), _ASKED_AT_ONCE):
        asked = tuple(ids[start : start + _ASKED_AT_ONCE])
        found |= {one.id for one in await store.rollouts(RolloutQuery(ids=asked))}
    return found


def _answer_rollout(path: Path) -> RolloutId | None:
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("rollout")
    except (ValueError, AttributeError):  # a file that broke off
        return None
    return RolloutId(named) if isinstance(named, str) else None
