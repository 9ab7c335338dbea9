"""What the columns of other people's tables mean: names and aliases, and the unit in which each is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from foretune.errors import InputError
from foretune.ledger.tables import EXTRA_COLUMNS, RUN_COLUMNS

MEANINGS = {
    "params_total": "all parameters",
    "params_non_embedding": "parameters without input embedding and output head",
    "params_active": "parameters that a token passes through",
    "width": "size of the residual stream",
    "depth": "blocks",
    "tokens": "training tokens",
    "compute_flops": "training FLOPs, forward and backward",
    "seq_len": "tokens per sequence",
    "batch_tokens": "tokens per optimizer step",
    "batch_sequences": "sequences per optimizer step",
    "steps": "optimizer steps",
    "peak_lr": "peak learning rate, absolute",
    "loss": "nats per token",
    "wall_seconds": "seconds",
    "activation_ratio": "share of the experts that a token passes through",
    "spent_flops": "FLOPs that the run cost, less than compute_flops where a trunk was shared or it ended early",
    "pack_size": "runs trained together on the device",
    "instability": "verdict on the run's stability",
    "horizon_tokens": "tokens that the learning-rate schedule was made for; more than tokens where a search stopped it",
    "setting_changes": "how often settings changed along the run",
}
"""Units and conventions, reported back for every column that was read under another name."""

ALIASES = {
    "params_non_embedding": "N N_non_embedding non_embedding_params n_params num_params params parameters",
    "params_total": "N_total total_params",
    "params_active": "N_active active_params activated_params",
    "width": "d_model hidden_size model_dim n_embd",
    "depth": "n_layers num_layers n_layer num_hidden_layers layers",
    "tokens": "D n_tokens num_tokens train_tokens training_tokens tokens_seen",
    "compute_flops": "C flops compute train_flops training_flops",
    "seq_len": "seq_length sequence_length context_length block_size",
    "batch_tokens": "bs_tokens batch_size_tokens tokens_per_step",
    "batch_sequences": "bs_seqs bs batch_size global_batch_size",
    "steps": "n_steps num_steps train_steps iterations step",
    "peak_lr": "lr learning_rate max_lr lr_max lr_peak",
    "weight_decay": "wd",
    "optimizer": "optim",
    "schedule": "lr_schedule scheduler",
    "seed": "random_seed",
    "loss": "val_loss loss_val validation_loss eval_loss held_out_loss final_loss train_loss training_loss",
    "wall_seconds": "wall_time_s seconds runtime_s",
    "bits_per_byte": "bpb",
}
"""Other names, likeliest first; where a table has several, the first is read and the others are left and reported."""

STEPLAW_ALIASES = {"width": "h", "depth": "numl", "batch_sequences": "bs", "steps": "ti"}
"""How the repository step-law/steplaw abbreviates in the names of its runs (`h1280_ffnh9472_numh10_numl10_...`)."""

OWN_COLUMNS = [*RUN_COLUMNS, *EXTRA_COLUMNS]
IDENTITY_COLUMNS = frozenset({"run_id", "study", "source", "parent_run_id", "created_at", "attempts"})
"""Believed only in a whole run table of this package: elsewhere they mean anything."""
IGNORE = "ignore"
"""What a column is mapped to that must not be read."""

_DOMAIN_COLUMN = re.compile(r"(?:mix|loss)/.+")
_SHARE_COLUMN = re.compile(r"(?:w|weight)_(.+)")
_PLAIN_BATCHES = ("bs", "batch_size", "global_batch_size")


@dataclass(frozen=True)
class Resolution:
    """Which column of a table is read as what."""

    resolved: dict[str, str]
    """Column of the file -> column of the run table."""
    unused: tuple[str, ...]
    """Columns of the file that are not read."""
    notes: tuple[str, ...]
    """Units, and what a user ought to check."""


def is_run_table(columns: Collection[str]) -> bool:
    """Whether a table was written by this package, so that its run ids can be believed."""
    return set(RUN_COLUMNS) <= set(columns)


def resolve_columns(
    columns: Sequence[str], column_map: Mapping[str, str], extra_aliases: Mapping[str, str] | None = None
) -> Resolution:
    """Understand a table's header: the user's map first, then the run table's own names, then aliases.

    `extra_aliases` hold only in the format at hand. Raises InputError for a map that names an unknown column or
    meaning, and for a table without loss, tokens or parameters, with what to map.
    """
    resolved = _read_map(columns, column_map)
    offered = [column for column in columns if column_map.get(column) != IGNORE]
    notes = []
    for column, name in _rank_candidates(offered, extra_aliases or {}):
        holder = _column_of(resolved, name)
        if column not in resolved and not holder:
            resolved[column] = name
        elif column not in resolved:
            notes.append(f"{column} is left: {holder} is read as {name}")
    resolved |= _find_domains(offered, resolved)
    _require(columns, resolved)
    resolved = {column: resolved[column] for column in columns if column in resolved}
    unused = tuple(column for column in columns if column not in resolved and column != "attempts")
    return Resolution(resolved, unused, (*_describe(resolved), *notes))


def _rank_candidates(columns: Sequence[str], extra_aliases: Mapping[str, str]) -> list[tuple[str, str]]:
    """Columns with what they may mean, surest first."""
    believed = set(OWN_COLUMNS) - ({"attempts", "study"} if is_run_table(columns) else IDENTITY_COLUMNS)
    if "status" not in columns:
        believed.discard("reason")
    known = {**_spread(ALIASES), **_spread(extra_aliases)}
    ranked = []
    for position, column in enumerate(columns):
        if column in believed or _DOMAIN_COLUMN.fullmatch(column):
            ranked.append((-1, position, column, column))
        elif found := known.get(_fold(column)):
            ranked.append((found[1], position, column, found[0]))
    return [(column, name) for _, _, column, name in sorted(ranked)]


def _read_map(columns: Sequence[str], column_map: Mapping[str, str]) -> dict[str, str]:
    resolved: dict[str, str] = {}
    for column, name in column_map.items():
        if column not in columns:
            raise InputError(f"--map {column}={name}: the file has no column {column!r}; {_nearest(column, columns)}")
        if name == IGNORE:
            continue
        meaning = _find_meaning(name)
        if not meaning:
            raise InputError(f"--map {column}={name}: no column of the run table; {_nearest(name, OWN_COLUMNS)}")
        if other := _column_of(resolved, meaning):
            raise InputError(f"--map {column}={name}: {meaning} is mapped already, from {other}; map one column to it")
        resolved[column] = meaning
    return resolved


def _find_meaning(name: str) -> str:
    """The column of the run table that a name or an alias stands for, or an empty string."""
    own = name in OWN_COLUMNS or _DOMAIN_COLUMN.fullmatch(name)
    return name if own else _spread(ALIASES).get(_fold(name), ("", 0))[0]


def check_constants(constants: Mapping[str, str], columns: Collection[str]) -> None:
    """Raise InputError for a value of `--set` that no run can have, or that the table has in a column of its own."""
    for name, value in constants.items():
        said = f"--set {name}={value}"
        if not _find_meaning(name):
            raise InputError(f"{said}: no column of the run table; {_nearest(name, OWN_COLUMNS)}")
        if _find_meaning(name) in IDENTITY_COLUMNS:
            raise InputError(f"{said}: says which run a row is, so all rows cannot share it")
        if name in columns:
            raise InputError(f"{said}: the file has a column {name}, which says it for every run; leave --set out")


def _find_domains(columns: Sequence[str], resolved: Mapping[str, str]) -> dict[str, str]:
    """`w_X` or `weight_X` are shares of domain X; in a table that has them, `loss_X` or `X_loss` is its loss."""
    free = [column for column in columns if column not in resolved]
    found = {column: f"mix/{match[1]}" for column in free if (match := _SHARE_COLUMN.fullmatch(column))}
    for column in free if found else ():
        domain = column.removeprefix("loss_").removesuffix("_loss")
        if domain != column:
            found[column] = f"loss/{domain}"
    return found


def _require(columns: Sequence[str], resolved: Mapping[str, str]) -> None:
    read = set(resolved.values())
    problems = []
    if not any(name == "loss" or name.startswith("loss/") for name in read):
        named = [column for column in columns if "loss" in column.lower()] or list(columns)[:12]
        problems.append(f"no loss column; map one of {', '.join(named)}, for example --map {named[0]}=loss")
    if not read & {"params_non_embedding", "params_total", "params_active"}:
        problems.append(
            "no parameter count; map its column, for example --map COLUMN=params_non_embedding, or give that of all "
            "runs: --set params_non_embedding=1M"
        )
    if "tokens" not in read:
        problems.append(
            "no training tokens; map their column, for example --map COLUMN=tokens, or give those of all runs: "
            "--set tokens=1B"
        )
    if problems:
        raise InputError("\n".join(problems))


def _describe(resolved: Mapping[str, str]) -> list[str]:
    """In which unit each column was read, for those that were not named in the run table's own words."""
    renamed = {column: name for column, name in resolved.items() if name in MEANINGS and column != name}
    lines = [f"{column} is read as {name}: {MEANINGS[name]}" for column, name in renamed.items()]
    batch = _column_of(resolved, "batch_sequences")
    if _fold(batch) in _PLAIN_BATCHES:
        lines.append(f"if {batch} counts tokens, say so: --map {batch}=batch_tokens")
    return lines


def _column_of(resolved: Mapping[str, str], name: str) -> str:
    """The column that is read as `name`, or an empty string."""
    return next((column for column, meaning in resolved.items() if meaning == name), "")


def _spread(aliases: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Alias -> (meaning, rank)."""
    return {_fold(alias): (name, rank) for name, text in aliases.items() for rank, alias in enumerate(text.split())}


def _fold(name: str) -> str:
    """Spelling is free, but single letters keep their case: N counts parameters, n may count anything."""
    return re.sub(r"[\s\-.]+", "_", name.strip()).lower() if len(name.strip()) > 1 else name.strip()


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(known)}"
