from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from foretune.gates.coordinates import fit_slopes
from foretune.proxies.coordinates import SEQUENCES, measure_coordinates
from foretune.proxies.decoder import Decoder
from foretune.records import RunSpec

WIDTHS = (32, 64, 128, 256)


def fit_changes(make_run: Callable[..., RunSpec], parametrization: str) -> dict[str, Any]:
    """The exponents of the width in what four steps change in each layer."""
    settings: dict[str, Any] = {"parametrization": parametrization, "peak_lr": 2**-7, "batch_tokens": 512}
    measured = [
        measure_coordinates([make_run(width=width, seed=seed, **settings) for seed in range(3)], 4).changes
        for width in WIDTHS
    ]
    return {name: fit_slopes(np.log(WIDTHS), tuple(item[name] for item in measured))[0] for name in measured[0]}


def test_changes_keep_their_size_under_mup_and_grow_with_the_width_under_standard(
    make_run: Callable[..., RunSpec],
) -> None:
    mup, standard = fit_changes(make_run, "mup"), fit_changes(make_run, "standard")
    assert len(mup) == 9
    assert max(np.abs(slopes).max() for slopes in mup.values()) < 0.2, mup  # a ladder from 64 on holds 0.1
    inner = [name for name in standard if name != "embedding"]  # its change does not pass through the width
    assert min(np.abs(standard[name]).max() for name in inner) > 0.2, standard
    assert np.mean([standard[name][-1] for name in inner]) > 0.5


def test_members_of_a_pack_are_measured_as_they_are_alone(make_run: Callable[..., RunSpec]) -> None:
    specs = [make_run(seed=seed) for seed in range(2)]
    together = measure_coordinates(specs, 2)
    for place, spec in enumerate(specs):
        alone = measure_coordinates([spec], 2)
        for name, values in alone.changes.items():
            np.testing.assert_allclose(together.changes[name][:, place], values[:, 0], rtol=1e-3)
            assert together.sizes[name].shape == (3, 2)


@pytest.mark.parametrize("parametrization", ["standard", "mup", "completep"])
def test_more_steps_change_more(make_run: Callable[..., RunSpec], parametrization: str) -> None:
    changes = measure_coordinates([make_run(parametrization=parametrization)], 4).changes
    assert all((values[-1] > values[0]).all() and (values[0] > 0).all() for values in changes.values())


def test_the_first_sizes_are_those_of_an_untrained_model(make_run: Callable[..., RunSpec]) -> None:
    spec = make_run()
    sizes = measure_coordinates([spec], 1).sizes
    model = Decoder(spec.model, 1, spec.data.seq_len)  # type: ignore[arg-type]
    model.initialise(0, spec.seed)
    assert sizes["embedding"][0] == pytest.approx(1.0, rel=0.2)  # unit entries
    assert sizes["norm"][0] == pytest.approx(1.0, rel=1e-3)
    with torch.no_grad():
        ids = torch.randint(0, 257, (1, SEQUENCES, spec.data.seq_len), generator=torch.Generator().manual_seed(0))
        expected = float(model(ids).square().mean().sqrt())
    assert sizes["logits"][0] == pytest.approx(expected, rel=0.1)
