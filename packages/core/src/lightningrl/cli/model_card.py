"""The model card of an exported checkpoint: what it is, how well it does, how to serve it.

Invariant: pure, and every number in it is one of the run's metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.deployment import (
    BEFORE_ENGINE,
    COMPACT_NOTE,
    ENVIRONMENT,
    SERVING,
    served_name,
    vllm_command,
)
from lightningrl.metrics import MetricLine
from lightningrl.recipe import PolicyRecipe, Recipe, dump_recipe

_TINY = (
    "> **This is a tiny policy.** It was built from scratch for this recipe and warm-started on"
    " demonstrations, to show the whole path of training on a laptop. It knows the words of this one"
    " task and is of no use for anything else."
)


@dataclass(frozen=True)
class CardFacts:
    """What a model card is made of."""

    recipe: Recipe
    policy: str
    """Alias of the exported policy."""
    iteration: int
    """Of the checkpoint."""
    metrics: Sequence[MetricLine]
    """All lines of the run."""
    origin: Mapping[str, Any]
    """`run.json`."""
    tiny_record: str | None
    """`tiny_policy.json` as text: how a tiny policy was built. `None`: the checkpoint has none."""
    base_record: str | None
    """`pretrained_model.json` as text: the pretrained model that was trained on. `None`: the checkpoint has none."""
    warm_start_record: str | None
    """`warm_start.json` as text: on which demonstrations the policy was fine-tuned first. `None`: it was not."""
    has_curve: bool
    """Whether `curve.png` lies beside the card."""
    rewritten: Sequence[str]
    """How requests were rewritten while it was trained, in words."""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the front matter that the Hugging Face Hub reads."""
    alias = facts.policy
    policy = facts.recipe.policies.get(alias, PolicyRecipe(model="."))
    is_tiny = policy.tiny is not None or facts.tiny_record is not None
    parts = [
        _front_matter(_licence(facts)),
        f"# {facts.recipe.name}, iteration {facts.iteration}",
        *([_TINY] if is_tiny else []),
        f"Trained by LightningRL {_version(facts.origin)}: {_how(facts)}. Commit"
        f" `{facts.origin.get('commit') or 'unknown'}`, started"
        f" {facts.origin.get('started_at', 'at an unknown time')}.",
        *_results(facts),
        "## Serving\n\n" + _serving(alias, policy, facts.rewritten),
        "## Recipe\n\n```yaml\n" + dump_recipe(facts.recipe).rstrip() + "\n```",
        *(
            [f"## Warm start\n\n```json\n{facts.warm_start_record.rstrip()}\n```"]
            if facts.warm_start_record is not None
            else []
        ),
        *(
            [f"## Tiny policy\n\n```json\n{facts.tiny_record.rstrip()}\n```"]
            if facts.tiny_record is not None
            else []
        ),
        *(
            [f"## Base model\n\n```json\n{facts.base_record.rstrip()}\n```"]
            if facts.base_record is not None
            else []
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(licence: str | None) -> str:
    tags = "\n".join(f"- {tag}" for tag in ("lightningrl", "reinforcement-learning", "agents"))
    known = f"license: {licence}\n" if licence else ""
    return (
        f"---\n{known}library_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}\n---"
    )


def _licence(facts: CardFacts) -> str | None:
    """The base model's, which holds for what was trained on it."""
    return json.loads(facts.base_record).get("licence") if facts.base_record is not None else None


def _version(origin: Mapping[str, Any]) -> str:
    versions: Mapping[str, Any] = origin.get("versions") or {}
    return str(versions.get("lightningrl", ""))


def _was_imitated(facts: CardFacts) -> bool:
    """Whether the run fine-tuned the policy on demonstrations, and rewarded nothing."""
    return facts.recipe.algorithm is None and any("sft/loss" in line for line in facts.metrics)


def _how(facts: CardFacts) -> str:
    if _was_imitated(facts):
        return "supervised fine-tuning on demonstrations"
    return "reinforcement learning of the model behind an agent"


def _results(facts: CardFacts) -> list[str]:
    """What was measured, as a table and a picture."""
    imitated = _was_imitated(facts)
    heading, table = ("Loss", _losses(facts)) if imitated else ("Rewards", _rewards(facts))
    what = "Loss" if imitated else "Reward"
    picture = [f"![{what} by iteration](curve.png)"] if facts.has_curve else []
    return [f"## {heading}\n\n{table}", *picture]


def _losses(facts: CardFacts) -> str:
    """A table of mean losses: before any update, and at this checkpoint."""
    by_iteration = {line["iteration"]: line for line in facts.metrics}
    base, here = by_iteration.get(0, {}), by_iteration.get(facts.iteration, {})
    rows = [
        ("demonstrations held out", base.get("sft/val_loss"), here.get("sft/val_loss")),
        ("demonstrations of the last update", None, here.get("sft/loss")),
    ]
    lines = ["| nats per answer token | base | this checkpoint |", "|---|---:|---:|"]
    lines += [f"| {name} | {_number(before)} | {_number(after)} |" for name, before, after in rows]
    return "\n".join(lines)


def _rewards(facts: CardFacts) -> str:
    """A table of mean rewards: the base, this checkpoint, and the test if it was scored."""
    by_iteration = {line["iteration"]: line for line in facts.metrics}
    base, here = by_iteration.get(0, {}), by_iteration.get(facts.iteration, {})
    rows = [
        ("validation, greedy", base.get("val/reward"), here.get("val/reward")),
        (
            "validation, sampled",
            base.get("val/reward_sampled"),
            here.get("val/reward_sampled"),
        ),
        ("test, greedy", base.get("test/reward"), here.get("test/reward")),
    ]
    lines = ["| mean reward | base (iteration 0) | this checkpoint |", "|---|---:|---:|"]
    lines += [f"| {name} | {_number(before)} | {_number(after)} |" for name, before, after in rows]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "not scored"


def _serving(alias: str, policy: PolicyRecipe, rewritten: Sequence[str]) -> str:
    note = f"\n\n{COMPACT_NOTE}" if policy.tool_parser == "compact" else ""
    if rewritten:
        lines = "\n".join(f"- {one}" for one in rewritten)
        note += (
            f"\n\nWhile it was trained, requests were rewritten by the rules in `{SERVING}`, which an engine"
            f" alone does not do:\n\n{lines}\n\n`{BEFORE_ENGINE}` does them before any engine."
        )
    environment = "\n".join(ENVIRONMENT)
    return (
        f"```bash\n{vllm_command('.', alias, policy)}\n```\n\nand for the agent, whose code stays as"
        f" it is (it asks for `{served_name(alias, policy)}`):\n\n```bash\n{environment}\n```{note}"
    )
