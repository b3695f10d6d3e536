"""A test that leaves this machine fails, from whatever thread or loop, and even if the error is swallowed."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

# 192.0.2.1 and example.invalid are reserved: nothing answers there, and nothing may ask.
LEAVING = {
    "connect": "socket.socket().connect_ex(('192.0.2.1', 80))",
    "send": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 80))",
    "resolve": "socket.getaddrinfo('example.invalid', 80)",
    "in a thread": "with_thread(lambda: socket.create_connection(('192.0.2.1', 80), 1))",
    "in a loop": "asyncio.run(asyncio.wait_for(asyncio.open_connection('192.0.2.1', 80), 1))",
}

PROGRAM = """
import asyncio, contextlib, socket, threading
import pytest

def with_thread(work):
    def swallow():
        with contextlib.suppress(Exception):
            work()
    thread = threading.Thread(target=swallow)
    thread.start()
    thread.join()

MARK
def test_it():
    with contextlib.suppress(Exception):
        LEAVE
"""


def run(
    pytester: pytest.Pytester, leave: str, *, mark: str = "", on: bool = True
) -> pytest.RunResult:
    pytester.makepyfile(PROGRAM.replace("LEAVE", leave).replace("MARK", mark))
    pytester.makeini(f"[pytest]\nloopback_only = {str(on).lower()}\n")
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
def test_leaving_this_machine_fails_the_test(pytester: pytest.Pytester, leave: str) -> None:
    result = run(pytester, leave)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the test tried to leave this machine: socket.*"])


def test_this_machine_may_be_reached(pytester: pytest.Pytester) -> None:
    here = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    run(pytester, f"{here}; socket.getaddrinfo('localhost', 80)").assert_outcomes(passed=1)


def test_a_marked_test_may_leave_and_so_may_all_where_it_is_off(pytester: pytest.Pytester) -> None:
    # UDP: nothing waits for an answer.
    leave = LEAVING["send"]
    mark = "@pytest.mark.beyond_loopback"
    run(pytester, leave, mark=mark).assert_outcomes(passed=1)
    run(pytester, leave, on=False).assert_outcomes(passed=1)
