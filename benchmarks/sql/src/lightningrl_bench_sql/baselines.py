"""Measures what needs no model: `python -m lightningrl_bench_sql.baselines --split test --count 200 --seed 3`.

`random` answers a question by the query of another question about the same database, `oracle` by its own.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from lightningrl_bench_sql.reward import execution_match
from lightningrl_bench_sql.tasks import LEVELS, generate

OTHERS = 10
"""Random answers to each question."""


def score(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, float]:
    """Return the mean reward of each baseline; a question without others about its database has no random answer."""
    rng = random.Random(seed)
    guesses: list[float] = []
    for row in rows:
        others = [
            one["query"] for one in rows if one["database"] == row["database"] and one is not row
        ]
        guesses += [
            execution_match(row, query, None)
            for query in rng.sample(others, min(OTHERS, len(others)))
        ]
    right = [execution_match(row, row["query"], None) for row in rows]
    return {"random": sum(guesses) / len(guesses), "oracle": sum(right) / len(right)}


def main() -> None:
    """Write a line for each baseline."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS))
    given = parser.parse_args()
    rows = generate(given.split, given.count, given.seed, given.levels)
    for name, value in score(rows).items():
        sys.stdout.write(f"{name} {value:.3f}\n")


if __name__ == "__main__":
    main()
