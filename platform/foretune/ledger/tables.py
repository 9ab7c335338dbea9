"""The tables of the ledger, the same on SQLite and PostgreSQL. Units are in the names; times are UTC, ISO 8601."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()


def _text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **options)  # type: ignore[arg-type]


def _integer(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double)


schema = sa.Table(
    "ledger_schema",
    metadata,
    sa.Column("application", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
"""One row: that the database is a ledger, and the version of its schema."""

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _text("study", nullable=False, index=True),
    _text("snapshot", nullable=False),
    _text("created_at", nullable=False),
)
"""Every version of a study file that was launched, as resolved JSON; the last row of a study is the valid one."""

runs = sa.Table(
    "runs",
    metadata,
    _text("run_id", primary_key=True),
    _text("study", nullable=False),
    _text("source", nullable=False),
    _text("status", nullable=False),
    _text("reason", nullable=False),
    _text("parent_run_id"),
    _integer("params_total"),
    _integer("params_non_embedding"),
    _integer("params_active"),
    _integer("width"),
    _integer("depth"),
    _integer("tokens"),
    _number("compute_flops"),
    _integer("seq_len"),
    _integer("batch_tokens"),
    _number("batch_sequences"),
    _integer("steps"),
    _number("peak_lr"),
    _number("weight_decay"),
    _text("optimizer"),
    _text("schedule"),
    _text("parametrization"),
    _integer("seed"),
    _number("loss"),
    _text("loss_unit", nullable=False),
    _text("loss_kind", nullable=False),
    _number("wall_seconds"),
    _text("device"),
    _text("created_at", nullable=False),
    _text("scale", nullable=False),
    _text("role", nullable=False),
    _number("bits_per_byte"),
    _integer("tokens_trained"),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    _number("activation_ratio"),
    _number("spent_flops"),
    _integer("pack_size"),
    _text("instability"),
    _integer("horizon_tokens"),
    _integer("setting_changes"),
    _text("spec"),
)
"""The run table: one row per run, whatever the number of studies that use it."""

domain_values = sa.Table(
    "domain_values",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    _text("kind", primary_key=True),
    _text("domain", primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
)
"""Per run and domain: `mix`, the share of training sequences, `loss`, the held-out loss, and `learned`, the share that
a run learned; settings that a run tuned are `learned` under their own name."""

curves = sa.Table(
    "curves",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    _number("loss"),
    _number("held_out"),
    sa.Column("lr", sa.Double, nullable=False),
)
"""The curve of a run; `position` keeps the order in which the trainer reported, also where it repeated a step."""

learned_paths = sa.Table(
    "learned_paths",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("name", primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
)
"""What a run had learned after so many steps; `learned` of `domain_values` is what it came to."""

diagnoses = sa.Table(
    "diagnoses",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    _number("gradient_norm"),
    _number("update_norm"),
    _number("update_cosine"),
    _number("saturated_share"),
    _number("noise_scale_tokens"),
    _number("logit_max"),
    _number("attention_logit_max"),
    _number("near_eps_share"),
)
"""What was measured beside the loss along a run; the fields of `foretune.records.Diagnosis`."""

members = sa.Table(
    "members",
    metadata,
    _text("study", primary_key=True),
    _text("run_id", primary_key=True, index=True),
    _text("scale", nullable=False),
    _text("role", nullable=False),
)
"""Which runs a study is made of, also those that are still to do."""

failures = sa.Table(
    "failures",
    metadata,
    _text("run_id", primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("reason", nullable=False),
    _text("failed_at", nullable=False),
)
"""Every failed attempt, kept when a later one succeeds."""

conflicts = sa.Table(
    "conflicts",
    metadata,
    _text("run_id", primary_key=True),
    _text("digest", primary_key=True),
    _text("record", nullable=False),
    _text("seen_at", nullable=False),
)
"""Second results of finished runs that differ from the first, which stands."""

forecasts = sa.Table(
    "forecasts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _text("study", nullable=False),
    _text("fingerprint", nullable=False),
    _text("payload", nullable=False),
    _text("created_at", nullable=False),
    sa.UniqueConstraint("study", "fingerprint"),
)
"""Forecasts, written down before they are checked and never changed."""

gates = sa.Table(
    "gates",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _text("study", nullable=False, index=True),
    _text("parametrization", nullable=False),
    _text("kind", nullable=False),
    sa.Column("passed", sa.Boolean, nullable=False),
    _text("details", nullable=False),
    _text("created_at", nullable=False),
)
"""Verdicts on whether settings may be carried across sizes; of each kind the last row of a parametrization is valid."""

decisions = sa.Table(
    "decisions",
    metadata,
    _text("study", primary_key=True),
    _text("fingerprint", primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("kind", nullable=False),
    _text("run_id", nullable=False),
    _text("parent_run_id", nullable=False),
    _text("details", nullable=False),
    _text("created_at", nullable=False),
)
"""What a search decided, in order and for ever: which run was asked for, from whose state it goes on, and why."""

leases = sa.Table(
    "leases",
    metadata,
    _text("study", primary_key=True),
    _text("token", nullable=False),
    _text("host", nullable=False),
    _text("machine", nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    _text("process_started"),
    _text("started_at", nullable=False),
    sa.Column("heartbeat_seconds", sa.Double, nullable=False),
    _text("progress", nullable=False),
)
"""Who drives a study: at most one driver each."""

_names = [column.name for column in runs.c if column.name != "spec"]
_last = _names.index("created_at") + 1

RUN_COLUMNS = _names[:_last]
"""The run table's columns in the order in which frames and files have them."""

EXTRA_COLUMNS = _names[_last:]
"""Columns that follow them; `mix/DOMAIN` and `loss/DOMAIN` come last."""

INTEGER_COLUMNS = frozenset(column.name for column in runs.c if isinstance(column.type, sa.BigInteger))
NUMBER_COLUMNS = frozenset(column.name for column in runs.c if isinstance(column.type, sa.Double))
