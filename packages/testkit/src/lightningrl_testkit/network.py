"""A pytest plugin: tests reach this machine and nothing beyond it.

Invariant: while a test runs that may not, no Python code of this process, in whatever thread or event
loop, resolves a name or connects or sends to an address beyond loopback; a try is refused, and fails the
test even where the code that tried swallows the error. Subprocesses are not watched, nor are event loops
that leave Python's sockets aside (uvloop).

It is on for every test of an `AdapterContract`, and for all tests where `loopback_only = true` stands in
pytest's configuration; the mark `beyond_loopback` lets a test out.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
from collections.abc import Generator
from typing import Any, cast

import pytest

MARK = "beyond_loopback"
_OPTION = "loopback_only"
_EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
"""Audit event -> which of its arguments is the address. https://docs.python.org/3/library/audit_events.html"""


class BeyondLoopback(OSError):
    """Something tried to leave this machine while a test ran."""


class Guard:
    """Refuses and remembers, while it is on. One for the process: audit hooks can't be removed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: list[str] | None = None
        """What was tried. `None`: the guard is off."""
        self._hooked = False

    def on(self) -> None:
        """Begin to refuse."""
        with self._lock:
            self._tries = []
            if not self._hooked:
                sys.addaudithook(self._look)
                self._hooked = True

    def off(self) -> list[str]:
        """Let everything pass again; return what was tried."""
        with self._lock:
            tries, self._tries = self._tries or [], None
            return tries

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._tries is None or event not in _EVENTS:
            return
        host = _host(arguments[_EVENTS[event]])
        if host is None or _is_loopback(host):
            return
        what = f"{event} {host!r} in thread {threading.current_thread().name!r}"
        with self._lock:
            self._tries.append(what)
        raise BeyondLoopback(f"{what}: this test may reach this machine only")


def _host(address: object) -> str | None:
    """The host of an address; `None`: it is none of the internet (a path, or no address)."""
    if isinstance(address, tuple):
        address = cast("tuple[object, ...]", address)[0] if address else None
    if isinstance(address, bytes):
        address = address.decode(errors="replace")
    return address if isinstance(address, str) and not address.startswith(("/", "\0")) else None


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


_guard = Guard()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the setting."""
    parser.addini(_OPTION, "keep all tests from leaving this machine", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", f"{MARK}: the test may leave this machine")


@pytest.fixture(autouse=True)
def loopback_only(request: pytest.FixtureRequest) -> Generator[None]:
    """Keep the test from leaving this machine, if the configuration or its class says so."""
    wanted = request.config.getini(_OPTION) or getattr(request.cls, "loopback_only", False)
    if not wanted or request.node.get_closest_marker(MARK) is not None:
        yield
        return
    _guard.on()
    try:
        yield
    finally:
        tries = _guard.off()
    if tries:
        pytest.fail(f"the test tried to leave this machine: {'; '.join(tries)}", pytrace=False)
