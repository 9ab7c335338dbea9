"""Laws of the score on a downstream task: from the task's loss (the second of two steps), or at once from the scale.

Legend: L task loss (cross-entropy or bits per byte of the right answers), N parameters, D tokens, C training FLOPs,
s(z) = 1 / (1 + exp(-z)), floor the score of guessing, gain the rise from there to the ceiling.

Published form: score = a / (1 + exp(-k (L - L0))) + b with a < 0 (Bhagia et al. 2024, arXiv:2412.04403); here b = floor
+ gain and a = -gain. With L(N, D) put in, k, E, L0 and k A, k B enter through three numbers only; these are what the
single-step law holds: offset = k (L0 - E), A = k A' / N0^alpha, B = k B' / D0^beta.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from scalelaws.engines.drift import DRIFT_LOG_PER_EFOLD, estimate_drift
from scalelaws.engines.nonlinear import Columns, Noise, Parameter
from scalelaws.laws.base import FitOptions
from scalelaws.laws.smooth import Smooth
from scalelaws.observations import FloatArray, ObservationError, Observations
from scalelaws.results import Fit, Status, Target

EXPECTED_NOISE_SCORE = 0.01
"""Expected misfit of a score around a law (an assumption); with known item counts, the noise of counting instead."""
DRIFT_SCORE_PER_EFOLD = 0.005
"""Expected drift of a score per e-fold of compute beyond the largest run. Measured by rolling origins at k = 2 to 100
on the two corpora of Gadre et al. 2024, sigmoids in four losses: median .003, root mean square .008."""
GIVEN_SD = 1e-3
"""A chance level that was given may move by this share of itself."""
LEAST_CHANCE = 1e-6
"""What stands for a chance level of 0: parameters are positive."""
LEAST_RISE = 1e-3
"""Assumption: scores that rise by less than a tenth of a point over all runs have no shape to fit."""
RISE_NEEDED = 2.5
"""Assumption: the rise from the worst third of the runs to the best must exceed its standard error by this factor."""
START_GAINS = (0.15, 0.35, 0.6, 0.9)
START_EXPONENTS = (0.1, 0.25, 0.5)

FLOOR = Parameter("floor", 0.25, 0.7, needed=False)
"""Where chance is not given: most tasks offer four choices."""
GAIN = Parameter("gain", 0.6, 0.4, needed=False)
"""Assumption: most tasks end between 0.3 and 1.2 above chance; what runs below half of the rise cannot say."""


@dataclass(frozen=True, eq=False)
class ScoreFit(Fit):
    """A fitted law of a score: residuals, scatter and drift are those of the score itself, not of a logarithm."""

    loss_seen: tuple[float, float] | None = None
    """Lowest and highest loss of the runs; None where every run diverged."""
    score_seen: tuple[float, float] | None = None
    """Lowest and highest score of the runs."""

    def to_dict(self) -> dict[str, Any]:
        """The `fit` object that the command line prints, with the ranges seen."""
        seen = {"loss_seen": self.loss_seen, "score_seen": self.score_seen}
        return super().to_dict() | {name: None if span is None else list(span) for name, span in seen.items()}

    def summary(self) -> str:
        """A text table of the parameters with their intervals."""
        return super().summary().replace("rmse of ln", "rmse of the score")


@dataclass(frozen=True, kw_only=True)
class ScoreLaw(Smooth):
    """A score (covariate `score`, 0 to 1) as floor + gain s(z), z rising as the model gets better."""

    asked_with: ClassVar[str] = "predict_score(fit, target, loss_fit=...)"
    chance: float | None = None
    """Score of guessing, where it is known; else it is fitted."""
    items: int | None = None
    """Number of questions behind each score, where it is known: scores near 0 and 1 are then trusted more. The noise of
    counting is an upper expectation, for all models answer the same questions; what the runs show replaces it."""
    response: str = "score"

    def __post_init__(self) -> None:
        """Puts the chance level in the prior of the floor."""
        if self.chance is not None and not 0 <= self.chance < 1:
            raise ValueError(f"chance is a share, 0 <= chance < 1, for example 0.25; got {self.chance}")
        if self.items is not None and self.items < 1:
            raise ValueError(f"items counts the questions of the task; got {self.items}")
        if self.chance is not None:
            given = replace(FLOOR, centre=max(self.chance, LEAST_CHANCE), sd=GIVEN_SD, given=True)
            object.__setattr__(self, "parameters", (given, *self.parameters[1:]))

    @abstractmethod
    def locate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """z (B, n) and its derivatives by the parameters behind floor and gain (B, n, P - 2)."""

    @abstractmethod
    def propose(self, columns: Columns, logit: FloatArray) -> FloatArray:
        """Starts (S, P - 2) of those parameters for scores that lie at these log odds of the rise."""

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Score (B, n) for each row of parameters (B, P), and its derivatives by them (B, n, P)."""
        z, slopes = self.locate(values, columns)
        gain, share = values[:, 1, None], _squash(z)
        rate = gain * share * (1 - share)
        return values[:, 0, None] + gain * share, np.concatenate(
            [np.ones_like(share)[..., None], share[..., None], rate[..., None] * slopes], axis=2
        )

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """For several gains, what a straight line through the log odds says."""
        floor = self.parameters[0].centre if self.chance is not None else max(0.98 * float(measured.min()), 1e-3)
        found = []
        for gain in (gain for gain in START_GAINS if floor + gain > 0.9 * measured.max()):
            share = np.clip((measured - floor) / gain, 0.01, 0.99)
            proposed = self.propose(columns, np.log(share / (1 - share)))
            found.append(np.column_stack([np.tile([floor, gain], (len(proposed), 1)), proposed]))
        return np.concatenate(found)

    def predict_score(
        self, values: FloatArray, target: Target | None = None, loss: FloatArray | None = None
    ) -> FloatArray:
        """Score for each row of parameters (draws, P), within 0 and 1; a law of the loss needs `loss` (draws,)."""
        if "loss" in self.needs:
            if loss is None:
                raise ValueError(f"{self.name} needs the task loss; give loss=, or call scalelaws.predict_score")
            columns: Columns = {"loss": np.reshape(loss, (-1, 1))}
        elif target is None:
            raise ValueError(f"{self.name} needs the target: its {' and '.join(self.needs)}")
        else:
            columns = self._read_target(target)
        return np.asarray(np.clip(self.evaluate(values, columns)[0][:, 0], 0.0, 1.0))

    def measured(self, observations: Observations) -> FloatArray:
        """The scores; raises ObservationError where they are no shares."""
        score = observations.column("score")
        if (score > 1).any():
            raise ObservationError(f"score is a share, 0 to 1; got {score.max():g}. Divide percentages by 100")
        return score

    def respond(self, observations: Observations) -> FloatArray:
        """The scores."""
        return self.measured(observations)

    def expect_noise(self, options: FitOptions) -> Noise:
        """The noise of counting at half the questions right, or the general expectation."""
        expected = EXPECTED_NOISE_SCORE if self.items is None else 0.5 / np.sqrt(self.items)
        return Noise(expected, options.huber_delta) if options.objective == "huber" else Noise(expected)

    def weigh(self, observations: Observations) -> FloatArray:
        """Variance of counting at a half over that at the score; equal weights without a number of questions."""
        if self.items is None:
            return np.ones(len(observations))
        share = (self.measured(observations) * self.items + 1) / (self.items + 2)
        return np.asarray(0.25 / (share * (1 - share)))

    def estimate_drift(self, runs: Observations, noise: float, options: FitOptions) -> float:
        """Standard deviation by which the score leaves the law per e-fold of compute beyond the runs."""
        unit = DRIFT_LOG_PER_EFOLD / DRIFT_SCORE_PER_EFOLD

        def backcast(train: np.ndarray) -> FloatArray | None:
            errors = self._backcast(runs, train, options)
            return None if errors is None else unit * errors

        return estimate_drift(runs.compute, unit * noise, backcast)[0] / unit

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Too few runs, or scores that do not rise."""
        return super().refuse(observations) or self._find_saturation(observations)

    def estimate(self, observations: Observations, options: FitOptions) -> ScoreFit:
        """Fits the runs with a finite loss and a score."""
        fit, finite = super().estimate(observations, options), observations.loss[~observations.diverged]
        score = self.measured(observations)[~observations.diverged]
        known = {item.name: getattr(fit, item.name) for item in fields(Fit)}
        return ScoreFit(**{**known, "loss_seen": _span(finite), "score_seen": _span(score)})

    def _find_saturation(self, observations: Observations) -> tuple[Status, str] | None:
        """The best third of the runs must score above the worst third, by more than neighbours differ."""
        order = np.argsort(self._rank(observations), kind="stable")
        score = self.measured(observations)[order]
        third = max(len(score) // 3, 1)
        rise = float(score[-third:].mean() - score[:third].mean())
        neighbours = float(np.median(np.abs(np.diff(score)))) / 0.954
        if rise > max(LEAST_RISE, RISE_NEEDED * neighbours * np.sqrt(2 / third)):
            return None
        where = self._name_level(float(score.mean()))
        return Status.NOT_IDENTIFIED, (
            f"saturated: from the worst third of the runs to the best the score moves by {rise:+.3g}, and neighbours "
            f"differ by {neighbours:.2g}; all lie near {score.mean():.3g}{where}. Add larger runs, or fit the loss"
        )

    def _name_level(self, mean: float) -> str:
        near = 2 * self.expect_noise(FitOptions()).expected
        if self.chance is not None and mean < self.chance + near:
            return " (chance)"
        return " (the ceiling)" if mean > 1 - near else ""

    def _rank(self, observations: Observations) -> FloatArray:
        """Larger for what should score higher."""
        return -observations.loss if "loss" in self.needs else observations.compute


@dataclass(frozen=True, kw_only=True)
class ScoreSigmoid(ScoreLaw):
    """score = floor + gain s(k (L0 - L)): the second of two steps; the loss of the runs must be that of the task."""

    name: str = "score_sigmoid"
    formula: str = "score = floor + gain / (1 + exp(k (L - L0)))"
    scope: str = "score of a task from its loss, all checkpoints that have both; the loss itself from a law of the loss"
    source: str = "Bhagia et al. 2024 (OLMo ladder, arXiv:2412.04403), step 2"
    needs: tuple[str, ...] = ("loss",)
    varied: tuple[str, ...] = ("loss",)
    parameters: tuple[Parameter, ...] = (
        FLOOR, GAIN, Parameter("k", 3.0, 1.0, "per unit of loss"), Parameter("L0", 2.0, 0.7, "unit of loss"),
    )  # fmt: skip

    def locate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """k (L0 - L)."""
        k, middle = values[:, 2, None], values[:, 3, None]
        below = middle - columns["loss"]
        return k * below, np.stack([below, np.broadcast_to(k, below.shape)], axis=2)

    def propose(self, columns: Columns, logit: FloatArray) -> FloatArray:
        """Slope and crossing of a straight line."""
        slope, level = np.polyfit(columns["loss"], logit, 1)
        k = max(-slope, 0.1)
        return np.array([[k, max(level / k, 0.1)]])


@dataclass(frozen=True, kw_only=True)
class ScorePowers(ScoreLaw):
    """score = floor + gain s(offset - sum_j A_j (x_j / unit_j)^-alpha_j): loss law and sigmoid in one."""

    terms: tuple[tuple[str, str, str, float], ...] = ()
    """(column, coefficient, exponent, unit of the column) of each power."""
    parameters: tuple[Parameter, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Lists the parameters of the terms."""
        powers = [
            (Parameter(coefficient, 1.5, 1.5), Parameter(exponent, 0.3, 0.5, needed=False))
            for _, coefficient, exponent, _ in self.terms
        ]
        listed = (FLOOR, GAIN, Parameter("offset", 2.0, 3.0, kind="real"), *(item for pair in powers for item in pair))
        object.__setattr__(self, "parameters", listed)
        object.__setattr__(self, "needs", tuple(term[0] for term in self.terms))
        object.__setattr__(self, "varied", tuple(term[0] for term in self.terms))
        super().__post_init__()

    def locate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """The offset less the powers."""
        z, slopes = values[:, 2, None], []
        for j, (column, _, _, unit) in enumerate(self.terms):
            x = np.log(columns[column] / unit)
            coefficient, exponent = values[:, 3 + 2 * j, None], values[:, 4 + 2 * j, None]
            power = np.exp(-exponent * x)
            z = z - coefficient * power
            slopes += [-power, coefficient * power * x]
        return z, np.stack([np.ones_like(z), *slopes], axis=2)

    def propose(self, columns: Columns, logit: FloatArray) -> FloatArray:
        """Linear least squares at several exponents."""
        found = []
        for exponent in START_EXPONENTS:
            powers = [(columns[column] / unit) ** -exponent for column, _, _, unit in self.terms]
            design = np.column_stack([np.ones(len(logit)), *(-power for power in powers)])
            offset, *heights = np.linalg.lstsq(design, logit, rcond=None)[0]
            found.append([offset, *(part for height in heights for part in (max(height, 0.05), exponent))])
        return np.array(found)


def score_single_step(chance: float | None = None, items: int | None = None) -> ScorePowers:
    """The score at once from N and D."""
    return ScorePowers(
        name="score_single_step",
        formula="score = floor + gain s(offset - A (N / 1e9)^-alpha - B (D / 2e10)^-beta), s(z) = 1 / (1 + exp(-z))",
        scope="score of a task where its loss was not logged; needs runs over N and D",
        source="Bhagia et al. 2024 (OLMo ladder, arXiv:2412.04403), single-step variant",
        terms=(("params_non_embedding", "A", "alpha", 1e9), ("tokens", "B", "beta", 2e10)),
        chance=chance, items=items,
    )  # fmt: skip


def score_compute(chance: float | None = None, items: int | None = None) -> ScorePowers:
    """The score at once from compute."""
    return ScorePowers(
        name="score_compute",
        formula="score = floor + gain s(offset - A (C / 1e20)^-alpha), s(z) = 1 / (1 + exp(-z))",
        scope="score of a task along one rule for D given N; holds for targets on that rule",
        source="Bhagia et al. 2024 (OLMo ladder, arXiv:2412.04403), single-step variant in compute",
        terms=(("compute", "A", "alpha", 1e20),),
        chance=chance, items=items,
    )  # fmt: skip


def _squash(z: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def _span(values: FloatArray) -> tuple[float, float] | None:
    return (float(values.min()), float(values.max())) if len(values) else None
