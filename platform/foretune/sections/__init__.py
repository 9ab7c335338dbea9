"""The tables of a study file, one frozen model each; every field has a docstring with meaning, unit and range.

What concerns one table alone is checked here; what concerns several is checked in `study.py`.
"""

from foretune.sections.base import NAME_PATTERN, PARAMETRIZATIONS, RUN_LIMIT, Parametrization, Section, as_tuple
from foretune.sections.data import DataSection, DomainSection
from foretune.sections.proxy import ExpertsSection, ProxySection, ScaleSection
from foretune.sections.purpose import BudgetSection, StudySection, TargetSection
from foretune.sections.runner import Compile, RunnerSection, SurfaceSection
from foretune.sections.search import VARIABLE, PointSection, SearchSection, VerificationSection
from foretune.sections.training import LR_FREE, Optimizer, Schedule, TrainingSection

__all__ = [
    "LR_FREE",
    "NAME_PATTERN",
    "PARAMETRIZATIONS",
    "RUN_LIMIT",
    "VARIABLE",
    "BudgetSection",
    "Compile",
    "DataSection",
    "DomainSection",
    "ExpertsSection",
    "Optimizer",
    "Parametrization",
    "PointSection",
    "ProxySection",
    "RunnerSection",
    "ScaleSection",
    "Schedule",
    "SearchSection",
    "Section",
    "StudySection",
    "SurfaceSection",
    "TargetSection",
    "TrainingSection",
    "VerificationSection",
    "as_tuple",
]
