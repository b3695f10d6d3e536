"""LightningRL for AutoGen AgentChat: who acts, which tools run, and whose call each model call is.

The runner installs `AutoGenAdapter` by itself; `capture_client` is for those who want nothing patched.
"""

from lightningrl_autogen.adapter import AutoGenAdapter
from lightningrl_autogen.client import CaptureClient, capture_client

__all__ = ["AutoGenAdapter", "CaptureClient", "capture_client"]
