"""Regressions behind one interface: planted laws, weights of several losses, RegMix's recommendation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from foretune.errors import InputError
from foretune.search.mixing.simplex import FloatArray
from foretune.search.mixing.surrogates import SURROGATES, FittedSurrogate, average_best, fit_objective

RUNS = np.random.default_rng(0).dirichlet(np.ones(4), 150)
OTHERS = np.random.default_rng(1).dirichlet(np.ones(4), 100)


def plant(shares: FloatArray) -> FloatArray:
    return np.asarray(2 + np.exp(shares @ np.array([0.6, -0.6, -0.2, 0.4])))


def add_noise(loss: FloatArray) -> FloatArray:
    return np.asarray(loss + 0.005 * np.random.default_rng(2).standard_normal(len(loss)))


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_a_planted_law_is_ranked(name: str) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    mean, sd = SURROGATES[name].fit(RUNS, add_noise(plant(RUNS))).predict(OTHERS)
    assert spearmanr(mean, plant(OTHERS)).statistic > {"lightgbm": 0.95}.get(name, 0.995)
    assert sd.shape == (100,)
    assert (sd > 0).all()


@pytest.mark.parametrize("name", ["gp", "log_linear"])
def test_standard_deviations_are_of_the_size_of_the_errors(name: str) -> None:
    mean, sd = SURROGATES[name].fit(RUNS, add_noise(plant(RUNS))).predict(OTHERS)
    assert 0.3 < np.sqrt(np.mean(((mean - plant(OTHERS)) / sd) ** 2)) < 2.5


def test_trees_say_what_to_install_where_lightgbm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match=r"pip install 'foretune\[bench\]'"):
        SURROGATES["lightgbm"].fit(RUNS, plant(RUNS))


def test_an_objective_is_the_weighted_sum_of_its_losses() -> None:
    losses = np.column_stack([plant(RUNS), plant(RUNS[:, ::-1]), np.full(150, 9.0)])
    weights = np.array([0.7, 0.3, 0.0])
    mean, sd = fit_objective(SURROGATES["log_linear"], RUNS, losses, weights).predict(OTHERS)
    assert mean == pytest.approx(0.7 * plant(OTHERS) + 0.3 * plant(OTHERS[:, ::-1]), abs=0.01)
    assert (sd > 0).all()


class Exact(FittedSurrogate):
    """The law itself."""

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        return plant(shares), np.zeros(len(shares))


def test_the_best_candidates_are_averaged() -> None:
    order = np.argsort(plant(OTHERS))
    assert average_best(Exact(), OTHERS, 10) == pytest.approx(OTHERS[order[:10]].mean(axis=0))


@pytest.mark.parametrize("losses", [np.full(150, np.nan), np.zeros(150), np.ones(3)])
def test_losses_that_cannot_be_read_are_refused(losses: FloatArray) -> None:
    with pytest.raises(InputError, match="one finite loss > 0"):
        SURROGATES["log_linear"].fit(RUNS, losses)
