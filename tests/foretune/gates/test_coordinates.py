from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.gates.coordinates import STEPS, CoordinateAnswer, check_coordinates, choose_lr, fit_slopes
from foretune.gates.drawing import draw_coordinates
from foretune.records import RunSpec
from foretune.study import Study, read_study

CORPUS = CorpusFacts("0" * 64, 257, {"code": 1.0}, {})


def make_study(*parametrizations: str, **extra: Any) -> Study:
    raw: dict[str, Any] = {
        "study": {"name": "gates"},
        "proxy": {"base_width": 32, "head_size": 16, "depth": 2, "parametrization": parametrizations[0]},
        "scales": [{"name": "w32", "width": 32, "tokens": 65536}],
        "training": {"batch_tokens": 1024},
        "search": {"space": {"parametrization": list(parametrizations), "peak_lr": [2**-8, 2**-6]}},
        **extra,
    }
    return read_study(raw)


def plant(exponents: Callable[[RunSpec, str], float], noise: float = 0.05) -> Callable[[Sequence[RunSpec], int], Any]:
    """Coordinates that follow a power of the width (of the depth for the stream), with noise between seeds."""

    def measure(specs: Sequence[RunSpec], steps: int) -> Any:
        model, generator = specs[0].model, np.random.default_rng(specs[0].model.width + specs[0].model.depth)
        names = ["embedding", *(f"blocks.{i}.{part}" for i in range(model.depth) for part in ("attention", "stream"))]
        changes = {}
        for name in [*names, "norm", "logits"]:
            level = (model.width / 64) ** exponents(specs[0], name) * np.arange(1, steps + 1)[:, None]
            changes[name] = level * np.exp(noise * generator.normal(size=(steps, len(specs))))
        sizes = {name: np.concatenate([values[:1], values]) for name, values in changes.items()}
        return SimpleNamespace(changes=changes, sizes=sizes)

    return measure


def grows_under_standard(spec: RunSpec, layer: str) -> float:
    return 1.0 if spec.model.parametrization == "standard" and layer != "embedding" else 0.0


def test_slopes_and_their_errors_are_those_of_a_planted_power() -> None:
    generator = np.random.default_rng(0)
    logs = np.log([64, 128, 256, 512])
    found = []
    for _ in range(400):
        values = tuple(np.exp(0.7 * x + 0.1 * generator.normal(size=(STEPS, 6))) for x in logs)
        slopes, errors = fit_slopes(logs, values)
        found.append((slopes[0], errors[0]))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(0.7, abs=4 * slopes.std() / 20)
    assert errors.mean() == pytest.approx(slopes.std(), rel=0.15)


def test_a_layer_that_never_moves_has_slope_zero() -> None:
    slopes, errors = fit_slopes(np.log([1.0, 2.0]), (np.zeros((1, 3)), np.zeros((1, 3))))
    np.testing.assert_allclose([slopes, errors], 0.0, atol=1e-9)


def test_a_layer_that_is_not_finite_any_more_fails_with_a_finite_slope() -> None:
    wide = np.array([[1.0, np.nan, np.inf]])
    slopes, errors = fit_slopes(np.log([1.0, 2.0]), (np.ones((1, 3)), wide))
    assert np.isfinite([slopes, errors]).all()
    assert slopes[0] > 100


def test_level_changes_pass_beside_a_control_that_fails() -> None:
    answer = check_coordinates(make_study("mup"), CORPUS, plant(grows_under_standard))
    assert answer.passes("mup")
    assert not answer.passes("standard")
    assert "as it must" in answer.describe("standard")
    assert check_coordinates(make_study("standard", "mup"), CORPUS, plant(grows_under_standard)).parametrizations == (
        "mup",
        "standard",
    )
    assert {check.places for check in answer.checks} == {(64, 128, 256, 512)}


def test_one_layer_that_grows_fails_and_is_named() -> None:
    def exponents(spec: RunSpec, layer: str) -> float:
        return 0.3 if layer == "blocks.1.attention" else grows_under_standard(spec, layer)

    answer = check_coordinates(make_study("mup"), CORPUS, plant(exponents))
    assert not answer.passes("mup")
    assert "blocks.1.attention (+0.3" in answer.describe("mup")


def test_a_check_that_standard_passes_too_shows_nothing() -> None:
    answer = check_coordinates(make_study("mup"), CORPUS, plant(lambda spec, layer: 0.0))
    assert not answer.passes("mup")
    assert "not shown" in answer.describe("mup")


def test_depth_rules_are_held_to_the_stream_not_to_the_branches() -> None:
    def measure(specs: Sequence[RunSpec], steps: int) -> Any:
        measured = plant(grows_under_standard, noise=0.0)(specs, steps)
        for name, values in measured.changes.items():
            if name.endswith("attention"):
                measured.changes[name] = values / specs[0].model.depth  # as depth-muP has it
        return measured

    answer = check_coordinates(make_study("completep"), CORPUS, measure)
    (depth,) = [check for check in answer.checks if check.ladder == "depth"]
    assert depth.places == (2, 4, 8, 16)
    assert [layer.layer for layer in depth.layers] == [
        "embedding",
        "half-way stream",
        "last stream",
        "norm",
        "logits",
    ]
    assert answer.passes("completep")


def test_small_models_get_more_seeds_and_all_train_at_the_middle_of_the_searched_rates() -> None:
    seen: dict[int, set[int]] = {}
    rates = set()

    def measure(specs: Sequence[RunSpec], steps: int) -> Any:
        seen[specs[0].model.width] = {spec.seed for spec in specs}
        rates.update(spec.training.peak_lr for spec in specs)
        return plant(grows_under_standard)(specs, steps)

    study = make_study("mup")
    check_coordinates(study, CORPUS, measure)
    assert {width: len(seeds) for width, seeds in seen.items()} == {64: 12, 128: 12, 256: 6, 512: 3}
    assert rates == {choose_lr(study)}
    assert choose_lr(study) == pytest.approx(2**-7)


def test_runs_of_others_cannot_be_checked() -> None:
    study = make_study("mup", trainable="package.module:train")
    with pytest.raises(InputError, match=r"coordcheck.*package\.module:train"):
        check_coordinates(study, CORPUS, plant(grows_under_standard))


def test_the_figure_shows_every_layer_with_its_verdict() -> None:
    answer: CoordinateAnswer = check_coordinates(make_study("mup"), CORPUS, plant(grows_under_standard))
    figure = draw_coordinates(answer)
    panels = figure.axes
    assert [ax.get_xlabel() for ax in panels] == ["width", "width"]
    legend = panels[1].get_legend()
    assert legend is not None
    assert any(text.get_text().endswith("fails") for text in legend.get_texts())
    assert not any(text.get_text().endswith("fails") for text in panels[0].get_legend().get_texts())
