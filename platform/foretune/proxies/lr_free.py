"""Optimizers without a learning-rate schedule, from their own packages; they train one member at a time."""

from __future__ import annotations

import contextlib
import importlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from foretune.errors import InputError
from foretune.parametrization import GroupRule
from foretune.proxies.elementwise import StackedOptimizer
from foretune.proxies.state import StackedState
from foretune.records import TrainingSpec


class LibraryOptimizer(StackedOptimizer):
    """A torch.optim.Optimizer over the views of the only row. It holds numbers in Python, so a step waits for a GPU."""

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """Raises InputError for several members, and where the package is missing."""
        name = training[0].optimizer
        if len(training) != 1:
            raise InputError(
                f"training.optimizer: {name!r} trains one run at a time, got {len(training)}; set pack = 1"
            )
        self.state, self.buffers = state, {}
        self.steps = torch.zeros(1, dtype=torch.int64, device=state.weights.device)
        self._parameters: dict[str, list[torch.nn.Parameter]] = {}
        for slot in state.slots:
            parameter = torch.nn.Parameter(state.view(state.weights, slot)[0])
            self._parameters.setdefault(slot.group, []).append(parameter)
        self._bind()
        self.rules = {group: rules[group] for group in self._parameters}
        self.optimizer = self.build(self.rules, training[0])

    @abstractmethod
    def build(self, rules: Mapping[str, GroupRule], training: TrainingSpec) -> torch.optim.Optimizer:
        """The optimizer of the package, with a parameter group per rule."""

    def step(self, lr: Tensor, apply: Tensor | None = None) -> None:
        """See StackedOptimizer."""
        if apply is not None and not bool(apply[0]):
            return
        for group in self.optimizer.param_groups:
            group["lr"] = float(lr[0]) * group["lr_multiplier"]
        self.optimizer.step()
        self.steps += 1

    def take(self, rows: Tensor) -> None:
        """See StackedOptimizer; the only member can be kept, and its weights may have moved."""
        if rows.tolist() != [0]:
            raise InputError(f"{type(self).__name__} trains one run; it cannot take members {rows.tolist()}")
        self._bind()

    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """See StackedOptimizer; the learning rate comes with each step."""
        for group, settings in zip(self.optimizer.param_groups, self.groups(self.rules, training[0]), strict=True):
            group.update({name: settings[name] for name in ("weight_decay", "eps", "betas")})

    def state_of(self, member: int) -> dict[str, Tensor]:
        """Numbers of the package as tensors, since a checkpoint holds nothing else."""
        saved = self.optimizer.state_dict()
        numbers = {
            f"group.{index}.{key}": torch.as_tensor(value, dtype=torch.float64)
            for index, group in enumerate(saved["param_groups"])
            for key, value in group.items()
            if isinstance(value, int | float)
        }
        states = {
            f"state.{index}.{key}": torch.as_tensor(value).clone()
            for index, entry in saved["state"].items()
            for key, value in entry.items()
        }
        return {"steps": self.steps[0].clone(), **numbers, **states}

    def load_state_of(self, member: int, state: Mapping[str, Tensor]) -> None:
        """See StackedOptimizer."""
        self.steps[0] = state["steps"]
        groups, entries = self.optimizer.state_dict()["param_groups"], dict[int, dict[str, Any]]()
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            index, _, key = rest.partition(".")
            if kind == "group":
                kind_of = type(groups[int(index)].get(key, 0.0))  # Prodigy adds numbers in its first step
                groups[int(index)][key] = kind_of(value.item())
            elif kind == "state":
                entries.setdefault(int(index), {})[key] = value.clone()
        self.optimizer.load_state_dict({"param_groups": groups, "state": entries})

    def groups(self, rules: Mapping[str, GroupRule], training: TrainingSpec) -> list[dict[str, Any]]:
        """The parameter groups with what the parametrization makes of the settings."""
        return [
            {
                "params": self._parameters[name],
                "lr_multiplier": rule.lr_multiplier,
                "lr": training.peak_lr * rule.lr_multiplier,
                "weight_decay": training.weight_decay * rule.weight_decay_multiplier,
                "eps": training.eps * rule.eps_multiplier,
                "betas": (training.beta1, training.beta2),
            }
            for name, rule in rules.items()
        ]

    def _bind(self) -> None:
        parameters = {name: iter(group) for name, group in self._parameters.items()}
        for slot in self.state.slots:
            parameter = next(parameters[slot.group])
            parameter.data = self.state.view(self.state.weights, slot)[0]
            parameter.grad = self.state.view(self.state.gradients, slot)[0]


class ScheduleFree(LibraryOptimizer):
    """AdamWScheduleFree of the package schedulefree (Defazio et al. 2024, arXiv 2405.15682).

    Gradients are taken at y, an interpolation of the iterate z and the average x; x is what is evaluated.
    """

    def build(self, rules: Mapping[str, GroupRule], training: TrainingSpec) -> torch.optim.Optimizer:
        """The trainer warms the rate up, which the package counts as its own warm-up would."""
        package = _import_package("schedulefree")
        optimizer: Any = package.AdamWScheduleFree(self.groups(rules, training), lr=training.peak_lr)
        optimizer.train()
        return optimizer  # type: ignore[no-any-return]

    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """See StackedOptimizer. Raises InputError for another beta1: y was interpolated with it."""
        (known,) = {group["betas"][0] for group in self.optimizer.param_groups}
        if training[0].beta1 != known:
            raise InputError(
                f"beta1: 'schedulefree' keeps it along a run, got {training[0].beta1:g} after {known:g}; change "
                "another setting, or take another optimizer"
            )
        super().retune(training)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """See StackedOptimizer: the average x is put in place of y, and y back afterwards to the last bit."""
        optimizer: Any = self.optimizer
        trained = self.state.weights.clone()
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()  # it computes y from x, which rounds
            self.state.weights.copy_(trained)


class Prodigy(LibraryOptimizer):
    """Prodigy of the package prodigyopt (Mishchenko and Defazio 2023, arXiv 2306.06101).

    It estimates the distance to the solution and multiplies the learning rate by it; `peak_lr` is then about 1.
    """

    def build(self, rules: Mapping[str, GroupRule], training: TrainingSpec) -> torch.optim.Optimizer:
        """Raises InputError where groups differ in their learning rate: the package has one for all."""
        unequal = sorted(name for name, rule in rules.items() if rule.lr_multiplier != 1)
        if unequal:
            raise InputError(
                f"training.optimizer: 'prodigy' has one learning rate for all groups, got multipliers other than 1 for "
                f'{", ".join(unequal)}; use parametrization = "standard"'
            )
        package = _import_package("prodigyopt")
        groups = self.groups(rules, training)
        with contextlib.redirect_stdout(None):  # it prints that the decay is decoupled
            optimizer: torch.optim.Optimizer = package.Prodigy(groups)
        return optimizer


def _import_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"training.optimizer: the package {name} is not installed ({error}); pip install 'foretune[lr_free]'"
        ) from None
