"""How a trained model gets behind the unchanged agent: the command and the environment lines.

Invariant: `lightningrl train`'s summary and an export's model card say the same.
"""

from __future__ import annotations

from lightningrl.recipe import PolicyRecipe

ENVIRONMENT = (
    "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
    "export OPENAI_API_KEY=unused",
)
"""What the agent's process needs."""

COMPACT_NOTE = (
    "The policy writes tool calls in LightningRL's `compact` form, which vLLM does not read: it"
    " serves the model, and tool calls arrive as text. The engine of `lightningrl train` reads them."
)


def served_name(alias: str, policy: PolicyRecipe) -> str:
    """The model name that the agent asks for: the first that the policy replaces, else its alias."""
    return policy.replaces[0] if policy.replaces else alias


def vllm_command(folder: str, alias: str, policy: PolicyRecipe) -> str:
    """The `vllm serve` command for a model folder."""
    parts = [
        f"vllm serve {folder}",
        f"--served-model-name {served_name(alias, policy)}",
        f"--max-model-len {policy.max_model_len}",
    ]
    if policy.tool_parser not in ("none", "compact"):
        parts.append(f"--enable-auto-tool-choice --tool-call-parser {policy.tool_parser}")
    return " ".join(parts)
