"""What the agent tells its model, so that demonstrations say the same without loading the agent's framework."""

from __future__ import annotations

from typing import Any

INSTRUCTIONS = (
    "Solve the problem. Use the calculator for every step of arithmetic, one operation a call. "
    "Then answer with the number alone."
)
INSTRUCTIONS_WITHOUT_TOOL = "Solve the problem. Answer with the number alone."

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {
                "expression": {
                    "description": "expression",
                    "title": "Expression",
                    "type": "string",
                }
            },
            "required": ["expression"],
            "additionalProperties": False,
        },
        "strict": False,
    },
}
"""The calculator as AutoGen describes it to a model."""
