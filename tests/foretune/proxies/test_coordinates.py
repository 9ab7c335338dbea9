from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foretune.records import RunSpec
from proxy_coordinates import measure_coordinates

WIDTHS = (32, 64, 128, 256)


def fit_slopes(make_run: Callable[..., RunSpec], parametrization: str) -> dict[str, float]:
    """The exponent of the width in what four steps change in each layer."""
    settings: dict[str, Any] = {"parametrization": parametrization, "peak_lr": 2**-5, "batch_tokens": 512}
    measured = [measure_coordinates(make_run(width=width, **settings), steps=4) for width in WIDTHS]
    logs = np.log([[changes[name] for name in measured[0]] for changes in measured])
    slopes = np.polyfit(np.log(WIDTHS), logs, 1)[0]
    return dict(zip(measured[0], slopes.tolist(), strict=True))


def test_changes_keep_their_size_under_mup_and_grow_with_the_width_under_standard(
    make_run: Callable[..., RunSpec],
) -> None:
    mup, standard = fit_slopes(make_run, "mup"), fit_slopes(make_run, "standard")
    layers = [name for name in mup if name != "embedding"]  # the embedding's change does not pass through the width
    assert len(layers) == 5
    assert max(abs(mup[name]) for name in mup) < 0.25, mup
    assert np.mean([standard[name] for name in layers]) > 0.5, standard
    assert all(standard[name] > abs(mup[name]) for name in layers)


@pytest.mark.parametrize("parametrization", ["standard", "mup"])
def test_more_steps_change_more(make_run: Callable[..., RunSpec], parametrization: str) -> None:
    spec = make_run(parametrization=parametrization)
    one, four = (measure_coordinates(spec, steps) for steps in (1, 4))
    assert all(four[name] > one[name] > 0 for name in one)
