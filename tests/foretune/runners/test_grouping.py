"""Packs of runs: each run in exactly one, families undivided, slots filled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from foretune.records import Phase, RunSpec
from foretune.runners.grouping import Group, find_families, group_runs, sum_savings
from foretune.runners.sizing import Sizer, Timing
from foretune.sections import RunnerSection
from foretune.training.packing import find_trunks
from foretune_factories import make_spec

HORIZONS = (20, 30, 50, 80, 130)


def refuse(specs: Sequence[RunSpec], most: int) -> Timing:
    raise AssertionError("a size that is given must not be measured")


def group(specs: Sequence[RunSpec], slots: int = 1, **options: Any) -> list[Group]:
    section = RunnerSection(**options)
    return group_runs(specs, section, slots, Sizer(section, refuse))


def sizes(groups: Sequence[Group]) -> list[list[int]]:
    return [sorted(map(len, found.packs), reverse=True) for found in groups]


def rates(count: int, **overrides: Any) -> list[RunSpec]:
    return [make_spec(peak_lr=0.001 * (1 + number), **overrides) for number in range(count)]


def horizons(decay_steps: int = 5, **overrides: Any) -> list[RunSpec]:
    return [make_spec(steps=steps, decay_steps=decay_steps, **overrides) for steps in HORIZONS]


@pytest.mark.parametrize(
    ("runs", "slots", "pack", "expected"),
    [
        (12, 1, 64, [12]),
        (12, 2, 64, [6, 6]),
        (13, 2, 64, [7, 6]),
        (9, 4, 64, [3, 2, 2, 2]),
        (12, 2, 4, [4, 4, 4]),
        (3, 8, 64, [1, 1, 1]),
        (4, 1, 1, [1, 1, 1, 1]),
    ],
)
def test_packs_fill_the_slots_and_then_grow(runs: int, slots: int, pack: int, expected: list[int]) -> None:
    assert sizes(group(rates(runs), slots, pack=pack)) == [expected]


def test_shapes_share_the_slots_by_what_they_cost() -> None:
    groups = group([*rates(8, width=32), *rates(8, width=128)], 4, pack=64)
    assert sizes(groups) == [[8], [2, 2, 2, 2]]
    assert groups[1].flops > 9 * groups[0].flops


def test_a_family_is_one_row_of_its_pack() -> None:
    """Decays that do not overlap are trained one after the other, each from a copy of the trunk."""
    section = RunnerSection()
    (family,) = find_families(horizons(decay_steps=10), section)
    assert family.runs[0].training.steps == max(HORIZONS)
    assert family.rows == 2
    assert family.steps == 130 + 4 * 10
    (family,) = find_families(horizons(decay_steps=19), section)
    assert family.rows == 3, "20 and 30 decay at the same time for a while"


def test_families_are_never_divided_nor_joined_where_each_run_trains_alone() -> None:
    specs = [*horizons(peak_lr=0.01), *horizons(peak_lr=0.02)]
    assert sizes(group(specs, pack=1)) == [[5, 5]]
    assert sizes(group(specs, pack=1, share_trunks=False)) == [[1] * 10]
    assert sizes(group(specs, pack=4)) == [[10]]


def test_savings_are_the_trunks_that_are_not_repeated() -> None:
    specs = horizons(decay_steps=10)
    saved = sum_savings(specs, RunnerSection())
    shared_steps = sum(steps - 10 for steps in HORIZONS[:-1])
    assert (saved.runs, saved.tokens) == (4, shared_steps * specs[0].training.batch_tokens)
    whole = sum(spec.compute_flops for spec in specs)
    assert whole - saved.flops == pytest.approx(group(specs, pack=1)[0].flops)
    assert sum_savings(specs, RunnerSection(share_trunks=False)).tokens == 0


def test_what_parents_have_done_is_not_to_do() -> None:
    """Runs that go on from different parents are packed, and cost what is left of them."""
    roots = rates(4, stop_step=10)
    children = [
        spec.model_copy(update={"stop_step": 25, "parent_run_id": spec.run_id, "parent_step": 10}) for spec in roots
    ]
    (found,) = group(children, pack=4)
    assert sizes([found]) == [[4]]
    assert (found.steps, found.rows) == (4 * 15, 4)
    assert found.flops == pytest.approx(15 / 10 * group(roots, pack=4)[0].flops)
    assert found.flops == sum(spec.own_flops for spec in children)


def test_runs_that_change_end_early_or_go_on_share_no_trunk() -> None:
    plain = horizons()
    phase = Phase(start_step=3, settings={"weight_decay": 0.3})
    for change in ({"stop_step": 12}, {"phases": (phase,)}, {"parent_run_id": "0" * 16, "parent_step": 3}):
        changed = [spec.model_copy(update=change) for spec in horizons()]
        assert find_trunks(changed) == {}
        assert find_trunks([*plain, *changed]) == find_trunks(plain)
        assert sizes(group(changed, pack=64)) == [[5]]


def test_a_trainer_of_somebody_else_is_never_packed() -> None:
    specs = rates(3, trainer="toy_trainers:train_toy")
    assert sizes(group(specs, pack=64)) == [[1], [1], [1]]
    assert [line for found in group(specs, pack=64) for line in found.notes()] == []


def test_every_run_is_in_exactly_one_pack() -> None:
    generator = random.Random(0)
    specs = {
        spec.run_id: spec
        for spec in (
            make_spec(
                width=generator.choice([32, 64]),
                peak_lr=generator.choice([0.01, 0.02, 0.03]),
                seed=generator.choice([0, 1, 2]),
                steps=generator.choice(HORIZONS),
                schedule=generator.choice(["wsd", "cosine"]),
                decay_steps=5,
            )
            for _ in range(150)
        )
    }
    for slots in (1, 3, 16):
        for pack in (1, 2, 5, 64):
            groups = group(list(specs.values()), slots, pack=pack)
            packed = [spec.run_id for found in groups for runs in found.packs for spec in runs]
            assert sorted(packed) == sorted(specs)
            assert all(runs for found in groups for runs in found.packs)
            assert all(1 <= found.rows <= max(pack, 2) for found in groups)
