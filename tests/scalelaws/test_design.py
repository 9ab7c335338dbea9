"""Design of runs: against brute force, matrix inversion, closed forms, and planted surfaces of another shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from planting.basics import BATCH, BATCH_D, LR, LR_D, LR_N, plant_settings
from scalelaws import FitError, FitOptions, Observations, Target, get_published
from scalelaws.design import choose_runs, start_design
from scalelaws.designs.brackets import find_brackets
from scalelaws.designs.candidates import Candidates
from scalelaws.designs.prospects import Prospects, aim_at, look_ahead, walk_away
from scalelaws.designs.starts import StartPrior, start_surface
from scalelaws.laws.surface import ResponseSurface, SurfaceFit
from scalelaws.sweeps.surfaces import Surface

TARGET = Target(2e9, 5e10)
OPTIONS = FitOptions(bootstrap=100)


def offer(runs: Observations, further: Observations | None = None) -> Candidates:
    """The settings of some runs as candidates."""
    tables = [runs] if further is None else [runs, further]
    join = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("params_non_embedding", "tokens", "peak_lr", "batch_tokens")
    }
    return Candidates(**join)


@pytest.fixture(scope="module")
def done() -> Observations:
    """A few runs of a planted surface in learning rate and batch."""
    runs = plant_settings(3, 3, batches=3, noise=5e-4, scatter=0.05, seed=1)
    return runs.rows(np.random.default_rng(0).choice(len(runs), 60, replace=False))


@pytest.fixture(scope="module")
def fit(done: Observations) -> SurfaceFit:
    """Their surface."""
    found = ResponseSurface().estimate(done, OPTIONS)
    assert isinstance(found, SurfaceFit)
    assert found.status.ok
    return found


@pytest.fixture(scope="module")
def surface(fit: SurfaceFit) -> Surface:
    """The surface of the fit."""
    assert fit.surface is not None
    return fit.surface


@pytest.fixture
def offered() -> Candidates:
    """All settings of the planted cells."""
    return offer(plant_settings(3, 3, batches=3))


def update_fully(prospects: Prospects, scenario: int, runs: list[int]) -> np.ndarray:
    """The covariance after runs, by inverting the information."""
    rows, noise = prospects.rows[scenario, runs], prospects.noise[scenario, runs]
    information = np.linalg.inv(prospects.covariance[scenario]) + rows.T @ (rows / noise[:, None])
    return np.linalg.inv(information)


def test_an_update_is_the_inverse_of_the_summed_information(surface: Surface, offered: Candidates) -> None:
    prospects = look_ahead(surface, offered, TARGET, drift=0.05)
    start, runs = prospects.restrict(np.arange(len(offered))), [3, 40, 41]
    for run in runs:
        prospects.learn(run)
    for scenario in (0, 5):
        expected = update_fully(start, scenario, runs)
        scale = np.sqrt(np.diag(expected))
        np.testing.assert_allclose(prospects.covariance[scenario] / scale / scale[:, None],
                                   expected / scale / scale[:, None], atol=1e-7)  # fmt: skip
        rows = prospects.rows[scenario]
        np.testing.assert_allclose(prospects.spread[scenario], np.diag(rows @ expected @ rows.T), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(prospects.reach[scenario], rows @ expected @ prospects.aim.T, rtol=1e-3, atol=1e-8)
    for run in runs:
        prospects.learn(run, forget=True)
    np.testing.assert_allclose(prospects.optimum, start.optimum, rtol=1e-6)


@pytest.mark.parametrize("objective", ["regret", "interval"])
@pytest.mark.parametrize("per", ["flops", "run"])
def test_the_first_choice_is_that_of_brute_force(
    surface: Surface, offered: Candidates, objective: str, per: str
) -> None:
    design = choose_runs(surface, offered, TARGET, runs=1, objective=objective, per=per)
    prospects = look_ahead(surface, offered, TARGET, drift=design.drift)

    def total(runs: list[int]) -> float:
        values = []
        for scenario in range(len(prospects.rows)):
            after = update_fully(prospects, scenario, runs) if runs else prospects.covariance[scenario]
            optimum = prospects.aim @ after @ prospects.aim.T + np.diag(prospects.unknown)
            widths = 2 * 1.6448536 * np.sqrt(np.diag(optimum)).sum()
            values.append(0.5 * np.trace(prospects.bend @ optimum) if objective == "regret" else widths)
        return float(np.mean(values))

    some = np.unique([*range(0, len(offered), 5), design.rows[0]])
    cost = offered.cost if per == "flops" else np.ones(len(offered))
    gains = [(total([]) - total([int(run)])) / cost[run] for run in some]
    assert design.rows[0] == some[int(np.argmax(gains))]
    after = design.after.expected_regret
    assert design.choices[0].gain == pytest.approx(design.before.expected_regret - after)


def test_expected_regret_is_exact_for_the_asymmetric_basin(surface: Surface) -> None:
    layout, theta = surface.layout, surface.parameters
    spread = np.array([[0.09, 0.03], [0.03, 0.06]])
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    x, y = np.meshgrid(node, node)
    draws = np.linalg.cholesky(spread) @ np.stack([x.ravel(), y.ravel()])
    mass = np.outer(weight, weight).ravel() / (2 * np.pi)
    shape = {name: float(theta[layout.at(name)]) for name in layout.shape_names}
    n, d = layout.centred(np.log(TARGET.params_non_embedding), np.log(TARGET.tokens))
    depth = theta[layout.at("depth_exponent_params")] * n + theta[layout.at("depth_exponent_tokens")] * d

    def phi(t: np.ndarray, k: float) -> np.ndarray:
        return np.asarray((np.exp(k * t) - 1 - k * t) / k**2)

    def expect(point: np.ndarray) -> float:
        u, v = point[0] - draws[0], point[1] - draws[1]
        first = np.exp(shape["lr_ln_curvature"] + depth) * phi(u - shape["lr_shear"] * v, shape["lr_skew"])
        second = np.exp(shape["batch_ln_curvature"] + depth) * phi(v - shape["batch_shear"] * u, shape["batch_skew"])
        return float(mass @ (first + second)) * 1e3

    found = minimize(expect, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    bend = surface.curvature(TARGET.params_non_embedding, TARGET.tokens)
    assert found.fun / 1e3 == pytest.approx(0.5 * np.trace(bend @ spread), rel=1e-5)
    assert expect(np.zeros(2)) / 1e3 > 0.5 * np.trace(bend @ spread) * 1.001


def test_without_a_walk_the_aim_is_where_the_surface_locates_it(surface: Surface) -> None:
    layout = surface.layout
    walked = aim_at(surface, (float(np.exp(layout.ln_params[0])), 1e11), 0.3)
    still = surface.locate(float(np.exp(layout.ln_params[0])), 1e11)
    assert np.all(walked[1] > still[1])
    known = (float(np.exp(layout.ln_params[0])), float(np.exp(layout.ln_tokens[0])))
    for at in (known, (known[0], 1e11), (2e9, 1e11)):
        rows, unknown = surface.locate(*at)
        aim, left = aim_at(surface, at, 0.0)
        np.testing.assert_allclose(aim, rows, atol=1e-9)
        np.testing.assert_allclose(left, unknown, atol=1e-9)


def test_cells_share_the_walk_that_they_have_in_common(surface: Surface) -> None:
    at, layout = (2e9, 5e10), surface.layout
    walk = walk_away(layout, at, 0.1)
    way = np.log(at[0]) - layout.ln_params + np.log(at[1]) - layout.ln_tokens
    np.testing.assert_allclose(np.diag(walk), 0.01 * way)
    assert np.linalg.eigvalsh(walk).min() > -1e-12
    near, far = np.argmin(way), np.argmax(way)
    assert walk[near, far] == pytest.approx(walk[near, near])


def test_a_walk_makes_small_cells_worth_less(surface: Surface, offered: Candidates) -> None:
    smallest, largest = offered.cells()[0], offered.cells()[-1]
    shares = []
    for drift in (0.0, 0.1, 0.3):
        value = look_ahead(surface, offered, TARGET, drift=drift).value("regret")
        shares.append(value[smallest].max() / value[largest].max())
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize("objective", ["regret", "interval"])
def test_what_is_expected_falls_with_every_run(surface: Surface, offered: Candidates, objective: str) -> None:
    design = choose_runs(surface, offered, TARGET, runs=12, objective=objective)
    regrets = [design.before.expected_regret, *(choice.after.expected_regret for choice in design.choices)]
    assert len(set(design.rows)) == 12
    assert np.all(np.diff(regrets) < 0)
    assert design.after.peak_lr_width < design.before.peak_lr_width
    assert design.after.batch_tokens_width is not None
    first = design.choices[0]
    assert design.to_dict()["choices"][0]["gain_per_exaflop"] == first.gain / first.cost_flops * 1e18


def test_the_same_seed_gives_the_same_design(fit: SurfaceFit, offered: Candidates) -> None:
    assert choose_runs(fit, offered, TARGET, runs=6) == choose_runs(fit, offered, TARGET, runs=6)
    first = start_design(offered, TARGET, seed=3)
    assert first == start_design(offered, TARGET, seed=3)


def test_a_run_that_tells_nothing_is_never_chosen(surface: Surface, offered: Candidates) -> None:
    mute = replace(offered.rows(np.arange(4)), peak_lr=offered.peak_lr[:4] * 1e9)
    both = Candidates(
        *(np.concatenate([getattr(offered.rows([10, 60, 100]), name), getattr(mute, name)])
          for name in ("params_non_embedding", "tokens", "peak_lr", "batch_tokens"))
    )  # fmt: skip
    design = choose_runs(surface, both, TARGET, runs=7)
    assert set(design.rows) == {0, 1, 2}
    assert "only 3 of 7" in design.warnings[-1]


def test_a_new_cell_is_opened_by_several_runs(surface: Surface) -> None:
    near = plant_settings(1, 1, batches=3)
    large = Candidates(np.full(len(near), 1e9), np.full(len(near), 3e10), near.peak_lr / 4, near.batch_tokens * 5)
    alone = look_ahead(surface, large, TARGET, drift=0.05).value("regret")
    before = look_ahead(surface, large, TARGET, drift=0.05).measure().expected_regret
    assert alone.max() < 1e-3 * before
    design = choose_runs(surface, large, TARGET, runs=4)
    assert len(design.choices) == 4
    assert design.after.expected_regret < 0.9 * before


def test_a_budget_is_kept(surface: Surface, offered: Candidates) -> None:
    budget = 6 * float(offered.cost.min())
    design = choose_runs(surface, offered, TARGET, budget_flops=budget)
    assert 0 < design.cost_flops <= budget
    with pytest.raises(ValueError, match="does not pay for the cheapest"):
        choose_runs(surface, offered, TARGET, budget_flops=0.5 * float(offered.cost.min()))


def test_refusals_name_what_to_do(done: Observations, fit: SurfaceFit, offered: Candidates) -> None:
    empty = offered.rows([])
    for call in (lambda: choose_runs(fit, empty, TARGET), lambda: start_design(empty, TARGET)):
        with pytest.raises(ValueError, match="list the runs that could be done"):
            call()
    with pytest.raises(ValueError, match="done already"):
        choose_runs(done, offer(done), TARGET)
    with pytest.raises(ValueError, match="objective must be one of regret"):
        choose_runs(fit, offered, TARGET, objective="luck")
    with pytest.raises(ValueError, match="runs must be at least 1"):
        choose_runs(fit, offered, TARGET, runs=0)
    with pytest.raises(ValueError, match="peak_lr must be one positive"):
        replace(offered, peak_lr=-offered.peak_lr)
    with pytest.raises(ValueError, match="give no batch_tokens"):
        choose_runs(fit, replace(offered, batch_tokens=None), TARGET)
    with pytest.raises(ValueError, match="3 runs in each of 3 cells"):
        start_design(offered, TARGET, runs=5)
    refused = ResponseSurface().estimate(done.rows(np.arange(3)), OPTIONS)
    assert isinstance(refused, SurfaceFit)
    with pytest.raises(FitError) as caught:
        choose_runs(refused, offered, TARGET)
    assert caught.value.partial is refused


def test_a_best_run_at_the_edge_is_bracketed_first() -> None:
    lr, batch = (axis.ravel() for axis in np.meshgrid(1e-3 * 2.0 ** np.arange(6), 1e5 * 2.0 ** np.arange(5)))
    cell = Candidates(np.full(30, 1e8), np.full(30, 2e9), lr, batch)
    rows = np.array([6, 7, 8, 13, 14])
    loss = 3 + 0.01 * np.log(cell.peak_lr / 4e-3) ** 2 + 0.01 * np.log(batch / 4e5) ** 2
    done = Observations(cell.params_non_embedding[rows], cell.tokens[rows], loss[rows], lr[rows], batch[rows])
    fresh = cell.rows(cell.find_new(done))
    found = [(float(fresh.peak_lr[row]), float(fresh.batch_tokens[row])) for row in find_brackets(done, fresh)]
    assert found == [(8e-3, 4e5), (4e-3, 8e5)]
    inside = replace(done, loss=loss[rows] + 0.1 * (rows != 7))
    assert find_brackets(inside, fresh) == [
        int(np.flatnonzero((fresh.peak_lr == 2e-3) & (fresh.batch_tokens == 1e5))[0])
    ]
    assert find_brackets(done.rows([0, 1]), fresh) == []
    design = choose_runs(done, cell, TARGET, runs=4)
    assert {(choice.peak_lr, choice.batch_tokens) for choice in design.choices[:2]} == set(found)


def test_runs_that_carry_no_fit_yet_are_read_with_the_prior(done: Observations, offered: Candidates) -> None:
    few = done.rows(np.arange(5))
    design = choose_runs(few, offered, TARGET, runs=4)
    assert len(design.choices) == 4
    assert "read with the start prior (too few scales" in design.warnings[0]
    assert "5 candidates are done already" in design.warnings[-1]
    known = {tuple(row) for row in np.stack([few.params_non_embedding, few.tokens, few.peak_lr], axis=1)}
    again = [c for c in design.choices if (c.params_non_embedding, c.tokens, c.peak_lr) in known]
    assert all(c.batch_tokens not in few.batch_tokens for c in again)


def test_the_first_runs_are_spread_and_carry_a_fit() -> None:
    runs = plant_settings(4, 3, batches=5, noise=5e-4, seed=2)
    candidates = offer(runs)
    design = start_design(candidates, TARGET, runs=16)
    chosen = runs.rows(np.array(design.rows))
    assert len(set(chosen.params_non_embedding)) >= 3
    assert len(set(chosen.tokens)) >= 2
    assert chosen.peak_lr is not None
    assert chosen.batch_tokens is not None
    for rows in chosen.cells():
        assert len(rows) == 4
        assert len(set(chosen.peak_lr[rows])) >= 3
        assert len(set(chosen.batch_tokens[rows])) >= 3
    assert design.after.expected_regret < design.before.expected_regret
    dear = candidates.cost.max()
    assert design.cost_flops < 16 * 0.5 * dear


def test_a_published_law_as_prior_says_what_the_law_says(offered: Candidates) -> None:
    law = get_published("step_law")
    prior = StartPrior.from_law(law, offered)
    rows, _ = start_surface(prior, offered).locate(TARGET.params_non_embedding, TARGET.tokens)
    said = rows @ start_surface(prior, offered).parameters
    assert law.peak_lr is not None
    assert law.batch_tokens is not None
    np.testing.assert_allclose(said, np.log([law.peak_lr(TARGET), law.batch_tokens(TARGET)]), atol=1e-6)


def test_the_prior_of_the_candidates_covers_the_planted_optimum() -> None:
    candidates = offer(plant_settings(4, 3, batches=5))
    prior = StartPrior.from_candidates(candidates)
    n, d = (float(np.exp(value)) for value in prior.origin)
    assert abs(prior.lr[0] - np.log(LR * n**LR_N * d**LR_D)) < prior.lr_sd
    assert prior.batch is not None
    assert abs(prior.batch[0] - np.log(BATCH * d**BATCH_D)) < prior.batch_sd


def plant_other(seed: int) -> tuple[Observations, float]:
    """Learning rates only, over a basin of another shape and other exponents; and the target's ln lr*."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in np.geomspace(3e7, 8e8, 4):
        for d in np.geomspace(1e9, 1e10, 3):
            best = np.log(3e-3) - 0.7 * np.log(n / 1e8) + 0.25 * np.log(d / 3e9) + 0.05 * rng.standard_normal()
            for ln_lr in np.log(3e-3) - 0.4 * np.log(n / 1e8) + 0.35 * np.arange(-6, 7):
                loss = 0.9 + 40 * n**-0.3 + lift_otherwise(ln_lr - best) + 5e-4 * rng.standard_normal()
                rows.append((n, d, np.exp(loss), np.exp(ln_lr)))
    n, d, loss, lr = np.array(rows).T
    goal = np.log(3e-3) - 0.7 * np.log(TARGET.params_non_embedding / 1e8) + 0.25 * np.log(TARGET.tokens / 3e9)
    return Observations(n, d, loss, peak_lr=lr), float(goal)


def lift_otherwise(x: float) -> float:
    """A basin of two exponentials: curvature .012, steeper above."""
    return 0.012 * (np.expm1(1.8 * x) / 1.8 + np.expm1(-0.6 * x) / 0.6) / 2.4


def miss(runs: Observations, goal: float) -> float:
    """Excess ln loss at the target with the surface of some runs."""
    found = ResponseSurface().estimate(runs, OPTIONS)
    assert isinstance(found, SurfaceFit)
    if found.surface is None:
        return 1.0
    said = found.surface.predict(TARGET.params_non_embedding, TARGET.tokens)[0][0]
    return lift_otherwise(float(said) - goal)


def test_chosen_runs_beat_random_ones_on_a_surface_of_another_shape() -> None:
    chosen, random = [], []
    for seed in range(5):
        runs, goal = plant_other(seed)
        candidates = Candidates(runs.params_non_embedding, runs.tokens, runs.peak_lr)
        rows = list(start_design(candidates, TARGET, runs=12, seed=seed).rows)
        for _ in range(2):
            design = choose_runs(runs.rows(rows), candidates, TARGET, runs=10, per="run", seed=seed)
            rows += [int(row) for row in design.rows]
        assert len(set(rows)) == 32
        chosen.append(miss(runs.rows(rows), goal))
        draw = np.random.default_rng(seed).choice(len(runs), 32, replace=False)
        random.append(miss(runs.rows(draw), goal))
    assert np.median(chosen) < 0.5 * np.median(random)
