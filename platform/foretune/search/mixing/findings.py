"""What a search over mixtures has found: the mixture with its intervals, its cost by size, and how the check went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foretune.quantities import format_count
from foretune.repetition import count_domain_tokens
from foretune.search.comparing import Comparison, compare, measure_noise
from foretune.search.interface import Findings, History
from foretune.search.mixing.advice import advise
from foretune.search.mixing.course import Advice, Course, Results, Trial, is_same_mixture, read_advice, read_trials
from foretune.search.mixing.multifidelity import FEWEST_RUNS

SURE = 0.95
"""Probability of a gain above which the search's own runs are taken to show it (convention)."""
Row = dict[str, Any]


def describe_search(course: Course, history: History) -> Findings | None:
    """The findings so far; None before three runs have ended."""
    trials, results = read_trials(history.decisions), history.results
    given = read_advice(history.decisions)
    if not given and course.observe(trials, results).known.sum() < FEWEST_RUNS:
        return None
    advice = given[-1] if given else advise(course, trials, results)
    checks = _list_checks(course, trials, results, advice)
    verdict = _judge(course, advice, checks) if given else "The search is under way, and this may change."
    passed = _passes(checks)
    tables = {
        "mixture": _tabulate_shares(course, advice),
        f"objective at {course.target.name}": _tabulate_objective(course, trials, results, advice),
        "check at larger scales": checks,
        "cost by scale": _tabulate_costs(course, trials, results),
    }
    return Findings(
        sentence=" ".join(
            filter(None, (_describe(course, advice), advice.message, _describe_noise(course, trials, results), verdict))
        ),
        settings={"mixture": course.natural if passed is False else advice.shares},
        tables={title: rows for title, rows in tables.items() if rows},
        data={"mixture": {"shares": tables["mixture"], "checks": checks, "costs": tables["cost by scale"]}},
    )


def _describe(course: Course, advice: Advice) -> str:
    """The recommended mixture, and what it is expected to bring."""
    told = ", ".join(
        f"{name} {share:.3g} ({advice.low[name]:.3g} to {advice.high[name]:.3g})"
        for name, share in advice.shares.items()
    )
    gain = (
        f"At {course.target.name} the expected objective is {advice.loss:.4f}, {advice.gain:.4f} "
        f"(standard deviation {advice.gain_sd:.4f}) below that of the natural mixture; it is lower with probability "
        f"{advice.probability:.3f}."
    )
    if is_same_mixture(advice.shares, course.natural):
        gain = "It is the natural mixture."
    elif advice.probability < SURE:
        gain += " As far as these runs tell, the natural mixture is as good."
    return f"Recommended for {_describe_objective(course)}: {told}; 90 % intervals. {gain}"


def _describe_objective(course: Course) -> str:
    weights = course.objective
    if len(set(weights.values())) == 1 and not course.study.search.objective:
        return "the mean held-out loss of all domains"
    return " + ".join(f"{weight:.3g} loss of {name}" for name, weight in weights.items() if weight)


def _describe_noise(course: Course, trials: Sequence[Trial], results: Results) -> str:
    """The scatter of the natural mixture between seeds, at the sizes that were searched."""
    groups: dict[str, list[float]] = {}
    for trial in trials:
        if trial.kind == "natural" and math.isfinite(loss := course.measure(trial, results)):
            groups.setdefault(trial.scale, []).append(loss)
    noise = measure_noise(groups.values())
    if noise is None:
        return "With one seed nothing is known of the noise between seeds; give [search.space] seed several."
    return f"Noise floor: {noise.describe()}."


def _judge(course: Course, advice: Advice, checks: Sequence[Row]) -> str:
    """Whether to use what is recommended."""
    if not course.checks:
        return "It was not checked at a larger scale: name some in [search.mixture] check_scales before it is used."
    if is_same_mixture(advice.shares, course.natural):
        return "There is nothing to check against it."
    rows = [row for row in checks if row["mixture"] == "recommended"]
    if len({row["scale"] for row in rows}) < len(course.checks) or any(row["verdict"] == "under way" for row in rows):
        return "The check at larger scales has not ended: do not use it yet."
    told = "; ".join(map(_describe_check, rows))
    if _passes(checks):
        return f"Checked against the natural mixture at larger scales ({told}). Use it."
    return f"Checked against the natural mixture at larger scales ({told}). Keep the natural mixture."


def _passes(checks: Sequence[Row]) -> bool | None:
    """Whether the recommended mixture beat the natural one at every scale; None where that is not known."""
    verdicts = [row["verdict"] for row in checks if row["mixture"] == "recommended"]
    return None if not verdicts or "under way" in verdicts else all(item == "better" for item in verdicts)


def _list_checks(course: Course, trials: Sequence[Trial], results: Results, advice: Advice) -> list[Row]:
    """A row for each scale and mixture of the latest check."""
    losses: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if trial.kind == "check" and trial.searched == advice.searched:
            losses.setdefault((trial.scale, trial.mixture), []).append(course.measure(trial, results))
    finite = [group for group in losses.values() if all(map(math.isfinite, group))]
    noise = measure_noise(finite)
    rows = []
    for (scale, mixture), group in losses.items():
        natural = losses.get((scale, "natural"), [])
        ended = all(map(math.isfinite, group + natural))
        found = compare(group, natural, noise, comparisons=len(course.checks)) if ended and natural else None
        row: Row = {"scale": scale, "mixture": mixture, "runs": len(group)}
        row["objective"] = math.fsum(group) / len(group) if all(map(math.isfinite, group)) else None
        if mixture == "natural":
            rows.append({**row, **_list_gap(None), "verdict": "-"})
        else:
            verdict = found.verdict if found else _find_state(group + natural)
            rows.append({**row, **_list_gap(found), "verdict": verdict})
    return rows


def _find_state(losses: Sequence[float]) -> str:
    """What stands in place of a verdict."""
    return "under way" if any(map(math.isnan, losses)) else "a run failed or diverged"


def _list_gap(found: Comparison | None) -> Row:
    """How far a mixture lies above the natural one, and its interval, in percent of the objective."""
    ends = (found.difference, found.low, found.high) if found else (math.inf,) * 3
    keys = ("beside natural, %", "low, %", "high, %")
    return {key: round(100 * end, 4) if math.isfinite(end) else None for key, end in zip(keys, ends, strict=True)}


def _describe_check(row: Row) -> str:
    """A row of the check in a phrase."""
    if row["beside natural, %"] is None:
        return f"{row['verdict']} at {row['scale']}"
    span = f" ({row['low, %']:+.2f} to {row['high, %']:+.2f})" if row["low, %"] is not None else ""
    return f"{row['beside natural, %']:+.2f} %{span} at {row['scale']}: {row['verdict']}"


def _tabulate_shares(course: Course, advice: Advice) -> list[Row]:
    """A row for each domain; epochs are those of the target, where it is known."""
    target, held = course.study.target, count_domain_tokens(course.study, course.corpus.train_tokens)
    rows = []
    for name in course.domains:
        share = advice.shares[name]
        row: Row = {
            "domain": name,
            "natural": course.natural[name],
            "recommended": share,
            "low": advice.low[name],
            "high": advice.high[name],
            "best observed": advice.best.get(name),
            "at most": course.caps[name],
        }
        if target and name in held:
            row["epochs of the target"] = round(share * target.tokens_resolved / held[name], 3)
        rows.append(row)
    return rows


def _tabulate_objective(course: Course, trials: Sequence[Trial], results: Results, advice: Advice) -> list[Row]:
    """Expected and measured objective of the mixtures that matter."""
    mixtures = {"natural": course.natural, "recommended": advice.shares, "best observed": advice.best}
    expected = {"natural": advice.loss + advice.gain, "recommended": advice.loss}
    rows = []
    for name, shares in mixtures.items():
        measured = [
            loss
            for trial in trials
            if shares and trial.scale == course.target.name and is_same_mixture(trial.shares, shares)
            if math.isfinite(loss := course.measure(trial, results))
        ]
        row = {"mixture": name, "expected": expected.get(name), "runs": len(measured)}
        rows.append({**row, "measured": math.fsum(measured) / len(measured) if measured else None})
    return rows


def _tabulate_costs(course: Course, trials: Sequence[Trial], results: Results) -> list[Row]:
    """A row for each scale: what was asked for there, and its part of all FLOPs."""
    rows = []
    total = sum(course.make_spec(trial).own_flops for trial in trials)
    for rung in (*course.fidelities, *course.checks):
        own = [trial for trial in trials if trial.scale == rung.name]
        flops = sum(course.make_spec(trial).own_flops for trial in own)
        spec = course.resolve(rung)
        rows.append(
            {
                "scale": rung.name,
                "parameters": format_count(spec.model.shape.params_non_embedding),
                "tokens": format_count(spec.tokens),
                "for": "check" if rung in course.checks else "search",
                "runs": len(own),
                "not completed": sum(math.isinf(course.measure(trial, results)) for trial in own),
                "training FLOPs": float(flops),
                "share of the cost": round(flops / total, 4) if total else 0.0,
            }
        )
    return rows
