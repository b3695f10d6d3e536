"""`lightningrl serve STORE`: the store and the gateway, for runners and trainers elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import click

from lightningrl import settings
from lightningrl.cli.retention import MODES, retention
from lightningrl.errors import ConfigError
from lightningrl.gateway.call_log import CallLog
from lightningrl.gateway.limits import limits_of_environment
from lightningrl.gateway.observe import Observer
from lightningrl.keys import AccessKeys
from lightningrl.machine.logs import LogFormat, configure_logs
from lightningrl.server import ServerOptions
from lightningrl.server import serve as serve_store
from lightningrl.store.databases import shown
from lightningrl.store.urls import Kind, kind_of, path_of


@click.command()
@click.argument("store")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="LIGHTNINGRL_HOST",
    help="Address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    envvar="LIGHTNINGRL_PORT",
)
@click.option(
    "--synchronous",
    type=click.Choice(["NORMAL", "FULL"]),
    default="NORMAL",
    show_default=True,
    envvar="LIGHTNINGRL_SYNCHRONOUS",
    help="FULL survives a power cut too, and syncs the disk at each commit.",
)
@click.option(
    "--url-file", type=click.Path(path_type=Path), help="Write the URL here when it answers."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    envvar="LIGHTNINGRL_LOG_LEVEL",
    help="`info` logs every recorded call. Also LIGHTNINGRL_LOG_LEVEL.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="LIGHTNINGRL_LOG_FORMAT",
    help="`json` writes one object a line, with the ids as fields. Also LIGHTNINGRL_LOG_FORMAT.",
)
@click.option(
    "--otel",
    is_flag=True,
    envvar="LIGHTNINGRL_OTEL",
    help="Export recorded calls as OpenTelemetry spans, to where the OTEL_* variables say. Also LIGHTNINGRL_OTEL=1. Needs lightningrl[otel].",
)
@click.option(
    "--delete-older-than",
    metavar="AGE",
    envvar="LIGHTNINGRL_DELETE_OLDER_THAN",
    help="Every minute, delete rollouts that ended longer ago: 12h, 30d. Training only when its iteration has committed.",
)
@click.option(
    "--delete-down-to",
    metavar="BYTES",
    type=click.IntRange(min=0),
    envvar="LIGHTNINGRL_DELETE_DOWN_TO",
    help="Every minute, delete the oldest until the store holds no more than this.",
)
@click.option(
    "--delete-mode",
    "delete_modes",
    type=MODES,
    multiple=True,
    envvar="LIGHTNINGRL_DELETE_MODE",
    help="Of these modes alone; all unless given.",
)
@click.option("--parent-fd", type=int, hidden=True, help="End when this pipe's other end closes.")
def serve(
    store: str,
    host: str,
    port: int,
    synchronous: Literal["NORMAL", "FULL"],
    url_file: Path | None,
    log_level: str,
    log_format: LogFormat,
    otel: bool,
    delete_older_than: str | None,
    delete_down_to: int | None,
    delete_modes: tuple[str, ...],
    parent_fd: int | None,
) -> None:
    """Serve a store and a gateway.

    STORE is an SQLite file, or postgresql://USER@HOST/DATABASE, which several servers may serve; made where there is none. Ends by SIGTERM or Ctrl-C. A port of 0 takes a free one. An address that other machines reach needs LIGHTNINGRL_ADMIN_KEY. All settings: docs/reference/settings.md.
    """

    def ready(url: str) -> None:
        if url_file is not None:
            partial = url_file.with_name(f".{url_file.name}.part")
            partial.write_text(url, encoding="utf-8")
            partial.replace(url_file)  # whoever waits for the file finds it whole
        click.echo(f"serving {name} at {url}")

    configure_logs(log_level, log_format)
    rule = retention(delete_older_than, delete_down_to, delete_modes, "--delete-")
    name = shown(store)
    if kind_of(store) is Kind.SQLITE:
        path_of(store).parent.mkdir(parents=True, exist_ok=True)
    with _observers(otel) as observers:
        serve_store(
            store,
            host=host,
            port=port,
            keys=AccessKeys(settings.admin_keys(), settings.runner_keys()),
            options=ServerOptions(
                store_body_bytes=settings.store_body_bytes(),
                gateway=limits_of_environment(),
                synchronous=synchronous,
                retention=rule,
            ),
            observers=observers,
            ready=ready,
            parent_fd=parent_fd,
        )


@contextlib.contextmanager
def _observers(otel: bool) -> Generator[list[Observer]]:
    """Who is told of recorded calls; what they hold back is sent at the end."""
    with contextlib.ExitStack() as stack:
        observers: list[Observer] = [CallLog()]
        if otel:
            try:
                # OpenTelemetry is loaded, and needed, by those who ask for it.
                from lightningrl.gateway.spans import otlp_spans
            except ImportError as error:
                raise ConfigError(
                    f"--otel needs OpenTelemetry ({error}); install lightningrl[otel]"
                ) from error
            observers.append(stack.enter_context(contextlib.closing(otlp_spans())))
        yield observers
