-- The schema of version 1, as SQLite kept it; PostgreSQL says DOUBLE PRECISION and SERIAL. Never edited.
CREATE TABLE ledger_schema (
    application TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (application)
);
CREATE TABLE studies (
    id INTEGER NOT NULL,
    study TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_studies_study ON studies (study);
CREATE TABLE runs (
    run_id TEXT NOT NULL,
    study TEXT NOT NULL,
    source TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    parent_run_id TEXT,
    params_total BIGINT,
    params_non_embedding BIGINT,
    params_active BIGINT,
    width BIGINT,
    depth BIGINT,
    tokens BIGINT,
    compute_flops DOUBLE,
    seq_len BIGINT,
    batch_tokens BIGINT,
    batch_sequences DOUBLE,
    steps BIGINT,
    peak_lr DOUBLE,
    weight_decay DOUBLE,
    optimizer TEXT,
    schedule TEXT,
    parametrization TEXT,
    seed BIGINT,
    loss DOUBLE,
    loss_unit TEXT NOT NULL,
    loss_kind TEXT NOT NULL,
    wall_seconds DOUBLE,
    device TEXT,
    created_at TEXT NOT NULL,
    scale TEXT NOT NULL,
    role TEXT NOT NULL,
    bits_per_byte DOUBLE,
    tokens_trained BIGINT,
    attempts BIGINT NOT NULL,
    spec TEXT,
    PRIMARY KEY (run_id)
);
CREATE TABLE members (
    study TEXT NOT NULL,
    run_id TEXT NOT NULL,
    scale TEXT NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (study, run_id)
);
CREATE INDEX ix_members_run_id ON members (run_id);
CREATE TABLE failures (
    run_id TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    reason TEXT NOT NULL,
    failed_at TEXT NOT NULL,
    PRIMARY KEY (run_id, attempt)
);
CREATE TABLE conflicts (
    run_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    record TEXT NOT NULL,
    seen_at TEXT NOT NULL,
    PRIMARY KEY (run_id, digest)
);
CREATE TABLE forecasts (
    id INTEGER NOT NULL,
    study TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (study, fingerprint)
);
CREATE TABLE leases (
    study TEXT NOT NULL,
    token TEXT NOT NULL,
    host TEXT NOT NULL,
    machine TEXT NOT NULL,
    pid BIGINT NOT NULL,
    process_started TEXT,
    started_at TEXT NOT NULL,
    heartbeat_seconds DOUBLE NOT NULL,
    progress TEXT NOT NULL,
    PRIMARY KEY (study)
);
CREATE TABLE domain_values (
    run_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    domain TEXT NOT NULL,
    value DOUBLE NOT NULL,
    PRIMARY KEY (run_id, kind, domain),
    FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
CREATE TABLE curves (
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    step BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    loss DOUBLE,
    held_out DOUBLE,
    lr DOUBLE NOT NULL,
    PRIMARY KEY (run_id, position),
    FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
