"""The figures of an answer, drawn from finished records by scalelaws.figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.answers import Answer, Branch, Verification, title_parametrization
from foretune.gates.transferring import TransferAnswer
from foretune.quantities import format_count
from scalelaws import CellOptimum, Estimate, Forecast, Observations, Status, Target
from scalelaws.transfer import AXES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (5.6, 4.3)
"""Size of one panel, inches."""
DOTS_PER_INCH = 150
DIAGNOSED = {
    "noise_scale_tokens": "gradient noise scale (tokens)",
    "update_cosine": "cosine of update and descent",
    "attention_logit_max": "largest attention logit",
}
"""The panels of the diagnoses, and what their axes say."""


@dataclass(frozen=True)
class Picture:
    """A rendered figure."""

    png: bytes
    """For files and notebooks."""
    data: str
    """The same figure as SVG in a data URI, for the page."""
    caption: str
    """What is to be seen."""


def draw_answer(answer: Answer) -> dict[str, Picture]:
    """Every figure that the answer has data for, by name."""
    figures = {
        "basins": draw_basin_panels,
        "drift": draw_drift_panel,
        "law": draw_law_panels,
        "verification": draw_verification_panels,
        "diagnoses": draw_diagnosis_panels,
        "lineage": draw_lineage_panels,
        "schedules": draw_rate_panel,
        "mixture": draw_mixture_panels,
        "descent": draw_descent_panels,
    }
    captions = {
        "basins": "Held-out loss against peak learning rate at every size. Lines: fitted basins; stars: their optima, "
        "with 90 % intervals as bars.",
        "drift": "The optimal learning rate against width. Flat means that a small proxy's optimum transfers.",
        "law": "The law of the tuned loss with its 90 % band; hollow diamonds: larger runs that the fit did not see.",
        "verification": "The registered forecast (lines and 90 % bands) and the larger runs trained after it.",
        "diagnoses": "What was measured along the best run of every rung. Dotted: its batch, which is wastefully large "
        "where it lies far above the noise scale.",
        "lineage": "The settings of every member of the population. Bold: the lineage of the best one; dots: copies of "
        "another member with changed settings.",
        "schedules": "The learning rate that was found for every model, stage by stage. Bold: the lowest loss.",
        "descent": "Every setting that the search tried against the FLOPs that it had spent by then, and the best so "
        "far of those at their horizon.",
        "mixture": "The recommended mixture with its 90 % intervals beside the natural and the best observed one; how "
        "they did at the scales of the check; what each scale cost.",
    }
    drawn = {name: draw(answer) for name, draw in figures.items()}
    return {name: _render(figure, captions[name]) for name, figure in drawn.items() if figure is not None}


def draw_lineage_panels(answer: Answer) -> Figure | None:
    """One panel a setting: its way along every member of a population."""
    from foretune.search.population.drawing import draw_population

    rows = answer.findings.data.get("lineage") if answer.findings else None
    return draw_population(rows) if rows else None


def draw_rate_panel(answer: Answer) -> Figure | None:
    """The learning rates that a search found along the runs."""
    from foretune.search.autolrs.drawing import draw_rates

    schedules = answer.findings.data.get("schedules") if answer.findings else None
    return draw_rates(schedules) if schedules else None


def draw_descent_panels(answer: Answer) -> Figure | None:
    """One panel a rung: what the search had found by when."""
    from foretune.search.descent import DESCENT, draw_descent

    rows = answer.findings.data.get(DESCENT) if answer.findings else None
    return draw_descent(rows) if rows else None


def draw_mixture_panels(answer: Answer) -> Figure | None:
    """Shares, check and costs of a search over mixtures."""
    from foretune.search.mixing.drawing import draw_mixture

    data = answer.findings.data.get("mixture") if answer.findings else None
    return draw_mixture(data) if data else None


def draw_basin_panels(answer: Answer) -> Figure | None:
    """One panel a parametrization: loss against learning rate, a curve for each cell."""
    return _draw_panels([branch for branch in answer.branches if _list_cells(branch)], _draw_basins, share=True)


def draw_drift_panel(answer: Answer) -> Figure | None:
    """The optimum against width, every parametrization in one panel."""
    drifts = {
        title_parametrization(branch.parametrization): branch.drift
        for branch in answer.branches
        if branch.drift and any(optimum.status.ok for optimum in branch.drift.optima)
    }
    if not drifts:
        return None
    from scalelaws.figures import draw_drift

    figure = _new_figure(1)
    draw_drift(drifts, figure.subplots())
    return figure


def draw_law_panels(answer: Answer) -> Figure | None:
    """One panel a parametrization: the law of the loss, with the verification runs on it."""
    branches = [b for b in answer.branches if b.fit and b.fit.loss_fit]
    return _draw_panels(branches, lambda branch, ax: _draw_law(answer, branch, ax), share=True)


def draw_verification_panels(answer: Answer) -> Figure | None:
    """One panel a parametrization: the registered forecast and the runs that check it."""
    checks = [check for check in answer.verification if check.runs]
    return _draw_panels(checks, lambda check, ax: _draw_verification(check, ax), share=True)


def draw_diagnosis_panels(answer: Answer) -> Figure | None:
    """Noise scale, alignment of the updates and attention logits along the best run of every rung."""
    best = _list_best_runs(answer)
    if not len(best):
        return None
    figure = _new_figure(len(DIAGNOSED))
    axes = dict(zip(DIAGNOSED, figure.subplots(1, len(DIAGNOSED)), strict=True))
    for color, (_, run) in enumerate(best.iterrows()):
        series = answer.diagnoses[answer.diagnoses["run_id"] == run["run_id"]]
        for column, ax in axes.items():
            label = f"{run['scale']}, learning rate {run['peak_lr']:.3g}"
            ax.plot(series["step"] / run["steps"], series[column], color=f"C{color}", marker=".", label=label)
        axes["noise_scale_tokens"].axhline(run["batch_tokens"], color=f"C{color}", lw=1, ls=":")
    for column, ax in axes.items():
        ax.set(xlabel="share of the run", ylabel=DIAGNOSED[column])
        if column != "update_cosine":
            ax.set_yscale("log")
    axes["update_cosine"].axhline(0, color="0.7", lw=1)
    axes["attention_logit_max"].legend(frameon=False, fontsize="small")
    return figure


def draw_transfer_panels(answer: TransferAnswer) -> Figure | None:
    """One panel for each axis along which runs were searched: the optimum on every ladder of each parametrization."""
    panels = {
        axis: {
            title_parametrization(branch.parametrization): branch.drifts[axis]
            for branch in answer.branches
            if axis in branch.drifts
        }
        for axis in AXES
    }
    panels = {axis: drifts for axis, drifts in panels.items() if drifts}
    if not panels:
        return None
    from scalelaws.figures import draw_ladders

    figure = _new_figure(len(panels))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for drifts, ax in zip(panels.values(), axes, strict=True):
        draw_ladders(drifts, ax)
    for ax in axes[1:]:
        ax.set_ylabel("")
    return figure


def _list_best_runs(answer: Answer) -> pd.DataFrame:
    """The search run with the lowest loss of every rung of the main parametrization, if it was diagnosed."""
    runs = answer.runs
    searched = runs["role"].eq("search") & runs["parametrization"].eq(answer.branch.parametrization)
    known = runs[searched & runs["loss"].notna() & runs["run_id"].isin(answer.diagnoses["run_id"])]
    return known.loc[known.groupby("scale", sort=False)["loss"].idxmin()]


def _draw_basins(branch: Branch, ax: Axes) -> None:
    from scalelaws.figures import Sweep, draw_basins

    seen = branch.observations
    assert seen is not None
    assert seen.peak_lr is not None
    cells = _list_cells(branch)
    horizons = len({cell.tokens for cell in cells}) > 1
    draw_basins(
        [
            Sweep(_label_cell(branch, cell, horizons), seen.peak_lr[cell.rows], seen.loss[cell.rows], cell.optimum)
            for cell in cells
        ],
        ax,
    )


def _list_cells(branch: Branch) -> list[CellOptimum]:
    """The cells of which there is anything to see: at least one run did not diverge."""
    seen = branch.observations
    return [] if seen is None else [cell for cell in branch.cells if np.isfinite(seen.loss[cell.rows]).any()]


def _label_cell(branch: Branch, cell: CellOptimum, horizons: bool) -> str:
    width = branch.observations.width if branch.observations else None
    size = f"{format_count(cell.params)} params" if width is None else f"width {width[cell.rows[0]]:g}"
    return f"{size}, {format_count(cell.tokens)} tokens" if horizons else size


def _draw_law(answer: Answer, branch: Branch, ax: Axes) -> None:
    from scalelaws.figures import PALETTE, draw_law

    assert branch.fit is not None
    assert branch.fit.loss_fit is not None
    found = [cell for cell in branch.cells if cell.optimum.loss]
    tuned = Observations(
        params_non_embedding=np.array([cell.params for cell in found]),
        tokens=np.array([cell.tokens for cell in found]),
        loss=np.array([cell.optimum.loss.value for cell in found if cell.optimum.loss]),
    )
    check = answer.verification_of(branch.parametrization)
    target = _read_target(check.forecast) if check else answer.target
    draw_law(branch.fit.loss_fit, tuned, ax, target=target)
    if check and check.best_lr is not None:
        at = target.params_non_embedding
        ax.plot(
            at, check.loss_by_lr[check.best_lr], "D", mfc="none", mec=PALETTE[1], ms=8, label="larger run, measured"
        )
        ax.legend(frameon=False, fontsize="small")


def _draw_verification(check: Verification, ax: Axes) -> None:
    from scalelaws.figures import draw_forecast

    losses = check.loss_by_lr
    draw_forecast(
        read_forecast(check.forecast), np.array(list(losses)), np.array(list(losses.values())), ax, label="larger runs"
    )


def read_forecast(record: dict[str, Any]) -> Forecast:
    """A registered forecast, read back from plain data as far as a figure needs it."""

    def estimate(key: str) -> Estimate | None:
        return Estimate(**record[key]) if record[key] else None

    return Forecast(
        target=_read_target(record),
        peak_lr=estimate("peak_lr"),
        batch_tokens=estimate("batch_tokens"),
        batch_sequences=estimate("batch_sequences"),
        loss=estimate("loss"),
        regret=estimate("regret"),
        level=record["level"],
        extrapolation=record["extrapolation"],
        law=record["law"],
        status=Status.CONVERGED,
        message=record["status"],
        evidence=None,
        scope=record["scope"],
        warnings=tuple(record["warnings"]),
    )


def _read_target(record: dict[str, Any]) -> Target:
    return Target(**record["target"])


def _draw_panels(parts: list[Any], draw: Callable[[Any, Axes], None], *, share: bool) -> Figure | None:
    """A row of panels titled by parametrization, on one loss axis so that they can be compared."""
    if not parts:
        return None
    figure = _new_figure(len(parts))
    axes = figure.subplots(1, len(parts), sharey=share, squeeze=False)[0]
    for part, ax in zip(parts, axes, strict=True):
        draw(part, ax)
        ax.set_title(title_parametrization(part.parametrization))
    for ax in axes[1:] if share else []:
        ax.set_ylabel("")
    return figure


def _new_figure(panels: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(PANEL[0] * panels, PANEL[1]), layout="constrained")


def _render(figure: Figure, caption: str) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    data = base64.b64encode(svg.getvalue()).decode()
    return Picture(png.getvalue(), f"data:image/svg+xml;base64,{data}", caption)
