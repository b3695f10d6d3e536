"""LightningRL for LangChain and LangGraph: who acts, which tools run, and whose call each model call is.

The runner installs `LangChainAdapter` by itself; `CaptureHandler` is for those who want nothing patched.
"""

from lightningrl_langchain.adapter import LangChainAdapter
from lightningrl_langchain.handler import CaptureHandler

__all__ = ["CaptureHandler", "LangChainAdapter"]
