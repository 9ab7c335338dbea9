"""Observations: a checked, immutable table of finished runs. Names and units are fixed here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ParamsConvention = Literal["non_embedding", "total", "active", "unspecified"]

FLOPS_PER_PARAM_TOKEN = 6.0
"""Forward and backward cost per parameter and token, C = 6ND (Kaplan et al. 2020, section 2.1)."""

SAME_CELL_TOLERANCE = 1e-9
"""Two sizes or horizons that differ by less than this, relatively, are one and the same."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens", "D"),
    "loss": ("loss", "loss_nats"),
    "peak_lr": ("peak_lr", "lr"),
    "batch_tokens": ("batch_tokens", "bs_tokens"),
    "batch_sequences": ("batch_sequences", "bs_seqs", "bs"),
    "width": ("width", "d_model"),
    "compute_flops": ("compute_flops", "C"),
    "seed": ("seed",),
    "label": ("run_id", "label"),
    "seq_len": ("seq_len",),
}
CONVENTIONS: Mapping[str, ParamsConvention] = {
    "params_non_embedding": "non_embedding",
    "params_total": "total",
    "params_active": "active",
    "N_total": "total",
    "N_active": "active",
}
COVARIATES: Mapping[str, str] = {
    "unique_tokens": "distinct training tokens: the horizon holds tokens / unique_tokens passes over them",
    "params_average": "mean over training tokens of the parameters in use (models that grow or are pruned)",
    "params_active": "parameters that one token passes through",
    "activation_ratio": "activated experts over all experts, shared ones counted in both",
    "granularity": "2 x width / width of an expert",
    "depth": "layers",
    "weight_decay": "decoupled weight decay, applied as peak_lr x weight_decay",
    "steps": "optimizer steps",
    "score": "score of a downstream task, as a share (0 to 1)",
}
"""Further columns that some laws need; all are finite and not negative."""
MIXTURE_PREFIX = "mix/"
MIXTURE_SUM_TOLERANCE = 0.02
"""Weights of a mixture add up to 1 within this; published tables round each of many weights to three decimals."""
SCOPE_COLUMNS = ("optimizer", "schedule", "seq_len", "parametrization", "loss_kind", "loss_unit")
"""Rows that differ in one of these are pooled in one fit only when the user says so."""
LEFT_OUT = (
    ("status", "failed", "failed"),
    ("role", "verification", "held out to verify the forecast"),
)
"""(column, value, reason) of rows of a run table that no fit sees: a failed run says nothing about its setting."""


class ObservationError(ValueError):
    """The runs cannot be used as they are; the message says which rows and what to try."""


@dataclass(frozen=True)
class Exclusion:
    """Runs that were left out, and why."""

    reason: str
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """The reason and the number of runs, as plain data."""
        return {"reason": self.reason, "runs": self.runs}


@dataclass(frozen=True, eq=False)
class Observations:
    """Finished runs, one row each.

    Arrays are float64 of equal length. A loss of NaN or +inf says that the run diverged: it is evidence
    that the setting is worse than its neighbours, and it is never dropped without a record.
    """

    params_non_embedding: FloatArray
    """Parameters per model, counted as `params_convention` says."""
    tokens: FloatArray
    """Training tokens (the horizon)."""
    loss: FloatArray
    """Held-out loss in `loss_unit`; NaN or +inf for a diverged run."""
    peak_lr: FloatArray | None = None
    """Peak learning rate."""
    batch_tokens: FloatArray | None = None
    """Tokens per optimizer step."""
    width: FloatArray | None = None
    """Model width (d_model)."""
    compute_flops: FloatArray | None = None
    """Training FLOPs, forward and backward; without it 6ND is used and said so."""
    seed: NDArray[np.int64] | None = None
    """Seed of the run."""
    label: tuple[str, ...] | None = None
    """Run identifiers."""
    loss_se_log: FloatArray | None = None
    """Standard error of ln loss, where it is known (0 is not allowed)."""
    covariates: Mapping[str, FloatArray] = field(default_factory=dict)
    """Further columns by their names in `COVARIATES`, one entry per run each."""
    mixture: Mapping[str, FloatArray] = field(default_factory=dict)
    """Share of the training tokens by domain, one entry per run each; the shares of a run add up to 1."""
    params_convention: ParamsConvention = "non_embedding"
    """How parameters were counted."""
    loss_unit: str = "nats_per_token"
    """Unit of the loss."""
    scope: Mapping[str, str] = field(default_factory=dict)
    """Free text about where the runs hold: optimizer, schedule, seq_len, parametrization."""
    excluded: tuple[Exclusion, ...] = ()
    """What was left out before these rows were reached."""

    def __post_init__(self) -> None:
        """Converts to read-only float64 and refuses unusable rows."""
        for name in _ARRAY_FIELDS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_array(name, getattr(self, name)))
        for group in _GROUPS:
            arrays = {str(name): _as_array(name, values) for name, values in getattr(self, group).items()}
            object.__setattr__(self, group, arrays)
        if self.label is not None:
            object.__setattr__(self, "label", tuple(str(item) for item in self.label))
        if self.params_convention not in get_args(ParamsConvention):
            known = ", ".join(get_args(ParamsConvention))
            raise ObservationError(f"params_convention must be one of {known}; got {self.params_convention!r}")
        _check_lengths(self)
        _check_values(self)
        _check_groups(self)

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.loss)

    @property
    def diverged(self) -> BoolArray:
        """Rows whose loss is not finite."""
        return ~np.isfinite(self.loss)

    @property
    def compute(self) -> FloatArray:
        """Training FLOPs as given, else 6ND."""
        if self.compute_flops is not None:
            return self.compute_flops
        return FLOPS_PER_PARAM_TOKEN * self.params_non_embedding * self.tokens

    @property
    def compute_convention(self) -> str:
        """How `compute` was counted."""
        return "as given" if self.compute_flops is not None else "6ND"

    def column(self, name: str) -> FloatArray:
        """The column of that name: a field, a covariate, or `compute`; ObservationError says what is missing."""
        found = self.covariates[name] if name in self.covariates else getattr(self, name, None)
        if not isinstance(found, np.ndarray):
            meaning = f" ({COVARIATES[name]})" if name in COVARIATES else ""
            raise ObservationError(f"the runs need the column {name}{meaning}; add it to the table")
        return found

    def cell_index(self) -> NDArray[np.int64]:
        """The cell of every row: runs of one size and one horizon share a number; cells ascend in (N, D)."""
        levels = np.stack([index_levels(self.params_non_embedding), index_levels(self.tokens)])
        return np.unique(levels, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def cells(self) -> tuple[NDArray[np.int64], ...]:
        """Row numbers of each cell (runs of the same size and horizon)."""
        index = self.cell_index()
        return tuple(np.flatnonzero(index == cell) for cell in range(int(index.max()) + 1))

    def select(self, mask: ArrayLike, reason: str) -> Observations:
        """The rows where `mask` is true; the others are recorded as excluded for `reason`."""
        keep = np.asarray(mask, dtype=bool)
        if keep.shape != (len(self),):
            raise ObservationError(f"select: the mask must have one entry per run ({len(self)}); got {keep.shape}")
        dropped = int((~keep).sum())
        if dropped == 0:
            return self
        excluded = (*self.excluded, Exclusion(reason, dropped))
        return replace(self, **self._rows(np.flatnonzero(keep)), excluded=excluded)

    def rows(self, index: ArrayLike) -> Observations:
        """The rows numbered `index`, in that order (repeats allowed, as a bootstrap needs); nothing is recorded."""
        return replace(self, **self._rows(np.asarray(index, dtype=np.int64)))

    def _rows(self, index: NDArray[np.int64]) -> dict[str, Any]:
        chosen: dict[str, Any] = {name: getattr(self, name) for name in _ARRAY_FIELDS}
        chosen = {name: None if values is None else values[index] for name, values in chosen.items()}
        for group in _GROUPS:
            chosen[group] = {name: values[index] for name, values in getattr(self, group).items()}
        chosen["label"] = None if self.label is None else tuple(self.label[row] for row in index)
        return chosen

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        params: str = "params_non_embedding",
        loss: str | None = None,
        scope: Mapping[str, str] | None = None,
        excluded: Sequence[Exclusion] = (),
        pool: Collection[str] = (),
    ) -> Observations:
        """Reads a run table; understands the aliases N, D, C, lr, bs_tokens, bs_seqs or bs (with seq_len), d_model.

        A bare `bs` counts sequences per step, as `bs_seqs` does; `bs_tokens` counts tokens per step. Runs with status
        "failed" and runs with role "verification" are left out and recorded; a diverged run stays, without a loss.
        Horizons that differ by less than one step are read as one (steps x batch rarely comes out even).
        Columns named in `COVARIATES` and `mix/DOMAIN` are read where every row has a value.
        `params` names the column that counts parameters, `loss` that of the loss. Rows that differ in optimizer,
        schedule, sequence length, parametrization or loss kind are refused unless `pool` names that column.

        Raises ObservationError when a column is missing or unusable, and when nothing is left to fit.
        """
        frame, left_out = _leave_out(frame, excluded)
        counted, convention = _find_params(frame, params)
        batch_tokens = _read_batch(frame)
        given = dict(scope or {})
        unit = given.get("loss_unit", "nats_per_token")
        described = {**_read_scope(frame, pool), **given}
        columns = {name: _read(frame, name) for name in ("peak_lr", "width", "compute_flops", "seed")}
        labels = _read(frame, "label")
        return cls(
            params_non_embedding=_numbers(frame, counted),
            tokens=merge_horizons(_numbers(frame, _require(frame, "tokens")), batch_tokens),
            loss=_numbers(frame, loss if loss is not None else _require(frame, "loss")),
            batch_tokens=batch_tokens,
            label=None if labels is None else tuple(frame[labels].astype(str)),
            covariates={name: _numbers(frame, name) for name in COVARIATES if _is_full(frame, name)},
            mixture={
                name.removeprefix(MIXTURE_PREFIX): _numbers(frame, name)
                for name in frame.columns
                if str(name).startswith(MIXTURE_PREFIX) and _is_full(frame, name)
            },
            params_convention=convention,
            loss_unit=described.get("loss_unit", unit),
            scope=described,
            excluded=left_out,
            **{name: None if column is None else _numbers(frame, column) for name, column in columns.items()},
        )


_ARRAY_FIELDS = tuple(
    item.name
    for item in fields(Observations)
    if item.name not in ("label", "covariates", "mixture", "params_convention", "loss_unit", "scope", "excluded")
)
_GROUPS = ("covariates", "mixture")


def _as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    kind = np.int64 if name == "seed" else np.float64
    try:
        array = np.array(values, dtype=kind)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{name} must be numbers: {error}") from error
    if array.ndim != 1:
        raise ObservationError(f"{name} must be one-dimensional, one entry per run; got shape {array.shape}")
    array.setflags(write=False)
    return array


def _check_lengths(observations: Observations) -> None:
    runs = len(observations.loss)
    if runs == 0:
        raise ObservationError("there are no runs; give at least one row, or look at what was excluded")
    sized = [name for name in (*_ARRAY_FIELDS, "label") if getattr(observations, name) is not None]
    wrong = {name: len(getattr(observations, name)) for name in sized if len(getattr(observations, name)) != runs}
    grouped = {name: len(values) for group in _GROUPS for name, values in getattr(observations, group).items()}
    wrong |= {name: length for name, length in grouped.items() if length != runs}
    if wrong:
        raise ObservationError(f"every column must have one entry per run; loss has {runs}, but {wrong}")


def _check_values(observations: Observations) -> None:
    for name in _ARRAY_FIELDS:
        values = getattr(observations, name)
        if values is None or name == "seed":
            continue
        bad = ~(values > 0) & ~np.isnan(values) if name == "loss" else ~(np.isfinite(values) & (values > 0))
        if bad.any():
            allowed = " (NaN or +inf mark a diverged run)" if name == "loss" else " and finite"
            raise ObservationError(
                f"{name} must be positive{allowed}; {_name_rows(bad, values)}. Remove these rows, or mend the column"
            )


def _check_groups(observations: Observations) -> None:
    unknown = sorted(set(observations.covariates) - set(COVARIATES))
    if unknown:
        raise ObservationError(f"there is no covariate {unknown[0]!r}; known are {', '.join(COVARIATES)}")
    for group in _GROUPS:
        for name, values in getattr(observations, group).items():
            bad = ~(np.isfinite(values) & (values >= 0))
            if bad.any():
                raise ObservationError(f"{name} must be finite and not negative; {_name_rows(bad, values)}")
    if observations.mixture:
        total = np.sum(list(observations.mixture.values()), axis=0)
        bad = np.abs(total - 1) > MIXTURE_SUM_TOLERANCE
        if bad.any():
            raise ObservationError(f"the shares of a mixture must add up to 1; {_name_rows(bad, total)}")


def _is_full(frame: pd.DataFrame, name: str) -> bool:
    return name in frame.columns and bool(frame[name].notna().all())


def _name_rows(bad: BoolArray, values: NDArray[Any], shown: int = 5) -> str:
    rows = np.flatnonzero(bad)
    listed = ", ".join(f"row {row}: {values[row]:g}" for row in rows[:shown])
    return listed if len(rows) <= shown else f"{listed} and {len(rows) - shown} more"


def index_levels(values: FloatArray) -> NDArray[np.int64]:
    """The rank of each value among the distinct ones, up to a relative tolerance."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    steps = np.concatenate([[0], np.cumsum(np.diff(ordered) > SAME_CELL_TOLERANCE * ordered[:-1])])
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = steps
    return ranks


def merge_horizons(tokens: FloatArray, batch_tokens: FloatArray | None) -> FloatArray:
    """Horizons (n,), where those less than one step apart are the longest of them; a step is `batch_tokens` (n,).

    Without this the runs of one cell, each rounded to whole steps of its own batch, would be a cell for each batch.
    """
    if batch_tokens is None or not (np.isfinite(tokens) & np.isfinite(batch_tokens)).all():
        return tokens
    order = np.argsort(tokens, kind="stable")
    ordered, step = tokens[order], batch_tokens[order]
    new = np.concatenate([[True], np.diff(ordered) >= np.maximum(step[1:], step[:-1])])
    group = np.cumsum(new) - 1
    longest = np.maximum.reduceat(ordered, np.flatnonzero(new))
    merged = np.empty_like(tokens)
    merged[order] = longest[group]
    return merged


def count_levels(values: FloatArray) -> int:
    """How many distinct values there are, up to the tolerance that defines a cell."""
    return int(index_levels(values).max()) + 1


def _read(frame: pd.DataFrame, name: str) -> str | None:
    """The column that holds `name` under one of its aliases, if it has any value at all."""
    found = [alias for alias in ALIASES[name] if alias in frame.columns and bool(frame[alias].notna().any())]
    return found[0] if found else None


def _require(frame: pd.DataFrame, name: str) -> str:
    column = _read(frame, name)
    if column is None:
        known = ", ".join(ALIASES[name])
        raise ObservationError(f"the table needs a column for {name} (one of: {known}); it has {list(frame.columns)}")
    return column


def _find_params(frame: pd.DataFrame, params: str) -> tuple[str, ParamsConvention]:
    if params in frame.columns:
        return params, CONVENTIONS.get(params, "unspecified")
    if params == "params_non_embedding" and "N" in frame.columns:
        return "N", "unspecified"
    raise ObservationError(
        f"the table needs the column {params!r} that counts parameters; it has {list(frame.columns)}. "
        "Name another with params=..."
    )


def _numbers(frame: pd.DataFrame, column: str) -> NDArray[Any]:
    try:
        return np.asarray(frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise ObservationError(f"the column {column!r} must hold numbers: {error}") from error


def _read_batch(frame: pd.DataFrame) -> FloatArray | None:
    tokens = _read(frame, "batch_tokens")
    if tokens is not None:
        return _numbers(frame, tokens)
    sequences, seq_len = _read(frame, "batch_sequences"), _read(frame, "seq_len")
    if sequences is None:
        return None
    if seq_len is None:
        raise ObservationError(
            f"{sequences!r} counts sequences: add a column seq_len (tokens per sequence), or give batch_tokens"
        )
    return np.asarray(_numbers(frame, sequences) * _numbers(frame, seq_len), dtype=np.float64)


def _leave_out(frame: pd.DataFrame, excluded: Sequence[Exclusion]) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """The rows that a fit may see, and all exclusions so far; a run is counted under the first reason that it meets."""
    listed = list(excluded)
    for column, value, reason in LEFT_OUT:
        if column not in frame.columns:
            continue
        dropped = frame[column].eq(value).fillna(False).to_numpy(dtype=bool)
        if dropped.any():
            listed.append(Exclusion(reason, int(dropped.sum())))
            frame = frame[~dropped]
    if frame.empty and listed:
        raise ObservationError("no runs to fit: " + "; ".join(f"{item.runs} {item.reason}" for item in listed))
    return frame, tuple(listed)


def _read_scope(frame: pd.DataFrame, pool: Collection[str]) -> dict[str, str]:
    scope: dict[str, str] = {}
    for column in SCOPE_COLUMNS:
        if column not in frame.columns:
            continue
        values = sorted({str(value) for value in frame[column].dropna()})
        if len(values) > 1 and column not in pool:
            raise ObservationError(
                f"the runs differ in {column} ({', '.join(values[:5])}); runs of different {column} are not fitted "
                f"together. Select one, or say so with pool=({column!r},)"
            )
        if values:
            scope[column] = " | ".join(values)
    return scope
