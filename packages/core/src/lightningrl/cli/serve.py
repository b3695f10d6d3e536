"""`lightningrl serve STORE`: the store and the gateway, for runners and trainers elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import click

from lightningrl import settings
from lightningrl.cli.retention import MODES, retention
from lightningrl.deployment import SERVING, read_serving
from lightningrl.errors import ConfigError
from lightningrl.gateway.call_log import CallLog
from lightningrl.gateway.limits import limits_of_environment
from lightningrl.gateway.observe import Observer
from lightningrl.keys import AccessKeys, ViewerKey
from lightningrl.machine.logs import LogFormat, configure_logs
from lightningrl.schema import Endpoint
from lightningrl.server import ServerOptions
from lightningrl.server import serve as serve_store
from lightningrl.server.direct import serve_direct
from lightningrl.store.databases import shown
from lightningrl.store.urls import Kind, kind_of, path_of

ENGINES = "lightningrl.engines"
"""The entry-point group of functions that serve a model; see `serve`."""


@click.command()
@click.argument("store", required=False)
@click.option(
    "--policy",
    metavar="MODEL",
    help="Instead of a store, a model in use: a Hugging Face folder, FILE.gguf, package:NAME or run:NAME[@ITERATION]. Needs lightningrl-verl.",
)
@click.option(
    "--chat-template", metavar="NAME", help="Of MODEL, instead of its own: hermes, or a Jinja file."
)
@click.option(
    "--engine",
    metavar="URL",
    help="Of MODEL, instead of the embedded one: an OpenAI-compatible server that serves it, up to /v1 included. MODEL is then an export's folder. Its API key is read from LIGHTNINGRL_POLICY_KEY.",
)
@click.option("--engine-key", envvar="LIGHTNINGRL_POLICY_KEY", hidden=True, help="Its API key.")
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
    store: str | None,
    policy: str | None,
    chat_template: str | None,
    engine: str | None,
    engine_key: str | None,
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
    """Serve a store and a gateway, or a trained model.

    With --policy, OpenAI's and Anthropic's clients are answered by that model, tool calls included, whatever model they ask for; nothing is recorded. STORE is an SQLite file, or postgresql://USER@HOST/DATABASE, which several servers may serve; made where there is none. Ends by SIGTERM or Ctrl-C. A port of 0 takes a free one. An address that other machines reach needs LIGHTNINGRL_ADMIN_KEY. All settings: docs/reference/settings.md.
    """
    configure_logs(log_level, log_format)
    if policy is not None:
        _refuse_store_options()
        serve_model = _policy_server() if engine is None else _before(engine, engine_key)
        ready = _ready(policy, url_file)
        serve_model(policy, chat_template, host=host, port=port, ready=ready, parent_fd=parent_fd)
        return
    if store is None or chat_template is not None or engine is not None:
        raise ConfigError(
            "give a STORE to serve, or a model by --policy; --chat-template and --engine are of the latter"
        )
    rule = retention(delete_older_than, delete_down_to, delete_modes, "--delete-")
    if kind_of(store) is Kind.SQLITE:
        path_of(store).parent.mkdir(parents=True, exist_ok=True)
    with _observers(otel) as observers:
        serve_store(
            store,
            host=host,
            port=port,
            keys=_keys(),
            options=ServerOptions(
                store_body_bytes=settings.store_body_bytes(),
                gateway=limits_of_environment(),
                synchronous=synchronous,
                retention=rule,
            ),
            observers=observers,
            ready=_ready(shown(store), url_file),
            parent_fd=parent_fd,
        )


def _keys() -> AccessKeys:
    """Those of the environment."""
    viewers = tuple(map(ViewerKey.read, settings.viewer_keys()))
    return AccessKeys(settings.admin_keys(), settings.runner_keys(), viewers)


def _ready(name: str, url_file: Path | None) -> Callable[[str], None]:
    """What is done with the URL once it answers."""

    def ready(url: str) -> None:
        if url_file is not None:
            partial = url_file.with_name(f".{url_file.name}.part")
            partial.write_text(url, encoding="utf-8")
            partial.replace(url_file)  # whoever waits for the file finds it whole
        click.echo(f"serving {name} at {url}")

    return ready


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


def _before(engine: str, key: str | None) -> Callable[..., None]:
    """What serves an export by a server that has it, with the rewrites of its training before that."""

    def serve_model(export: str, chat_template: str | None, **how: Any) -> None:
        folder = Path(export)
        if chat_template is not None:
            raise ConfigError(
                "--chat-template: the engine renders the prompts, so give it to the engine"
            )
        serving = read_serving(folder / SERVING) if folder.is_dir() else None
        if serving is None:
            raise ConfigError(
                f"--engine needs an export, and {export!r} has no {SERVING}: `lightningrl export RUN` makes one"
            )
        endpoint = Endpoint(engine.rstrip("/"), key)
        limits = limits_of_environment()
        serve_direct(endpoint, serving.model, rules=serving.rules, limits=limits, **how)

    return serve_model


_OF_POLICIES = {
    "policy",
    "chat_template",
    "engine",
    "engine_key",
    "host",
    "port",
    "url_file",
    "log_level",
    "log_format",
    "parent_fd",
}
"""Parameters that `--policy` goes with."""


def _refuse_store_options() -> None:
    """A parameter of the store's that was given beside `--policy` is a mistake."""
    context = click.get_current_context()
    given = [
        name
        for name in context.params
        if name not in _OF_POLICIES
        and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        and context.params[name] is not None
    ]
    if given:
        raise ConfigError(f"--policy serves a model, not a store; leave out: {', '.join(given)}")


def _policy_server() -> Callable[..., None]:
    """What serves a model: an entry point, as core has no engine."""
    found = list(entry_points(group=ENGINES))
    if not found:
        raise ConfigError(
            "--policy needs the engine that comes with the trainer: pip install lightningrl-verl"
        )
    return found[0].load()
