"""`lightningrl serve STORE`: the store and the gateway, for runners and trainers elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from lightningrl.server import serve as serve_store
from lightningrl.settings import admin_key


@click.command()
@click.argument("store", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True)
@click.option(
    "--url-file", type=click.Path(path_type=Path), help="Write the URL here when it answers."
)
@click.option("--parent-fd", type=int, hidden=True, help="End when this pipe's other end closes.")
def serve(store: Path, host: str, port: int, url_file: Path | None, parent_fd: int | None) -> None:
    """Serve a store and a gateway.

    STORE is an SQLite file, made where there is none. Ends by SIGTERM or Ctrl-C. A port of 0 takes a free one. An address that other machines reach needs LIGHTNINGRL_ADMIN_KEY.
    """

    def ready(url: str) -> None:
        if url_file is not None:
            partial = url_file.with_name(f".{url_file.name}.part")
            partial.write_text(url, encoding="utf-8")
            partial.replace(url_file)  # whoever waits for the file finds it whole
        click.echo(f"serving {store} at {url}")

    store.parent.mkdir(parents=True, exist_ok=True)
    serve_store(
        store, host=host, port=port, admin_key=admin_key(), ready=ready, parent_fd=parent_fd
    )
