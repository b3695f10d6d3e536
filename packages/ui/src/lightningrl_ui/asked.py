"""What addresses ask for, and answers that are no page: shared by all screens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lightningrl.errors import ConfigError, LightningError, NotFound
from lightningrl.store import Store
from lightningrl_ui.sources import Run, Sources
from lightningrl_ui.tables import csv_text


async def asked_run(request: Request, sources: Sources) -> Run:
    """The run that an address names.

    Raises:
        ConfigError: it names none.
        NotFound: there is no such run.
    """
    return await sources.run(text_of(request.query_params, "run"))


async def run_store(sources: Sources, found: Run) -> tuple[Store | None, str | None]:
    """The run's store, and why it can't be read."""
    try:
        return await sources.store(found), found.problem
    except LightningError as error:
        return None, str(error)


async def needed_store(sources: Sources, found: Run) -> Store:
    """The run's store.

    Raises:
        NotFound: it has none.
    """
    store = await sources.store(found)
    if store is None:
        raise NotFound(
            f"run {found.key!r} has no rollouts (yet): there is no store in {found.place!r}"
        )
    return store


def text_of(query: QueryParams, name: str) -> str:
    """What an address says under a name.

    Raises:
        ConfigError: nothing.
    """
    value = query.get(name)
    if not value:
        raise ConfigError(f"the address lacks {name}=...")
    return value


def whole_of(query: QueryParams, name: str) -> int:
    """A whole number of an address.

    Raises:
        ConfigError: there is none.
    """
    value = text_of(query, name)
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{name}={value!r} is no whole number") from error


def wants_csv(request: Request) -> bool:
    """Whether the address asks for the page's table as CSV."""
    return request.query_params.get("as") == "csv"


def csv_answer(name: str, head: Sequence[str], rows: Any) -> Response:
    """A table as a file to save."""
    return download(f"{name}.csv", csv_text(head, rows), "text/csv")


def download(name: str, text: str, kind: str) -> Response:
    """A file to save; a name from a run is brought to plain characters."""
    plain = "".join(
        one if one.isascii() and (one.isalnum() or one in "-_.") else "-" for one in name
    )
    headers = {"content-disposition": f'attachment; filename="{plain}"'}
    return PlainTextResponse(text, media_type=kind, headers=headers)
