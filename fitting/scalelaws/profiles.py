"""Profile likelihood and Laplace intervals of anything that a law implies: a parameter, a loss, an optimal size.

The tracing itself is in `likelihood`; here a law and its runs are posed as the engine sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scalelaws.engines.likelihood import Profile, Quantity, robust_scale, trace_profile
from scalelaws.engines.nonlinear import PRIOR_DOF, Columns, Noise, Parameter, Task, fit_noise, to_coordinates
from scalelaws.engines.powerfits import PLAIN, PRIOR_EXPONENT, PRIOR_EXPONENT_SD
from scalelaws.engines.repeats import average_repeats
from scalelaws.engines.weighting import trim
from scalelaws.laws import FitOptions, Law, MixtureLaw, SumOfPowers, get_law
from scalelaws.laws.base import LossLaw
from scalelaws.laws.loss import keep_tuned
from scalelaws.laws.smooth import Smooth
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Fit, FitError, Target

FLAT_PRIOR_SD = 1e6
"""Standard deviation of a prior that says nothing, in fitting coordinates."""


def profile(
    law: Fit | Law[Observations] | str,
    observations: Observations,
    quantity: str | Target | Quantity,
    *,
    level: float = 0.9,
    options: FitOptions | None = None,
) -> Profile:
    """The profile of a quantity under a law fitted to these runs, for sums of powers and smooth laws.

    A Fit stands for its law fitted to the same runs with the same `options`; a law or its name is fitted first.
    `quantity` is the name of a parameter, a Target (the loss it would have: the law's mean, not a new run), or a
    `Quantity` of your own, such as `optimal_size(1e24)`. Raises FitError where the law cannot be fitted, TypeError for
    a law of another kind.
    """
    family = get_law(law.law) if isinstance(law, Fit) else get_law(law) if isinstance(law, str) else law
    if isinstance(family, MixtureLaw):
        family = family.bind(observations.mixture, observations.loss)
    chosen = options or FitOptions()
    fitted = law if isinstance(law, Fit) else family.estimate(observations, replace(chosen, bootstrap=50))
    if not fitted.status.ok:
        raise FitError(fitted.status, f"profile of {fitted.law}: {fitted.message}", fitted)
    posed = _pose(family, observations, chosen, fitted.values)
    traced = posed.express(_read_quantity(family, quantity))
    return trace_profile(posed.task, posed.best, posed.sd, posed.dof, traced, scale=posed.scale, level=level)


def optimal_size(compute_flops: float, law: str = "chinchilla") -> Quantity:
    """The compute-optimal N at a budget C = 6ND, for laws whose split has a closed form."""
    from scalelaws.allocation import CLOSED_FORMS

    if law not in CLOSED_FORMS:
        raise ValueError(f"the optimal size has a closed form for {', '.join(CLOSED_FORMS)}; got {law!r}")
    split = CLOSED_FORMS[law]
    return Quantity(f"optimal size at {compute_flops:.3g} FLOPs", lambda values: split(values, compute_flops)[0])


def _read_quantity(law: Law[Observations], quantity: str | Target | Quantity) -> Quantity:
    if isinstance(quantity, Quantity):
        return quantity
    if isinstance(quantity, Target):
        if not isinstance(law, LossLaw):
            raise ValueError(f"a Target is profiled by its loss, and {law.name} is no law of the loss")
        target = quantity
        name = f"loss at N = {target.params_non_embedding:.4g}, D = {target.tokens:.4g}"
        return Quantity(name, lambda values: law.predict_loss(values, target), unit="nats")
    if quantity not in law.parameter_names:
        raise ValueError(f"{law.name} has no parameter {quantity!r}; it has {', '.join(law.parameter_names)}")
    column = law.parameter_names.index(quantity)
    return Quantity(quantity, lambda values: values[:, column], positive=_is_positive(law, quantity))


def _is_positive(law: Law[Observations], name: str) -> bool:
    """Whether a parameter is profiled in ln: coefficients are, exponents of sums of powers are not."""
    if isinstance(law, SumOfPowers):
        return name not in {term[2] for term in law.terms}
    assert isinstance(law, Smooth)
    return next(item.kind == "positive" for item in law.parameters if item.name == name)


@dataclass(frozen=True, eq=False)
class _Posed:
    """A law's fit as the engine sees it."""

    task: Task
    best: FloatArray
    """(P,) fitting coordinates at the minimum."""
    sd: float
    """Standard deviation by which J is scaled."""
    dof: float
    """Degrees of freedom of that scale, priors included."""
    scale: float
    """What the likelihood ratio is divided by: 1 where the noise is estimated along with the fit."""
    to_law: Callable[[FloatArray], FloatArray]
    """The task's natural values (B, P) -> the law's."""

    def express(self, quantity: Quantity) -> Quantity:
        """The quantity as a function of the task's own values."""
        return replace(quantity, compute=lambda values: quantity.compute(self.to_law(values)))


def _pose(law: Law[Observations], observations: Observations, options: FitOptions, values: FloatArray) -> _Posed:
    if isinstance(law, SumOfPowers):
        return _pose_powers(law, observations, options)
    if not isinstance(law, Smooth):
        raise TypeError(f"profile: {law.name} is neither a sum of powers nor a smooth law; use its bootstrap draws")
    return _pose_smooth(law, observations, options, values)


def _pose_smooth(law: Smooth, observations: Observations, options: FitOptions, values: FloatArray) -> _Posed:
    runs = observations.select(~observations.diverged, "diverged (the loss is not finite)")
    task = law.pose(runs, options)
    minima, sd, dof = fit_noise(task, np.concatenate([values[None], law.starts(task.columns, law.measured(runs))]))
    best = minima.t[0]
    if np.isfinite(dof):
        return _Posed(task, best, sd, dof, 1.0, lambda rows: rows)
    spare = max(float((task.w > 0).sum()) - len(task.model.parameters), 1.0)
    return _Posed(task, best, sd, spare, robust_scale(task, best, sd), lambda rows: rows)


@dataclass(frozen=True, eq=False)
class _CentredPowers:
    """ln loss of a sum of powers: (e, a_j, alpha_j) at centred logs `u`, as in `powers`."""

    terms: int
    prior: tuple[float, float] | None
    """Centre and standard deviation in ln of the exponents' prior; None for none."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The floor and the coefficients in ln, then the exponents."""
        free = [Parameter(name, 0.0, FLAT_PRIOR_SD, kind="real") for name in ("e", *["a"] * self.terms)]
        if self.prior is None:
            return (*free, *[Parameter("alpha", 0.0, FLAT_PRIOR_SD, kind="real")] * self.terms)
        return (*free, *[Parameter("alpha", *self.prior)] * self.terms)

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 2T + 1)."""
        u = np.stack([columns[f"u{j}"] for j in range(self.terms)], axis=1)
        first = 1 + self.terms
        powers = values[:, None, 1:first] - values[:, None, first:] * u
        z = np.concatenate([np.broadcast_to(values[:, None, :1], (*powers.shape[:2], 1)), powers], axis=-1)
        top = z.max(axis=-1, keepdims=True)
        share = np.exp(z - top)
        total = share.sum(axis=-1, keepdims=True)
        share = share / total
        return np.log(total[..., 0]) + top[..., 0], np.concatenate([share, -share[..., 1:] * u], axis=-1)


def _pose_powers(law: SumOfPowers, observations: Observations, options: FitOptions) -> _Posed:
    cells, _ = average_repeats(trim(keep_tuned(observations), options.trim_excess))
    power_fit = law.pose(cells, options)
    point = power_fit.solve()
    prior = None if options.objective in PLAIN else (PRIOR_EXPONENT, PRIOR_EXPONENT_SD)
    model, terms = _CentredPowers(power_fit.terms, prior), power_fit.terms
    columns = {f"u{j}": power_fit.u[:, j] for j in range(terms)}
    sd = point.objective.noise_log
    task = Task(model, columns, power_fit.y, point.weights, Noise(sd, point.objective.huber_delta))
    best = to_coordinates(point.minima.t, model.parameters)[0]
    spare = max(float(len(power_fit.y) - 1 - 2 * terms), 1.0)
    if prior is not None:
        return _Posed(task, best, sd, spare + PRIOR_DOF, 1.0, power_fit.to_natural)
    return _Posed(task, best, sd, spare, robust_scale(task, best, sd), power_fit.to_natural)
