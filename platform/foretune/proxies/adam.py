"""AdamW of stacked members, and two ways to give it Nesterov momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from foretune.parametrization import GroupRule
from foretune.proxies.elementwise import ElementwiseOptimizer, Rates, join_slots, spread_multipliers
from foretune.proxies.state import Slot, StackedState
from foretune.records import TrainingSpec

NADAM_BASE = 0.96
"""Base of the momentum's schedule in NAdam (Dozat 2016, section 2; torch.optim.NAdam)."""
NADAM_MOMENTUM_DECAY = 0.004
"""psi, the speed of that schedule: Dozat 2016 and torch.optim.NAdam."""


class _Multipliers(NamedTuple):
    """What a group makes of the settings of a run."""

    lr: float
    weight_decay: float
    eps: float


class Adam(ElementwiseOptimizer):
    """What AdamW and NAdamW share: both moments, and the root below the step."""

    buffer_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    setting_names: ClassVar[tuple[str, ...]] = ("beta1", "beta2", "eps")

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """See ElementwiseOptimizer."""
        super().__init__(state, rules, training)
        self.eps_multipliers = spread_multipliers(state, rules, lambda rule: rule.eps_multiplier)

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """Both moments' rates, and eps: the second bias correction is drawn out of m / (sqrt(v / c) + eps)."""
        return {
            "first": applied * (1 - self.settings["beta1"]),
            "second": applied * (1 - self.settings["beta2"]),
            "eps": self.settings["eps"] * self.second_correction(),
        }

    def steps_begun(self) -> Tensor:
        """[K, 1]: a member that has not begun moves at rate 0, which 0 / 0 is not."""
        return self.steps[:, None].clamp(min=1)

    def second_correction(self) -> Tensor:
        """sqrt(1 - beta2^t), [K, 1]."""
        return torch.sqrt(1 - self.settings["beta2"] ** self.steps_begun())

    def update_moments(self, part: slice, gradients: Tensor, rates: Rates) -> tuple[Tensor, Tensor]:
        """The first moment, and the root of the second plus eps."""
        first, second = self.buffers["first_moment"][:, part], self.buffers["second_moment"][:, part]
        first.lerp_(gradients, rates["first"])
        second.lerp_(gradients * gradients, rates["second"])
        return first, torch.addcmul(second.sqrt(), self.eps_multipliers[part], rates["eps"])


class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW.

    On a CPU each member is updated by PyTorch's fused kernel: it reads and writes every number once, where the update
    of all members at once passes over them ten times. Measured at 3 M parameters on one core (process time, chunks of
    the best size): 2.0 ms a step, against 8.0 ms.
    """

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """See ElementwiseOptimizer."""
        super().__init__(state, rules, training)
        self._columns = _group_columns(self.slots(), rules)
        self._views: list[dict[_Multipliers, list[list[Tensor]]]] = []
        self._viewed: tuple[Tensor, ...] = ()

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The rate of m / (sqrt(v) + eps): both bias corrections are in it."""
        rate = lr * self.second_correction() / (1 - self.settings["beta1"] ** self.steps_begun())
        return {**super().choose_rates(lr, applied), "lr": rate}

    def update(self, part: slice, gradients: Tensor, rates: Rates) -> None:
        """w <- (1 - lr weight_decay) w - lr m / (sqrt(v) + eps)."""
        first, root = self.update_moments(part, gradients, rates)
        self.descend(part, first / root, rates)

    @torch.no_grad()
    def step(self, lr: Tensor, apply: Tensor | None = None) -> None:
        """See StackedOptimizer."""
        if self.state.weights.device.type != "cpu":
            super().step(lr, apply)
        else:
            self._step_members(lr, apply)

    def take(self, rows: Tensor) -> None:
        """See StackedOptimizer."""
        super().take(rows)
        self._views, self._viewed = [], ()  # they would keep the old rows in memory over the next forward pass

    def _step_members(self, lr: Tensor, apply: Tensor | None) -> None:
        applied = [True] * len(self.steps) if apply is None else apply.tolist()
        for member, rate in enumerate(lr.tolist()):
            if applied[member]:
                self._step_fused(member, rate)
        self.steps += 1 if apply is None else apply

    def _step_fused(self, member: int, lr: float) -> None:
        setting = {name: float(column[member]) for name, column in self.settings.items()}
        steps = self.steps[member].float() + 1  # the kernel is told, and does not count on
        for group, (weights, gradients, first, second) in self._views_of(member).items():
            torch._fused_adamw_(  # by itself: torch.optim takes as long to sort a small model's tensors as this to run
                weights,
                gradients,
                first,
                second,
                [],
                [steps] * len(weights),
                amsgrad=False,
                beta1=setting["beta1"],
                beta2=setting["beta2"],
                lr=lr * group.lr,
                weight_decay=setting["weight_decay"] * group.weight_decay,
                eps=setting["eps"] * group.eps,
                maximize=False,
            )

    def _views_of(self, member: int) -> dict[_Multipliers, list[list[Tensor]]]:
        """Weights, gradients and moments of a member, by multipliers; cut anew where the rows were."""
        rows = self.state.weights, self.state.gradients, *(self.buffers[name] for name in self.buffer_names)
        if [id(tensor) for tensor in rows] != [id(tensor) for tensor in self._viewed]:
            self._views = [
                {
                    key: [[tensor[row, part] for part in parts] for tensor in rows]
                    for key, parts in self._columns.items()
                }
                for row in range(len(self.steps))
            ]
            self._viewed = rows
        return self._views[member]


class Nesterov(Adam):
    """AdamW whose step looks ahead: it mixes the first moment with the gradient itself."""

    def update(self, part: slice, gradients: Tensor, rates: Rates) -> None:
        """w <- (1 - lr weight_decay) w - lr (a m + b g) / (sqrt(v) + eps)."""
        first, root = self.update_moments(part, gradients, rates)
        direction = torch.addcmul(first * rates["moment"], gradients, rates["gradient"])
        self.descend(part, direction.div_(root), rates)


class NAdamW(Nesterov):
    """AdamW with Nesterov momentum (Dozat 2016), as torch.optim.NAdam with decoupled weight decay.

    The momentum rises to beta1 as mu_t = beta1 (1 - 0.96^(0.004 t) / 2).
    """

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """See ElementwiseOptimizer."""
        super().__init__(state, rules, training)
        self.member_buffers["momentum_product"] = torch.ones_like(self.settings["beta1"])

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The rates of the first moment and of the gradient itself over the same root."""
        product = self.member_buffers["momentum_product"]
        now, following = self._momentum(0), self._momentum(1)
        product.mul_(torch.where(applied > 0, now, 1.0))
        root = self.second_correction()
        unfinished = torch.where(applied > 0, 1 - product, 1.0)
        return {
            **super().choose_rates(lr, applied),
            "lr": lr * root,
            "moment": following / (1 - product * following),
            "gradient": (1 - now) / unfinished,
        }

    def _momentum(self, ahead: int) -> Tensor:
        """mu of this step or of one ahead, [K, 1] float64."""
        steps = self.steps_begun() + ahead
        return self.settings["beta1"] * (1 - NADAM_BASE ** (NADAM_MOMENTUM_DECAY * steps) / 2)


class ConstantNAdamW(Nesterov):
    """NAdamW with the momentum held at beta1 (Choi et al. 2019, arXiv 1910.05446, table 1), as the AlgoPerf baselines.

    The direction is (beta1 m + (1 - beta1) g) / (1 - beta1^t): settings of AlgoPerf's NadamW are for this one.
    """

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The rates of the first moment and of the gradient itself over the same root."""
        beta1 = self.settings["beta1"]
        return {
            **super().choose_rates(lr, applied),
            "lr": lr * self.second_correction() / (1 - beta1 ** self.steps_begun()),
            "moment": beta1,
            "gradient": 1 - beta1,
        }


def _group_columns(slots: Sequence[Slot], rules: Mapping[str, GroupRule]) -> dict[_Multipliers, list[slice]]:
    """The columns of slots by the multipliers of their group, neighbours joined."""

    def read(slot: Slot) -> _Multipliers:
        rule = rules[slot.group]
        return _Multipliers(rule.lr_multiplier, rule.weight_decay_multiplier, rule.eps_multiplier)

    columns: dict[_Multipliers, list[slice]] = {}
    for key, neighbours in groupby(slots, key=read):
        columns.setdefault(key, []).extend(join_slots(list(neighbours)))
    return columns
