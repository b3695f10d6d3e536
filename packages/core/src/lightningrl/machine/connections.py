"""How long an idle connection to a server of ours stays open."""

from __future__ import annotations

KEEP_ALIVE_SECONDS = 75
"""Longer than any client keeps one (httpx 5, aiohttp 15, undici 4): whoever closes second never meets a closed one.

A server that closes first may do so just as a request arrives: the client then reads a reset connection and can't know
whether it was heard.
"""
