"""What needs no model, measured on the test split: `python -m lightningrl_bench_rag.baselines`.

`random` answers with any name of the corpus. `one search` searches for the whole question, once, and answers with any name
in what it finds. `oracle` knows the chain of relations, reads each value off the passages, and searches on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from lightningrl_bench_rag.reward import exact_match
from lightningrl_bench_rag.search import index_of
from lightningrl_bench_rag.tasks import Level, generate
from lightningrl_bench_rag.world import query, read, world

Task = Mapping[str, Any]
Policy = Callable[[Task, random.Random], str]


def guess(task: Task, rng: random.Random) -> str:
    """Answer with any name of the corpus."""
    return rng.choice(_names(task))


def search_once(task: Task, rng: random.Random) -> str:
    """Answer with any name in the passages that the question finds."""
    found = " ".join(index_of(task["corpus"]).search(task["question"]))
    named = [name for name in _names(task) if name in found and name not in task["question"]]
    return rng.choice(named or _names(task))


def oracle(task: Task, rng: random.Random) -> str:  # noqa: ARG001
    """Answer by following the chain through the search alone."""
    known = task["hops"][0]["query"].split(" of ", 1)[1]
    for relation in task["kind"].split("/"):
        asked = query(relation, known)
        values = [read(passage, asked) for passage in index_of(task["corpus"]).search(asked)]
        known = next((value for value in values if value is not None), "")
    return known


def measure(policy: Policy, level: Level, count: int = 200, seed: int = 3) -> tuple[float, float]:
    """Return the mean of exact match and of F1 over `count` test questions."""
    rng = random.Random(0)
    scores = [
        exact_match(task, policy(task, rng), None) for task in generate("test", count, seed, level)
    ]
    exact = sum(one["final"] for one in scores) / count
    return exact, sum(one.get("f1", 0.0) for one in scores) / count


def _names(task: Task) -> list[str]:
    split, seed = task["corpus"].split("/")[1:]
    return [name for names in world(split, int(seed)).entities.values() for name in names]


if __name__ == "__main__":
    for level in (1, 2, 3):
        for name, policy in (("random", guess), ("one search", search_once), ("oracle", oracle)):
            exact, f1 = measure(policy, level)
            print(f"level {level}  {name:10}  EM {exact:.3f}  F1 {f1:.3f}")  # noqa: T201 - a command
