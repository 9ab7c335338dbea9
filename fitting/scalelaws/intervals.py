"""Where the spread of a fit comes from: resampled runs, perturbed data, and a noise that is itself uncertain."""

from __future__ import annotations

import numpy as np

from scalelaws.observations import FloatArray


def resample_weights(runs: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Bootstrap weights (draws, runs): how often each run is drawn when `runs` are drawn with replacement."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=draws).astype(np.float64)


def pool_variance(prior_sd: float, prior_dof: float, squares: float, dof: float) -> tuple[float, float]:
    """Variance and degrees of freedom of a scaled inverse chi-squared posterior (Gelman et al. 2013, section 3.2)."""
    total = prior_dof + max(dof, 0.0)
    return (prior_dof * prior_sd**2 + squares) / total, total


def draw_variances(variance: float, dof: FloatArray | float, draws: int, rng: np.random.Generator) -> FloatArray:
    """Draws of a scaled inverse chi-squared variance; a normal with this variance is Student's t."""
    return np.asarray(variance * dof / rng.chisquare(dof, size=draws))
