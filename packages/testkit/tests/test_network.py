"""A test that leaves this machine fails, from whatever thread or loop, and even if the error is swallowed."""

from __future__ import annotations

import pytest
from own_pytest import LIGHT

pytest_plugins = ["pytester"]

# 192.0.2.1 and example.invalid are reserved: nothing answers there, and nothing may ask.
LEAVING = {
    "connect": "socket.socket().connect_ex(('192.0.2.1', 80))",
    "send": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 80))",
    "resolve": "socket.getaddrinfo('example.invalid', 80)",
    "in a thread": "with_thread(lambda: socket.create_connection(('192.0.2.1', 80), 1))",
    "in a loop": "asyncio.run(asyncio.wait_for(asyncio.open_connection('192.0.2.1', 80), 1))",
}

HEAD = """
import asyncio, contextlib, socket, threading
import pytest

def with_thread(work):
    def swallow():
        with contextlib.suppress(Exception):
            work()
    thread = threading.Thread(target=swallow)
    thread.start()
    thread.join()
"""

TEST = """
MARK
def test_it_NUMBER():
    with contextlib.suppress(Exception):
        LEAVE
"""


def run(
    pytester: pytest.Pytester, *leave: str, mark: str = "", on: bool = True
) -> pytest.RunResult:
    """Run one test of each line of code, in a process of its own."""
    tests = [
        TEST.replace("LEAVE", one).replace("MARK", mark).replace("NUMBER", str(number))
        for number, one in enumerate(leave)
    ]
    pytester.makepyfile(HEAD + "".join(tests))
    pytester.makeini(f"[pytest]\nloopback_only = {str(on).lower()}\n")
    return pytester.runpytest_subprocess(*LIGHT, "-q")


def test_each_way_to_leave_this_machine_fails_its_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, *LEAVING.values())
    result.assert_outcomes(passed=len(LEAVING), errors=len(LEAVING))
    said = result.stdout.str().count("the test tried to leave this machine: socket.")
    assert said >= len(LEAVING)


def test_this_machine_may_be_reached(pytester: pytest.Pytester) -> None:
    here = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    run(pytester, f"{here}; socket.getaddrinfo('localhost', 80)").assert_outcomes(passed=1)


def test_a_marked_test_may_leave_and_so_may_all_where_it_is_off(pytester: pytest.Pytester) -> None:
    # UDP: nothing waits for an answer.
    leave = LEAVING["send"]
    mark = "@pytest.mark.beyond_loopback"
    run(pytester, leave, mark=mark).assert_outcomes(passed=1)
    run(pytester, leave, on=False).assert_outcomes(passed=1)
