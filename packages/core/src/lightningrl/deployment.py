"""How a trained model gets behind the unchanged agent: the command and the environment lines.

Invariant: `lightningrl train`'s summary and an export's model card say the same.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from lightningrl.errors import RunError
from lightningrl.machine.durable import write_text
from lightningrl.recipe import PolicyRecipe
from lightningrl.schema import RewriteRules

SERVING = "serving.json"
"""File of an export: a `Serving`."""

BEFORE_ENGINE = "lightningrl serve --policy . --engine http://127.0.0.1:8000/v1"
"""The command, in an export's folder, that does the rewrites of training before the engine that serves it."""

ENVIRONMENT = (
    "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
    "export OPENAI_API_KEY=unused",
)
"""What the agent's process needs."""

COMPACT_NOTE = (
    "The policy writes tool calls in LightningRL's `compact` form, which vLLM does not read: it"
    " serves the model, and tool calls arrive as text. The engine of `lightningrl train` reads them."
)


class Serving(msgspec.Struct, frozen=True):
    """How a policy's requests were brought to its model while it was trained; what serves it must do the same."""

    policy: str
    """Alias."""
    model: str
    """The name that agents ask for."""
    rules: RewriteRules
    chat_template: str | None
    """Jinja, as prompts were rendered by it. `None`: the model has none."""
    tool_parser: str
    max_model_len: int


def serving_of(
    alias: str, policy: PolicyRecipe, rules: RewriteRules, chat_template: str | None
) -> Serving:
    """The record of a recipe's policy."""
    return Serving(
        policy=alias,
        model=served_name(alias, policy),
        rules=rules,
        chat_template=chat_template,
        tool_parser=policy.tool_parser,
        max_model_len=policy.max_model_len,
    )


def serving_path(run: Path, alias: str) -> Path:
    """Where a run keeps the record of a policy."""
    return run / "serving" / f"{alias}.json"


def write_serving(path: Path, serving: Serving) -> None:
    """Write it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, msgspec.json.format(msgspec.json.encode(serving)).decode() + "\n")


def read_serving(path: Path) -> Serving | None:
    """The record at `path`. `None`: there is none, as of runs that no trainer has kept it for.

    Raises:
        RunError: it can't be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Serving)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(
            f"{str(path)!r} can't be read as what `lightningrl train` writes: {error}; restore it, or export"
            " the run anew"
        ) from error


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
