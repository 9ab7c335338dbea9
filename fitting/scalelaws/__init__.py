"""Scaling laws from finished runs: fit the small, forecast the large, with honest intervals.

    fitted = scalelaws.fit("lr_batch", scalelaws.Observations.from_frame(frame))
    print(scalelaws.forecast(fitted, scalelaws.Target(7e9, 1.4e12)).to_dict())

Needs numpy only to import; figures live in `scalelaws.figures`.
"""

from scalelaws.allocation import allocate
from scalelaws.estimation import fit
from scalelaws.forecasting import forecast
from scalelaws.laws import (
    LAWS,
    PUBLISHED,
    CellOptimum,
    Chinchilla,
    FitOptions,
    Law,
    LawEntry,
    OptimumLaw,
    PowerLaw,
    PublishedLoss,
    PublishedSettings,
    find_cell_optima,
    get_law,
    get_published,
    list_laws,
)
from scalelaws.observations import Exclusion, ObservationError, Observations
from scalelaws.optima import Optimum, find_basin_optimum, find_surface_optimum
from scalelaws.results import Allocation, Estimate, Evidence, Fit, FitError, Forecast, Status, Target
from scalelaws.transfer import Drift, compare_drifts, measure_drift

__all__ = [
    "LAWS",
    "PUBLISHED",
    "Allocation",
    "CellOptimum",
    "Chinchilla",
    "Drift",
    "Estimate",
    "Evidence",
    "Exclusion",
    "Fit",
    "FitError",
    "FitOptions",
    "Forecast",
    "Law",
    "LawEntry",
    "ObservationError",
    "Observations",
    "Optimum",
    "OptimumLaw",
    "PowerLaw",
    "PublishedLoss",
    "PublishedSettings",
    "Status",
    "Target",
    "allocate",
    "compare_drifts",
    "find_basin_optimum",
    "find_cell_optima",
    "find_surface_optimum",
    "fit",
    "forecast",
    "get_law",
    "get_published",
    "list_laws",
    "measure_drift",
]
