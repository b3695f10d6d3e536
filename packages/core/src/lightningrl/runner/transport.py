"""Whether a failure is of the way to the gateway: by the exception that a client raised, or by what a program wrote.

Invariants: what names another host than the server is never such a failure; nor is what only quotes one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
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

_CLASSES = (
    r"(?:APIConnection|APITimeout|Connect|Read|Write|RemoteProtocol|ServerDisconnected|ClientConnector|ClientOS"
    r"|ConnectionReset|ConnectionRefused|ClientPayload|URL)Error"
    r"|ConnectTimeout|ReadTimeout|WriteTimeout|RemoteDisconnected|ConnectException"
    r"|requests\.exceptions\.(?:ConnectionError|Timeout|ChunkedEncodingError)"
)
"""Errors that clients of HTTP and sockets raise, in any language, and raise for nothing else."""
_WORDS = re.compile(
    rf"\b(?:{_CLASSES})\b"
    r"|\b(?:ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|UND_ERR_\w+)\b"
    r"|socket hang up|connection refused|connection reset|failed to connect",
    re.IGNORECASE,
)
"""How clients in any language say that a connection was not made, or broke. So may any text that an error quotes."""
_OWN = re.compile(
    rf"(?:Exception in thread \S+ |Caused by: )?(?!litellm\.)(?:[\w.]+\.)?(?:{_CLASSES})(?=[\s:(]|$)"
    r"|TypeError: fetch failed$"
    r"|Error: (?:(?:connect|read|write) E[A-Z]+\b.*|socket hang up)\n\s+at .*\bnode:",
    re.MULTILINE,
)
"""The beginning of an error that is itself a failure of transport; Node's are known by where they are thrown."""
_HOSTS = re.compile(
    r"https?://([^\s/'\"<>?#]+)|host='([^']+)', port=(\d+)|\('([^']+)', (\d+)"
    r"|\bat \"([^\"]+)\"(?: \([^)]*\))?, port (\d+)|\bto ([\w.-]+) port (\d+)|\bserver on '([^']+)'"
    r"|(?:\bhost|\bto|dial tcp|tcp \S+->|ECONNREFUSED|ETIMEDOUT|ECONNRESET) ?(\[[0-9a-f:]+\]:\d+|[\w.-]+:\d+)"
)
"""A host, or a host and its port."""
_CHAINED = re.compile(
    r"^(?:The above exception was the direct cause of|During handling of the above exception,).*$",
    re.MULTILINE,
)
"""What Python writes between an exception and the one that followed from it."""
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)
_CARETS = re.compile(r"^[ \t]*\^+$", re.MULTILINE)
"""What Node writes before an error that nobody caught."""
_UNINDENTED = re.compile(r"^\S.*", re.MULTILINE)
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Timeout|Disconnected)\b", re.MULTILINE)
"""The beginning of an error, unindented as programs write it."""
_PORTS = {"http": 80, "https": 443}


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


def is_in_text(written: str, server_url: str, *, hung_up: bool) -> bool:
    """Whether a program that failed said last, or as a cause of it, that it could not speak with the gateway.

    The host decides that is named next to the end. Where none is, as few clients name one, words don't count, since
    an error may quote what the policy wrote: one of the errors must itself be a failure of transport.

    Args:
        written: what it wrote last.
        server_url: the gateway's.
        hung_up: the attempt's last model call ended without its client; then words count.
    """
    words = own = False
    for error in _errors(written):
        lines = [line for line in error if _WORDS.search(line)]
        is_own = _is_own("\n".join(error))
        hosts = [host for line in {*error[:1], *lines} for host in _hosts(line)]
        if (lines or is_own) and hosts:
            return all(_may_be(host, server_url) for host in hosts)
        words, own = words or bool(lines), own or is_own
    return own or (words and hung_up)


def _is_own(error: str) -> bool:
    """Whether the error is itself a failure of transport, and no other error was written after it."""
    begun = [one.start() for one in _ERROR.finditer(error)]
    return all(_OWN.match(error, start) for start in {0, *begun[-1:]})


def _errors(written: str) -> Iterator[list[str]]:
    """The lines of the error that ended a program, then of each that it followed from."""
    for part in reversed(_CHAINED.split(written)):
        yield _error_in(part)
        if len(_TRACEBACK.findall(part)) > 1:
            return  # it followed from nothing: what stands before was written for another one


def _error_in(part: str) -> list[str]:
    """The last error's lines; the last line where nothing looks like an error.

    Its first line is known by what stands before, since what follows may be anybody's text.
    """
    for before in (_TRACEBACK, _CARETS):
        heads = [one.end() for one in before.finditer(part)]
        if heads and (begun := _UNINDENTED.search(part, heads[-1])):
            return part[begun.start() :].strip().splitlines()
    found = [one.start() for one in _ERROR.finditer(part)]
    lines = part[found[-1] if found else 0 :].strip().splitlines()
    return lines if found else lines[-1:]


def _hosts(line: str) -> list[str]:
    found = [[part for part in one if part] for one in _HOSTS.findall(line)]
    return [
        ":".join([f"[{one[0]}]" if ":" in one[0] and one[1:] else one[0], *one[1:]])
        for one in found
    ]


def _may_be(host: str, url: str) -> bool:
    """Whether what a text names is the server; an address may be what the server's name stands for."""
    server = urlsplit(url)
    if _same(host, server.netloc):
        return True
    address, _, port = host.rpartition(":")
    return (
        _is_address(address)
        and server.hostname not in (None, "localhost")
        and not _is_address(str(server.hostname))
        and port == str(server.port or _PORTS.get(server.scheme))
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _is_at(url: str, server_url: str) -> bool:
    return _same(urlsplit(url).netloc, urlsplit(server_url).netloc)


def _same(host: str, server: str) -> bool:
    def plain(one: str) -> str:
        return re.sub(r"^(?:localhost|\[::1\])(?=:|$)", "127.0.0.1", one.rpartition("@")[2])

    return plain(host) == plain(server)
