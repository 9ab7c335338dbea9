"""What runs that tune their own regularisation came to (`[training.self_tuning]`), and whether it serves plain runs.

With `search.check_tuned`, plain runs follow once the runs of a scale that tune themselves have ended: at the mean of
what the seeds came to, and at what they began with, with the same seeds and all other settings alike. Where the search
varies other settings, those of the lowest mean are taken.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.records import Decision, Result, RunSpec, RunStatus
from foretune.search.interface import Asked, Findings, History, number_decisions
from foretune.search.learned import FROM_SCRATCH, VERDICTS, average_learned, compare_trained, list_scores
from foretune.study import Study

TUNED = "tuned"
"""Kind of the decision to train plain runs, and under which its details have the settings that were learned."""
UNCHECKED = "No plain run has been trained with it; of a dropout, check_tuned = true in [search] asks for that."
"""What is said where nothing was checked."""


def find_check_problems(study: Study) -> list[str]:
    """What speaks against `search.check_tuned`: key, rule, value, what to try."""
    tuning = study.training.self_tuning
    if not study.search.check_tuned:
        return []
    if tuning is None:
        return ["search.check_tuned: no run tunes itself; add [training.self_tuning], or leave it out"]
    if tuning.l2:
        return [
            f"search.check_tuned: a plain run has no l2, got training.self_tuning.l2 = {tuning.l2:g}, so there is no "
            "plain run of what is learned; tune the dropout alone, or leave check_tuned out"
        ]
    return []


def add_checks(asked: Asked, study: Study, history: History) -> Asked:
    """What is asked for, with the plain runs for every scale whose runs have tuned themselves."""
    if not study.search.check_tuned:
        return asked
    known = _find_decisions(asked.decisions)
    specs: list[RunSpec] = []
    new: list[Decision] = []
    is_decided = asked.finished
    for scale, tuning in _group_scales(asked.specs).items():
        decision, stands = known.get(scale), False
        if asked.finished and not (stands := _stands(known.get(scale), tuning, history.results)):
            found = _decide(scale, tuning, study, history.results)
            new += [found] if found else []
            stands, decision = found is not None, found or decision
            is_decided = is_decided and stands
        plain = _list_plain(decision, tuning) if decision else []
        specs += plain if stands else plain[len(plain) // 2 :]  # what it begins with is asked for in any case
    return replace(
        asked,
        specs=(*asked.specs, *specs),
        decisions=number_decisions(asked.decisions, new),
        finished=is_decided,
    )


def expect_checks(study: Study, expected: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs that cost what the plain ones will: what is learned is not known before, and another value costs the same.

    `expected`: what the search costs without them. Which settings are checked is not known either: the costliest are.
    """
    if not study.search.check_tuned:
        return []
    specs = []
    for tuning in _group_scales(expected).values():
        group = max(_group_settings(tuning), key=lambda group: sum(spec.own_flops for spec in group))
        start = _get_start(group[0])
        specs += [_make_plain(spec, value) for value in (start / 2, start) for spec in group]
    return specs


def tell_tuned(findings: Findings | None, specs: Sequence[RunSpec], study: Study, history: History) -> Findings | None:
    """The findings with a table of what each setting moved from and to, by scale; unchanged where none has moved.

    The values are no settings to use without a check: they were tuned in networks whose weights answer to them. What
    the check has shown is told where there is one.
    """
    results = history.results
    tuning = [spec for spec in specs if spec.training.self_tuning and spec.run_id in results]
    learned = [(spec, results[spec.run_id].learned) for spec in tuning if results[spec.run_id].learned]
    if not learned:
        return findings
    rows = [
        _describe(scale, name, learned)
        for scale in dict.fromkeys(spec.scale for spec, _ in learned)
        for name in dict.fromkeys(name for _, values in learned for name in values)
    ]
    told = " ".join(_tell(row) for row in rows)
    found = findings or Findings("")
    found = replace(
        found,
        sentence=f"{found.sentence} {told}".strip(),
        tables={**found.tables, "Tuned along the runs": rows},
        data={**found.data, "tuned": dict(_list_paths(learned, results))},
    )
    return _tell_checks(found, specs, study, history)


def _find_decisions(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """The newest decision of every scale: a study that was extended has decided again."""
    return {item.details["scale"]: item for item in decisions if item.kind == TUNED}


def _group_scales(specs: Sequence[RunSpec]) -> dict[str, list[RunSpec]]:
    """The runs that tune themselves, by their scale."""
    tuning = [spec for spec in specs if spec.training.self_tuning]
    return {name: [spec for spec in tuning if spec.scale == name] for name in dict.fromkeys(s.scale for s in tuning)}


def _group_settings(tuning: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """The runs of a scale that differ in nothing but their seeds."""
    groups: dict[str, list[RunSpec]] = {}
    for spec in tuning:
        groups.setdefault(spec.model_copy(update={"seed": 0}).run_id, []).append(spec)
    return list(groups.values())


def _stands(decision: Decision | None, tuning: Sequence[RunSpec], results: Mapping[str, Result]) -> bool:
    """Whether a decision was taken of just these runs; not one that went past failed runs which are tried again."""
    if decision is None or set(decision.details["judged"]) != {spec.run_id for spec in tuning}:
        return False
    ended = [results.get(run_id) for run_id in decision.details["passed_over"]]
    return all(result is not None and result.status is RunStatus.FAILED for result in ended)


def _decide(scale: str, tuning: Sequence[RunSpec], study: Study, results: Mapping[str, Result]) -> Decision | None:
    """What the runs of the best settings came to, once all runs of the scale have ended; empty where all were lost.

    `passed_over` are the failed ones of all settings: one that is tried again may turn out best.
    """
    if any(spec.run_id not in results for spec in tuning):
        return None
    best = min(_group_settings(tuning), key=lambda group: _judge(group, study, results))
    details = average_learned(TUNED, scale, best, results)
    assert details is not None, "all of them have ended"
    judged = [spec.run_id for spec in tuning]
    failed = [run_id for run_id in judged if results[run_id].status is RunStatus.FAILED]
    return Decision(number=0, kind=TUNED, details={**details, "judged": judged, "passed_over": failed})


def _judge(group: Sequence[RunSpec], study: Study, results: Mapping[str, Result]) -> float:
    """The mean over the seeds; infinite where one diverged, or none came to its end."""
    scores = list_scores(group, results, _choose_objective(study, group[0]))
    is_lost = any(results[spec.run_id].status is RunStatus.DIVERGED for spec in group)
    return math.inf if is_lost or not scores else statistics.fmean(scores)


def _choose_objective(study: Study, spec: RunSpec) -> Mapping[str, float]:
    """What the search minimises; else what the runs were tuned for."""
    assert spec.training.self_tuning is not None, "only runs that tune themselves are checked"
    return study.search.objective or spec.training.self_tuning.objective


def _list_plain(decision: Decision, tuning: Sequence[RunSpec]) -> list[RunSpec]:
    """The plain runs with what was learned, and behind them those with what it began with; none where all were lost."""
    learners = [spec for spec in tuning if spec.run_id in decision.details["learned"]]
    if not decision.details[TUNED] or not learners:
        return []
    values = (decision.details[TUNED]["dropout"], _get_start(learners[0]))
    return [_make_plain(spec, value) for value in values for spec in learners]


def _get_start(spec: RunSpec) -> float:
    assert spec.training.self_tuning is not None, "only runs that tune themselves are checked"
    return spec.training.self_tuning.start["dropout"]


def _make_plain(spec: RunSpec, dropout: float) -> RunSpec:
    """The run with that dropout from beginning to end, which tunes nothing."""
    training = spec.training.model_copy(update={"self_tuning": None, "dropout": dropout})
    return spec.model_copy(update={"training": training})


def _tell_checks(found: Findings, specs: Sequence[RunSpec], study: Study, history: History) -> Findings:
    """The findings with the plain runs side by side; what was learned is a setting to use where they say so."""
    if not study.search.check_tuned:
        return replace(found, sentence=f"{found.sentence} {UNCHECKED}")
    decisions, rows, sentences, settings = _find_decisions(history.decisions), [], [], {}
    for scale, tuning in _group_scales(specs).items():
        plain = _list_plain(decisions[scale], tuning) if scale in decisions else []
        row = _compare(scale, plain, _choose_objective(study, tuning[0]), history.results)
        if row:
            rows.append(row)
            sentences.append(_tell_check(row))
            settings = {"dropout": row["to"]} if row["verdict"] == "better" else {}
    return replace(
        found,
        sentence=" ".join([found.sentence, *sentences]),
        settings={**found.settings, **settings},
        tables={**found.tables, **({FROM_SCRATCH: rows} if rows else {})},
    )


def _compare(
    scale: str, plain: Sequence[RunSpec], objective: Mapping[str, float], results: Mapping[str, Result]
) -> dict[str, Any]:
    """A row for a scale; empty while either half of its plain runs has nothing to compare."""
    half = len(plain) // 2
    learned, given = (list_scores(part, results, objective) for part in (plain[:half], plain[half:]))
    if not learned or not given:
        return {}
    values = {"setting": "dropout", "from": plain[half].training.dropout, "to": plain[0].training.dropout}
    return {**values, **compare_trained(scale, learned, given)}


def _tell_check(row: Mapping[str, Any]) -> str:
    return (
        f"At {row['scale']} plain runs with {row['setting']} {row['to']:.4g} came to {row['learned']:.4f} nats per "
        f"token, those with the {row['from']:.4g} that it began with to {row['given']:.4f} "
        f"({row['difference']:+.2%}). {VERDICTS[row['verdict']]}"
    )


def _describe(scale: str, name: str, learned: Sequence[tuple[RunSpec, Mapping[str, float]]]) -> dict[str, Any]:
    found = [(spec, values[name]) for spec, values in learned if spec.scale == scale]
    values = [value for _, value in found]
    tuning = found[0][0].training.self_tuning
    assert tuning is not None, "only runs that tune themselves are told of"
    return {
        "scale": scale,
        "setting": name,
        "from": tuning.start[name],
        "to": statistics.fmean(values),
        "sd_of_runs": statistics.stdev(values) if len(values) > 1 else None,
        "lowest": min(values),
        "highest": max(values),
        "runs": len(values),
    }


def _tell(row: Mapping[str, Any]) -> str:
    spread = "one run" if row["runs"] == 1 else f"{row['runs']} runs, sd {row['sd_of_runs']:.2g}"
    return f"At {row['scale']} {row['setting']} was tuned from {row['from']:.4g} to {row['to']:.4g} ({spread})."


def _list_paths(
    learned: Sequence[tuple[RunSpec, Mapping[str, float]]], results: Mapping[str, Result]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for spec, _ in learned:
        yield spec.run_id, [point.model_dump() for point in results[spec.run_id].learned_path]
