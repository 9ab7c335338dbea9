"""The optimizer of a training specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from foretune.parametrization import GroupRule
from foretune.proxies.adam import AdamW, ConstantNAdamW, NAdamW
from foretune.proxies.elementwise import SGD, Lion, StackedOptimizer
from foretune.proxies.lr_free import Prodigy, ScheduleFree
from foretune.proxies.muon import Muon
from foretune.proxies.state import StackedState
from foretune.records import TrainingSpec

OPTIMIZERS: dict[str, Callable[[StackedState, Mapping[str, GroupRule], Sequence[TrainingSpec]], StackedOptimizer]] = {
    "adamw": AdamW,
    "nadamw": NAdamW,
    "nadamw_constant": ConstantNAdamW,
    "lion": Lion,
    "sgd": SGD,
    "muon": Muon,
    "schedulefree": ScheduleFree,
    "prodigy": Prodigy,
}
"""What `[training] optimizer` names."""


def build_optimizer(
    state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]
) -> StackedOptimizer:
    """The optimizer of these members, one TrainingSpec each; `rules` gives the rule of every group by name."""
    return OPTIMIZERS[training[0].optimizer](state, rules, training)


__all__ = ["OPTIMIZERS", "StackedOptimizer", "build_optimizer"]
