"""What `check`, `plan` and `status` say: derived numbers, runs still to do, states; nothing is launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.ledger import Ledger
from foretune.parametrization import choose_multipliers, describe_groups
from foretune.planning import Plan, Spent, check_budget
from foretune.probe import Estimate, estimate_hours
from foretune.records import RunSpec, RunStatus, TrainingSpec
from foretune.resolution import plan_study, resolve_corpus
from foretune.runners.grouping import sum_savings
from foretune.search import ask_search, expect_search
from foretune.search.soups import list_retrained
from foretune.search.verification import expect_verification
from foretune.searching import note_other_searches
from foretune.study import Study
from foretune.variation import describe_space

Rows = list[dict[str, Any]]


def describe_study(study: Study) -> dict[str, Rows]:
    """The derived numbers of a study, as titled tables: scales, parameters by group, parametrization, space, data."""
    corpus = resolve_corpus(study)
    searched = ask_search(study, corpus).specs
    later = [*expect_search(study, corpus), *expect_verification(study, corpus)]
    specs = [*searched, *later]
    by_scale = {spec.scale: spec for spec in reversed(specs)}
    first = {scale.name: by_scale[scale.name] for scale in study.scales if scale.name in by_scale}
    return {
        "scales": [_describe_scale(spec) for spec in first.values()],
        **_keep_filled({"batch ramp": _describe_ramps(specs), "weight decay": _describe_decays(study, searched)}),
        "parameters by group": _describe_params(first),
        "parametrization": _describe_parametrization(specs),
        "forward multipliers": _describe_multipliers(specs),
        "search space": describe_space(study),
        "data": [
            {"domain": name, "share": share, "train_tokens": corpus.train_tokens.get(name)}
            for name, share in corpus.mixture.items()
        ],
        **_keep_filled({"notes": [{"note": note} for note in corpus.notes]}),
    }


def describe_plan(
    study: Study, ledger: Ledger | None, *, probe: bool, results: Path = Path("results")
) -> tuple[dict[str, Any], Rows, InputError | None]:
    """The cost of what is to do, a row per rung and state, and the refusal when it is over the budget.

    Under `results` lies the study's folder, in which the states for a soup are looked for.
    """
    corpus = resolve_corpus(study)
    plan = _find_retrained(study, plan_study(study, corpus, ledger), results)
    stand_ins = expect_verification(study, corpus)
    expected = _outstanding_verification(study, stand_ins, ledger, searching=bool(plan.todo or plan.later))
    specs = [*plan.todo, *plan.later, *plan.again, *expected]
    estimate = estimate_hours(specs, study.runner) if probe else Estimate(0.0, 1, "not measured (--no-probe)")
    saved = sum_savings(specs, study.runner)
    record = {
        "study": plan.study,
        "runs_to_do": len(plan.todo) + len(plan.later),
        "runs_to_verify": len(expected),
        **({"runs_to_train_again": len(plan.again)} if plan.again else {}),
        "runs_done": len(plan.done),
        "runs_skipped": len(plan.skipped),
        "tokens": sum(spec.own_tokens for spec in specs),
        "compute_flops": float(sum(spec.own_flops for spec in specs)),
        "shared_trunk_runs": saved.runs,
        "shared_trunk_tokens": saved.tokens,
        "shared_trunk_flops": saved.flops,
        "hours": round(estimate.hours, 4),
        "runs_at_once": estimate.slots,
        "hours_basis": estimate.basis,
    }
    if note := note_other_searches(study, corpus, ledger):
        record["note"] = note
    whole = replace(plan, todo=(*plan.todo, *expected))
    refusal = _find_refusal(study, whole, estimate, _sum_others(whole, ledger), probe=probe)
    return record, _plan_rows(plan, expected), refusal


def _find_retrained(study: Study, plan: Plan, results: Path) -> Plan:
    """The plan with the runs that a soup needs and that have left no state."""
    if not study.search.soup:
        return plan
    runs = results / study.study.name / "runs"
    done = [spec for spec, status in plan.done if status is RunStatus.COMPLETED]
    again = list_retrained(plan.todo, done, lambda spec: (runs / spec.run_id / "checkpoints").is_dir())
    return replace(plan, again=tuple(again))


def describe_status(ledger: Ledger, study: str) -> dict[str, Any]:
    """Runs by state, who drives the study, and the time left by that driver's own account.

    A driver that is gone has no time left to tell of; `note` says when it was last heard of.
    """
    frame = ledger.runs(study)
    states = Counter(frame["status"])
    driver, failures = ledger.progress(study) or {"alive": False, "progress": {}}, ledger.failures(study)
    return {
        "study": study,
        "completed": states["completed"],
        "diverged": states["diverged"],
        "failed": len(failures),
        "pending": ledger.count_enrolled(study) - len(frame),
        "driver": driver["holder"] if driver["alive"] else "none",
        "minutes_left": driver["progress"].get("minutes_left") if driver["alive"] else None,
        "note": _tell_lost_driver(driver),
        "failures": [{"run_id": item.run_id, "attempt": item.attempt, "reason": item.reason} for item in failures],
    }


def _tell_lost_driver(driver: Mapping[str, Any]) -> str:
    """That a driver went without a word, which a launch that ends never does; empty where none did."""
    if driver["alive"] or "holder" not in driver:
        return ""
    return (
        f"its driver {driver['holder']} was last heard of {driver['silent_seconds'] / 60:.1f} minutes ago and is gone, "
        "so nothing is running; `foretune run` goes on where it was"
    )


def _describe_scale(spec: RunSpec) -> dict[str, Any]:
    """The whole run, whatever part of it the search asks for first."""
    shape, training = spec.model.shape, spec.training
    return {
        "scale": spec.scale,
        "width": spec.model.width,
        "depth": spec.model.depth,
        "params_non_embedding": shape.params_non_embedding,
        "params_active": shape.params_active,
        "params_total": shape.params_total,
        "tokens": training.tokens,
        "tokens_per_param": round(training.tokens / shape.params_non_embedding, 2),
        "steps": training.steps,
        "warmup_steps": training.warmup_steps,
        "decay_steps": training.decay_steps,
        "flops_per_token": shape.flops_per_token(spec.data.seq_len),
        "compute_flops": float(spec.flops_per_token * training.tokens),
    }


def _describe_ramps(specs: Sequence[RunSpec]) -> Rows:
    """A row per rung and batch of its ramp, the full one at its end."""
    rows = [
        {
            "scale": spec.scale,
            "full_batch_tokens": spec.training.batch_tokens,
            "batch_tokens": batch,
            "steps": steps,
            "tokens": steps * batch,
        }
        for spec in specs
        if spec.training.ramp
        for batch, steps in _list_stretches(spec.training)
    ]
    return _drop_repeats(rows)


def _list_stretches(training: TrainingSpec) -> list[tuple[int, int]]:
    """The batches that a run goes through, each with its steps."""
    ramp = [(phase.batch_tokens, phase.steps) for phase in training.ramp]
    return [*ramp, (training.batch_tokens, training.steps - sum(steps for _, steps in ramp))]


def _describe_decays(study: Study, searched: Sequence[RunSpec]) -> Rows:
    """The weight decays that a timescale gives; those of verification runs wait for their learning rate."""
    if study.training.timescale is None and "timescale" not in study.search.list_keys():
        return []
    runs = [(spec.scale, spec.training) for spec in searched]
    rows = [
        {
            "scale": scale,
            "batch_tokens": run.batch_tokens,
            "peak_lr": run.peak_lr,
            "timescale": round(run.batch_tokens / (run.peak_lr * run.weight_decay * run.tokens), 12),
            "weight_decay": run.weight_decay,
        }
        for scale, run in runs
    ]
    return _drop_repeats(rows)


def _describe_params(specs: Mapping[str, RunSpec]) -> Rows:
    """A row per group and a column per rung."""
    counts = {scale: spec.model.shape.count_params() for scale, spec in specs.items()}
    groups = {group: None for count in counts.values() for group in count}
    return [{"group": group, **{scale: count.get(group, 0) for scale, count in counts.items()}} for group in groups]


def _describe_parametrization(specs: Sequence[RunSpec]) -> Rows:
    """The rules of every parametrization and optimizer at every size: what is multiplied by how much."""
    return [
        {**_name_size(spec), "optimizer": spec.training.optimizer, **row}
        for spec in _list_models(specs)
        for row in describe_groups(spec.model, spec.training.optimizer)
    ]


def _describe_multipliers(specs: Sequence[RunSpec]) -> Rows:
    """The constants of the forward pass under every parametrization at every size."""
    rows = [{**_name_size(spec), **asdict(choose_multipliers(spec.model))} for spec in _list_models(specs)]
    return _drop_repeats(rows)


def _drop_repeats(rows: Rows) -> Rows:
    """Each row once, in the order of the first ones."""
    return list({tuple(row.values()): row for row in rows}.values())


def _keep_filled(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    return {title: rows for title, rows in tables.items() if rows}


def _name_size(spec: RunSpec) -> dict[str, Any]:
    model = spec.model
    return {"parametrization": model.parametrization, "width": model.width, "depth": model.depth}


def _list_models(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """A run for every parametrization, size and optimizer, in that order."""
    seen = {(*_name_size(spec).values(), spec.training.optimizer): spec for spec in reversed(specs)}
    return [seen[key] for key in sorted(seen)]


def _outstanding_verification(
    study: Study, expected: list[RunSpec], ledger: Ledger | None, *, searching: bool
) -> list[RunSpec]:
    """Stand-ins less the verification runs that are already done (their settings differ, their cost does not)."""
    if searching or ledger is None or study.study.name not in ledger.studies():
        return expected  # runs still to be searched mean a new forecast, and so new runs to check it
    frame = ledger.runs(study.study.name)
    done = int((frame["role"].eq("verification") & frame["status"].ne("failed")).sum())
    return expected[min(done, len(expected)) :]


def _plan_rows(plan: Plan, expected: Sequence[RunSpec]) -> Rows:
    rows = _group("to do", plan.todo) + _group("to decide, as results come", plan.later)
    rows += _group("to train again, for a soup", plan.again)
    rows += _group("to verify, after the forecast", expected)
    rows += _group("done", [spec for spec, _ in plan.done])
    reasons = Counter((item.scale, item.reason) for item in plan.skipped)
    return rows + [
        {"scale": scale, "state": f"skipped: {reason}", "runs": count, "tokens": 0, "compute_flops": 0.0}
        for (scale, reason), count in reasons.items()
    ]


def _group(state: str, specs: Sequence[RunSpec]) -> Rows:
    scales: Mapping[str, list[RunSpec]] = {spec.scale: [] for spec in specs}
    for spec in specs:
        scales[spec.scale].append(spec)
    return [
        {
            "scale": scale,
            "state": state,
            "runs": len(members),
            "tokens": sum(spec.own_tokens for spec in members),
            "compute_flops": float(sum(spec.own_flops for spec in members)),
        }
        for scale, members in scales.items()
    ]


def _sum_others(plan: Plan, ledger: Ledger | None) -> Spent:
    """What the study has spent on runs that are not in the plan: verification runs and those of earlier versions."""
    if ledger is None or plan.study not in ledger.studies():
        return Spent()
    frame = ledger.runs(plan.study)
    planned = [spec.run_id for spec in (*plan.todo, *(spec for spec, _ in plan.done))]
    others = frame[~frame["run_id"].isin(planned) & frame["source"].isin(["trained", "replay"])]
    others = others[others["status"].ne("failed")]
    whole = others["compute_flops"].astype(float)
    flops = others["spent_flops"].astype(float).fillna(whole)
    tokens = others["tokens"].astype(float) * flops / whole  # those of a parent were spent by the parent
    return Spent(len(others), round(tokens.sum()), float(flops.sum()))


def _find_refusal(study: Study, plan: Plan, estimate: Estimate, spent: Spent, *, probe: bool) -> InputError | None:
    if probe and study.budget.limits_hours and (plan.todo or plan.later) and not estimate.hours:
        return InputError(f"budget.hours: cannot be held to: {estimate.basis}; limit flops or tokens instead")
    try:
        check_budget(study, plan, estimate.hours, spent)
    except InputError as refusal:
        return refusal
    return None
