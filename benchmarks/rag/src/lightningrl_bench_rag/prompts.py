"""What the agent tells its model, so that demonstrations say the same without loading the agent's framework."""

from __future__ import annotations

from typing import Any

INSTRUCTIONS = (
    "Answer the question. Search for one fact at a time. At the end write the name alone."
)

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Return the three best passages.",
        "parameters": {
            "properties": {"query": {"title": "Query", "type": "string"}},
            "required": ["query"],
            "title": "search_args",
            "type": "object",
            "additionalProperties": False,
        },
        "strict": True,
    },
}
"""The search as the Agents SDK describes it to a model, in the order of its keys, which chat templates keep."""
