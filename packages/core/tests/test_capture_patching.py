"""What is replaced is put back, and nothing of anybody else's is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lightningrl.capture.patching import Patches


class Client:
    """Some framework's."""

    def ask(self) -> str:
        return "asked"


def louder(original: Callable[..., str]) -> Callable[..., str]:
    def ask(self: Any) -> str:
        return f"{original(self)}!"

    return ask


def test_what_is_replaced_is_put_back() -> None:
    original = Client.ask
    patches = Patches()
    patches.replace(Client, "ask", louder)
    assert Client().ask() == "asked!"
    patches.undo()
    assert Client.ask is original


def test_what_others_put_in_its_place_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patches = Patches()
    monkeypatch.setattr(Client, "ask", Client.ask)  # restored after the test
    patches.replace(Client, "ask", louder)
    theirs = louder(Client.ask)
    Client.ask = theirs
    patches.undo()
    assert Client.ask is theirs
    assert "Client.ask was replaced by others and stays so" in caplog.text
