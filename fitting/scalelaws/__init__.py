"""Scaling laws from finished runs: fit the small, forecast the large, with honest intervals.

    fitted = scalelaws.fit("response_surface", scalelaws.Observations.from_frame(frame))
    print(scalelaws.forecast(fitted, scalelaws.Target(7e9, 1.4e12)).to_dict())

Needs numpy only to import; figures live in `scalelaws.figures`.
"""

from scalelaws.allocation import allocate
from scalelaws.averaging import Average, average_laws
from scalelaws.backtesting import Backtest, backtest
from scalelaws.conventions import ConventionError, check_same_conventions
from scalelaws.critical_batch import Tradeoff, fit_tradeoff
from scalelaws.crossover import compare_laws
from scalelaws.curves.forecasts import CurveForecast, predict_curve, predict_final
from scalelaws.curves.records import Curve, Curves
from scalelaws.curves.schedules import Schedule
from scalelaws.curves.scheduling import Advice, optimise_schedule
from scalelaws.design import choose_runs, start_design
from scalelaws.designs.candidates import Candidates, Design
from scalelaws.downstream.difficulty import ItemForecast, ItemScores, forecast_by_difficulty
from scalelaws.downstream.scores import ScoreForecast, predict_score
from scalelaws.engines.likelihood import Profile, Quantity
from scalelaws.estimation import fit
from scalelaws.forecasting import forecast
from scalelaws.ladders import PooledDrift, measure_pooled_drift
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
from scalelaws.mixtures.domains import DomainFits, fit_domains, read_domains, read_olmix
from scalelaws.mixtures.optimum import BestMixture, find_best_mixture
from scalelaws.observations import Exclusion, ObservationError, Observations
from scalelaws.optima import Optimum, find_basin_optimum, find_surface_optimum
from scalelaws.profiles import optimal_size, profile
from scalelaws.results import Allocation, Estimate, Evidence, Fit, FitError, Forecast, Status, Target
from scalelaws.splits.approaches import Approaches, compare_approaches
from scalelaws.splits.counting import Shape, compare_countings, recount
from scalelaws.splits.isoflops import Isoflops, find_isoflop_optima
from scalelaws.transfer import Drift, compare_drifts, measure_drift, measure_observed_drift

__all__ = [
    "LAWS",
    "PUBLISHED",
    "Advice",
    "Allocation",
    "Approaches",
    "Average",
    "Backtest",
    "BestMixture",
    "Candidates",
    "CellOptimum",
    "Chinchilla",
    "ConventionError",
    "Curve",
    "CurveForecast",
    "Curves",
    "Design",
    "DomainFits",
    "Drift",
    "Estimate",
    "Evidence",
    "Exclusion",
    "Fit",
    "FitError",
    "FitOptions",
    "Forecast",
    "Isoflops",
    "ItemForecast",
    "ItemScores",
    "Law",
    "LawEntry",
    "ObservationError",
    "Observations",
    "Optimum",
    "OptimumLaw",
    "PooledDrift",
    "PowerLaw",
    "Profile",
    "PublishedLoss",
    "PublishedSettings",
    "Quantity",
    "Schedule",
    "ScoreForecast",
    "Shape",
    "Status",
    "Target",
    "Tradeoff",
    "allocate",
    "average_laws",
    "backtest",
    "check_same_conventions",
    "choose_runs",
    "compare_approaches",
    "compare_countings",
    "compare_drifts",
    "compare_laws",
    "find_basin_optimum",
    "find_best_mixture",
    "find_cell_optima",
    "find_isoflop_optima",
    "find_surface_optimum",
    "fit",
    "fit_domains",
    "fit_tradeoff",
    "forecast",
    "forecast_by_difficulty",
    "get_law",
    "get_published",
    "list_laws",
    "measure_drift",
    "measure_observed_drift",
    "measure_pooled_drift",
    "optimal_size",
    "optimise_schedule",
    "predict_curve",
    "predict_final",
    "predict_score",
    "profile",
    "read_domains",
    "read_olmix",
    "recount",
    "start_design",
]
