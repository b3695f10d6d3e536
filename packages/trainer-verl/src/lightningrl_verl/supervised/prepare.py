"""From what a recipe names to what a policy is fine-tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from lightningrl.errors import ConfigError
from lightningrl.experience.train_when import load_train_when
from lightningrl.recipe import PolicyRecipe
from lightningrl_verl.engine.parsers import UnknownToolParserError
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.supervised.course import material
from lightningrl_verl.supervised.demonstrations import Demonstration
from lightningrl_verl.supervised.rows import Material, example_of
from lightningrl_verl.supervised.scribe import Scribe, UnfitError
from lightningrl_verl.supervised.stored import StoredRollout, stored_example


def prepare(
    dialogues: Sequence[Demonstration] | Sequence[StoredRollout],
    base: Path,
    policy: PolicyRecipe,
    *,
    alias: str,
    seed: int,
) -> Material:
    """Write dialogues as a policy's engine would, and hold some of them out. Blocks.

    Args:
        dialogues: at least one.
        base: Hugging Face folder of the policy, with its tokenizer and template.
        policy: the recipe's section, with a `warm_start`.
        alias: the policy's.
        seed: decides what is held out.

    Raises:
        ConfigError: the policy has no end token or template, or can't say a demonstration.
        NothingTrainable: no answer may be trained.
    """
    settings = policy.warm_start
    assert settings is not None
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(base)
    try:
        scribe = Scribe(
            tokenizer, settings.tool_parser or policy.tool_parser, policy.chat_template_kwargs
        )
    except (UnfitError, UnknownToolParserError) as error:
        raise ConfigError(f"policies.{alias}.warm_start: {error}") from error
    train_when = load_train_when({alias: policy}).get(alias)
    examples = [
        example_of(one, scribe, alias=alias, longest=policy.max_model_len)
        if isinstance(one, Demonstration)
        else stored_example(one, scribe, alias=alias, policy=policy, train_when=train_when)
        for one in dialogues
    ]
    return material(examples, settings.held_out, seed=seed)
