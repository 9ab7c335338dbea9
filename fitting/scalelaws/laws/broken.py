"""Broken power laws: the exponent changes smoothly from one value to another.

Legend: x one scale (params, tokens or compute), w = ln x, n breaks
    L = a + b x^-c_0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i)
    a floor; c_0 first exponent; d_i where break i is, f_i its width in e-folds, c_i what it adds to the exponent
    z = ln b - c_0 w - sum_i c_i f_i softplus(u_i),  u_i = (w - ln d_i) / f_i,  ln L = ln(a + e^z),  p = e^z / L
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from scalelaws.engines.nonlinear import Columns, Noise, Parameter, Task, find_best
from scalelaws.laws.base import FitOptions
from scalelaws.laws.loss import Variable
from scalelaws.laws.smooth import EXPECTED_NOISE_LOG, SmoothLaw
from scalelaws.laws.terms import FLOOR, add_terms, exponent, start_terms
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.results import Fit, Status

SIDE_LEVELS = 3
"""Levels of the scale that must lie on either side of a break, at every draw of its interval (an assumption)."""
PARAMETERS_PER_BREAK = 3
"""Each costs ln(runs) in twice the ln likelihood (Schwarz 1978, Estimating the dimension of a model)."""
CHANGE_SD = 0.3
"""Of c_i around 0: the exponent may double or vanish (an assumption)."""
START_CHANGES, START_WIDTHS, START_PLACES = (-0.15, 0.15), (0.2, 1.0), 5
STARTS_KEPT = 16
"""The starts of least misfit that are polished."""
COLUMNS: Mapping[str, str] = {"params": "params_non_embedding", "tokens": "tokens", "compute": "compute"}
SYMBOLS: Mapping[str, str] = {"params": "N", "tokens": "D", "compute": "C"}


@dataclass(frozen=True, kw_only=True)
class BrokenPowerLaw(SmoothLaw):
    """A smoothly broken power law in one scale; refused unless the runs bracket every break."""

    variable: Variable = "compute"
    breaks: int = 1
    name: str = field(init=False, default="")
    formula: str = field(init=False, default="")
    scope: str = "runs along one path (compute: as these runs split it between N and D); many scales on both sides"
    source: str = "Caballero et al. 2022, Broken Neural Scaling Laws, arXiv 2210.14891, equation 1"

    def __post_init__(self) -> None:
        """Names the law after its variable and its breaks."""
        if self.variable not in COLUMNS or self.breaks < 1:
            known = ", ".join(COLUMNS)
            raise ValueError(
                f"BrokenPowerLaw needs variable in {known} and breaks >= 1; got {self.variable!r}, {self.breaks}"
            )
        x = SYMBOLS[self.variable]
        set_field = object.__setattr__
        set_field(self, "name", f"broken_power_law_{self.variable}" + (f"_{self.breaks}" if self.breaks > 1 else ""))
        set_field(self, "formula", f"L = a + b {x}^-c_0 prod_i (1 + ({x} / d_i)^(1 / f_i))^(-c_i f_i)")
        set_field(self, "needs", (COLUMNS[self.variable],))
        set_field(self, "varied", (COLUMNS[self.variable],))
        if not self.parameters:
            set_field(self, "parameters", self._place(1.0, 1e3, 1.0))

    def _place(self, low: float, high: float, loss: float) -> tuple[Parameter, ...]:
        """The parameters with priors on the place of the data: breaks anywhere in the range, b through the runs."""
        first = exponent("c_0", 0.15 if self.variable == "compute" else 0.3)
        middle, spread = np.sqrt(low * high), float(np.log(high / low))
        scale = Parameter("b", loss * middle**first.centre, first.sd * first.centre * np.log(middle) + 3.0, "nats")
        found = [replace(FLOOR, name="a"), scale, first]
        for i in range(1, self.breaks + 1):
            centre = float(low * np.exp(spread * i / (self.breaks + 1)))
            found.append(Parameter(f"d_{i}", centre, spread / (self.breaks + 1), SYMBOLS[self.variable]))
            found.append(Parameter(f"f_{i}", 0.5, 0.7, "e-folds", needed=False))
            found.append(Parameter(f"c_{i}", 0.0, CHANGE_SD, kind="real"))
        return tuple(found)

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 3 + 3 n): a, b, c_0, then d, f, c of each break."""
        w = np.log(columns[self.needs[0]])
        a, b, first = (values[:, j : j + 1] for j in range(3))
        z, slopes = np.log(b) - first * w, [1 / b + 0 * w, -w + 0 * b]
        for i in range(3, values.shape[1], 3):
            d, f, c = (values[:, j : j + 1] for j in range(i, i + 3))
            u = (w - np.log(d)) / f
            bent = np.logaddexp(0.0, u)
            passed = np.exp(u - bent)
            z = z - c * f * bent
            slopes += [c * passed / d, -c * (bent - u * passed), -f * bent]
        ln_loss = np.logaddexp(np.log(a), z)
        p = np.exp(z - ln_loss)
        return ln_loss, np.stack([np.exp(-ln_loss), *(p * item for item in slopes)], axis=-1)

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """A plain power law, bent at several places, up and down."""
        x = columns[self.needs[0]]
        places = np.geomspace(x.min(), x.max(), START_PLACES + 2)[1:-1]
        bends = [
            [(d, f, c) for d in chosen]
            for chosen in itertools.combinations(places, self.breaks)
            for f in START_WIDTHS
            for c in START_CHANGES
        ]
        plain = start_terms((x,), measured)
        found = np.array([[*base, *np.ravel(bend)] for base in plain for bend in bends])
        misfit = self.evaluate(found, columns)[0] - np.log(measured)
        return found[np.argsort(misfit.std(axis=1), kind="stable")[:STARTS_KEPT]]

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Needs enough levels for every break to have some on both sides."""
        needed = 2 * SIDE_LEVELS * self.breaks + 2
        levels = count_levels(observations.column(self.needs[0]))
        if levels < needed:
            return Status.TOO_FEW_SCALES, f"{self.name} needs >= {needed} levels of {self.needs[0]} (have {levels})"
        return super().refuse(observations)

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits, then refuses breaks that the runs do not show: near their edge, or no better than none."""
        if observations.diverged.all():
            return super().estimate(observations, options)
        runs, status = self.admit(observations), Status.NOT_IDENTIFIED
        x = runs.column(self.needs[0])
        law = replace(self, parameters=self._place(x.min(), x.max(), float(np.median(runs.loss))))
        fit = SmoothLaw.estimate(law, runs, options)
        problem = law._doubt(fit, x, runs.loss) if len(fit.draws) else ""
        return replace(fit, status=status, message=f"{status.value}: {problem}") if problem else fit

    def _doubt(self, fit: Fit, x: FloatArray, loss: FloatArray) -> str:
        """Why a break is not believed, or nothing."""
        gain = 2 * len(x) * np.log(self._fit_unbroken(x, loss) / max(fit.rmse_log, 1e-9))
        price = PARAMETERS_PER_BREAK * self.breaks * np.log(len(x))
        if gain < price:
            return (
                f"a power law without breaks explains the runs as well (2 ln likelihood rises by {gain:.3g}, the "
                f"parameters of the breaks cost {price:.3g}); fit a power law"
            )
        levels = np.unique(x)
        for i in range(1, self.breaks + 1):
            place = fit.parameters[f"d_{i}"]
            low, high = place.low or 0.0, place.high or np.inf
            if low < levels[SIDE_LEVELS - 1] or high > levels[-SIDE_LEVELS]:
                return (
                    f"break {i} lies within {low:.4g} to {high:.4g}, and {SIDE_LEVELS} levels of {self.needs[0]} are "
                    "needed on both sides; add runs there, or fit a power law"
                )
        return ""

    def _fit_unbroken(self, x: FloatArray, loss: FloatArray) -> float:
        """Root mean square residual of ln loss of the law without its breaks."""
        plain, columns, ln_loss = _Unbroken(self.parameters[:3]), {"x": x}, np.log(loss)
        task = Task(plain, columns, ln_loss, np.ones(len(x)), Noise(EXPECTED_NOISE_LOG))
        values = find_best(task, start_terms((x,), loss))
        return float(np.sqrt(np.mean((plain.evaluate(values[None], columns)[0][0] - ln_loss) ** 2)))


@dataclass(frozen=True)
class _Unbroken:
    """L = a + b x^-c_0."""

    parameters: tuple[Parameter, ...]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 3)."""
        return add_terms(values, (columns["x"],))[:2]
