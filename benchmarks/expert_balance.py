"""A mixture of experts balanced over the whole batch of a step, over each micro-batch, or not at all.

Every micro-batch is one sequence, the strictest case of the second (Qiu et al. 2025, arXiv 2501.11873). Real trainings
that differ in nothing else: the same initial weights and the same text for each seed.
    held-out      loss in nats per token, mean over the domains
    against       its difference from `global` with the same seed, and the standard error of their mean
    violation     load of the busiest expert over an even one, less 1: mean over blocks and the last quarter
    distance      half the summed difference of two domains' loads (total variation), mean over pairs and blocks; above
                  0 experts tell domains apart
"""

from __future__ import annotations

import itertools
import os
import statistics
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.devices import choose_device, describe_device
from foretune.corpora import prepare_corpus
from foretune.proxies.experts import Experts
from foretune.proxies.feed import Feed, order_batch
from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.study import read_study
from foretune.training.schedules import schedule_lr

BALANCES = ("global", "micro", "none")
SEEDS = (0, 1, 2)
WEIGHTS = (0.01, 0.1)
"""Weights of the balance loss: that of Fedus et al. 2021, and one that binds."""
SEQUENCES, SEQ_LEN, STEPS = 4, 128, 300


@dataclass(frozen=True)
class Measured:
    """What one balance did, a figure for each seed."""

    losses: list[float]
    """Held-out loss, mean over the domains, nats per token."""
    violations: list[float]
    """Load of the busiest expert over an even one, less 1."""
    distances: list[float]
    """Total variation between the loads of two domains, 0 to 1."""


def main() -> None:
    """A line for each weight and balance."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    tokens = STEPS * SEQUENCES * SEQ_LEN
    print(f"{describe_device('float32')}; {len(SEEDS)} seeds, {tokens} tokens each, {SEQUENCES} micro-batches a step")
    print(f"{'weight':>6} {'balance':>8} {'held-out':>9} {'against global':>17} {'violation':>10} {'distance':>9}")
    for weight in WEIGHTS:
        results = {balance: train(balance, weight) for balance in BALANCES if balance != "none" or weight == WEIGHTS[0]}
        for balance, measured in results.items():
            report(weight, balance, measured, results["global"])


def report(weight: float, balance: str, measured: Measured, reference: Measured) -> None:
    """Print one balance."""
    differences = [mine - other for mine, other in zip(measured.losses, reference.losses, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(
        f"{weight if balance != 'none' else '-':>6} {balance:>8} {statistics.mean(measured.losses):>9.4f} "
        f"{statistics.mean(differences):>+8.4f} +-{error:.4f} {statistics.mean(measured.violations):>10.2f} "
        f"{statistics.mean(measured.distances):>9.3f}",
        flush=True,
    )


def train(balance: str, weight: float) -> Measured:
    """All seeds side by side."""
    specs, device = resolve_runs(balance, weight), choose_device()
    corpus = prepare_corpus(specs[0].data.section)
    stepper, feed = Stepper(specs, corpus, device, compiled=False), Feed(corpus, specs, device)
    violations = []
    for step in range(STEPS):
        tokens = feed.take([order_batch(spec, step) for spec in specs])
        stepper.step(tokens, [schedule_lr(spec.training, step) for spec in specs])
        violations.append(torch.stack([experts.violation() for experts in list_experts(stepper.model)]).mean(dim=0))
    feed.close()
    held_out = stepper.evaluate(range(len(specs)))
    return Measured(
        losses=[statistics.mean(member.values()) for member in held_out],
        violations=torch.stack(violations[-STEPS // 4 :]).mean(dim=0).tolist(),
        distances=measure_distances(stepper),
    )


def resolve_runs(balance: str, weight: float) -> list[RunSpec]:
    """A run for each seed."""
    experts = {"count": 8, "active": 2, "shared": 1, "balance": balance, "balance_weight": weight}
    study = read_study(
        {
            "study": {"name": "expert-balance"},
            "proxy": {"base_width": 32, "head_size": 8, "depth": 2, "experts": experts},
            "scales": [{"name": "w32", "width": 32, "tokens": STEPS * SEQUENCES * SEQ_LEN}],
            "data": {"seq_len": SEQ_LEN, "validation_sequences": 64},
            "training": {
                "peak_lr": 2**-5,
                "batch_tokens": SEQUENCES * SEQ_LEN,
                "accumulation_steps": SEQUENCES,
            },
            "search": {"space": {"seed": list(SEEDS)}},
        }
    )
    return list(ask_search(study, resolve_corpus(study)).specs)


def measure_distances(stepper: Stepper) -> list[float]:
    """How differently each member routes the held-out text of the domains."""
    loads = []
    for sequences in stepper.held_out.values():
        stepper.model.begin_step()
        stepper.model(sequences[:, :-1].expand(len(stepper.specs), -1, -1))
        loads.append(torch.stack([experts.load() for experts in list_experts(stepper.model)]))  # blocks K E
    pairs = itertools.combinations(loads, 2)
    apart = torch.stack([(one - other).abs().sum(dim=-1) / 2 for one, other in pairs])  # pairs blocks K
    return apart.mean(dim=(0, 1)).tolist()


def list_experts(model: nn.Module) -> list[Experts]:
    """The mixture of every block."""
    return [module for module in model.modules() if isinstance(module, Experts)]


if __name__ == "__main__":
    main()
