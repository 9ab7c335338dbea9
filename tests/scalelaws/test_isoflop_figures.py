"""The figures of isoFLOP curves show what the records say."""

import io

import numpy as np
import pytest

from scalelaws import Observations
from scalelaws.figures.isoflops import draw_isoflops, draw_profile, draw_sizes
from scalelaws.profiles import profile
from scalelaws.splits.approaches import compare_approaches


@pytest.fixture(scope="module")
def approaches():
    """Four budgets with optima and one of three sizes only."""
    c = np.concatenate([np.repeat(np.geomspace(1e18, 1e20, 4), 7), np.repeat(1e17, 3)])
    around = np.concatenate([np.tile(np.geomspace(1 / 4, 4, 7), 4), [0.5, 1, 2]])
    n = around * 0.12 * c**0.51
    loss = 1.8 + 480 * n**-0.35 + 2085 * (c / 6 / n) ** -0.365
    loss *= np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
    return compare_approaches(Observations(n, c / 6 / n, loss, compute_flops=c), draws=50)


def render(ax):
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, dpi=40)
    return len(buffer.getvalue()) > 0


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_isoflops_mark_every_optimum_and_name_what_is_none(approaches):
    ax = draw_isoflops(approaches.isoflops)
    stars = sorted(line.get_xdata()[0] for line in ax.lines if line.get_marker() == "*")
    usable = approaches.isoflops.usable
    assert stars == pytest.approx(sorted(approaches.isoflops.optima[k].params.value for k in usable))
    assert len(stars) == 4
    assert any("too few points" in text for text in labels(ax))
    assert render(ax)


def test_curves_pass_through_their_optimum(approaches):
    for k in approaches.isoflops.usable:
        item = approaches.isoflops.optima[k]
        beside = np.array([0.9, 1.0, 1.1]) * item.params.value
        loss = approaches.isoflops.predict_loss(k, beside)
        assert loss[1] == pytest.approx(item.loss.value)
        assert loss[1] < min(loss[0], loss[2])


def test_sizes_draw_every_approach_and_what_lies_beyond(approaches):
    ax = draw_sizes(approaches)
    for law in approaches.laws:
        assert any(text.startswith(law.approach) for text in labels(ax))
    assert "beyond the largest budget" in labels(ax)
    assert render(ax)


def test_a_profile_crosses_its_threshold_at_its_bounds(plant_loss):
    found = profile("chinchilla", plant_loss(6, 6, noise=0.002), "A")
    ax = draw_profile(found)
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert marks == [found.interval.low, found.interval.high]
    assert ax.get_xscale() == "log"
    assert render(ax)
