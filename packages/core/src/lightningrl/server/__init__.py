"""The server: one ASGI app that serves the store and the gateway, and the process around it."""

from lightningrl.server.app import Application
from lightningrl.server.serve import ServerOptions, serve

__all__ = ["Application", "ServerOptions", "serve"]
