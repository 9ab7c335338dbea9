"""Does the optimum stay where it is as the models grow? The second gate, from the runs of a study, and what it allows.

The first gate is `foretune coordcheck`; both have to pass before the optimum counts as the same at every size
(`[proxy] across_widths`), because coordinates can agree while the optimum moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.errors import InputError
from foretune.evidence import gather_observations, list_parametrizations
from foretune.records import hash_content
from foretune.sections import ADAMW
from foretune.study import Study
from scalelaws import Observations, PooledDrift, measure_pooled_drift
from scalelaws.observations import count_levels
from scalelaws.transfer import AXES

if TYPE_CHECKING:
    import pandas as pd

MEASURED = ("peak_lr", "batch_tokens", "weight_decay", "seed", "parametrization")
"""Dimensions of a space that ladders tell apart."""
EXPECTED_OVER_WIDTH = {"standard": "standard", "mup": "mup", "depth-mup": "mup", "completep": "mup"}
EXPECTED_OVER_DEPTH = {"depth-mup": "depth_mup", "completep": "completep"}
EXPECTED_OVER_BATCH: dict[str, str] = {**dict.fromkeys(ADAMW, "adam"), "adam": "adam", "sgd": "sgd"}
"""What scalelaws.transfer.EXPECTED leads to expect; the depth rules are muP over width."""


@dataclass(frozen=True, eq=False)
class BranchTransfer:
    """What the runs of one parametrization say."""

    parametrization: str
    drifts: Mapping[str, PooledDrift]
    """By axis, where there is a ladder."""
    unmeasured: Mapping[str, str]
    """By axis, why there is none."""
    needed: tuple[str, ...]
    """The axes over which the optimum must hold: width, and depth where the runs have several."""
    runs: int
    fingerprint: str
    """Of the runs that were judged: other runs need another verdict."""
    problem: str = ""
    """Why the runs say nothing at all."""

    @property
    def passed(self) -> bool:
        """Whether the optimum was seen to hold over every needed axis; undecided is not."""
        return not self.problem and all(
            axis in self.drifts and self.drifts[axis].verdict == "holds" for axis in self.needed
        )

    @property
    def message(self) -> str:
        """The verdict as a sentence with its numbers."""
        if self.problem:
            return f"not shown: {self.problem}"
        parts = [
            f"over {axis} it {self.drifts[axis].message}" if axis in self.drifts else self.unmeasured[axis]
            for axis in self.needed
        ]
        verdict = "passes" if self.passed else "fails" if self._drifts else "not shown"
        return f"{verdict}: {'; '.join(parts)}"

    @property
    def wanted(self) -> str:
        """Which runs would decide what is undecided; empty when nothing is, or when the gate failed already."""
        drifts = [] if self._drifts else [self.drifts[axis] for axis in self.needed if axis in self.drifts]
        return "; ".join(drift.wanted for drift in drifts if drift.wanted)

    @property
    def _drifts(self) -> bool:
        return any(axis in self.drifts and self.drifts[axis].verdict == "drifts" for axis in self.needed)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {
            "passed": self.passed,
            "message": self.message,
            "wanted": self.wanted,
            "needed": list(self.needed),
            "runs": self.runs,
            "fingerprint": self.fingerprint,
            "unmeasured": dict(self.unmeasured),
            "axes": {axis: drift.to_dict() for axis, drift in self.drifts.items()},
        }


@dataclass(frozen=True, eq=False)
class TransferAnswer:
    """What the runs of a study say of the optimum along every axis."""

    study: str
    branches: tuple[BranchTransfer, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for every place of every ladder."""
        return [
            {
                "parametrization": branch.parametrization,
                "over": axis,
                "fixed": ", ".join(f"{name} {value:g}" for name, value in ladder.fixed.items()),
                "place": float(place),
                "peak_lr": optimum.peak_lr.value,
                "low": optimum.low,
                "high": optimum.high,
                "status": optimum.message,
            }
            for branch in self.branches
            for axis, drift in branch.drifts.items()
            for ladder in drift.ladders
            for place, optimum in zip(ladder.drift.scale, ladder.drift.optima, strict=True)
        ]

    def describe(self) -> list[str]:
        """The verdicts, a line for each axis of each parametrization, then what the gate says of it."""
        lines = []
        for branch in self.branches:
            name = branch.parametrization
            lines += [f"{name}, over {axis}: {drift.message}" for axis, drift in branch.drifts.items()]
            lines += [f"{name}: {reason}" for axis, reason in branch.unmeasured.items() if axis in branch.needed]
            lines += [f"{name}: {branch.problem}"] if branch.problem else []
            lines += [f"{name}: what would decide it: {branch.wanted}"] if branch.wanted else []
            lines += [f"{name}: the gate is {'passed' if branch.passed else 'NOT passed'}"]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        branches = {branch.parametrization: branch.to_dict() for branch in self.branches}
        return {"study": self.study, "parametrizations": branches}


def measure_transfer(name: str, frame: pd.DataFrame, study: Study | None = None) -> TransferAnswer:
    """The optimum of every parametrization along width, depth, batch and horizon, from a run table.

    Runs that are held out to verify a forecast are left out: a gate that had seen them would let pass the very law that
    they are to check. `study` is None for runs that were imported. Raises InputError for runs that cannot be compared.
    """
    _check_space(study)
    seed = study.study.seed if study else 0
    names = list_parametrizations(frame) or [""]
    first = study.proxy.parametrization if study else names[0]
    ordered = sorted(names, key=lambda item: (item != first, names.index(item)))
    return TransferAnswer(name, tuple(_measure_branch(frame, item, seed) for item in ordered))


def fingerprint_runs(frame: pd.DataFrame, parametrization: str) -> str:
    """What the runs are that a verdict rests on, and how they ended."""
    kept = frame[frame["parametrization"].eq(parametrization)] if "parametrization" in frame else frame
    kept = kept[~kept["role"].isin(("verification", "retired"))] if "role" in kept else kept
    losses = kept["loss"].astype(object).where(kept["loss"].notna(), None)
    return hash_content(
        sorted([str(a), str(b), c] for a, b, c in zip(kept["run_id"], kept["status"], losses, strict=True))
    )


def _measure_branch(frame: pd.DataFrame, parametrization: str, seed: int) -> BranchTransfer:
    fingerprint = fingerprint_runs(frame, parametrization)
    try:
        observations = gather_observations(frame, parametrization=parametrization)
    except InputError as error:
        return BranchTransfer(parametrization, {}, {}, ("width",), 0, fingerprint, str(error))
    apart = ["weight_decay"] if _was_searched(observations, "weight_decay") else []
    drifts = (
        {
            axis: measure_pooled_drift(
                observations, axis, expected=_expect(axis, parametrization, observations), apart=apart, seed=seed
            )
            for axis in AXES
        }
        if observations.peak_lr is not None
        else dict.fromkeys(AXES)
    )
    found = {axis: drift for axis, drift in drifts.items() if drift is not None}
    unmeasured = {axis: _explain(axis) for axis, drift in drifts.items() if drift is None}
    depths = observations.covariates.get("depth")
    needed = ("width", "depth") if depths is not None and count_levels(depths) > 1 else ("width",)
    return BranchTransfer(parametrization, found, unmeasured, needed, len(observations), fingerprint)


def _explain(axis: str) -> str:
    along = AXES[axis]
    return f"no two {along.plural} were searched at one {', '.join(along.fixed)}: nothing is known over {axis}"


def _expect(axis: str, parametrization: str, observations: Observations) -> str:
    optimizer = observations.scope.get("optimizer", "")
    known = {
        "width": EXPECTED_OVER_WIDTH.get(parametrization, ""),
        "depth": EXPECTED_OVER_DEPTH.get(parametrization, ""),
        "batch": EXPECTED_OVER_BATCH.get(optimizer, ""),
        "horizon": "fixed_batch",
    }
    return known[axis]


def _was_searched(observations: Observations, name: str) -> bool:
    """Whether runs alike in size, horizon, batch, rate and seed differ in it; a decay that follows the rate is tied."""
    values = observations.covariates.get(name)
    if values is None or observations.peak_lr is None:
        return False
    columns = (observations.cell_index(), observations.peak_lr, observations.batch_tokens, observations.seed)
    rows = zip(*(column for column in columns if column is not None), strict=True)
    seen: dict[tuple[float, ...], float] = {}
    return any(seen.setdefault(tuple(map(float, row)), value) != value for row, value in zip(rows, values, strict=True))


def _check_space(study: Study | None) -> None:
    space = study.search.list_keys() if study else ()
    mixed = [key for key in space if key not in MEASURED and study and len(study.search.axis(key)) > 1]
    if mixed:
        raise InputError(
            f"search.space.{mixed[0]}: transfer compares optima that differ in one scale only, and this space varies "
            f"{mixed[0]} too; give each value a study of its own"
        )
