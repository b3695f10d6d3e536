"""What a child prints tells where it listens."""

from __future__ import annotations

import pytest

from lightningrl_verl.machine.listening import Listening


@pytest.mark.parametrize(
    ("printed", "url"),
    [
        ("serving policy at http://127.0.0.1:81", "http://127.0.0.1:81"),
        ("serving store.db at http://0.0.0.0:81", "http://127.0.0.1:81"),
        ("serving my store.db at http://[::]:81\n", "http://[::1]:81"),
    ],
)
async def test_only_the_first_line_with_an_address_says_where_it_is(printed: str, url: str) -> None:
    """Libraries print lines of their own, and a child that was started again says the same once more."""
    listening = Listening()
    for line in ("", "see http://localhost:9", "serving at last"):
        listening.read(line)
    assert listening.port == 0
    assert not listening.url.done()
    for line in (printed, printed, "serving another at http://127.0.0.1:82"):
        listening.read(line)
    assert (listening.port, listening.url.result()) == (81, url)
