"""Whether two results are the same answer, by three rules.

- `rows`: the same rows as often, in any order of rows (unless the order matters) and of columns.
- `spider`: the same after both queries are prepared as the scorer of Spider's test suites prepares them (Zhong et al. 2020,
  arXiv:2010.02840, `exec_eval.py` with its defaults and no values plugged in): `DISTINCT` is left out, `> =` is `>=`, and
  the current year of MySQL is 2020.
- `bird`: the same set of rows (Li et al. 2023, arXiv:2305.03111, `evaluation.py`): how often a row occurs, and the order of
  rows, do not count; that of columns does.

Invariant: pure functions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from lightningrl_bench_sql.database import Row

Match = Literal["rows", "spider", "bird"]

_DISTINCT = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`)|\bdistinct\b""", re.IGNORECASE)
_CURRENT_YEAR = re.compile(r"year\s*\(\s*curdate\s*\(\s*\)\s*\)", re.IGNORECASE)
_APART = re.compile(r"([<>!]) =")


def prepared(query: str, match: Match) -> str:
    """Return the text of a query, wanted or found, that is to be run under a rule."""
    if match != "spider":
        return query
    query = _APART.sub(r"\1=", _CURRENT_YEAR.sub("2020", query))
    return _DISTINCT.sub(lambda found: found[1] or "", query)


def same(wanted: Sequence[Row], found: Sequence[Row], match: Match, *, ordered: bool) -> bool:
    """Return whether `found` is the answer `wanted`; `ordered` says whether the order of rows counts, where it can."""
    if match == "bird":
        return set(wanted) == set(found)
    if len(wanted) != len(found):
        return False
    if not wanted:
        return True
    return len(wanted[0]) == len(found[0]) and _columns_fit(wanted, found, ordered=ordered)


def _columns_fit(wanted: Sequence[Row], found: Sequence[Row], *, ordered: bool) -> bool:
    """Return whether some order of the columns of `found` gives the rows of `wanted`."""
    width = len(wanted[0])

    def fit(rows: list[Row], left: frozenset[int]) -> bool:
        """Whether `rows`, some columns of `found`, can be continued by those that are `left`."""
        done = width - len(left)
        begun = [row[:done] for row in wanted]
        if not (rows == begun if ordered else Counter(rows) == Counter(begun)):
            return False
        columns = {tuple(row[column] for row in found): column for column in left}
        return not left or any(
            fit([(*row, cell) for row, cell in zip(rows, cells, strict=True)], left - {column})
            for cells, column in columns.items()
        )

    return fit([() for _ in found], frozenset(range(width)))
