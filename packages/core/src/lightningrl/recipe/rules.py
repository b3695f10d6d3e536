"""What a recipe says of how a policy's requests are rewritten."""

from __future__ import annotations

from msgspec import structs

from lightningrl.recipe.whole import Recipe
from lightningrl.schema import RewriteRules


def rewrite_rules(
    recipe: Recipe, alias: str | None, template: RewriteRules | None = None
) -> RewriteRules:
    """The rules of a policy.

    Args:
        recipe: the run's.
        alias: of the policy. `None`: the recipe has none, and one answers for all.
        template: what its chat template needs. `None`: nobody has seen it; then no reasoning is put back.
    """
    rules = structs.replace(
        template or RewriteRules(),
        pin=recipe.gateway.pin,
        drop_hosted=recipe.gateway.hosted_tools == "drop",
    )
    if alias is None:
        return rules
    settings = recipe.policies[alias]
    return structs.replace(
        rules,
        free=settings.constrained == "free",
        variables=settings.chat_template_kwargs,
        put_back=rules.put_back and recipe.gateway.reasoning == "restore",
        lost=() if settings.accepts_unread else rules.lost,
    )
