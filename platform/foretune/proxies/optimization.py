"""AdamW in the groups of the parametrization."""

from __future__ import annotations

import torch

from foretune.parametrization import choose_rules
from foretune.proxies.model import Proxy
from foretune.records import ModelSpec, TrainingSpec


def build_optimizer(model: Proxy, spec: ModelSpec, training: TrainingSpec) -> torch.optim.AdamW:
    """AdamW with a group per rule, each of which keeps its `lr_multiplier`."""
    parameters = model.parameters_by_group()
    groups = [
        {
            "params": parameters[rule.name],
            "lr_multiplier": rule.lr_multiplier,
            "lr": training.peak_lr * rule.lr_multiplier,
            "weight_decay": training.weight_decay * rule.weight_decay_multiplier,
        }
        for rule in choose_rules(spec)
    ]
    return torch.optim.AdamW(groups, betas=(training.beta1, training.beta2), eps=training.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the run's learning rate; every group takes its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
