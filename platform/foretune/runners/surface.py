"""A closed-form loss with a planted optimum, noise and divergence: the truth that forecasts are compared with.

Symbols
    N  non-embedding parameters      lr*  optimal peak learning rate      x  ln(lr / lr*)
    D  training tokens               B*   optimal batch in tokens         y  ln(batch / B*)

loss = (floor + A / N^alpha + B / D^beta) (1 + lr_curvature 2 (exp(s x) - 1 - s x) / s^2 + batch_curvature y^2) noise

The form in N and D is that of Hoffmann et al. 2022, equation 2; lr* and B* are those of Li et al. 2025 (Step Law);
the basin in x is the linear-exponential loss of Varian 1975: convex, zero with zero slope at x = 0 exactly, steeper
above than below for s > 0, and x^2 in the limit s -> 0. With a mixing law, the loss of a domain's held-out text is that
times exp(sum_j t_j r_j) of the shares r_j (Ye et al. 2024), and the loss of a run their mean under its own mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

from foretune.errors import InputError
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
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
        """What training this run would have given: a pure function of the run's content.

        Of a run that ends before its schedule, the loss that its curve has there; of one whose learning rate changes on
        its way, the mean basin over its tokens. It diverges in the first stretch whose rate is too high, the sooner the
        further it is.
        """
        end = self._find_divergence(spec)
        if end is not None:
            return self._diverge(spec, end)
        curve = self._trace(spec, _curve_steps(spec))
        return RunOutcome(
            status=RunStatus.COMPLETED,
            loss=curve[-1].held_out,
            loss_by_domain=self._split(spec, curve[-1].held_out or 0.0),
            curve=tuple(curve),
            tokens=spec.tokens,
            device=_DEVICE,
        )

    def weigh_domains(self, mixture: Mapping[str, float]) -> dict[str, float]:
        """The loss of each domain's held-out text over what it would be without the mixing law."""
        return {
            name: math.exp(math.fsum(pull * mixture.get(other, 0.0) for other, pull in pulls.items()))
            for name, pulls in self.section.mixing.items()
        }

    def _weigh(self, mixture: Mapping[str, float]) -> float:
        """The same of the run's own loss, which its mixture weighs."""
        factors = self.weigh_domains(mixture)
        return math.fsum(share * factors.get(name, 1.0) for name, share in mixture.items()) if factors else 1.0

    def _split(self, spec: RunSpec, loss: float) -> dict[str, float]:
        """The losses of the domains behind the loss of a run."""
        mixture = spec.mixture_at(spec.last_step - 1)
        return {name: loss * factor / self._weigh(mixture) for name, factor in self.weigh_domains(mixture).items()}

    def _find_divergence(self, spec: RunSpec) -> int | None:
        """Steps after which the loss is not finite; None where the run ends before."""
        shape, training = spec.model.shape, spec.training
        best_lr = self.best_lr(shape.params_non_embedding, training.tokens, spec.model.parametrization)
        limit = self.section.divergence_factor * best_lr
        for start, end, rate in _list_stretches(spec):
            if rate > limit:
                lost = start + max(1, round((training.steps - start) * limit / rate))
                if lost < end or end == training.steps:
                    return lost
        return None

    def _diverge(self, spec: RunSpec, end: int) -> RunOutcome:
        curve = self._trace(spec, [step for step in _curve_steps(spec) if step < end])
        before = f"last finite loss {curve[-1].loss:.3f}" if curve else "no finite loss before"
        training = spec.training_at(end - 1)
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
        training, params = spec.training, spec.model.shape.params_non_embedding
        held_out = {*choose_evaluation_steps(training), spec.last_step}
        noise = math.exp(self.section.noise * _draw_normal(spec))
        points = []
        for step in steps:
            tokens, final = training.tokens_at(step), self._expect_final(spec, step) * noise
            ceiling = max(final, math.log(spec.model.vocab_size))
            loss = min(ceiling, final * self.best_loss(params, tokens) / self.best_loss(params, training.tokens))
            lr = schedule_lr(spec.training_at(step - 1), step - 1)
            measured = loss if step in held_out else None
            points.append(CurvePoint(step=step, tokens=tokens, lr=lr, loss=loss, held_out=measured))
        return points

    def _expect_final(self, spec: RunSpec, step: int) -> float:
        """The loss at the end of the schedule, without noise, if the run went on as it did on average so far."""
        training, params = spec.training, spec.model.shape.params_non_embedding
        total, parts = training.tokens_at(step), []
        for start, end, rate in _list_stretches(spec):
            tokens = training.tokens_at(min(step, end)) - training.tokens_at(min(step, start))
            loss = self.loss(params, training.tokens, rate, training.batch_tokens, spec.model.parametrization)
            parts.append(tokens / total * loss * self._weigh(spec.mixture_at(start)))
        return math.fsum(parts)


def _list_stretches(spec: RunSpec) -> list[tuple[int, int, float]]:
    """First step, end and peak learning rate of every stretch under the same settings."""
    starts = sorted({0, *(phase.start_step for phase in spec.phases if phase.start_step < spec.last_step)})
    ends = [*starts[1:], spec.last_step]
    return [(start, end, spec.training_at(start).peak_lr) for start, end in zip(starts, ends, strict=True)]


def _linex(x: float, steepness: float) -> float:
    """2 (exp(s x) - 1 - s x) / s^2, by its series where the difference would lose digits."""
    z = min(steepness * x, _LARGEST_EXPONENT)
    if abs(z) < 1e-3:
        return x * x * (1 + z / 3 + z * z / 12)
    return 2 * (math.expm1(z) - z) / steepness**2


def _curve_steps(spec: RunSpec) -> list[int]:
    """Evenly spaced steps and those of the held-out evaluations, up to the end of the run, which is the last."""
    steps = spec.training.steps
    even = {math.ceil(steps * part / _CURVE_POINTS) for part in range(1, _CURVE_POINTS + 1)}
    every = even.union(choose_evaluation_steps(spec.training), {spec.last_step})
    return sorted(step for step in every if 0 < step <= spec.last_step)


def _draw_normal(spec: RunSpec) -> float:
    """A standard normal number that is a pure function of how the run began: going on changes no luck."""
    begun = spec.model_copy(update={"stop_step": 0, "phases": ()})
    uniform = ((int(begun.run_id, 16) >> 12) + 0.5) / 2**52
    return NormalDist().inv_cdf(uniform)
