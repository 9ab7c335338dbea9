"""What a search over mixtures has found: the mixture with its intervals, its cost by size, and how the check went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foretune.quantities import format_count
from foretune.repetition import count_domain_tokens
from foretune.search.comparing import LEVEL, Comparison, Noise, compare, measure_noise
from foretune.search.interface import Findings, History
from foretune.search.mixing.advice import advise
from foretune.search.mixing.course import (
    Advice,
    Course,
    Results,
    Trial,
    is_same_mixture,
    read_advice,
    read_later_trials,
    read_trials,
)
from foretune.search.mixing.multifidelity import FEWEST_RUNS

SURE = 0.95
"""Probability of a gain above which the search's own runs are taken to show it (convention)."""
FEWEST_DOF = 3
"""Degrees of freedom below which nothing is said of how sure a gain is: the upper bound of the noise is then more than
four times its estimate, with three not quite three times (chi squared; the limit itself is an assumption)."""
TOO_FEW = "too few replicates"
"""In place of a verdict."""
Row = dict[str, Any]


def describe_search(course: Course, history: History) -> Findings | None:
    """The findings so far; None before three runs have ended."""
    trials, results = read_trials(history.decisions), history.results
    given = read_advice(history.decisions)
    if not given and course.observe(trials, results).known.sum() < FEWEST_RUNS:
        return None
    advice = given[-1] if given else advise(course, trials, results)
    later, noise = read_later_trials(history.decisions), measure_noise(_list_replicates(course, trials, results))
    checks = _list_checks(course, [trial for trial in later if trial.kind == "check"], results, noise)
    passed = _passes(checks)
    sentences = [_judge(course, advice, checks) if given else "", _describe(course, advice, noise), advice.message]
    sentences += [_describe_confirmed(course, trials, results, advice), _describe_noise(noise)]
    if not given or any(trial.kind != "check" for trial in later):
        sentences.append("The search is under way, and this may change.")
    tables = {
        "mixture": _tabulate_shares(course, advice),
        f"objective at {course.target.name}": _tabulate_objective(course, trials, results, advice),
        "check at larger scales": checks,
        "cost by scale": _tabulate_costs(course, trials, results),
    }
    return Findings(
        sentence=" ".join(filter(None, sentences)),
        settings={"mixture": course.natural if passed is False else advice.shares},
        tables={title: rows for title, rows in tables.items() if rows},
        data={"mixture": {"shares": tables["mixture"], "checks": checks, "costs": tables["cost by scale"]}},
    )


def _describe(course: Course, advice: Advice, noise: Noise | None) -> str:
    """The recommended mixture, and what it is expected to bring."""
    told = ", ".join(
        f"{name} {share:.3g} ({advice.low[name]:.3g} to {advice.high[name]:.3g})"
        for name, share in advice.shares.items()
    )
    probability = estimate_certainty(advice, noise)
    gain = (
        f"At {course.target.name} the expected objective is {advice.loss:.4f} nats per token, {advice.gain:.4f} "
        f"(standard deviation {advice.gain_sd:.4f}) below that of the natural mixture; "
    )
    if is_same_mixture(advice.shares, course.natural):
        gain = "It is the natural mixture."
    elif noise is None or probability is None:
        gain += f"how surely it is lower is unknown: {_describe_lack(noise)}."
    else:
        rounded = f"{probability:.3f}" if probability < 0.999 else "above 0.999"
        gain += f"it is lower with probability {rounded} (Student's t, {noise.describe_dof()})."
        gain += " As far as these runs tell, the natural mixture is as good." if probability < SURE else ""
    return f"Recommended for {_describe_objective(course)}: {told}; 90 % intervals. {gain}"


def estimate_certainty(advice: Advice, noise: Noise | None) -> float | None:
    """Probability that the recommended mixture is better, as far as replicates tell the noise; None for too few.

    The posterior weighs noise and bends of the loss by the runs alone. Here the gain has Student's t with the degrees
    of freedom of the replicates, and its standard deviation grows where they scatter more than the fit has it (an
    assumption that errs towards doubt: not all of it is noise).
    """
    from scipy.stats import t as student  # half a second, which only a search with replicates waits for

    if noise is None or noise.dof < FEWEST_DOF:
        return None
    fitted = max(advice.noise_sd / advice.loss, 1e-12)
    sd = max(advice.gain_sd, 1e-12) * max(1.0, noise.sd / fitted)
    return float(student.cdf(advice.gain / sd, noise.dof))


def _describe_lack(noise: Noise | None) -> str:
    """Why nothing is said of how sure a gain is."""
    held = noise.describe_dof() if noise else "none"
    return f"{TOO_FEW} ({held}, at least {FEWEST_DOF} are needed)"


def _describe_confirmed(course: Course, trials: Sequence[Trial], results: Results, advice: Advice) -> str:
    """How often what was recommended has been run, and how far the recommendation has moved on since."""
    confirmed = _list_confirmed(trials, results, advice)
    if not confirmed:
        return ""
    told = f"{len(confirmed)} confirmation run{'s' if len(confirmed) > 1 else ''} ended at {course.target.name}"
    if all(is_same_mixture(trial.shares, advice.shares) for trial in confirmed):
        return f"{told}."
    gap = max(abs(share - confirmed[-1].shares[name]) for name, share in advice.shares.items())
    return f"{told}, each of the mixture recommended then; the last of these differs by at most {gap:.2g} in a share."


def _list_confirmed(trials: Sequence[Trial], results: Results, advice: Advice) -> list[Trial]:
    """The confirmations behind a recommendation that have ended."""
    return [
        trial
        for trial in trials
        if trial.kind == "confirm" and trial.searched == advice.searched and trial.run_id in results
    ]


def _describe_objective(course: Course) -> str:
    weights = course.objective
    if len(set(weights.values())) == 1 and not course.study.search.objective:
        return "the mean held-out loss of all domains"
    return " + ".join(f"{weight:.3g} loss of {name}" for name, weight in weights.items() if weight)


def _list_replicates(course: Course, trials: Sequence[Trial], results: Results) -> list[list[float]]:
    """The objectives of runs that differ in nothing but the seed, each run once."""
    groups: dict[tuple[str, tuple[float, ...]], dict[str, float]] = {}
    for trial in trials:
        if math.isfinite(loss := course.measure(trial, results)):
            key = (trial.scale, tuple(course.list_shares(trial.shares)))
            groups.setdefault(key, {})[trial.run_id] = loss
    return [list(group.values()) for group in groups.values()]


def _describe_noise(noise: Noise | None) -> str:
    """The scatter between seeds, at all scales."""
    if noise is None:
        return "With one seed nothing is known of the noise between seeds; give [search.space] seed several."
    return f"Noise floor: {noise.describe()}."


def _judge(course: Course, advice: Advice, checks: Sequence[Row]) -> str:
    """Whether to use what is recommended: what a reader wants to know first."""
    if not course.checks:
        return (
            "What is recommended was not checked at a larger scale: name some in [search.mixture] check_scales before "
            "it is used."
        )
    if is_same_mixture(advice.shares, course.natural):
        return "The natural mixture itself is recommended: there is nothing to check against it."
    rows = [row for row in checks if row["mixture"] == "recommended"]
    if len({row["scale"] for row in rows}) < len(course.checks) or any(row["verdict"] == "under way" for row in rows):
        return "The check at larger scales has not ended: do not use what is recommended yet."
    level = f"{100 * LEVEL:g} % intervals{' of all together' if len(rows) > 1 else ''}"
    told = f"its objective beside the natural one's, {level}: {'; '.join(map(_describe_check, rows))}"
    if any(row["verdict"] == TOO_FEW for row in rows):
        advised = "give [search.space] seed more values and raise [search] runs"
        return f"Keep the natural mixture until more is known of the recommended one ({told}): {advised}."
    if _passes(checks):
        return f"Use the recommended mixture ({told})."
    return f"Keep the natural mixture: the recommended one is not better at every larger scale ({told})."


def _passes(checks: Sequence[Row]) -> bool | None:
    """Whether the recommended mixture beat the natural one at every scale; None where that is not known."""
    verdicts = [row["verdict"] for row in checks if row["mixture"] == "recommended"]
    return None if not verdicts or "under way" in verdicts else all(item == "better" for item in verdicts)


def _list_checks(course: Course, checks: Sequence[Trial], results: Results, noise: Noise | None) -> list[Row]:
    """A row for each scale and mixture of the latest check."""
    losses: dict[tuple[str, str], list[float]] = {}
    for trial in checks:
        losses.setdefault((trial.scale, trial.mixture), []).append(course.measure(trial, results))
    rows = []
    for (scale, mixture), group in losses.items():
        natural = losses.get((scale, "natural"), [])
        ended = all(map(math.isfinite, group + natural))
        found = compare(group, natural, noise, comparisons=len(course.checks)) if ended and natural else None
        row: Row = {"scale": scale, "mixture": mixture}
        row["runs"] = sum(not math.isnan(loss) for loss in group)
        row["objective"] = math.fsum(group) / len(group) if all(map(math.isfinite, group)) else None
        if mixture == "natural":
            rows.append({**row, **_list_gap(None), "verdict": "-"})
        else:
            verdict = _tell_verdict(found, noise) if found else _find_state(group + natural)
            rows.append({**row, **_list_gap(found), "verdict": verdict})
    return rows


def _tell_verdict(found: Comparison, noise: Noise | None) -> str:
    """The verdict, where there are replicates enough for one."""
    return found.verdict if noise and noise.dof >= FEWEST_DOF else TOO_FEW


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
    for place, trial in enumerate(_list_confirmed(trials, results, advice), start=1):
        loss = course.measure(trial, results)
        row = {"mixture": f"confirmation {place}, as recommended then", "expected": None, "runs": 1}
        rows.append({**row, "measured": loss if math.isfinite(loss) else None})
    return rows


def _tabulate_costs(course: Course, trials: Sequence[Trial], results: Results) -> list[Row]:
    """A row for each scale: the runs that have ended there, each once, and their part of all FLOPs."""
    rows = []
    ended = {trial.run_id: trial for trial in trials if trial.run_id in results}
    costs = {run_id: course.make_spec(trial).own_flops for run_id, trial in ended.items()}
    total = sum(costs.values())
    for rung in (*course.fidelities, *course.checks):
        own = [trial for trial in ended.values() if trial.scale == rung.name]
        flops = sum(costs[trial.run_id] for trial in own)
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
