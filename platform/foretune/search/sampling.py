"""Points of a space: those of its grid, and those that a sampler chooses coordinate by coordinate down the tree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.sections import BranchSection, Leaf, ScaleSection, SearchSection
from foretune.sections.spaces import is_whole
from foretune.space import Derived, Dimension, LinearRange, LogRange, Simplex
from foretune.study import Study

if TYPE_CHECKING:
    import numpy as np

REDRAWS = 50
"""Draws per point after which a space is taken to have no further points (assumption; only lists run out of them)."""
Point = dict[str, Any]


@dataclass(frozen=True)
class Coordinate:
    """One choice that a sampler makes."""

    name: str
    """The key, behind the branches that lead to it; shares of a mixture are numbered."""
    count: int = 0
    """Values to choose from, by number; 0: a real share in [0, 1] of a range."""
    is_ordered: bool = True
    """Whether neighbouring numbers are alike."""


Choose = Callable[[Coordinate], float]
"""Answers a coordinate: with a share in [0, 1], or with the number of a value."""


def list_rungs(study: Study) -> list[ScaleSection]:
    """The rungs that are searched: all but the one that is held out for verification."""
    held_out = study.verification.scale if study.verification else ""
    return [scale for scale in study.scales if scale.name != held_out]


def list_seeds(study: Study) -> tuple[int, ...]:
    """The seeds with which every setting is run."""
    return study.search.axis("seed") or (study.study.seed,)


def count_grid(search: SearchSection) -> int:
    """Points of the grid, over all branches."""
    return sum(math.prod(_count_values(leaf, key) for key in leaf.space) for leaf in search.leaves())


def list_grid(search: SearchSection, domains: Sequence[str]) -> Iterator[Point]:
    """Every combination of the values of a branch, branch by branch."""
    for leaf in search.leaves():
        axes = {key: _list_values(leaf, key, domains) for key in leaf.space}
        axes = {key: values for key, values in axes.items() if not isinstance(leaf.space[key], Derived)}
        label = {"branch": leaf.name} if leaf.name else {}
        for values in itertools.product(*axes.values()):
            yield {**dict(zip(axes, values, strict=True)), **label}


def find_grid_problems(search: SearchSection) -> list[str]:
    """The dimensions that have no grid, with what to try."""
    return [
        f"{leaf.places[key]}: a grid needs {'points' if isinstance(dimension, Simplex) else 'a step'}, how "
        'finely it is searched; give it, or take strategy = "random"'
        for leaf in search.leaves()
        for key, dimension in leaf.space.items()
        if not _count_values(leaf, key)
    ]


def find_mixture_problems(search: SearchSection, domains: Sequence[str]) -> list[str]:
    """What is wrong with bounds on a mixture for the domains of the corpus."""
    found = [
        f"{leaf.places[key]}.{problem}"
        for leaf in search.leaves()
        for key, dimension in leaf.space.items()
        if isinstance(dimension, Simplex)
        for problem in dimension.find_problems(domains)
    ]
    return list(dict.fromkeys(found))


def _count_values(leaf: Leaf, key: str) -> int:
    dimension = leaf.space[key]
    if isinstance(dimension, Derived):
        return 1
    return dimension.points if isinstance(dimension, Simplex) else len(leaf.axis(key))


def _list_values(leaf: Leaf, key: str, domains: Sequence[str]) -> Sequence[Any]:
    dimension = leaf.space[key]
    return list_mixtures(dimension, domains) if isinstance(dimension, Simplex) else leaf.axis(key)


def list_mixtures(simplex: Simplex, domains: Sequence[str]) -> list[dict[str, float]]:
    """The mixtures of a grid: `points` of Halton's sequence (Halton 1960), of which more points are a continuation."""
    from scipy.stats import qmc  # half a second, which only samplers wait for

    engine = qmc.Halton(len(domains) - 1, scramble=False)
    engine.fast_forward(1)  # its first point is a corner
    return [simplex.place([float(share) for share in row], domains) for row in engine.random(simplex.points)]


def count_points(search: SearchSection) -> float:
    """Distinct settings of the space without its seeds; infinite where a number is real."""
    return float(_count_below(search.space, search.branches))


def _count_below(space: dict[str, Dimension], branches: Sequence[BranchSection]) -> float:
    counts = [coordinate.count or math.inf for key in space for coordinate in _list_coordinates(key, space[key], "", 3)]
    return math.prod(counts) * (sum(_count_below(item.space, item.branches) for item in branches) or 1)


def walk_tree(search: SearchSection, domains: Sequence[str], choose: Choose) -> Point:
    """The point at which one arrives by these choices; seeds and derived numbers are none of it."""
    point: Point = {}
    names: list[str] = []
    space, branches, path = search.space, search.branches, ""
    while True:
        point |= {key: _choose_value(key, space[key], path, domains, choose) for key in _list_searched(space)}
        if not branches:
            return {**point, "branch": "/".join(names)} if names else point
        taken = branches[_choose_number(Coordinate(f"{path}branch", len(branches), is_ordered=False), choose)]
        names.append(taken.name)
        point |= taken.set
        space, branches, path = taken.space, taken.branches, f"{path}{taken.name}/"


def _list_searched(space: dict[str, Dimension]) -> list[str]:
    return [key for key, dimension in space.items() if key != "seed" and not isinstance(dimension, Derived)]


def _list_coordinates(key: str, dimension: Dimension, path: str, domains: int) -> list[Coordinate]:
    if key not in _list_searched({key: dimension}):
        return []
    if isinstance(dimension, Simplex):
        return [Coordinate(f"{path}{key}.{place}") for place in range(domains - 1)]
    if isinstance(dimension, LogRange | LinearRange) and not is_whole(key):
        return [Coordinate(f"{path}{key}")]
    values = _list_ordered(key, dimension)
    return [Coordinate(f"{path}{key}", len(values), is_ordered=not isinstance(values[0], str | dict))]


def _list_ordered(key: str, dimension: Dimension) -> Sequence[Any]:
    """The values of a dimension that has finitely many; numbers by size, so that neighbours are alike."""
    values = Leaf("", {key: dimension}, {}).axis(key)
    return values if isinstance(values[0], str | dict) else sorted(values)


def _choose_value(key: str, dimension: Dimension, path: str, domains: Sequence[str], choose: Choose) -> Any:
    coordinates = _list_coordinates(key, dimension, path, len(domains))
    if isinstance(dimension, Simplex):
        return dimension.place([choose(coordinate) for coordinate in coordinates], domains)
    if isinstance(dimension, LogRange | LinearRange) and not coordinates[0].count:
        return dimension.place(choose(coordinates[0]))
    return _list_ordered(key, dimension)[_choose_number(coordinates[0], choose)]


def _choose_number(coordinate: Coordinate, choose: Choose) -> int:
    """A choice of one is none."""
    return int(choose(coordinate)) if coordinate.count > 1 else 0


def count_coordinates(search: SearchSection, domains: Sequence[str]) -> int:
    """Most choices on any way down the tree."""
    return _count_choices(search.space, search.branches, len(domains))


def _count_choices(space: dict[str, Dimension], branches: Sequence[BranchSection], domains: int) -> int:
    coordinates = [item for key in space for item in _list_coordinates(key, space[key], "", domains)]
    below = [_count_choices(item.space, item.branches, domains) for item in branches]
    return sum(item.count != 1 for item in coordinates) + (len(branches) > 1) + max(below, default=0)


@dataclass(frozen=True)
class Placed:
    """A point, and the choices that led to it."""

    point: Point
    """The settings, by their names in the space."""
    choices: dict[str, float]
    """The answer to each coordinate, by its name."""


def draw_points(
    search: SearchSection,
    domains: Sequence[str],
    rng: np.random.Generator,
    count: int,
    method: Literal["random", "qmc"] = "random",
) -> list[Placed]:
    """The first so many distinct points of a sequence; of a larger count they are the beginning.

    `random`: independent and uniform on every axis; `qmc`: a scrambled Sobol' sequence (Owen 1998), which fills the
    space more evenly. Fewer come back where the space has no more.
    """
    size = count_coordinates(search, domains)
    found: dict[str, Placed] = {}
    for unit in itertools.islice(draw_units(rng, size, method), REDRAWS * count if size else 1):
        placed = place_unit(search, domains, unit)
        found.setdefault(repr(placed.point), placed)
        if len(found) == count:
            break
    return list(found.values())


def draw_units(rng: np.random.Generator, size: int, method: Literal["random", "qmc"]) -> Iterator[Sequence[float]]:
    """Points of the unit cube without end."""
    if method == "random" or not size:
        while True:
            yield [float(share) for share in rng.random(size)]
    from scipy.stats import qmc  # half a second, which only samplers wait for

    engine = qmc.Sobol(size, scramble=True, seed=int(rng.integers(2**31)))
    while True:
        for row in engine.random(64):
            yield [float(share) for share in row]


def place_unit(search: SearchSection, domains: Sequence[str], unit: Sequence[float]) -> Placed:
    """The point of the space at a point of the unit cube, whose coordinates answer one choice after the other."""
    rest = iter(unit)

    def choose(coordinate: Coordinate) -> float:
        share = next(rest)
        return min(int(share * coordinate.count), coordinate.count - 1) if coordinate.count else share

    return place_choices(search, domains, choose)


def place_choices(search: SearchSection, domains: Sequence[str], choose: Choose) -> Placed:
    """The point at which one arrives by these choices, and what was chosen."""
    choices: dict[str, float] = {}

    def note(coordinate: Coordinate) -> float:
        choices[coordinate.name] = choose(coordinate)
        return choices[coordinate.name]

    return Placed(walk_tree(search, domains, note), choices)
