"""Recipes: the YAML file that describes one training run, checked before anything starts.

Invariant: every key of a recipe is known and of the right type, or loading raises a `ConfigError`
that names the key and the nearest valid one. The key `verl:` is the one exception: it is checked by
the trainer against verl's own schema.
"""

from lightningrl.recipe.algorithm import (
    FORK_RULES,
    Algorithm,
    Critic,
    Forks,
    Guards,
    Optimiser,
    StepReward,
)
from lightningrl.recipe.data import (
    Data,
    DataSource,
    Live,
)
from lightningrl.recipe.loading import (
    LoadedRecipe,
    changed_keys,
    dump_recipe,
    load_recipe,
    parse_recipe,
)
from lightningrl.recipe.policy import (
    PolicyRecipe,
    SamplingRecipe,
    SideCall,
    Validation,
    VllmServers,
)
from lightningrl.recipe.processes import (
    Engine,
    GatewayRecipe,
    Retry,
    Runner,
    Trainer,
)
from lightningrl.recipe.rules import (
    rewrite_rules,
)
from lightningrl.recipe.warm_start import (
    WarmStart,
)
from lightningrl.recipe.whole import (
    Recipe,
)

__all__ = [
    "FORK_RULES",
    "Algorithm",
    "Critic",
    "Data",
    "DataSource",
    "Engine",
    "Forks",
    "GatewayRecipe",
    "Guards",
    "Live",
    "LoadedRecipe",
    "Optimiser",
    "PolicyRecipe",
    "Recipe",
    "Retry",
    "Runner",
    "SamplingRecipe",
    "SideCall",
    "StepReward",
    "Trainer",
    "Validation",
    "VllmServers",
    "WarmStart",
    "changed_keys",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "rewrite_rules",
]
