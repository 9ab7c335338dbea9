"""Ladders of a run table and the one slope of them all, against planted optima."""

import numpy as np
import pytest

from scalelaws import Observations, measure_drift
from scalelaws.ladders import measure_pooled_drift, split_ladders
from scalelaws.transfer import measure_observed_drift

WIDTHS, DEPTHS = (32, 64, 128), (2, 4, 8)
RATES = 2.0 ** np.arange(-11, -4)


def plant(basin, *, width=0.0, depth=0.0, noise=3e-4, rates=RATES, seed=0, cells=None):
    """lr* = 2^-8 (width / 32)^width (depth / 2)^depth in every cell of widths and depths."""
    rng, rows = np.random.default_rng(seed), []
    for w, d in cells or [(w, d) for w in WIDTHS for d in DEPTHS]:
        best = 2.0**-7.8 * (w / 32) ** width * (d / 2) ** depth
        for lr in rates:
            loss = 3 * (w * d) ** -0.05 * np.exp(basin(np.log(lr / best), 1.0, 0.03) + noise * rng.standard_normal())
            rows.append((w, d, lr, loss))
    w, d, lr, loss = np.array(rows).T
    fixed = np.full_like(loss, 2.0**11)
    return Observations(
        12 * w * w * d, 100 * fixed, loss, peak_lr=lr, batch_tokens=fixed, width=w, covariates={"depth": d}
    )


def test_each_axis_is_measured_with_the_other_fixed(basin):
    runs = plant(basin, width=-0.8, depth=-0.4)
    over_width, over_depth = (measure_pooled_drift(runs, axis) for axis in ("width", "depth"))
    for found, planted in ((over_width, -0.8), (over_depth, -0.4)):
        assert len(found.ladders) == 3
        assert found.slope.low <= planted <= found.slope.high
        assert found.slope.value == pytest.approx(planted, abs=0.1)
        assert found.verdict == "drifts"
        assert found.wanted == ""
    assert [ladder.fixed["depth"] for ladder in over_width.ladders] == [2, 4, 8]
    assert "3 ladders from 32 to 128" in over_width.message


def test_one_ladder_says_what_measure_observed_drift_says(basin):
    runs = plant(basin, width=-0.5, cells=[(w, 4) for w in WIDTHS])
    alone, pooled = measure_observed_drift(runs, expected="mup"), measure_pooled_drift(runs, expected="mup")
    assert pooled.slope == alone.slope
    assert pooled.verdict == alone.verdict
    assert pooled.message.split("; ")[1:] == alone.message.split("; ")[1:]


def test_more_ladders_make_the_slope_surer(basin):
    rows = plant(basin, noise=1e-3)
    one = measure_pooled_drift(rows.select(rows.column("depth") == 4, "other depths"))
    three = measure_pooled_drift(rows)
    assert three.slope.high - three.slope.low < 0.8 * (one.slope.high - one.slope.low)
    assert three.verdict == "holds"


def test_the_interval_of_the_pooled_slope_covers_it(basin, fewest_hits):
    hits = 0
    for seed in range(20):
        runs = plant(basin, width=-0.3, noise=2e-3, seed=seed, cells=[(w, d) for w in WIDTHS for d in (2, 4)])
        slope = measure_pooled_drift(runs, seed=seed).slope
        hits += slope.low <= -0.3 <= slope.high
    assert hits >= fewest_hits(20)


def test_nothing_that_varies_along_with_the_axis_makes_a_ladder(basin):
    """Depth in proportion to width: no two widths of one depth."""
    runs = plant(basin, cells=[(32, 2), (64, 4), (128, 8)])
    assert split_ladders(runs, "width") == []
    assert measure_pooled_drift(runs, "depth") is None


def test_a_searched_column_is_set_apart(basin):
    runs = plant(basin, cells=[(w, 2) for w in WIDTHS])
    decay = np.where(np.arange(len(runs)) % 2, 0.1, 0.2)
    both = Observations(
        runs.params_non_embedding, runs.tokens, runs.loss, peak_lr=runs.peak_lr, width=runs.width,
        batch_tokens=runs.batch_tokens, covariates={**runs.covariates, "weight_decay": decay},
    )  # fmt: skip
    assert len(split_ladders(both, "width")) == 1
    assert [fixed["weight_decay"] for fixed, _ in split_ladders(both, "width", ["weight_decay"])] == [0.1, 0.2]


def test_a_refused_place_says_which_rates_would_mend_it(basin):
    runs = plant(basin, width=-1.0, rates=2.0 ** np.arange(-9, -4), cells=[(w, 2) for w in WIDTHS])
    found = measure_pooled_drift(runs)
    assert found.slope is None
    assert found.message == "undecided: an optimum was found at 1 of 3 places, two of a ladder are needed"
    assert found.wanted.startswith("learning rates 0.000488, 0.000977 at width 64 (tokens 204800, batch_tokens 2048")


def test_an_uncertain_slope_asks_for_seeds_where_they_tell_most(basin):
    quiet, loud = plant(basin, cells=[(32, 2), (64, 2)], noise=2e-4), plant(basin, cells=[(128, 2)], noise=1.2e-2)
    runs = [np.concatenate([getattr(quiet, name), getattr(loud, name)]) for name in ("width", "peak_lr", "loss")]
    fields = {"params_non_embedding": runs[0], "tokens": np.ones_like(runs[0]), "loss": runs[2]}
    found = measure_pooled_drift(Observations(**fields, peak_lr=runs[1], width=runs[0]))
    assert found.verdict == "undecided"
    assert found.wanted == "two more seeds at width 128 (tokens 1), or a width beyond 128"


def test_a_table_without_the_axis_has_no_drift(basin):
    width, lr = (part.ravel() for part in np.meshgrid(WIDTHS, RATES))
    runs = Observations(1e6 * width, np.full(len(lr), 1e9), np.full(len(lr), 3.0) + lr, peak_lr=lr)
    assert measure_pooled_drift(runs, "width") is None
    with pytest.raises(ValueError, match="there is no axis 'length'"):
        measure_pooled_drift(runs, "length")


def test_the_record_is_plain(basin):
    import json

    found = measure_pooled_drift(plant(basin), expected="mup").to_dict()
    json.dumps(found, allow_nan=False)
    assert found["expected"]["slope"] == 0.0
    assert found["ladders"][0]["fixed"]["depth"] == 2
    assert measure_drift(WIDTHS, [0.1, 0.1, 0.1], [3.0, 3.0, 3.0]).verdict == "undecided"


def test_the_figure_has_a_line_for_each_ladder_and_one_entry_for_each_name(basin):
    from scalelaws.figures import draw_ladders

    drifts = {"muP": measure_pooled_drift(plant(basin)), "standard": measure_pooled_drift(plant(basin, width=-0.9))}
    ax = draw_ladders(drifts)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[0].startswith("muP: holds (")
    assert said[1].startswith("standard: drifts (-")
    assert sum(len(line.get_xdata()) == 3 for line in ax.get_lines()) == 6
    assert ax.get_xlabel() == "width"
