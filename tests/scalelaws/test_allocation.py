"""Closed forms, published splits and planted laws for the compute-optimal allocation."""

from dataclasses import replace

import numpy as np
import pytest

import scalelaws
from scalelaws import Observations, Target, allocate, allocation, get_published
from scalelaws.allocation import split_compute
from scalelaws.laws.published import get_published_allocation


@pytest.mark.parametrize(("name", "params", "ratio"), [("hoffmann", 3.22e10, 92.6), ("besiroglu", 7.22e10, 18.4)])
def test_allocation_of_the_chinchilla_budget(name, params, ratio):
    """At 5.76e23 FLOPs, the budget of Gopher: Besiroglu et al. 2024, section 4, against Hoffmann's own constants."""
    found = allocate(get_published(name), 5.76e23)
    assert found.params_non_embedding.value == pytest.approx(params, rel=2e-3)
    assert found.tokens_per_param.value == pytest.approx(ratio, rel=2e-3)
    assert 6 * found.params_non_embedding.value * found.tokens.value == pytest.approx(5.76e23)


def test_the_closed_form_is_the_minimum_along_the_budget():
    values = np.array([[1.69, 406.4, 410.7, 0.34, 0.28]])
    params, _, loss = split_compute(values, 1e22)
    n = params[0] * np.geomspace(0.5, 2, 2001)
    along = 1.69 + 406.4 * n**-0.34 + 410.7 * (1e22 / 6 / n) ** -0.28
    assert loss[0] <= along.min() + 1e-12
    assert n[along.argmin()] == pytest.approx(params[0], rel=1e-3)


def test_allocation_from_a_fit_covers_the_planted_split(plant_loss):
    fit = scalelaws.fit("chinchilla", plant_loss(8, 8, noise=0.003), bootstrap=200, level=0.99)
    params, tokens, _ = split_compute(np.array([[1.7, 400, 1100, 0.34, 0.3]]), 1e22)
    found = allocate(fit, 1e22)
    assert found.params_non_embedding.low <= params[0] <= found.params_non_embedding.high
    assert found.tokens.low <= tokens[0] <= found.tokens.high
    assert set(found.to_dict()) >= {"params_non_embedding", "tokens", "tokens_per_param", "loss"}


def test_a_budget_is_compared_with_runs_in_its_own_counting(plant_loss):
    """A budget is 6ND; runs whose FLOPs hold attention reach no further for that."""
    runs = plant_loss(8, 8, noise=0.003)
    fit = scalelaws.fit("chinchilla", replace(runs, compute_flops=1.5 * runs.compute), bootstrap=50)
    assert allocate(fit, 10 * runs.compute.max()).extrapolation["compute"] == pytest.approx(10)


def test_allocation_needs_a_law_in_both_scales():
    n = np.geomspace(1e6, 1e9, 6)
    fit = scalelaws.fit("power_law", Observations(n, np.full(6, 1e9), 1.8 + 30 * n**-0.2), bootstrap=50)
    with pytest.raises(ValueError, match="fit chinchilla"):
        allocate(fit, 1e21)
    with pytest.raises(ValueError, match="law of the loss"):
        allocate(get_published("step_law"), 1e21)


def test_the_search_finds_the_closed_form(monkeypatch):
    """The same law with and without its closed form: 1e-3 of N*, 1e-6 of the loss."""
    exact = allocate(get_published("besiroglu"), 5.76e23)
    monkeypatch.setattr(allocation, "CLOSED_FORMS", {})
    searched = allocate(get_published("besiroglu"), 5.76e23)
    assert searched.params_non_embedding.value == pytest.approx(exact.params_non_embedding.value, rel=1e-3)
    assert searched.loss.value == pytest.approx(exact.loss.value, rel=1e-6)


def test_kaplans_law_splits_as_its_own_minimum_says():
    """dL/dN = 0 along D = C/(6N) gives N^(1+r) = r Nc^r C / (6 Dc) with r = .076/.103, so N* grows as C^.575."""
    r, n_c, d_c = 0.076 / 0.103, 6.4e13, 1.8e13
    law = get_published("kaplan_2020")
    found = [allocate(law, compute).params_non_embedding.value for compute in (1e21, 1e24)]
    expected = [(r * n_c**r * compute / (6 * d_c)) ** (1 / (1 + r)) for compute in (1e21, 1e24)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert np.log(found[1] / found[0]) / np.log(1e3) == pytest.approx(0.575, abs=1e-3)


def test_repeated_data_move_the_split():
    """With ample unique tokens as if there were no limit (Muennighoff et al. 2023); with few, a larger model and the
    optimum still beats its neighbours."""
    law, compute = get_published("muennighoff"), 1e22
    ample = allocate(law, compute, covariates={"unique_tokens": 1e14})
    scarce = allocate(law, compute, covariates={"unique_tokens": 2e10})
    assert scarce.loss.value > ample.loss.value
    size = scarce.params_non_embedding.value
    for other in (0.8 * size, 1.25 * size):
        beside = law.predict_loss(Target(other, compute / 6 / other, covariates={"unique_tokens": 2e10}))
        assert beside > scarce.loss.value
    with pytest.raises(ValueError, match="unique_tokens"):
        allocate(law, compute)


def test_a_law_without_an_optimum_is_refused():
    runaway = replace(get_published("besiroglu"), constants=(1.8, 400.0, 2000.0, 0.35, -0.1))
    with pytest.raises(ValueError, match="no optimum along this budget"):
        allocate(runaway, 1e22)


@pytest.mark.parametrize("compute", [0, -1, np.nan, np.inf])
def test_a_budget_is_positive(compute):
    with pytest.raises(ValueError, match="compute_flops must be positive"):
        allocate(get_published("hoffmann"), compute)


def test_a_published_split_is_told_in_parameters():
    """Tian et al. 2025: M = .0655 C^.5422 FLOPs per token; DeepSeek-AI 2024: M = 6N (1 + s / 6d), d of usual shapes."""
    found = allocate(get_published_allocation("greater_leverage_dense"), 1e20)
    flops_per_token = 0.0655 * 1e20**0.5422
    assert found.tokens.value == pytest.approx(15.2582 * 1e20**0.4578)
    for params, aspect, seq_len in (
        (found.params_non_embedding.high, 160, 2048),
        (found.params_non_embedding.low, 64, 8192),
    ):
        width = (params * aspect / 12) ** (1 / 3)
        assert 6 * params * (1 + seq_len / (6 * width)) == pytest.approx(flops_per_token, rel=1e-6)
    assert found.params_non_embedding.low < found.params_non_embedding.value < found.params_non_embedding.high
    assert np.isnan(found.loss.value)
    assert found.extrapolation["compute"] == pytest.approx(1 / 3)
    assert not any("outside" in warning for warning in found.warnings)
    far = allocate(get_published_allocation("greater_leverage_experts"), 1e24)
    assert any("outside" in warning for warning in far.warnings)
