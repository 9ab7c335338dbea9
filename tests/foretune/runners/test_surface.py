"""The closed form against what its formula says, a numerical minimiser, and the proxies' own schedule."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from foretune.errors import InputError
from foretune.records import Phase, RunSpec, RunStatus
from foretune.runners import Surface
from foretune.sections import SurfaceSection
from foretune.training.schedules import schedule_lr
from foretune_factories import make_spec

PARAMS, TOKENS = 1e9, 1e11


def spec_near_optimum(**overrides: object) -> RunSpec:
    """A run of 400 M tokens whose learning rate is about the optimal one."""
    fields = {"width": 256, "batch_tokens": 65536, "steps": 6144, "warmup_steps": 600, "decay_steps": 1200}
    spec = make_spec(**(fields | overrides))
    if "peak_lr" in overrides:
        return spec
    surface = Surface(SurfaceSection())
    rate = surface.best_lr(spec.model.shape.params_non_embedding, spec.training.tokens)
    return spec_near_optimum(**overrides, peak_lr=rate)


def test_default_optima_are_those_of_the_step_law() -> None:
    """Li et al. 2025 (Step Law): 1.79 N^-0.713 D^0.307 and 0.58 D^0.571, worked out by hand in powers of ten."""
    surface = Surface(SurfaceSection())
    assert surface.best_lr(1e9, 1e11) == pytest.approx(1.79 * 10**-3.04, rel=1e-9)
    assert surface.best_batch(1e11) == pytest.approx(0.58 * 10**6.281, rel=1e-9)


def test_best_loss_is_the_sum_of_its_terms() -> None:
    surface = Surface(SurfaceSection(floor=1.5, params_coefficient=100, params_exponent=0.5, tokens_coefficient=0))
    assert surface.best_loss(1e4, 1e9) == pytest.approx(1.5 + 1)


@pytest.mark.parametrize("steepness", [0.0, 1e-4, 0.5, 3.0])
def test_a_minimiser_finds_the_planted_optimum(steepness: float) -> None:
    surface = Surface(SurfaceSection(steepness=steepness))
    best_lr, best_batch = surface.best_lr(PARAMS, TOKENS), surface.best_batch(TOKENS)
    by_lr = minimize_scalar(
        lambda x: surface.loss(PARAMS, TOKENS, best_lr * math.exp(x), best_batch),
        bounds=(-2, 1.5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    by_batch = minimize_scalar(
        lambda y: surface.loss(PARAMS, TOKENS, best_lr, best_batch * math.exp(y)), bounds=(-2, 1.5), method="bounded"
    )
    assert by_lr.x == pytest.approx(0, abs=1e-5)
    assert by_batch.x == pytest.approx(0, abs=1e-4)
    assert by_lr.fun == pytest.approx(surface.best_loss(PARAMS, TOKENS), rel=1e-9)


def test_basin_is_quadratic_without_steepness_and_steeper_above_with_it() -> None:
    def rise(steepness: float, x: float) -> float:
        surface = Surface(SurfaceSection(steepness=steepness, lr_curvature=0.01))
        lr = surface.best_lr(PARAMS, TOKENS) * math.exp(x)
        return surface.loss(PARAMS, TOKENS, lr, surface.best_batch(TOKENS)) / surface.best_loss(PARAMS, TOKENS) - 1

    assert rise(0, 1.5) == pytest.approx(0.01 * 1.5**2)
    assert rise(0, -1.5) == pytest.approx(rise(0, 1.5))
    assert rise(0.5, 1) == pytest.approx(0.01 * 8 * (math.exp(0.5) - 1.5))
    assert rise(0.5, 1) > 0.01 > rise(0.5, -1)
    assert rise(1e-4, 5) == pytest.approx(rise(1e-2, 5), rel=0.02), "series and closed form join"
    assert math.isfinite(rise(50, 20))


def test_noise_is_lognormal_between_seeds_and_the_same_for_the_same_run() -> None:
    surface = Surface(SurfaceSection(noise=0.01))
    spec = spec_near_optimum()
    losses = [surface.evaluate(spec.model_copy(update={"seed": seed})).loss for seed in range(400)]
    noiseless = Surface(SurfaceSection(noise=0)).evaluate(spec).loss
    assert noiseless is not None
    logs = np.log(np.array(losses, dtype=float) / noiseless)
    assert abs(logs.mean()) < 4 * 0.01 / math.sqrt(400)
    assert logs.std() == pytest.approx(0.01, rel=4 / math.sqrt(2 * 400))
    assert surface.evaluate(spec).loss == losses[0]


def test_another_process_sees_the_same_loss() -> None:
    code = (
        "from foretune_factories import make_spec; from foretune.runners import Surface;"
        "from foretune.sections import SurfaceSection;"
        "print(repr(Surface(SurfaceSection()).evaluate(make_spec(seed=3)).loss))"
    )
    path = [sys.executable, "-c", "import sys; sys.path[:0] = " + repr(sys.path) + "; " + code]
    done = subprocess.run(path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(Surface(SurfaceSection()).evaluate(make_spec(seed=3)).loss)


def test_curve_falls_to_the_loss_of_the_run() -> None:
    outcome = Surface(SurfaceSection()).evaluate(spec_near_optimum(vocab_size=32_000))  # ln V is well above the loss
    losses = [point.loss for point in outcome.curve if point.loss is not None]
    assert outcome.loss == losses[-1] == outcome.curve[-1].held_out
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 0.5
    assert [point.step for point in outcome.curve if point.held_out is not None] == [1536, 3072, 4608, 6144]
    assert outcome.tokens == 6144 * 65536


def test_rates_far_above_the_optimum_diverge_the_sooner_the_higher() -> None:
    surface = Surface(SurfaceSection(divergence_factor=8))
    best = spec_near_optimum().training.peak_lr
    fine = surface.evaluate(spec_near_optimum(peak_lr=best * 7.9))
    late = surface.evaluate(spec_near_optimum(peak_lr=best * 10))
    soon = surface.evaluate(spec_near_optimum(peak_lr=best * 80))
    assert (fine.status, late.status, soon.status) == (
        RunStatus.COMPLETED,
        RunStatus.DIVERGED,
        RunStatus.DIVERGED,
    )
    assert late.loss is None
    assert late.curve[-1].loss is None
    assert soon.tokens < late.tokens < 6144 * 65536
    assert "last finite loss" in late.reason


def test_a_rate_that_is_too_high_loses_the_run_also_when_something_else_changes() -> None:
    """Ten times the optimum is lost after 8/10 of a stretch that begins at 0: a change before then puts it off."""
    surface = Surface(SurfaceSection(divergence_factor=8))
    spec = spec_near_optimum(peak_lr=10 * spec_near_optimum().training.peak_lr)
    decay = Phase(start_step=3072, settings={"weight_decay": 0.2})
    whole, changed = (surface.evaluate(one) for one in (spec, spec.model_copy(update={"phases": (decay,)})))
    assert (whole.status, changed.status) == (RunStatus.DIVERGED, RunStatus.DIVERGED)
    assert whole.tokens < changed.tokens < spec.tokens
    part = surface.evaluate(spec.model_copy(update={"stop_step": 3072}))
    assert part.status is RunStatus.COMPLETED


@pytest.mark.parametrize("overrides", [{}, {"schedule": "cosine", "decay_steps": 0, "final_lr_fraction": 0.1}])
def test_the_curve_shows_the_schedule(overrides: dict[str, object]) -> None:
    spec = spec_near_optimum(**overrides)
    outcome = Surface(SurfaceSection()).evaluate(spec)
    expected = [schedule_lr(spec.training, point.step - 1) for point in outcome.curve]
    assert [point.lr for point in outcome.curve] == pytest.approx(expected)


def test_an_unknown_parametrization_is_refused() -> None:
    surface = Surface(SurfaceSection(lr_params_exponent={"mup": 0.0}))
    with pytest.raises(InputError, match="no entry 'standard'; it has mup"):
        surface.best_lr(PARAMS, TOKENS, "standard")
