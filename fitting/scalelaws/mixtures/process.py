"""A Gaussian process over mixtures: nothing but that like mixtures give like losses, around a log-linear mean.

Legend: n runs, m mixtures asked for, d domains, F features, S draws
    r (., d) shares     z = sqrt(r + 1e-4): the distance of two mixtures in z is Hellinger's
    y (n,) ln loss = mean + tau g . t + f(z) + noise;  g = (1, r - mean r), t standard normal
    f a process with Matern-5/2 covariance s^2 (1 + a + a^2/3) exp(-a), a^2 = 5 sum_j (z_j - z'_j)^2 / l_j^2
Hyperparameters l, s, tau and the noise maximise the marginal likelihood under weak priors (Rasmussen and Williams 2006,
section 5.4.1). Draws are whole functions: random features of the prior, corrected at the runs (Wilson et al. 2020,
2002.09309, equation 13), so that two mixtures are compared under the same draw, and slopes are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.observations import FloatArray, ObservationError

ABSENT_SHARE = 1e-4
"""Shares well below this count as absent. RegMix rounds shares to 2e-4; values from 1e-5 to 1e-3 change the rank
correlation by .0003 from 410 mixtures and by .005 from 64 (cross-validated on its 1M proxies)."""
LENGTH, LENGTH_SD = 2.0, 1.0
"""Prior of each length in z (z goes from 0 to 1): smooth unless the runs say otherwise (an assumption, cross-validated
on RegMix's 1M proxies: lengths of .7, 1 and 2 rank within .002 from 410 mixtures, within .005 from 64)."""
NOISE_SHARE = 0.02
"""Expected share of the noise in the variance of ln loss; like the other scales within a factor of 50 or so."""
SCALE_SD = (2.0, 3.0, 2.0)
"""Prior of ln s^2, ln noise^2, ln tau^2 around the variance of ln loss (an assumption)."""
FEATURES = 512
"""Random features of a prior draw: their error is 1 / sqrt(512) of the prior's spread, and vanishes at the runs."""
FEWEST_MIXTURES = 8
"""Assumption: below this the priors say it all."""


@dataclass(frozen=True, eq=False)
class MixtureProcess:
    """A process fitted to the runs of one loss."""

    shares: FloatArray
    """(n, d) mixtures of the runs."""
    level: float
    """Mean of ln loss."""
    inverse_lengths: FloatArray
    """(d,) 1 / l."""
    signal: float
    """s."""
    scatter_log: float
    """Standard deviation of a run around the process, in ln loss."""
    slope: float
    """tau."""
    weights: FloatArray
    """(n,) of the mean: mean ln loss = level + covariance with the runs times these."""
    corrections: FloatArray
    """(S, n) likewise for the draws."""
    frequencies: FloatArray
    """(F, d) of the random features, and their phases (F,), and coefficients (S, F) and t (S, d + 1)."""
    phases: FloatArray
    coefficients: FloatArray
    linear: FloatArray

    @property
    def drift_log(self) -> float:
        """None: a process holds at the size and horizon of its runs."""
        return 0.0

    def draw(self, shares: FloatArray, rows: slice = slice(None)) -> tuple[FloatArray, FloatArray]:
        """ln loss (S, m) of mixtures (m, d) under the draws `rows`, and its derivatives by the shares (S, m, d)."""
        z = _warp(shares)
        scale = self.signal * np.sqrt(2 / len(self.phases))
        angles = z @ self.frequencies.T + self.phases
        coefficients, linear = self.coefficients[rows], self.slope * self.linear[rows]
        covariance, by_z, by_share = self._covary(shares)
        corrections = self.corrections[rows]
        ln_loss = self.level + scale * coefficients @ np.cos(angles).T + linear @ self._list_linear(shares).T
        ln_loss = ln_loss + corrections @ covariance.T
        slopes = (-scale * coefficients[:, None, :] * np.sin(angles)) @ self.frequencies
        slopes = slopes + np.tensordot(corrections, by_z, axes=(1, 1))
        return ln_loss, slopes / (2 * z) + linear[:, None, 1:] + np.einsum("sn,nd->sd", corrections, by_share)[:, None]

    def predict(self, shares: FloatArray) -> FloatArray:
        """Mean ln loss (m,) of mixtures (m, d)."""
        return np.asarray(self.level + self._covary(shares)[0] @ self.weights)

    def _list_linear(self, shares: FloatArray) -> FloatArray:
        return _list_linear(shares, self.shares.mean(axis=0))

    def _covary(self, shares: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Covariance with the runs (m, n), its derivatives by z (m, n, d), and of its linear part by shares (n, d)."""
        gaps = (_warp(shares)[:, None] - _warp(self.shares)) * self.inverse_lengths
        distance = np.sqrt(5 * (gaps**2).sum(axis=2))
        linear = self._list_linear(self.shares) * self.slope**2
        covariance = self.signal**2 * _matern(distance) + self._list_linear(shares) @ linear.T
        steep = -(self.signal**2) * (5 / 3) * (1 + distance) * np.exp(-distance)
        return covariance, steep[..., None] * gaps * self.inverse_lengths, linear[:, 1:]


def fit_process(shares: FloatArray, loss: FloatArray, *, draws: int = 400, seed: int = 0) -> MixtureProcess:
    """Fits a process to losses (n,) of mixtures (n, d), positive and finite; else, or for fewer than 8 distinct
    mixtures, raises ObservationError."""
    if not (np.isfinite(loss) & (np.asarray(loss) > 0)).all() or not np.isfinite(shares).all():
        raise ObservationError("a process over mixtures needs positive, finite losses and finite shares")
    distinct = len(np.unique(np.round(shares, 9), axis=0))
    if distinct < FEWEST_MIXTURES:
        raise ObservationError(f"a process over mixtures needs >= {FEWEST_MIXTURES} distinct mixtures; got {distinct}")
    task = _Evidence(shares, np.log(loss))
    logs = task.maximise()
    d = shares.shape[1]
    logs[d:] += np.log(task.measure_surprise(logs))
    signal, noise, slope = np.exp(logs[d:] / 2)
    covariance = task.build(logs)[0] + noise**2 * np.eye(len(loss))
    rng = np.random.default_rng(seed)
    # a Matern-5/2 process is a mixture of Gaussian ones: frequencies follow Student's t with five degrees of freedom
    tails = np.sqrt(5 / rng.chisquare(5, size=(FEATURES, 1)))
    frequencies = rng.standard_normal((FEATURES, d)) * tails * np.exp(-logs[:d])
    phases, coefficients = rng.uniform(0, 2 * np.pi, FEATURES), rng.standard_normal((draws, FEATURES))
    linear = rng.standard_normal((draws, d + 1))
    waves = signal * np.sqrt(2 / FEATURES) * np.cos(task.z @ frequencies.T + phases)
    prior = coefficients @ waves.T + slope * linear @ task.linear.T
    errors = task.u - prior - noise * rng.standard_normal(prior.shape)
    solved = np.linalg.solve(covariance, np.column_stack([task.u, errors.T]))
    return MixtureProcess(
        shares, task.level, np.exp(-logs[:d]), float(signal), float(noise), float(slope), solved[:, 0], solved[:, 1:].T,
        frequencies, phases, coefficients, linear,
    )  # fmt: skip


class _Evidence:
    """Minus the log marginal likelihood with priors, and its gradient, in (ln l_j, ln s^2, ln noise^2, ln tau^2)."""

    def __init__(self, shares: FloatArray, y: FloatArray) -> None:
        self.z, self.level = _warp(shares), float(y.mean())
        self.u = y - self.level
        self.linear = _list_linear(shares, shares.mean(axis=0))
        self.gram = self.linear @ self.linear.T
        variance = max(float(self.u.var()), 1e-12)
        scales = np.log(variance * np.array([1.0, NOISE_SHARE, 1.0]))
        self.centre = np.concatenate([np.full(shares.shape[1], np.log(LENGTH)), scales])
        self.sd = np.concatenate([np.full(shares.shape[1], LENGTH_SD), SCALE_SD])

    def maximise(self) -> FloatArray:
        """The most probable hyperparameters."""
        from scipy.optimize import minimize

        found = minimize(self, self.centre, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        return np.asarray(found.x, dtype=np.float64)

    def build(self, logs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Covariance of the losses without noise, that of f alone, and the distances."""
        scaled = self.z * np.exp(-logs[: self.z.shape[1]])
        squares = (scaled**2).sum(axis=1)
        distance = np.sqrt(5 * np.maximum(squares[:, None] + squares - 2 * scaled @ scaled.T, 0))
        bent = np.exp(logs[-3]) * _matern(distance)
        return bent + np.exp(logs[-1]) * self.gram, bent, distance

    def measure_surprise(self, logs: FloatArray) -> float:
        """Mean square of the leave-one-out errors over their variances; at least 1 (section 5.4.2 of the book).

        Scaling all variances by it leaves the mean as it is and widens the draws, which know nothing of the error of
        the hyperparameters.
        """
        inverse = np.linalg.inv(self.build(logs)[0] + np.exp(logs[-2]) * np.eye(len(self.u)))
        return max(float(np.mean((inverse @ self.u) ** 2 / np.diag(inverse))), 1.0)

    def __call__(self, logs: FloatArray) -> tuple[float, FloatArray]:
        n, d = self.z.shape
        covariance, bent, distance = self.build(logs)
        noise = np.exp(logs[-2])
        noisy = covariance + (noise + 1e-9 * np.exp(self.centre[-3])) * np.eye(n)
        inverse = np.linalg.inv(noisy)
        solved = inverse @ self.u
        inner = inverse - np.outer(solved, solved)
        steep = inner * np.exp(logs[-3]) * (5 / 3) * (1 + distance) * np.exp(-distance)
        scaled = self.z * np.exp(-logs[:d])
        lengths = steep.sum(axis=1) @ scaled**2 - np.einsum("nd,nd->d", scaled, steep @ scaled)
        rest = [(inner * bent).sum(), noise * np.trace(inner), np.exp(logs[-1]) * (inner * self.gram).sum()]
        gap = (logs - self.centre) / self.sd
        value = 0.5 * self.u @ solved + 0.5 * np.linalg.slogdet(noisy)[1] + 0.5 * gap @ gap
        return float(value), np.concatenate([lengths, 0.5 * np.array(rest)]) + gap / self.sd


def _warp(shares: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.maximum(shares, 0) + ABSENT_SHARE))


def _list_linear(shares: FloatArray, centre: FloatArray) -> FloatArray:
    return np.column_stack([np.ones(len(shares)), shares - centre])


def _matern(distance: FloatArray) -> FloatArray:
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))
