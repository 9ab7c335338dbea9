"""The list of laws: those that can be fitted and those that were published. A new law adds one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalelaws.laws.base import FitOptions, Law, LossLaw, SettingsDraws, SettingsLaw
from scalelaws.laws.broken import BrokenPowerLaw
from scalelaws.laws.compute_settings import ComputeOptimumLaw
from scalelaws.laws.critical_batch_law import CriticalBatchLaw
from scalelaws.laws.curve import Annealing, CurveLaw, MultiPower
from scalelaws.laws.downstream import ScoreLaw, ScorePowers, ScoreSigmoid, score_compute, score_single_step
from scalelaws.laws.joint_mixture import AdditiveMixture, JointMixture
from scalelaws.laws.kaplan import Kaplan
from scalelaws.laws.leverage import EfficiencyLeverage
from scalelaws.laws.loss import Chinchilla, PowerLaw, SumOfPowers
from scalelaws.laws.mixture import BiMix, DiminishingMixture, LogLinearMixture, MixtureLaw
from scalelaws.laws.nested_mixture import NestedMixture
from scalelaws.laws.power_schedule import PowerScheduleLaw
from scalelaws.laws.published import PUBLISHED, PublishedLoss, PublishedSettings, get_published
from scalelaws.laws.repetition import Repetition
from scalelaws.laws.settings import CellOptimum, OptimumLaw, find_cell_optima
from scalelaws.laws.sparsity import AverageParams
from scalelaws.laws.surface import ResponseSurface
from scalelaws.laws.trajectory import Trajectory
from scalelaws.laws.transferred import TransferredLaw
from scalelaws.laws.weight_decay import TimescaleLaw

LAWS: tuple[Law[Any], ...] = (
    ResponseSurface(),
    OptimumLaw(),
    TransferredLaw(),
    ComputeOptimumLaw(),
    PowerScheduleLaw(),
    PowerScheduleLaw(name="power_schedule_sqrt", batch_exponent=0.5),
    TimescaleLaw(),
    CriticalBatchLaw(),
    Chinchilla(),
    PowerLaw(variable="params"),
    PowerLaw(variable="tokens"),
    PowerLaw(variable="compute"),
    Kaplan(),
    BrokenPowerLaw(),
    Repetition(),
    AverageParams(),
    EfficiencyLeverage(),
    Trajectory(),
    LogLinearMixture(),
    DiminishingMixture(),
    BiMix(),
    NestedMixture(),
    AdditiveMixture(),
    JointMixture(),
    Annealing(),
    MultiPower(),
    ScoreSigmoid(),
    score_single_step(),
    score_compute(),
)

ALIASES = {"power_law": "power_law_params"}


@dataclass(frozen=True)
class LawEntry:
    """One line of the list of laws."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    scope: str
    source: str
    kind: str
    """`fitted` to runs, or `published` with constants."""

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data."""
        return {
            "name": self.name,
            "formula": self.formula,
            "parameters": list(self.parameters),
            "scope": self.scope,
            "source": self.source,
            "kind": self.kind,
        }


def get_law(name: str) -> Law[Any]:
    """The law of that name; raises ValueError with the known ones."""
    known = {law.name: law for law in LAWS}
    resolved = ALIASES.get(name, name)
    if resolved not in known:
        hint = f"; {name!r} is published, so predict with it instead of fitting it" if name in PUBLISHED else ""
        raise ValueError(f"there is no law {name!r} to fit; known are {', '.join(known)}{hint}")
    return known[resolved]


def list_laws() -> tuple[LawEntry, ...]:
    """Every law: those to fit first, then the published ones."""
    fitted = [LawEntry(law.name, law.formula, law.parameter_names, law.scope, law.source, "fitted") for law in LAWS]
    published = [
        LawEntry(law.name, law.formula, (), _describe(law), law.source, "published") for law in PUBLISHED.values()
    ]
    return (*fitted, *published)


def _describe(law: PublishedLoss | PublishedSettings) -> str:
    ranges = {"N": law.params_range, "D": law.tokens_range, "C": law.compute_range}
    seen = [f"{name} {span[0]:.3g} to {span[1]:.3g}" for name, span in ranges.items() if span is not None]
    return f"schedule {law.schedule}; N {law.params_convention}; C {law.compute_convention}; " + (
        "fitted on " + ", ".join(seen) if seen else "fitted range not recorded"
    )


__all__ = [
    "LAWS",
    "PUBLISHED",
    "AdditiveMixture",
    "Annealing",
    "AverageParams",
    "BiMix",
    "BrokenPowerLaw",
    "CellOptimum",
    "Chinchilla",
    "ComputeOptimumLaw",
    "CriticalBatchLaw",
    "CurveLaw",
    "DiminishingMixture",
    "EfficiencyLeverage",
    "FitOptions",
    "JointMixture",
    "Kaplan",
    "Law",
    "LawEntry",
    "LogLinearMixture",
    "LossLaw",
    "MixtureLaw",
    "MultiPower",
    "NestedMixture",
    "OptimumLaw",
    "PowerLaw",
    "PowerScheduleLaw",
    "PublishedLoss",
    "PublishedSettings",
    "Repetition",
    "ResponseSurface",
    "ScoreLaw",
    "ScorePowers",
    "ScoreSigmoid",
    "SettingsDraws",
    "SettingsLaw",
    "SumOfPowers",
    "TimescaleLaw",
    "Trajectory",
    "TransferredLaw",
    "find_cell_optima",
    "get_law",
    "get_published",
    "list_laws",
    "score_compute",
    "score_single_step",
]
