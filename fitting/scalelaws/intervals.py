"""Where the spread of a fit comes from: resampled runs, perturbed data, and a noise that is itself uncertain.

Legend (shapes): n runs, s grid of noises, g grid of misfit scales.
    variance of ln loss of run i  =  noise^2 + known_i + scale^2 misfit_i
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

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


PRIOR_NOISE_LOG = 0.003
"""Expected misfit of ln loss around a law, runs' noise included (an assumption; reruns alone differ by .0005)."""
PRIOR_NOISE_SD = 1.0
"""Its standard deviation in ln: between .0006 and .016 with a probability of 90 % (an assumption)."""
NOISES = np.geomspace(1e-5, 0.1, 61)
SCALES = np.geomspace(0.01, 4.0, 21)
HUBER_SDS = 1.345
"""With priors on, the penalty turns linear at this many standard deviations: 95 % efficient for normal noise (Huber and
Ronchetti 2009, section 4.5)."""
WITHIN_HUBER = NormalDist().cdf(HUBER_SDS) - NormalDist().cdf(-HUBER_SDS)
"""Share of normal residuals within it, and mean of residual times slope of the penalty: with it the noise that Huber's
penalty leads to is that of normal residuals (Huber and Ronchetti 2009, proposal 2)."""


@dataclass(frozen=True, eq=False)
class NoisePosterior:
    """What residuals say about the noise and about the scale of the expected misfit."""

    log_density: FloatArray
    """(s, g), up to a constant, at NOISES and SCALES; per unit of ln noise and ln scale."""

    @property
    def spread(self) -> float:
        """Standard deviation of a run's ln loss: the root of the mean squared noise."""
        share = np.exp(self.log_density - self.log_density.max()).sum(axis=1)
        return float(np.sqrt((share * NOISES**2).sum() / share.sum()))

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Noises and scales, (draws,) each."""
        share = np.exp(self.log_density - self.log_density.max()).ravel()
        place = rng.choice(share.size, size=draws, p=share / share.sum())
        row, column = np.unravel_index(place, self.log_density.shape)
        return NOISES[row], SCALES[column]


def infer_noise(
    residuals: FloatArray, known: FloatArray, misfit: FloatArray, spare: float, scale_sd: float
) -> NoisePosterior:
    """The posterior on the grid, for residuals of ln loss (n,) with `spare` degrees of freedom left.

    `scale_sd` is the standard deviation, in ln, of what is known beforehand of the scale of the misfit, around 1.
    """
    variance = (NOISES**2)[:, None, None] + (known + SCALES[:, None] ** 2 * misfit)[None]
    size = np.abs(residuals) / np.sqrt(variance)
    bent = np.minimum(size, HUBER_SDS)
    share = max(spare, 0.0) / len(residuals)
    density = -(0.5 * WITHIN_HUBER * share * np.log(variance) + bent * (size - 0.5 * bent)).sum(axis=-1)
    density -= 0.5 * (np.log(NOISES[:, None] / PRIOR_NOISE_LOG) / PRIOR_NOISE_SD) ** 2
    return NoisePosterior(density - 0.5 * (np.log(SCALES) / scale_sd) ** 2)


SCORINGS = 50
"""Most steps in search of the most probable spreads; the usual need is below 15."""
SETTLED_SPREAD = 1e-4
"""A step of ln spread below this ends the search: a hundredth of a per cent of the spread."""


@dataclass(frozen=True, eq=False)
class _SpreadDensity:
    """Minus the log density of `infer_noise` for several misfits at once, by the ln of the spreads (k,)."""

    squares: FloatArray
    """Squared residuals (n,)."""
    known: FloatArray
    parts: FloatArray
    """What a spread of one adds to the variances (k, n): ones for the noise, then the misfits."""
    share: float
    """Degrees of freedom per run, as Huber's penalty counts them."""
    expected: FloatArray
    """(k,), in ln."""
    stiffness: FloatArray
    """Inverse variances of the priors (k,)."""

    def measure(self, ln_spreads: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """The value, its gradient and its expected Hessian."""
        of_variance = np.exp(2 * ln_spreads)[:, None] * self.parts
        variance = of_variance.sum(axis=0) + self.known
        of_variance /= variance
        size = np.sqrt(self.squares / variance)
        bent, away = np.minimum(size, HUBER_SDS), ln_spreads - self.expected
        value = (0.5 * self.share * np.log(variance) + bent * (size - 0.5 * bent)).sum()
        gradient = of_variance @ (self.share - bent * size) + self.stiffness * away
        hessian = 2 * self.share * of_variance @ of_variance.T + np.diag(self.stiffness)
        return float(value + 0.5 * self.stiffness @ away**2), gradient, hessian


def find_spreads(
    residuals: FloatArray, known: FloatArray, misfits: FloatArray, spare: float, scale_sd: float, start: FloatArray
) -> FloatArray:
    """The most probable noise and scales (1 + m,) of several expected misfits (m, n), searched from `start`.

    The density is that of `infer_noise`, in the ln of the spreads; steps are Fisher's scoring, halved until they help.
    """
    parts = np.concatenate([np.ones((1, len(residuals))), misfits])
    share = WITHIN_HUBER * max(spare, 0.0) / len(residuals)
    expected = np.log(np.array([PRIOR_NOISE_LOG, *np.ones(len(misfits))]))
    stiffness = np.array([PRIOR_NOISE_SD, *np.full(len(misfits), scale_sd)]) ** -2.0
    density = _SpreadDensity(residuals**2, known, parts, share, expected, stiffness)
    place = np.log(start)
    value, gradient, hessian = density.measure(place)
    for _ in range(SCORINGS):
        step = np.clip(np.linalg.solve(hessian, -gradient), -1.0, 1.0)
        while (there := density.measure(place + step))[0] > value and np.abs(step).max() >= SETTLED_SPREAD:
            step = 0.5 * step
        place, (value, gradient, hessian) = place + step, there
        if np.abs(step).max() < SETTLED_SPREAD:
            break
    return np.exp(place)
