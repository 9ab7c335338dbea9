"""What the laws of the curve read of schedules, and the units in which their priors count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelaws.curves.records import Curves
from scalelaws.curves.schedules import Schedule, find_drops
from scalelaws.engines.nonlinear import Columns
from scalelaws.observations import FloatArray


@dataclass(frozen=True)
class Units:
    """Lowest loss, highest rate, and the summed rate of the longest run at that rate; all 1: as the papers count."""

    loss: float = 1.0
    lr: float = 1.0
    area: float = 1.0

    @classmethod
    def of(cls, curves: Curves) -> Units:
        """The units of these curves."""
        peak = max(curve.schedule.peak_lr for curve in curves)
        longest = max(curve.schedule.steps for curve in curves)
        return cls(min(float(curve.loss.min()) for curve in curves), peak, peak * longest)


def read_columns(pairs: Sequence[tuple[Schedule, FloatArray]], units: Units) -> Columns:
    """What the laws read of schedules at some steps: `progress` (n), and the falls of `schedules.Drops` (pairs).

    `progress` is S1 over `units.area`; rates and summed rates of falls are over `units.lr`; ages are in steps;
    `first` and `fallen` say at which pair the sum of a step begins, and which steps have one.
    """
    drops = [find_drops(schedule, step) for schedule, step in pairs]
    offsets = np.cumsum([0] + [len(step) for _, step in pairs])
    row = np.concatenate([item.row + offset for item, offset in zip(drops, offsets, strict=False)])
    fallen, first = np.unique(row, return_index=True)
    joined = {name: np.concatenate([getattr(item, name) for item in drops]) for name in ("fall", "lr", "area", "age")}
    scaled: dict[str, FloatArray] = {name: joined[name] / units.lr for name in ("fall", "lr", "area")}
    tiny = np.finfo(np.float64).tiny
    return {
        **scaled,
        "progress": np.concatenate([schedule.area(step) for schedule, step in pairs]) / units.area,
        "age": joined["age"],
        "log_lr": np.log(np.maximum(scaled["lr"], tiny)),
        "log_area": np.log(np.maximum(scaled["area"], tiny)),
        "fallen": fallen.astype(np.float64),
        "first": first.astype(np.float64),
    }


def add_up(values: FloatArray, columns: Columns, rows: int) -> FloatArray:
    """Sums (B, rows) of the pairs (B, pairs) of each step."""
    total = np.zeros((len(values), rows))
    fallen, first = columns["fallen"].astype(np.int64), columns["first"].astype(np.int64)
    if len(fallen):
        total[:, fallen] = np.add.reduceat(values, first, axis=1)
    return total
