"""How initial weights, learning rates and multipliers follow width and depth: one table, in `rules`.

`choose_rules` gives the rule of every group of a model's parameters, `choose_multipliers` the constants of its forward
pass; the trainer applies them and `check` prints them.
"""

from foretune.parametrization.choosing import choose_multipliers, choose_rules, describe_groups
from foretune.parametrization.rules import (
    EMBEDDING_STD,
    ForwardMultipliers,
    GroupRule,
    Growth,
    Kind,
    Place,
    derive_rule,
)

__all__ = [
    "EMBEDDING_STD",
    "ForwardMultipliers",
    "GroupRule",
    "Growth",
    "Kind",
    "Place",
    "choose_multipliers",
    "choose_rules",
    "derive_rule",
    "describe_groups",
]
