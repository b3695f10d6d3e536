"""`lightningrl ui`: opens the page of runs."""

from __future__ import annotations

import asyncio
import socket
import webbrowser

import click

from lightningrl.errors import ConfigError
from lightningrl.keys import ViewerKey
from lightningrl.settings import client_key, viewer_keys


@click.command()
@click.argument("targets", nargs=-1, metavar="[RUN|FOLDER|STORE|URL]...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="To listen on; elsewhere than on loopback LIGHTNINGRL_VIEWER_KEY is demanded.",
)
@click.option(
    "--port", type=int, default=8788, show_default=True, help="To listen on; 0 takes a free one."
)
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option(
    "--key",
    default=client_key,
    hidden=True,  # a key on the command line can be read by every user of the machine
    help="The key of servers among the targets.",
)
def ui(targets: tuple[str, ...], host: str, port: int, no_browser: bool, key: str | None) -> None:
    """Open a page of runs: from the reward curve down to a single model call.

    Reads run folders and stores, also while a run trains, and writes nothing. Without arguments it shows the runs in runs/; else runs, folders of runs, files of stores, and servers by their URL (LIGHTNINGRL_KEY: a viewer's or admin's). Where LIGHTNINGRL_VIEWER_KEY is set, the page asks for it. Ends by Ctrl-C.
    """
    from lightningrl_ui.app import LOOPBACK, make_app
    from lightningrl_ui.sources import Sources

    viewers = [ViewerKey.read(one) for one in viewer_keys()]
    if host not in LOOPBACK and not viewers:
        raise ConfigError(
            f"--host: {host!r} lets other machines in, and the page shows all that agents and models wrote: set"
            " LIGHTNINGRL_VIEWER_KEY, or use 127.0.0.1 and reach it from elsewhere through ssh -L"
        )
    sources = Sources(targets, key)
    sources.check()
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}/"
    click.echo(f"runs at {url} (Ctrl-C ends)")
    asyncio.run(_serve(make_app(sources, viewers), listening, None if no_browser else url))


def _listen(host: str, port: int) -> socket.socket:
    try:
        made = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ConfigError(
            f"can't listen on {host} port {port}: {error.strerror}; give another --port, 0 for a free one"
        ) from error
    # Named TCP: only then asyncio turns off Nagle's delay, which costs 40 ms per answer.
    return socket.socket(made.family, made.type, socket.IPPROTO_TCP, fileno=made.detach())


async def _serve(app: object, listening: socket.socket, open_at: str | None) -> None:
    # Only now: `lightningrl --help` loads this module.
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on")  # pyright: ignore[reportArgumentType] - an ASGI app
    server = uvicorn.Server(config)
    if open_at is not None:
        asyncio.get_running_loop().call_later(0.2, webbrowser.open, open_at)
    await server.serve(sockets=[listening])
