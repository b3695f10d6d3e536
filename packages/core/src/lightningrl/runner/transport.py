"""Whether a failure is of the way to the gateway: by the exception that a client raised, or by what a program wrote.

Invariant: what names another host than the server is never such a failure. Pure.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

_TRANSPORT = {
    "openai": {"APIConnectionError"},
    "anthropic": {"APIConnectionError"},
    "httpx": {"TransportError"},
    "httpx2": {"TransportError"},
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
}
"""Package -> the classes under which all its failures of transport are. LiteLLM's own are not here: it gives any
failure that name, at a host of its own; what it wraps is an `openai` or `httpx` error, and stands in the chain."""

_WORDS = re.compile(
    r"\b(?:APIConnection|APITimeout|Connect|Read|Write|RemoteProtocol|ServerDisconnected|ClientConnector|ClientOS"
    r"|ConnectionReset|ConnectionRefused|ClientPayload)Error\b"
    r"|\b(?:ConnectTimeout|ReadTimeout|WriteTimeout|RemoteDisconnected|ConnectException)\b"
    r"|\b(?:ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|UND_ERR_\w+)\b"
    r"|socket hang up|connection refused|connection reset",
    re.IGNORECASE,
)
"""How clients in any language say that a connection was not made, or broke."""
_HOSTS = re.compile(
    r"https?://([^\s/'\"<>?#]+)|host='([^']+)', port=(\d+)"
    r"|(?:\bhost|dial tcp|ECONNREFUSED|ETIMEDOUT|ECONNRESET) (\[[0-9a-f:]+\]:\d+|[\w.-]+:\d+)"
)
_CHAINED = re.compile(
    r"^(?:The above exception was the direct cause of|During handling of the above exception,).*$",
    re.MULTILINE,
)
"""What Python writes between an exception and the one that followed from it."""
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Timeout|Disconnected)\b", re.MULTILINE)
"""The beginning of an error, unindented as Python and Node write it."""


def is_by_gateway(error: BaseException, server_url: str, *, hung_up: bool) -> bool:
    """Whether `error` is a failure of transport, or a server's error, at the gateway.

    Args:
        error: one exception of a chain.
        server_url: the gateway's.
        hung_up: the attempt's last model call ended without its client: says whose an error is that names no URL.
    """
    url = _url(error)
    if _is_transport(error):
        return hung_up if url is None else _is_at(url, server_url)
    status = getattr(error, "status_code", None) or getattr(
        _get(error, "response"), "status_code", 0
    )
    return url is not None and _is_at(url, server_url) and isinstance(status, int) and status >= 500


def _is_transport(error: BaseException) -> bool:
    if type(error).__module__.partition(".")[0] == "litellm":
        return False
    return any(
        one.__name__ in _TRANSPORT.get(one.__module__.partition(".")[0], ())
        for one in type(error).__mro__
    )


def _url(error: BaseException) -> str | None:
    """The URL that an error of an HTTP client is about. `None`: it names none."""
    for holder in (_get(error, "request"), _get(error, "request_info")):
        url = _get(holder, "url")
        if url is not None:
            return str(url)
    host, port = _get(error, "host"), _get(error, "port")
    return f"http://{host}:{port}" if isinstance(host, str) and isinstance(port, int) else None


def _get(holder: Any, name: str) -> Any:
    """An attribute of a stranger's object; httpx raises a RuntimeError where an error has no request."""
    try:
        return getattr(holder, name, None)
    except RuntimeError:
        return None


def is_in_text(written: str, server_url: str) -> bool:
    """Whether a program that failed said last, or as a cause of it, that it could not speak with the gateway.

    A line about a failed connection that names no host counts: few clients name one.
    """
    server = urlsplit(server_url).netloc
    lines = [one for one in _last_error(written) if _WORDS.search(one)]
    return any(all(_same(host, server) for host in _hosts(one)) for one in lines)


def _last_error(written: str) -> list[str]:
    """The lines of the error that ended a program, and the last line of each that it followed from."""
    *causes, last = _CHAINED.split(written)
    begun = [one.start() for one in _ERROR.finditer(last)]
    lines = last[begun[-1] if begun else 0 :].strip().splitlines()
    if not begun:
        lines = lines[-1:]
    return [line for cause in causes for line in cause.strip().splitlines()[-1:]] + lines


def _hosts(line: str) -> list[str]:
    return [named or spelt or f"{host}:{port}" for named, host, port, spelt in _HOSTS.findall(line)]


def _is_at(url: str, server_url: str) -> bool:
    return _same(urlsplit(url).netloc, urlsplit(server_url).netloc)


def _same(host: str, server: str) -> bool:
    def plain(one: str) -> str:
        return re.sub(r"^(?:localhost|\[::1\])(?=:|$)", "127.0.0.1", one.rpartition("@")[2])

    return plain(host) == plain(server)
