"""The coordinate check of a study: does what the updates change keep its size as width and depth grow?

The first of the two gates before runs of different sizes count as transferable; the second is the optimum itself
(`foretune transfer`), because coordinates can agree while the optimum moves. Needs no torch until it measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.records import RunSpec, hash_content
from foretune.sections import ScaleSection
from foretune.study import Study
from foretune.variation import list_rates

if TYPE_CHECKING:
    from foretune.proxies.coordinates import Coordinates

STEPS = 4
"""Steps that are trained; each of them is judged."""
SLOPE_LIMIT = 0.1
"""Largest exponent of the width, or of the depth, in what a layer's updates change (a choice; under standard
parametrization it is about 1)."""
FEWEST_SEEDS, MOST_SEEDS = 3, 12
"""Runs of the largest model and of the smallest ones, whose coordinates scatter more and cost less."""
STREAM = ".stream"
"""How the name of the residual stream after a block ends."""
FACTORS = (1, 2, 4, 8)
"""The ladder over its smallest place."""
SMALLEST_WIDTH = 64
"""The ladder of widths begins here: below, features overlap by chance, which fades as 1 / sqrt(width) and would pass
for a slope (measured: from 32 on the logits of a decoder of four blocks have -.14 at the first step, from 64 on -.06).
"""
CONTROL = "standard"
"""The parametrization that has to fail on the same widths: if it does not, the check could not see a fault."""
DEPTH_RULES = ("depth-mup", "completep")
"""Parametrizations that claim more than the width."""

Ladder = Literal["width", "depth"]
Measured = tuple[NDArray[np.float64], ...]
"""Root mean squares of one layer: for each place of a ladder, [steps, seeds]."""
Measure = Callable[[Sequence[RunSpec], int], "Coordinates"]
"""Trains runs of one shape, one for each seed, for so many steps, and measures their layers."""


@dataclass(frozen=True)
class LayerCheck:
    """One layer along one ladder."""

    layer: str
    change_slopes: tuple[float, ...]
    """Exponent of the width (or depth) in the change since the start, after step 1, 2, ...; mean of the seeds."""
    change_errors: tuple[float, ...]
    """Its standard error between seeds."""
    size_slopes: tuple[float, ...]
    """The exponent in the size of the output itself, before training and after every step, for reading."""

    @property
    def passed(self) -> bool:
        """Whether every step stays within the limit."""
        return all(abs(slope) < SLOPE_LIMIT for slope in self.change_slopes)

    @property
    def worst(self) -> float:
        """The slope that is farthest from zero."""
        return max(self.change_slopes, key=abs)


@dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """All layers of one parametrization along one ladder."""

    parametrization: str
    ladder: Ladder
    places: tuple[int, ...]
    """Widths or depths."""
    layers: tuple[LayerCheck, ...]
    changes: Mapping[str, Measured] = field(repr=False)
    """By layer, one [steps, seeds] for each place: what is drawn."""

    @property
    def passed(self) -> bool:
        """Whether every layer passes."""
        return all(layer.passed for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The check as plain data."""
        return {
            "parametrization": self.parametrization,
            "ladder": self.ladder,
            "places": list(self.places),
            "passed": self.passed,
            "layers": [{**vars(layer), "passed": layer.passed} for layer in self.layers],
        }


@dataclass(frozen=True, eq=False)
class CoordinateAnswer:
    """What the check says of a study."""

    checks: tuple[CoordinateCheck, ...]
    peak_lr: float
    """Learning rate of the steps."""

    @property
    def has_power(self) -> bool:
        """Whether the control fails, as it must."""
        return not next(check for check in self.checks if check.parametrization == CONTROL).passed

    def passes(self, parametrization: str) -> bool:
        """Whether a parametrization keeps its changes on every ladder, by a check that could have failed."""
        own = [check for check in self.checks if check.parametrization == parametrization]
        return self.has_power and parametrization != CONTROL and all(check.passed for check in own)

    def describe(self, parametrization: str) -> str:
        """The verdict on one parametrization, as a sentence."""
        if parametrization == CONTROL:
            return f"{CONTROL}: {'fails, as it must' if self.has_power else 'passes'}; it claims no transfer over width"
        if not self.has_power:
            return f"{parametrization}: not shown, since {CONTROL} passes too: the widths or steps are too few to tell"
        failed = [
            f"{layer.layer} ({layer.worst:+.2f} over {check.ladder})"
            for check in self.checks
            if check.parametrization == parametrization
            for layer in check.layers
            if not layer.passed
        ]
        limit = f"|slope| < {SLOPE_LIMIT:g} in steps 1 to {STEPS}"
        return f"{parametrization}: " + (f"fails at {', '.join(failed)}" if failed else f"passes, every layer {limit}")

    @property
    def parametrizations(self) -> tuple[str, ...]:
        """Those that were checked, the control last."""
        names = dict.fromkeys(check.parametrization for check in self.checks)
        return tuple(sorted(names, key=lambda name: name == CONTROL))

    def rows(self, parametrization: str = "") -> list[dict[str, Any]]:
        """A row for every layer and ladder, of one parametrization or of all."""
        return [
            {
                "parametrization": check.parametrization,
                "over": f"{check.ladder} {check.places[0]}-{check.places[-1]}",
                "layer": layer.layer,
                **{f"step_{step}": round(slope, 3) for step, slope in enumerate(layer.change_slopes, 1)},
                "error": round(max(layer.change_errors), 3),
                "size": round(layer.size_slopes[-1], 3),
                "verdict": "passes" if layer.passed else "fails",
            }
            for check in self.checks
            if parametrization in ("", check.parametrization)
            for layer in check.layers
        ]

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        return {
            "limit": SLOPE_LIMIT,
            "steps": STEPS,
            "seeds": [FEWEST_SEEDS, MOST_SEEDS],
            "peak_lr": self.peak_lr,
            "control_fails": self.has_power,
            "verdicts": {
                name: {"passed": self.passes(name), "message": self.describe(name)} for name in self.parametrizations
            },
            "checks": [check.to_dict() for check in self.checks],
        }


def check_coordinates(study: Study, corpus: CorpusFacts, measure: Measure) -> CoordinateAnswer:
    """Train every parametrization of a study, and the control, for a few steps along the ladders that it claims.

    Raises InputError for a study whose runs this package does not train itself.
    """
    if study.runner.kind == "replay" or study.trainable:
        raise InputError(
            "coordcheck trains the proxies of this package; this study's runs are "
            + ("replayed" if study.runner.kind == "replay" else f"trained by {study.trainable}")
        )
    peak_lr = choose_lr(study)
    names = dict.fromkeys((*(study.search.axis("parametrization") or (study.proxy.parametrization,)), CONTROL))
    checks = [
        _check_ladder(study, corpus, name, ladder, peak_lr, measure) for name in names for ladder in _list_ladders(name)
    ]
    return CoordinateAnswer(tuple(checks), peak_lr)


def fingerprint_proxy(study: Study) -> str:
    """What the check depends on besides the parametrization: another model or optimizer needs another check."""
    proxy = study.proxy.model_dump(mode="json", exclude={"across_widths", "parametrization"})
    return hash_content([proxy, study.training.optimizer])


def choose_lr(study: Study) -> float:
    """The geometric middle of the searched learning rates: a rate that one would train at."""
    rates = list_rates(study)
    if not rates:
        raise InputError("coordcheck: the learning rate follows a rule of the space; give it values for this check")
    return math.exp(math.fsum(math.log(rate) for rate in rates) / len(rates))


def _list_ladders(parametrization: str) -> tuple[Ladder, ...]:
    return ("width", "depth") if parametrization in DEPTH_RULES else ("width",)


def _check_ladder(
    study: Study, corpus: CorpusFacts, parametrization: str, ladder: Ladder, peak_lr: float, measure: Measure
) -> CoordinateCheck:
    rungs = list(_list_rungs(study, ladder))
    places = tuple(rung.width if ladder == "width" else rung.depth for rung in rungs)
    measured = [
        measure(_resolve_seeds(study, rung, corpus, parametrization, peak_lr, _count_seeds(place, places)), STEPS)
        for rung, place in zip(rungs, places, strict=True)
    ]
    changes = _align([item.changes for item in measured], ladder)
    sizes = _align([item.sizes for item in measured], ladder)
    return CoordinateCheck(
        parametrization, ladder, places, tuple(_check_layers(np.log(places), changes, sizes)), changes
    )


def _count_seeds(place: int, places: tuple[int, ...]) -> int:
    """Seeds in proportion to the cost of a run."""
    return min(MOST_SEEDS, FEWEST_SEEDS * max(places) // place)


def _list_rungs(study: Study, ladder: Ladder) -> Iterator[ScaleSection]:
    """The models of a ladder; the other size is the base's."""
    proxy = study.proxy
    unit = proxy.head_size * proxy.queries_per_key
    width = math.ceil(SMALLEST_WIDTH / unit) * unit
    shallowest = max(2, proxy.depth)  # in a single block the middle of the stream is its end
    horizon = study.scales[0].tokens
    for factor in FACTORS:
        wide, deep = (width * factor, proxy.depth) if ladder == "width" else (width, shallowest * factor)
        yield ScaleSection(name=f"w{wide}-l{deep}", width=wide, depth=deep, tokens=horizon)


def _resolve_seeds(
    study: Study, rung: ScaleSection, corpus: CorpusFacts, parametrization: str, peak_lr: float, seeds: int
) -> list[RunSpec]:
    """The runs of one model; micro-batches are of no use on a batch so small."""
    point = {"parametrization": parametrization, "peak_lr": peak_lr}
    specs = [resolve_run(study, rung, {**point, "seed": study.study.seed + i}, corpus) for i in range(seeds)]
    return [
        spec.model_copy(update={"training": spec.training.model_copy(update={"accumulation_steps": 1})})
        for spec in specs
    ]


def _align(measured: Sequence[Mapping[str, NDArray[np.float64]]], ladder: Ladder) -> dict[str, Measured]:
    """By layer, over the places; along the depth, the stream instead of the branches."""
    if ladder == "depth":
        measured = [_name_by_position(layers) for layers in measured]
    return {name: tuple(layers[name] for layers in measured) for name in measured[0]}


def _name_by_position(layers: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """What models of every depth have: the stream half way and at the end, and the layers outside of the blocks.

    A branch may change less in a deeper model, by the rule of depth-muP for instance: what must not is their sum.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in layers if name.endswith(STREAM))
    named = {name: values for name, values in layers.items() if not re.search(r"\.\d+\.", name)}
    places = {"half-way stream": (depth + 1) // 2 - 1, "last stream": depth - 1}
    streams = {place: layers[f"blocks.{number}{STREAM}"] for place, number in places.items()}
    return {"embedding": named.pop("embedding"), **streams, **named}


def _check_layers(
    logs: NDArray[np.float64], changes: Mapping[str, Measured], sizes: Mapping[str, Measured]
) -> Iterator[LayerCheck]:
    for name, values in changes.items():
        slopes, errors = fit_slopes(logs, values)
        yield LayerCheck(
            layer=name,
            change_slopes=tuple(slopes.tolist()),
            change_errors=tuple(errors.tolist()),
            size_slopes=tuple(fit_slopes(logs, sizes[name])[0].tolist()),
        )


def fit_slopes(logs: NDArray[np.float64], values: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares exponents of values in places given by their logs, and their standard errors, each [steps].

    A layer that never moves has slope 0: it moves alike everywhere. One that is not finite any more has moved by the
    largest number that there is.
    """
    smallest, largest = np.finfo(float).tiny, np.finfo(float).max
    seen = [np.log(np.clip(np.nan_to_num(place, nan=largest), smallest, largest)) for place in values]  # steps, seeds
    means = np.stack([place.mean(axis=1) for place in seen])
    errors = np.stack([place.std(axis=1, ddof=1) / math.sqrt(place.shape[1]) for place in seen])
    weights = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)
    return weights @ means, np.sqrt(weights**2 @ errors**2)
