"""LightningRL for the OpenAI Agents SDK: who acts, what runs below what, and whose call each call is.

The runner installs `OpenAIAgentsAdapter` by itself; `CaptureProvider` and `CaptureProcessor` are for those
who want nothing patched.
"""

from lightningrl_openai_agents.adapter import OpenAIAgentsAdapter
from lightningrl_openai_agents.provider import CaptureProvider
from lightningrl_openai_agents.spans import CaptureProcessor

__all__ = ["CaptureProcessor", "CaptureProvider", "OpenAIAgentsAdapter"]
