"""BoTorch's searches over a pool of runs, as ADMIRE-BayesOpt uses them (2508.11551): peers of the mixture search.

Legend: m runs of the pool, d domains, s fidelity: parameters x tokens of a run over those of the target, which is 1
What is asked next maximises an acquisition over the runs that are left; what is recommended has the best posterior mean
at the target, over the pool's mixtures there. Minus ln loss is modelled, standardised, as BoTorch maximises.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from foretune.search.mixing.problem import Candidates, MixingProblem, Observed

SAMPLES = 10
"""Draws of the best value at the target (BoTorch's default; ADMIRE-BayesOpt takes 1)."""
FANTASIES = 4
"""Of the results of runs of the same batch that are still to come (BoTorch's default of 16 takes ten times as long as
all else)."""
DRAWS = 128
"""Of qLogExpectedImprovement, with which the results of a batch are integrated over."""


def is_installed() -> bool:
    """Whether there is a BoTorch to compare with."""
    try:
        import botorch  # noqa: F401
    except ImportError:
        return False
    return True


def advise_by_entropy(
    problem: MixingProblem, seen: Observed, pool: Candidates, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """Recommended shares (d,) and the runs to do next: max-value entropy per cost, over fidelities.

    The process has BoTorch's linear truncated kernel, the cost is s without a floor.
    """
    import torch
    from botorch.acquisition.cost_aware import InverseCostWeightedUtility
    from botorch.acquisition.max_value_entropy_search import qMultiFidelityMaxValueEntropy
    from botorch.acquisition.utils import project_to_target_fidelity
    from botorch.models import SingleTaskMultiFidelityGP
    from botorch.models.cost import AffineFidelityCostModel

    torch.manual_seed(int(rng.integers(2**31)))
    d = len(problem.domains)
    inputs = _list_inputs(problem, pool.shares, pool.level)
    y = _list_outcomes(seen)
    model = _fit(SingleTaskMultiFidelityGP(_list_inputs(problem, seen.shares, seen.level), y, data_fidelities=[d]))
    at_target = torch.tensor(pool.level == problem.target)
    cost = InverseCostWeightedUtility(AffineFidelityCostModel({d: 1.0}, fixed_cost=0.0))
    entropy = qMultiFidelityMaxValueEntropy(
        model, inputs[at_target], num_mv_samples=SAMPLES, num_fantasies=FANTASIES, cost_aware_utility=cost,
        project=lambda x: project_to_target_fidelity(x, {d: 1.0}, d=d + 1),
    )  # fmt: skip
    return _recommend(model, inputs[at_target])[:d], _choose(entropy, inputs, pool, seen, count)


def advise_by_improvement(
    problem: MixingProblem, seen: Observed, pool: Candidates, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """The same at the target alone: expected improvement over the best run."""
    import torch
    from botorch.acquisition.logei import qLogExpectedImprovement
    from botorch.models import SingleTaskGP
    from botorch.sampling import SobolQMCNormalSampler

    torch.manual_seed(int(rng.integers(2**31)))
    inputs, y = torch.tensor(pool.shares), _list_outcomes(seen)
    model = _fit(SingleTaskGP(torch.tensor(seen.shares), y))
    sampler = SobolQMCNormalSampler(torch.Size([DRAWS]), seed=int(rng.integers(2**31)))
    improvement = qLogExpectedImprovement(model, best_f=y.max(), sampler=sampler)
    return _recommend(model, inputs), _choose(improvement, inputs, pool, seen, count)


def _list_inputs(problem: MixingProblem, shares: np.ndarray, level: np.ndarray) -> Any:
    """Shares and s (m, d + 1)."""
    import torch

    sizes = np.array([item.cost for item in problem.fidelities]) / problem.fidelities[-1].cost
    return torch.tensor(np.column_stack([shares, sizes[level]]))


def _list_outcomes(seen: Observed) -> Any:
    """(n, 1)."""
    import torch

    return torch.tensor(-np.log(seen.loss))[:, None]


def _fit(model: Any) -> Any:
    """The model with hyperparameters of the largest marginal likelihood under BoTorch's priors."""
    from botorch.fit import fit_gpytorch_mll
    from gpytorch.mlls import ExactMarginalLogLikelihood

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that ends early is used as it is
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def _recommend(model: Any, at_target: Any) -> np.ndarray:
    """The inputs of the best posterior mean."""
    import torch

    with torch.no_grad():
        mean = model.posterior(at_target).mean[:, 0]
    row: np.ndarray = at_target[int(mean.argmax())].numpy()
    return row


def _choose(acquisition: Any, inputs: Any, pool: Candidates, seen: Observed, count: int) -> list[int]:
    """Rows of the pool that were not run, one after the other with those before them pending."""
    from botorch.optim import optimize_acqf_discrete

    ran = (np.abs(pool.shares[:, None] - seen.shares).max(axis=2) < 1e-12) & (pool.level[:, None] == seen.level)
    free = np.flatnonzero(~ran.any(axis=1))
    if not len(free):
        return []
    count = min(count, len(free))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = optimize_acqf_discrete(acquisition, count, inputs[free], max_batch_size=256, unique=True)
    gaps = np.abs(inputs[free].numpy()[None] - found.detach().numpy()[:, None]).max(axis=2)
    return [int(free[row]) for row in gaps.argmin(axis=1)]
