"""A finished answer as text, JSON, figures and one self-contained HTML page. Nothing is fitted here."""

from __future__ import annotations

import json
import math
import platform as machine
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune import __version__
from foretune.answers import Answer, Branch, Verification, title_parametrization
from foretune.drawing import Picture, draw_answer
from foretune.evidence import BASELINES
from foretune.quantities import format_count
from foretune.query import compare_published
from foretune.rendering import format_number, render_rows
from foretune.study import Study
from scalelaws import Estimate, Exclusion, Forecast

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED_FLOPS = 1e17
"""Smallest target, training FLOPs, beside which published laws are shown: their smallest runs took 3e17."""

COLUMN_WORDS = {"flops": "FLOPs", "lr": "learning rate"}
"""Words of columns that people write otherwise than keys have them."""


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are text already."""

    header: list[str]
    rows: list[dict[str, Any]]
    numeric: list[bool]

    @classmethod
    def of(cls, records: list[dict[str, Any]], chosen: str = "") -> Table:
        """A table from records with the same keys; the key `chosen` marks rows and is not shown."""
        header = [key for key in (records[0] if records else {}) if key != chosen]
        numeric = [all(isinstance(record[key], int | float | None) for record in records) for key in header]
        titles = [_title_column(key) for key in header]
        rows = [
            {"cells": [format_number(record[key]) for key in header], "chosen": bool(record.get(chosen))}
            for record in records
        ]
        return cls(titles, rows, numeric)


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing under the title."""
        return not (self.paragraphs or self.figures or self.tables)


def write_results(answer: Answer, study: Study, folder: Path) -> Path:
    """Write the resolved study, answer.json, the figures and report.html into a folder; the path of the page."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    _write(folder / "study.toml", study.to_toml())
    _write(folder / "answer.json", json.dumps(answer.to_dict(), indent=2, allow_nan=False))
    pictures = draw_answer(answer)
    for name, picture in pictures.items():
        (figures / f"{name}.png").write_bytes(picture.png)
    page = folder / "report.html"
    _write(page, render_page(answer, pictures))
    return page


def render_page(answer: Answer, pictures: dict[str, Picture]) -> str:
    """The HTML page; every text is escaped, nothing is loaded from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("foretune"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=answer.question or f"Study {answer.study}",
        study=answer.study,
        written_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=_choose_headline(answer),
        findings=[*_describe_drifts(answer), *_describe_verifications(answer)],
        warnings=list(answer.branch.forecast.warnings) if answer.branch.forecast else [],
        sections=[section for section in _list_sections(answer, pictures) if not section.is_empty],
    )


def _choose_headline(answer: Answer) -> str:
    """What the laws forecast, else what the search found."""
    if answer.findings and answer.branch.forecast is None:
        return answer.findings.sentence
    return describe_forecast(answer.branch)


def summarize_answer(answer: Answer) -> str:
    """The answer for a terminal: what the search found, the law, the forecast, and how it held."""
    parts = [answer.question, ""] if answer.question else []
    if answer.findings:
        parts += [answer.findings.sentence, ""]
        for title, rows in answer.findings.tables.items():
            parts += [f"{title}:", render_rows(rows, "table"), ""]
    for branch in answer.branches if answer.branch.forecast or not answer.findings else ():
        parts += [f"[{title_parametrization(branch.parametrization)}]"]
        loss_fit = branch.fit.loss_fit if branch.fit else None
        parts += [loss_fit.summary(), ""] if loss_fit else []
        parts += [describe_forecast(branch)]
        parts += [f"  mind: {warning}" for warning in (branch.forecast.warnings if branch.forecast else ())]
        parts += [f"  left out: {item.runs} runs {item.reason}" for item in _exclusions(branch)] + [""]
    parts += _describe_drifts(answer) + _describe_verifications(answer)
    return "\n".join(parts).rstrip() + "\n"


def describe_forecast(branch: Branch) -> str:
    """One sentence: the predicted settings and loss of the target, with intervals; or why there are none."""
    forecast = branch.forecast
    if forecast is None:
        return f"No forecast under {title_parametrization(branch.parametrization)}: {branch.problem}"
    target = forecast.target
    told = [
        f"{label} {_interval(estimate)}"
        for label, estimate in (
            ("peak learning rate", forecast.peak_lr),
            ("batch tokens", forecast.batch_tokens),
            ("loss (nats per token)", forecast.loss),
        )
        if estimate is not None
    ]
    size = f"{format_count(target.params_non_embedding)} parameters on {format_count(target.tokens)} tokens"
    return (
        f"For {size}, {title_parametrization(branch.parametrization)} parametrization: {', '.join(told)}; "
        f"{100 * forecast.level:g} % intervals, {_describe_reach(forecast)}."
    )


def _describe_reach(forecast: Forecast) -> str:
    reach = {key: value for key, value in forecast.extrapolation.items() if value is not None}
    return "target over largest run: " + ", ".join(f"{value:.3g} x {key}" for key, value in reach.items())


def _describe_drifts(answer: Answer) -> list[str]:
    return [
        f"Over widths, {title_parametrization(b.parametrization)}: {b.drift.message}."
        for b in answer.branches
        if b.drift
    ]


def _describe_verifications(answer: Answer) -> list[str]:
    unverified = [f"Not verified, {problem}" for problem in answer.unverified]
    return [_describe_verification(check) for check in answer.verification] + unverified


def _describe_verification(check: Verification) -> str:
    name = title_parametrization(check.parametrization)
    where = f"Checked on larger runs that the fit had not seen, {name}: the predicted learning"
    if check.measured_loss is None:
        states = ", ".join(f"{run.peak_lr:.4g} {run.status}" for run in check.runs) or "none was trained"
        return f"{where} rate {check.predicted_lr:.4g} has no finished run ({states})."
    if check.regret is None or not math.isfinite(check.regret):
        best = f"the best of those tried is {check.best_lr:.4g}" if check.best_lr else "so did all its neighbours"
        return f"{where} rate {check.predicted_lr:.4g} diverged; {best}."
    predicted = check.forecast["loss"]
    inside = {True: "inside", False: "OUTSIDE", None: "beside"}[check.loss_inside]
    loss = f"; its loss {check.measured_loss:.4f} is {inside} the forecast" if check.measured_loss else ""
    span = f" {predicted['low']:.4f} to {predicted['high']:.4f}" if predicted and predicted["low"] else ""
    return (
        f"{where} rate {check.predicted_lr:.4g} is {100 * check.regret:.2f} % above the best of "
        f"{len(check.loss_by_lr)} tried ({check.best_lr:.4g}){loss}{span}."
    )


def _list_sections(answer: Answer, pictures: dict[str, Picture]) -> list[Section]:
    def shown(*names: str) -> list[Picture]:
        return [pictures[name] for name in names if name in pictures]

    if answer.branch.forecast is None and answer.findings:
        return [*_list_findings(answer, shown), *_list_closing(answer, shown)]
    return [
        *_list_findings(answer, shown),
        *_list_basins(answer, shown),
        Section("Does the optimum move with width?", _describe_drifts(answer), shown("drift")),
        Section(
            "The law of the loss", [], shown("law"), [Table.of(_list_parameters(b)) for b in answer.branches if b.fit]
        ),
        Section(
            "Forecast against verification",
            _introduce_verification(answer),
            shown("verification"),
            [Table.of(rows, chosen="predicted") for rows in [_list_verification(answer)] if rows],
        ),
        *([_compare_with_published(answer)] if answer.target.compute >= PUBLISHED_FLOPS else []),
        *_list_closing(answer, shown),
    ]


def _list_findings(answer: Answer, shown: Callable[..., list[Picture]]) -> list[Section]:
    """What the search found, a section for every table of it; its sentence, unless the page begins with that."""
    findings = answer.findings
    if findings is None:
        return []
    pictures = shown(*(name for name in findings.data))
    tables = [Section(_capitalize(title), tables=[Table.of(rows)]) for title, rows in findings.tables.items() if rows]
    told = [findings.sentence] if answer.branch.forecast else []
    return [Section("What the search found", told, pictures), *tables]


def _list_basins(answer: Answer, shown: Callable[..., list[Picture]]) -> list[Section]:
    rows = _list_optima(answer)
    if not rows:
        return []
    told = "Each optimum stands on the runs of one cell; its bar is the interval. Diverged runs bound a basin."
    return [Section("The basins: loss against learning rate", [told], shown("basins"), [Table.of(rows)])]


def _list_closing(answer: Answer, shown: Callable[..., list[Picture]]) -> list[Section]:
    """Of every answer: stability, what was left out, costs and versions."""
    return [
        *_describe_stability(answer, shown("diagnoses")),
        Section("What was left out, and why", tables=[Table.of(_list_exclusions(answer))]),
        Section("Costs", tables=[Table.of(_list_costs(answer))]),
        Section("Versions", tables=[Table.of(_list_versions(answer))]),
    ]


def _describe_stability(answer: Answer, figures: list[Picture]) -> list[Section]:
    """The runs with a verdict on their stability; spikes and logits that grow tell of too large a learning rate."""
    watched = answer.runs[answer.runs["instability"].notna() | answer.runs["run_id"].isin(answer.diagnoses["run_id"])]
    seen = watched[watched["instability"].notna()]
    rows = [
        {
            "rung": run["scale"],
            "parametrization": title_parametrization(str(run["parametrization"])),
            "learning rate": run["peak_lr"],
            "status": run["status"],
            "what was seen": run["instability"],
        }
        for _, run in seen.iterrows()
    ]
    told = f"In {len(watched) - len(seen)} of {len(watched)} runs that were watched nothing was seen."
    return (
        [Section("How stable were the runs?", [told], figures, [Table.of(rows)] if rows else [])]
        if len(watched)
        else []
    )


def _compare_with_published(answer: Answer) -> Section:
    told = "Each under its own conventions; they were fitted to other data, schedules and ways of counting."
    return Section("Published laws at the same target", [told], tables=[Table.of(compare_published(answer.target))])


def _introduce_verification(answer: Answer) -> list[str]:
    if answer.unverified and not answer.verification:
        return ["No forecast could be made, so there was nothing to check."]
    if not answer.verification:
        return ["This study holds no larger run back to check its forecast."]
    if answer.registered_before_runs:
        return [f"The forecast was written down at {answer.registered_at}, before any of these runs was recorded."]
    return [
        f"The forecast was written down at {answer.registered_at}; some of these runs were recorded before that, for "
        "another study or an earlier version of this one, so they are a comparison and no test of it."
    ]


def _list_optima(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "parametrization": title_parametrization(branch.parametrization),
            "parameters": cell.params,
            "tokens": cell.tokens,
            "optimal learning rate": _interval(cell.optimum.peak_lr) if cell.optimum.status.ok else "-",
            "loss there": _interval(cell.optimum.loss) if cell.optimum.loss else "-",
            "status": cell.optimum.message,
        }
        for branch in answer.branches
        for cell in branch.cells
    ]


def _list_parameters(branch: Branch) -> list[dict[str, Any]]:
    fits = [fit for fit in (branch.fit, branch.fit.loss_fit if branch.fit else None) if fit]
    return [
        {
            "parametrization": title_parametrization(branch.parametrization),
            "law": fit.law,
            "parameter": name,
            "value": item.value,
            "low": item.low,
            "high": item.high,
            "unit": item.unit,
        }
        for fit in fits
        for name, item in fit.parameters.items()
        if item.value == item.value
    ]


def _list_verification(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "parametrization": title_parametrization(check.parametrization),
            "width": run.width,
            "learning rate": run.peak_lr,
            "seed": run.seed,
            "loss": run.loss,
            "status": run.status,
            "above the best": f"{100 * (run.loss / check.loss_by_lr[check.best_lr] - 1):+.2f} %"
            if run.loss is not None and check.best_lr is not None
            else "-",
            "predicted": abs(run.peak_lr / check.predicted_lr - 1) < 1e-9,
        }
        for check in answer.verification
        for run in check.runs
    ]


def _list_exclusions(answer: Answer) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = [
        {"parametrization": title_parametrization(branch.parametrization), "runs": item.runs, "reason": item.reason}
        for branch in answer.branches
        for item in _exclusions(branch)
        if item.reason != BASELINES
    ]
    baselines = answer.runs[answer.runs["role"].eq("baseline")]
    listed += [
        {"parametrization": title_parametrization(str(name)), "runs": len(part), "reason": BASELINES}
        for name, part in baselines.groupby("parametrization", sort=False)
    ]
    return listed + [
        {
            "parametrization": title_parametrization(str(row["parametrization"])),
            "runs": 1,
            "reason": f"{row['status']}: {row['reason']}",
        }
        for _, row in answer.runs[answer.runs["status"] != "completed"].iterrows()
    ]


def _exclusions(branch: Branch) -> tuple[Exclusion, ...]:
    if branch.fit:
        return branch.fit.evidence.excluded
    return branch.observations.excluded if branch.observations else ()


def _list_costs(answer: Answer) -> list[dict[str, Any]]:
    frame = answer.runs
    return [
        {
            "runs": role,
            "number": len(part),
            "states": ", ".join(f"{count} {name}" for name, count in Counter(part["status"]).items()),
            "tokens trained": float(_tokens_trained(part).sum()),
            "training FLOPs": float(_spent_flops(part).sum()),
            "run seconds, added up": round(float(part["wall_seconds"].fillna(0).sum()), 1),
        }
        for role, part in frame.groupby("role", sort=False)
    ]


def _tokens_trained(part: pd.DataFrame) -> pd.Series[float]:
    """Tokens that the runs themselves were trained on: those that came with a parent's state are the parent's."""
    return _spent_flops(part) * part["tokens"] / part["compute_flops"]


def _spent_flops(part: pd.DataFrame) -> pd.Series[float]:
    """What the runs cost: less than their horizon where they shared a trunk, went on from others or ended early."""
    seen = part["tokens_trained"].fillna(part["tokens"]).astype(float)
    seen = seen.mask(part["role"].eq("soup"), 0.0)  # an attempt that failed has trained nothing that is known of
    return part["spent_flops"].astype(float).fillna(part["compute_flops"] * seen / part["tokens"])


def _list_versions(answer: Answer) -> list[dict[str, Any]]:
    devices = Counter(str(device) for device in answer.runs["device"].dropna())
    told = {
        "foretune": __version__,
        "python": machine.python_version(),
        "numpy, scipy": f"{version('numpy')}, {version('scipy')}",
        "runs executed on": "; ".join(f"{name} ({count} runs)" for name, count in devices.items()),
    }
    return [{"what": key, "version": value} for key, value in told.items()]


def _title_column(key: str) -> str:
    """A key as a heading in words.

    >>> _title_column("training_flops")
    'training FLOPs'
    """
    words = (COLUMN_WORDS.get(word, word) for word in key.split("_"))
    return " ".join(words)


def _capitalize(title: str) -> str:
    """A heading in sentence case: the rest of it is left as it is.

    >>> _capitalize("settings at w16")
    'Settings at w16'
    """
    return title[:1].upper() + title[1:]


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _write(path: Path, text: str) -> None:
    """Write through a temporary file, so that a reader never sees half a page."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
