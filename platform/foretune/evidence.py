"""From rows of the run table to scalelaws.Observations, with a reason for every run that is left out."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from foretune.errors import InputError
from scalelaws import Exclusion, ObservationError, Observations
from scalelaws.observations import SCOPE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

COUNTINGS = ("params_non_embedding", "params_total", "params_active")
"""Parameter counts in the order in which a table's own is looked for."""


MIXTURE = "mixture"
"""What stands for the columns `mix/DOMAIN` where rows are pooled."""
SAME_SHARE = 1e-6
"""Shares of one domain that differ by less are the same: the digits that a CSV file keeps."""
BASELINES = "baselines of a search"
"""Why baselines are left out: they have a parametrization of their own, whatever the branch."""


def list_parametrizations(frame: pd.DataFrame) -> list[str]:
    """The parametrizations in a run table, in order of appearance."""
    if "parametrization" not in frame:
        return []
    return [str(name) for name in frame["parametrization"].dropna().unique()]


def gather_observations(frame: pd.DataFrame, *, parametrization: str = "", pool: Collection[str] = ()) -> Observations:
    """The runs that a fit may see.

    Left out, and counted: failed runs, runs that are held out to verify a forecast, runs of an earlier version of the
    study, runs of another parametrization, baselines of a search, runs that a search stopped before their learning rate
    had decayed, runs whose settings changed on their way or were learned there, the mixture included.
    Diverged runs stay in, without a loss: they bound a basin from above. Rows that differ in optimizer, schedule,
    sequence length, kind of loss or data mixture are refused unless `pool` names the column (`mixture`).

    Raises InputError when nothing is left or when the rows may not be pooled.
    """
    unknown = sorted(set(pool) - {*SCOPE_COLUMNS, MIXTURE})
    if unknown:
        named = ", ".join((*SCOPE_COLUMNS, MIXTURE))
        raise InputError(f"--pool: no such column {unknown[0]!r}; rows may be pooled over {named}")
    kept, excluded = frame, []
    for reason, mask in _exclusions(frame, parametrization):
        dropped = kept.index[mask.reindex(kept.index, fill_value=False)]
        if len(dropped):
            excluded.append(Exclusion(reason, len(dropped)))
            kept = kept.drop(index=dropped)
    if kept.empty:
        listed = "; ".join(f"{item.runs} {item.reason}" for item in excluded)
        raise InputError(f"no runs to fit{': ' + listed if listed else ''}")
    if "status" in kept and kept["status"].eq("diverged").all():
        raise InputError(f"no runs to fit: all {len(kept)} diverged; lower the learning rates or the weight decay")
    if MIXTURE not in pool:
        _check_mixtures(kept)
    if "loss" in kept and kept["loss"].isna().all():
        raise InputError("no run has a loss of its own, only losses by domain: `foretune mixture` answers from those")
    pool = [column for column in pool if column != MIXTURE]
    try:
        return Observations.from_frame(kept, params=choose_counting(kept), excluded=tuple(excluded), pool=pool)
    except ObservationError as error:
        raise InputError(re.sub(r"pool=\('(\w+)',\)", r"--pool \1", str(error))) from None


def _check_mixtures(frame: pd.DataFrame) -> None:
    """Refuse runs of several data mixtures: their losses are of different things, and are weighted differently."""
    names = [name for name in frame if str(name).startswith("mix/")]
    shares = frame[names].dropna(how="all").fillna(0.0).astype(float)
    if shares.empty or ((shares - shares.iloc[0]).abs() <= SAME_SHARE).all(axis=None):
        return
    distinct = (shares / SAME_SHARE).round().drop_duplicates()
    raise InputError(
        f"the runs have {len(distinct)} data mixtures, whose losses do not measure one thing; fit the runs of one of "
        "them, or give --pool mixture to fit them together all the same; `foretune mixture` says which one is best"
    )


def choose_counting(frame: pd.DataFrame) -> str:
    """The column by which every row counts its parameters; one table is never counted in two ways."""
    for column in COUNTINGS:
        if column in frame and bool(frame[column].notna().all()):
            return column
    raise InputError(
        "no parameter count that every run has; fill params_non_embedding (or params_total) in all rows, "
        "or import them with --map COLUMN=params_non_embedding"
    )


def _exclusions(frame: pd.DataFrame, parametrization: str) -> list[tuple[str, pd.Series[bool]]]:
    """What only the platform knows of; scalelaws itself leaves out failed runs and those held out."""
    rules: list[tuple[str, pd.Series[bool]]] = []
    if "role" in frame:
        rules.append(("asked for by an earlier version of the study", frame["role"].eq("retired")))
        rules.append((BASELINES, frame["role"].eq("baseline")))
        rules.append(("soups of other runs", frame["role"].eq("soup")))
    if "setting_changes" in frame:
        rules.append(("whose settings changed along the run", frame["setting_changes"].fillna(0).gt(0)))
    learned = [name for name in frame if str(name).startswith("learned/")]
    if learned:
        rules.append(("that learned settings or their mixture along the run", frame[learned].notna().any(axis=1)))
    if {"horizon_tokens", "tokens", "schedule"} <= set(frame):
        # what is decayed later says nothing of a run of that length; a constant rate has no later
        early = frame["tokens"].lt(frame["horizon_tokens"]).fillna(False) & frame["schedule"].ne("constant")
        rules.append(("stopped by a search before the end of their schedule", early))
    if parametrization and "parametrization" in frame:
        other = frame["parametrization"].ne(parametrization) & frame["parametrization"].notna()
        rules.append((f"of another parametrization than {parametrization}", other))
    return rules
