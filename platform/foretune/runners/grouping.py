"""Which runs are handed to a worker together: packs of one shape, families with a common trunk undivided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foretune.records import RunSpec
from foretune.runners.sizing import PackSize, Sizer
from foretune.sections import RunnerSection
from foretune.training.packing import find_trunks, group_by, pack_key


@dataclass(frozen=True)
class Family:
    """Runs that begin as copies of one of them; mostly a run alone."""

    runs: tuple[RunSpec, ...]
    """The one that leads first."""
    rows: int
    """Most of them that train at the same time: the others wait for their decay, or have ended."""
    steps: int
    """Optimizer steps of all of them, those of the trunk once and those of a parent not at all."""
    flops: float
    """What they cost together, the trunk once."""


@dataclass(frozen=True)
class Group:
    """The packs of one shape."""

    packs: tuple[tuple[RunSpec, ...], ...]
    size: PackSize
    """How many were meant to train together, and why."""
    rows: int
    """Runs of a pack that train at the same time, in the mean over its steps, rounded."""
    steps: int
    """Optimizer steps of all runs, those of a shared trunk once."""
    flops: float
    """What all of them cost."""

    def notes(self) -> list[str]:
        """A line for people; none for a run alone."""
        spec = self.packs[0][0]
        runs, largest = sum(map(len, self.packs)), max(map(len, self.packs))
        if runs == 1:
            return []
        shape = f"width {spec.model.width}, depth {spec.model.depth}, {spec.training.batch_tokens} tokens a step"
        return [f"{shape}: {runs} runs in {len(self.packs)} packs of at most {largest}; {self.size.reason}"]


@dataclass(frozen=True)
class Savings:
    """What shared trunks save."""

    runs: int
    """Runs that begin on the trunk of another."""
    tokens: int
    """Training tokens that they need not see."""
    flops: float
    """Training FLOPs of these."""


def group_runs(specs: Sequence[RunSpec], section: RunnerSection, slots: int, sizer: Sizer) -> list[Group]:
    """The packs of these runs, by shape. Each shape first fills its share of the slots, then its packs grow."""
    shapes = [find_families(runs, section) for runs in group_by(specs, pack_key)]
    total = sum(family.flops for families in shapes for family in families)
    groups = []
    for families in shapes:
        flops = sum(family.flops for family in families)
        least = min(len(families), math.ceil(slots * flops / total - 1e-9))
        most = math.ceil(sum(family.rows for family in families) / least)
        size = sizer.choose([spec for family in families for spec in family.runs], most)
        packs = deal_families(families, size.rows, least)
        runs = tuple(tuple(spec for family in pack for spec in family.runs) for pack in packs)
        steps = sum(family.steps for family in families)
        rows = round(steps / sum(max(spec.last_step - spec.parent_step for spec in pack) for pack in runs))
        groups.append(Group(runs, size, rows, steps, flops))
    return groups


def find_families(specs: Sequence[RunSpec], section: RunnerSection) -> list[Family]:
    """Runs by the trunk that they share, the costliest family first; each is its own where none is to be shared."""
    trunks = find_trunks(specs) if section.share_trunks else {}
    members = group_by(specs, lambda spec: trunks.get(spec.run_id, (spec.run_id, 0))[0])
    families = [_make_family(sorted(runs, key=lambda spec: spec.run_id in trunks), trunks) for runs in members]
    return sorted(families, key=lambda family: (-family.flops, family.runs[0].run_id))


def deal_families(families: Sequence[Family], rows: int, least: int) -> list[list[Family]]:
    """At least `least` packs of about the same cost, in which at most `rows` runs train at the same time.

    A family is never divided, so that one with more rows makes a pack of its own.
    """
    count = max(least, math.ceil(sum(family.rows for family in families) / rows))
    packs: list[list[Family]] = [[] for _ in range(min(count, len(families)))]
    for family in families:
        open_packs = [pack for pack in packs if not pack or sum(one.rows for one in pack) + family.rows <= rows]
        if not open_packs:
            open_packs = [list[Family]()]
            packs += open_packs
        min(open_packs, key=lambda pack: sum(one.flops for one in pack)).append(family)
    return packs


def sum_savings(specs: Sequence[RunSpec], section: RunnerSection) -> Savings:
    """What shared trunks save of the cost of these runs, each alone."""
    trunks = find_trunks(specs) if section.share_trunks else {}
    shared = [(spec, spec.training.tokens_at(trunks[spec.run_id][1])) for spec in specs if spec.run_id in trunks]
    flops = sum(spec.flops_per_token * tokens for spec, tokens in shared)
    return Savings(len(shared), sum(tokens for _, tokens in shared), float(flops))


def _make_family(runs: Sequence[RunSpec], trunks: Mapping[str, tuple[str, int]]) -> Family:
    began = [trunks.get(spec.run_id, ("", spec.parent_step))[1] for spec in runs]
    ended = [spec.last_step for spec in runs]
    rows = max(sum(start <= step < end for start, end in zip(began, ended, strict=True)) for step in began)
    flops = sum(_own_flops(spec, start) for spec, start in zip(runs, began, strict=True))
    return Family(tuple(runs), max(1, rows), sum(ended) - sum(began), flops)


def _own_flops(spec: RunSpec, first_step: int) -> float:
    """Training FLOPs from a step on."""
    tokens = spec.tokens - spec.training.tokens_at(first_step)
    return float(spec.flops_per_token * tokens)
