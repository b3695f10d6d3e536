"""LightningRL for the Microsoft Agent Framework; the runner installs the adapter by itself."""

from lightningrl_agent_framework.adapter import AgentFrameworkAdapter

__all__ = ["AgentFrameworkAdapter"]
