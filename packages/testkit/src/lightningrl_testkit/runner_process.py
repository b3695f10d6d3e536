"""A process as a runner makes it for agents: hooks installed, the server's address in the environment.

Invariant: after `captured` nothing is installed that was not before it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from lightningrl.capture.adapter import Adapter
from lightningrl.capture.client import install_client_patch, uninstall_client_patch
from lightningrl.capture.variables import PLACEHOLDER_KEY


@contextmanager
def captured(*adapters: Adapter) -> Generator[None]:
    """Run the block with the client patch and `adapters` installed."""
    install_client_patch()
    for adapter in adapters:
        adapter.install()
    try:
        yield
    finally:
        for adapter in reversed(adapters):
            adapter.uninstall()
        uninstall_client_patch()


def tell_address(environment: pytest.MonkeyPatch, server_url: str) -> None:
    """Set what clients that name no address read: the server's, and a key that stands for each attempt's."""
    environment.setenv("OPENAI_BASE_URL", f"{server_url}/v1")
    environment.setenv("OPENAI_API_KEY", PLACEHOLDER_KEY)
