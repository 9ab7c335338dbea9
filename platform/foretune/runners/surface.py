"""A closed-form loss with a planted optimum, noise and divergence: the truth that forecasts are compared with.

Symbols
    N  non-embedding parameters      lr*  optimal peak learning rate      x  ln(lr / lr*)
    D  training tokens               B*   optimal batch in tokens         y  ln(batch / B*)

loss = (floor + A / N^alpha + B / D^beta) (1 + lr_curvature 2 (exp(s x) - 1 - s x) / s^2 + batch_curvature y^2) noise

The form in N and D is that of Hoffmann et al. 2022, equation 2; lr* and B* are those of Li et al. 2025 (Step Law);
the basin in x is the linear-exponential loss of Varian 1975: convex, zero with zero slope at x = 0 exactly, steeper
above than below for s > 0, and x^2 in the limit s -> 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from foretune.errors import InputError
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus, TrainingSpec
from foretune.sections import SurfaceSection
from foretune.training.schedules import choose_evaluation_steps, schedule_lr

_CURVE_POINTS = 40
"""Training points of a made-up curve."""
_DEVICE = "replay (closed form)"
_LARGEST_EXPONENT = 50.0
"""Keeps the basin finite: beyond e^50 the height of the wall no longer matters."""


class Surface:
    """The loss of any run, and where its optimum lies."""

    def __init__(self, section: SurfaceSection) -> None:
        """The planted truth, as `[runner.surface]` gives it."""
        self.section = section

    def best_lr(self, params_non_embedding: float, tokens: float, parametrization: str = "mup") -> float:
        """The optimal peak learning rate; raises InputError where the surface says nothing of the parametrization."""
        exponents = self.section.lr_params_exponent
        if parametrization not in exponents:
            known = ", ".join(sorted(exponents))
            raise InputError(f"runner.surface.lr_params_exponent: no entry {parametrization!r}; it has {known}")
        by_params = params_non_embedding ** exponents[parametrization]
        return float(self.section.lr_coefficient * by_params * tokens**self.section.lr_tokens_exponent)

    def best_batch(self, tokens: float) -> float:
        """The optimal batch, tokens per step."""
        return float(self.section.batch_coefficient * tokens**self.section.batch_tokens_exponent)

    def best_loss(self, params_non_embedding: float, tokens: float) -> float:
        """The loss at the optimum, nats per token, without noise."""
        s = self.section
        by_params = s.params_coefficient / params_non_embedding**s.params_exponent
        return float(s.floor + by_params + s.tokens_coefficient / tokens**s.tokens_exponent)

    def loss(
        self,
        params_non_embedding: float,
        tokens: float,
        peak_lr: float,
        batch_tokens: float,
        parametrization: str = "mup",
    ) -> float:
        """The loss at any settings, nats per token, without noise and whether or not such a run would diverge."""
        x = math.log(peak_lr / self.best_lr(params_non_embedding, tokens, parametrization))
        y = math.log(batch_tokens / self.best_batch(tokens))
        basin = self.section.lr_curvature * _linex(x, self.section.steepness) + self.section.batch_curvature * y * y
        return self.best_loss(params_non_embedding, tokens) * (1 + basin)

    def evaluate(self, spec: RunSpec) -> RunOutcome:
        """What training this run would have given: a pure function of the run's content."""
        shape, training, parametrization = spec.model.shape, spec.training, spec.model.parametrization
        best_lr = self.best_lr(shape.params_non_embedding, training.tokens, parametrization)
        limit = self.section.divergence_factor * best_lr
        if training.peak_lr > limit:
            return self._diverge(spec, limit)
        curve = self._trace(spec, _curve_steps(training))
        return RunOutcome(
            status=RunStatus.COMPLETED,
            loss=curve[-1].held_out,
            curve=tuple(curve),
            tokens=training.tokens,
            device=_DEVICE,
        )

    def _diverge(self, spec: RunSpec, limit: float) -> RunOutcome:
        """The sooner the further the learning rate is above the limit."""
        training = spec.training
        end = max(1, round(training.steps * limit / training.peak_lr))
        curve = self._trace(spec, [step for step in _curve_steps(training) if step < end])
        before = f"last finite loss {curve[-1].loss:.3f}" if curve else "no finite loss before"
        tokens = training.tokens_at(end)
        curve.append(CurvePoint(step=end, tokens=tokens, lr=schedule_lr(training, end - 1), loss=None))
        return RunOutcome(
            status=RunStatus.DIVERGED,
            reason=f"loss not finite at step {end} (peak_lr {training.peak_lr:g}; {before})",
            curve=tuple(curve),
            tokens=tokens,
            device=_DEVICE,
        )

    def _trace(self, spec: RunSpec, steps: list[int]) -> list[CurvePoint]:
        """The curve at these steps: the surface read along D, from a uniform guess down to the run's own loss."""
        training, held_out = spec.training, set(choose_evaluation_steps(spec.training))
        params = spec.model.shape.params_non_embedding
        parametrization = spec.model.parametrization
        noiseless = self.loss(params, training.tokens, training.peak_lr, training.batch_tokens, parametrization)
        final = noiseless * math.exp(self.section.noise * _draw_normal(spec))
        ceiling = max(final, math.log(spec.model.vocab_size))
        points = []
        for step in steps:
            tokens = training.tokens_at(step)
            loss = min(ceiling, final * self.best_loss(params, tokens) / self.best_loss(params, training.tokens))
            measured = loss if step in held_out else None
            points.append(
                CurvePoint(step=step, tokens=tokens, lr=schedule_lr(training, step - 1), loss=loss, held_out=measured)
            )
        return points


def _linex(x: float, steepness: float) -> float:
    """2 (exp(s x) - 1 - s x) / s^2, by its series where the difference would lose digits."""
    z = min(steepness * x, _LARGEST_EXPONENT)
    if abs(z) < 1e-3:
        return x * x * (1 + z / 3 + z * z / 12)
    return 2 * (math.expm1(z) - z) / steepness**2


def _curve_steps(training: TrainingSpec) -> list[int]:
    """Evenly spaced steps and those of the held-out evaluations; the last is the end of the run."""
    even = {math.ceil(training.steps * part / _CURVE_POINTS) for part in range(1, _CURVE_POINTS + 1)}
    return sorted(step for step in even.union(choose_evaluation_steps(training)) if step > 0)


def _draw_normal(spec: RunSpec) -> float:
    """A standard normal number that is a pure function of the run's content, its seed included."""
    uniform = ((int(spec.run_id, 16) >> 12) + 0.5) / 2**52
    return NormalDist().inv_cdf(uniform)
