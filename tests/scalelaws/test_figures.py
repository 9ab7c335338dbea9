import io

import numpy as np
import pytest

import scalelaws
from planting.basics import plant_power
from scalelaws import Target, figures
from scalelaws.laws.loss import keep_tuned


def render(ax):
    """Bytes of the drawn figure; fails if a label or a scale cannot be drawn."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, dpi=40)
    return buffer.getvalue()


def labels(ax):
    return " ".join(text.get_text() for text in ax.get_legend().get_texts())


@pytest.fixture
def sweeps(basin):
    rates = 2.0 ** np.arange(-12, -4)
    made = []
    for width in (64, 128):
        loss = 3.0 * np.exp(basin(np.log(rates / 3e-3), 1.5, 0.03))
        loss[-1] = np.nan
        made.append(figures.Sweep(f"width {width}", rates, loss, scalelaws.find_basin_optimum(rates, loss)))
    return made


@pytest.mark.parametrize("excess", [False, True])
def test_basins_mark_optimum_and_diverged_runs(sweeps, excess):
    ax = figures.draw_basins(sweeps, excess=excess)
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [sweep.optimum.value for sweep in sweeps]
    assert "diverged" in labels(ax)
    assert render(ax)


def test_the_axes_given_are_the_axes_returned(sweeps):
    ax = figures.make_axes()
    assert figures.draw_basins(sweeps, ax) is ax


def test_a_law_shades_what_lies_beyond_the_runs():
    runs = plant_power("params", 1e-4, 0)
    ax = figures.draw_law(scalelaws.fit("power_law", runs, bootstrap=50), runs, target=Target(1e12, 1e9))
    assert "beyond the largest run" in labels(ax)
    assert ax.get_xlim()[1] >= 1e12
    assert render(ax)


def test_a_law_in_both_scales_draws_one_curve_per_size(plant_loss):
    runs = plant_loss(4, 5)
    ax = figures.draw_law(scalelaws.fit("chinchilla", runs, bootstrap=50), keep_tuned(runs))
    assert len([text for text in ax.get_legend().get_texts() if "params" in text.get_text()]) == 4
    assert render(ax)


def test_settings_and_forecast_draw_their_records(plant_settings):
    runs = plant_settings(3, 2)
    fit = scalelaws.fit("lr_batch", runs, bootstrap=100)
    target = Target(1e9, 1.6e9)
    assert "target" in labels(figures.draw_settings(fit, scalelaws.find_cell_optima(runs), target=target))
    found = scalelaws.forecast(fit, target)
    ax = figures.draw_forecast(found, np.array([1e-3, 2e-3, 4e-3]), np.array([2.9, 2.8, np.nan]))
    assert any(np.allclose(line.get_xdata(), found.peak_lr.value) for line in ax.lines)
    assert render(ax)


def test_drift_draws_one_line_per_parametrization(basin):
    rates = 2.0 ** np.arange(-12, -4)
    width, lr = (part.ravel() for part in np.meshgrid([64, 128, 256], rates))
    loss = 3.0 * np.exp(basin(np.log(lr / 4e-3), 1.5, 0.03))
    drift = scalelaws.measure_drift(width, lr, loss)
    ax = figures.draw_drift({"muP": drift, "standard": drift})
    assert "muP: holds" in labels(ax)
    assert render(ax)


def test_the_wrong_law_is_refused(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 1), bootstrap=50)
    with pytest.raises(ValueError, match="laws of the loss"):
        figures.draw_law(fit, plant_settings(3, 1))


def test_equal_losses_have_a_frame(recwarn: pytest.WarningsRecorder) -> None:
    rates = np.array([0.01, 0.02, 0.04, 0.08])
    losses = np.full(4, 3.0)
    optimum = scalelaws.find_basin_optimum(rates, losses)
    low, high = figures.draw_basins([figures.Sweep("flat", rates, losses, optimum)]).get_ylim()
    assert low < 3.0 < high
    assert not [item for item in recwarn if "identical" in str(item.message)]
