"""A law of mixtures as the mean of a process: linear in its parameters, around their most probable values.

Legend: n runs, m mixtures, d domains, L fidelities, P parameters of the law
    t  parameters in fitting coordinates (ln of what is positive);  S (n, P) slopes of ln loss per prior deviation
A straight line through a law holds near the point where it was drawn. A law fitted by itself lies elsewhere than the
parameters that the whole process believes in, by several prior deviations where runs are few: along the line from there
a term that bends, as the diminishing returns of the first tokens of a domain do, turns into its opposite in a corner
without runs. `settle_law` therefore goes to the most probable parameters under the process (Laplace's approximation;
Rasmussen and Williams 2006, section 3.4) before the line that the posterior uses is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foretune.search.mixing.covariances import solve_lower
from foretune.search.mixing.problem import IntArray
from foretune.search.mixing.simplex import FloatArray
from scalelaws.engines.nonlinear import Noise, Task, find_best, to_coordinates, to_values
from scalelaws.laws.mixture import DiminishingMixture
from scalelaws.observations import MIXTURE_PREFIX

LAW_NOISE = 0.01
"""Scatter around the law in ln loss with which its fit begins."""
STEPS = 20
"""Steps of Gauss and Newton after which the parameters are taken as they are."""
HALVINGS = 8
"""Shorter steps that are tried beside the full one."""
LONGEST_STEP = 3.0
"""No parameter moves farther at once, in prior deviations: ln loss stays finite."""
SETTLED = 0.01
"""A gain in log probability below this ends the steps: it moves no parameter by .15 of its deviation."""


@dataclass(frozen=True, eq=False)
class LinearLaw:
    """A law of mixtures, linear in its parameters around some values of them."""

    law: DiminishingMixture
    """Bound to the domains, by their numbers."""
    values: FloatArray
    """(P,) around which it is linear."""
    gap: FloatArray
    """(P,) centre of the prior less these values, in standard deviations of the prior."""
    sd: FloatArray
    """(P,) change of each parameter per standard deviation of its prior."""

    def evaluate(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """ln loss (m,) at the values, and its slopes (m, P) per standard deviation of the prior."""
        ln_loss, slopes = self.law.evaluate(self.values[None], _name_columns(shares))
        return np.asarray(ln_loss[0]), np.asarray(slopes[0] * self.sd)

    def expect(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Prior mean (m,) of ln loss, and the slopes (m, P)."""
        ln_loss, slopes = self.evaluate(shares)
        return ln_loss + slopes @ self.gap, slopes

    def move(self, step: FloatArray) -> LinearLaw:
        """The law linear around values a step (P,) away, in standard deviations of the prior."""
        scale = np.array([item.sd for item in self.law.parameters])
        return linearise(self.law, to_coordinates(self.values[None], self.law.parameters)[0] + scale * step)


def linearise(law: DiminishingMixture, t: FloatArray) -> LinearLaw:
    """The law around coordinates (P,)."""
    values = to_values(t[None], law.parameters)[0]
    scale = np.array([item.sd for item in law.parameters])
    centre = to_coordinates(np.array([[item.centre for item in law.parameters]]), law.parameters)[0]
    positive = np.array([item.kind == "positive" for item in law.parameters])
    return LinearLaw(law, values, (centre - t) / scale, scale * np.where(positive, values, 1.0))


def fit_law(shares: FloatArray, level: IntArray, y: FloatArray, levels: int) -> LinearLaw:
    """A law of ln loss y (n,) by itself, fitted to the fidelity of most runs: the process learns from the others."""
    main = level == int(np.argmax(np.bincount(level, minlength=levels)))
    columns, loss = _name_columns(shares[main]), np.exp(y[main])
    law = DiminishingMixture().bind({name.removeprefix(MIXTURE_PREFIX): 0 for name in columns}, loss)
    task = Task(law, columns, y[main], np.ones(len(loss)), Noise(LAW_NOISE))
    values = find_best(task, law.starts(columns, loss))
    return linearise(law, to_coordinates(values[None], law.parameters)[0])


def settle_law(law: LinearLaw, shares: FloatArray, y: FloatArray, factor: FloatArray, linear: float) -> LinearLaw:
    """The law around its most probable parameters, given runs y (n,) in ln loss less the level of their fidelity.

    `factor` is the Cholesky factor (n, n) of the covariance of all that is not the law, with the noise; `linear` the
    factor on the variances of the prior. The parameters are the target's.
    """
    cost = _measure_misfit(law, shares, y, factor, linear)
    for _ in range(STEPS):
        step = _find_step(law, shares, y, factor, linear)
        tried = [law.move(step * 0.5**k) for k in range(HALVINGS)]
        costs = [_measure_misfit(item, shares, y, factor, linear) for item in tried]
        best = int(np.argmin(costs))
        if costs[best] > cost - SETTLED:
            break
        law, cost = tried[best], costs[best]
    return law


def _measure_misfit(law: LinearLaw, shares: FloatArray, y: FloatArray, factor: FloatArray, linear: float) -> float:
    """Minus the log probability of the parameters, but for a constant."""
    white = solve_lower(factor, y - law.evaluate(shares)[0])
    return float(0.5 * white @ white + 0.5 * law.gap @ law.gap / linear)


def _find_step(law: LinearLaw, shares: FloatArray, y: FloatArray, factor: FloatArray, linear: float) -> FloatArray:
    """To the most probable parameters (P,) of the linear law, in standard deviations of the prior."""
    ln_loss, slopes = law.evaluate(shares)
    half = solve_lower(factor, slopes)
    gradient = half.T @ solve_lower(factor, y - ln_loss) + law.gap / linear
    step = np.linalg.solve(half.T @ half + np.eye(len(gradient)) / linear, gradient)
    return np.asarray(step * min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-300)))


def measure_offsets(law: LinearLaw, shares: FloatArray, level: IntArray, y: FloatArray, levels: int) -> FloatArray:
    """Mean (levels,) of ln loss less the law at each fidelity; the mean over all runs where it has none."""
    gaps = y - law.evaluate(shares)[0]
    means = [gaps[level == item].mean() if (level == item).any() else gaps.mean() for item in range(levels)]
    return np.array(means)


def _name_columns(shares: FloatArray) -> dict[str, FloatArray]:
    return {f"{MIXTURE_PREFIX}{j:04d}": shares[:, j] for j in range(shares.shape[1])}
