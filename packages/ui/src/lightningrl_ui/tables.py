"""Tables as CSV, and numbers as people read them.

Invariant: a text in a cell is never read as a formula by the program that opens the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from lightningrl.schema import Sampling

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The table as CSV; `None` is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([_cell(one) for one in head])
    writer.writerows([_cell(one) for one in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else value


def number(value: float | None) -> str:
    """Four significant digits; a dash for none."""
    if value is None:
        return "-"
    if value == int(value):
        return f"{int(value)}" if abs(value) < 1e7 else f"{value:.4g}"
    return f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A duration with its unit; a dash for none."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def when(value: datetime | str | None) -> str:
    """An instant, to the second, in UTC; a dash for none."""
    if value is None:
        return "-"
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def sampling(value: Sampling) -> str:
    """What a policy samples with; what has no value is left out."""
    found = ((one, getattr(value, one)) for one in value.__struct_fields__)
    return ", ".join(f"{name} {number(one)}" for name, one in found if one is not None)


def points(values: Sequence[float], width: int = 120, height: int = 24) -> str:
    """The values as the points of an SVG polyline."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = width / max(1, len(values) - 1)
    return " ".join(
        f"{place * step:.1f},{height - 2 - (value - low) / span * (height - 4):.1f}"
        for place, value in enumerate(values)
    )
