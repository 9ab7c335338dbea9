"""The tables of a study file, one frozen model each; every field has a docstring with meaning, unit and range.

What concerns one table alone is checked here; what concerns several is checked in `study.py`.
"""

from foretune.sections.base import NAME_PATTERN, PARAMETRIZATIONS, RUN_LIMIT, Parametrization, Section, as_tuple
from foretune.sections.data import DataSection, DomainSection
from foretune.sections.halving import HalvingSection
from foretune.sections.online import MixtureLearningSection, ReferenceSection, SelfTuningSection
from foretune.sections.population import PopulationSection, ReplaySection
from foretune.sections.proxy import ExpertsSection, ProxySection, ScaleSection
from foretune.sections.purpose import BudgetSection, StudySection, TargetSection
from foretune.sections.runner import Compile, RunnerSection, SurfaceSection
from foretune.sections.search import PointSection, SearchSection, VerificationSection
from foretune.sections.spaces import VARIABLE, BranchSection, Leaf
from foretune.sections.training import ADAMW, LR_FREE, Optimizer, Reweighting, Schedule, TrainingSection

__all__ = [
    "ADAMW",
    "LR_FREE",
    "NAME_PATTERN",
    "PARAMETRIZATIONS",
    "RUN_LIMIT",
    "VARIABLE",
    "BranchSection",
    "BudgetSection",
    "Compile",
    "DataSection",
    "DomainSection",
    "ExpertsSection",
    "HalvingSection",
    "Leaf",
    "MixtureLearningSection",
    "Optimizer",
    "Parametrization",
    "PointSection",
    "PopulationSection",
    "ProxySection",
    "ReferenceSection",
    "ReplaySection",
    "Reweighting",
    "RunnerSection",
    "ScaleSection",
    "Schedule",
    "SearchSection",
    "Section",
    "SelfTuningSection",
    "StudySection",
    "SurfaceSection",
    "TargetSection",
    "TrainingSection",
    "VerificationSection",
    "as_tuple",
]
