"""Pages from templates.

Invariant: everything that a template prints is escaped; none of them says that a text is safe.
"""

from __future__ import annotations

import functools
import json
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from lightningrl.cli.tree import as_text
from lightningrl_ui import tables
from lightningrl_ui.address import address
from lightningrl_ui.cells import cells_of
from lightningrl_ui.figures import Figure, unit_of

CUT = 4000
"""Characters of one text that are shown where it is one of many."""


@functools.cache
def _environment() -> Environment:
    """The templates, with their filters."""
    made = Environment(
        loader=PackageLoader("lightningrl_ui"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # an upgrade while the page runs must not mix new templates with old code
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(cast("dict[str, Any]", {"address": address, "cells_of": cells_of}))
    made.filters.update(
        cast(
            "dict[str, Any]",
            {
                "number": tables.number,
                "seconds": tables.seconds,
                "when": tables.when,
                "points": tables.points,
                "sampling": tables.sampling,
                "text": as_text,
                "cut": _cut,
                "figure": _as_json,
                "unit": unit_of,
            },
        )
    )
    return made


def page(template: str, *, code: int = 200, **values: Any) -> HTMLResponse:
    """A page of its own, or a part of one."""
    return HTMLResponse(_environment().get_template(template).render(values), status_code=code)


def _cut(text: str) -> str:
    return text if len(text) <= CUT else f"{text[:CUT]}… ({len(text):,} characters)"


def _as_json(figure: Figure | None) -> str:
    return json.dumps(figure, ensure_ascii=True)
