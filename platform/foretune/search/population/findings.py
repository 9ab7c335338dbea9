"""What a population has found: its best member, how that came to be, and what its schedule gives from scratch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.deriving import CorpusFacts
from foretune.quantities import format_count
from foretune.records import Decision, Result
from foretune.search.interface import Findings, score
from foretune.search.population.lineage import Stretch, find_latest, find_winner, read_stretches, trace_lineage
from foretune.search.population.replaying import Schedule, ask_replays, find_replays, make_schedule, read_schedule
from foretune.study import Study

CURVE_POINTS = 24
"""Most points of a stretch's curve that a figure gets."""

REPLAYS = "schedule trained from scratch"
"""Title of the table of replays."""

Results = Mapping[str, Result]
Row = dict[str, Any]


def describe_population(
    study: str, decisions: Sequence[Decision], results: Results, objective: Mapping[str, float]
) -> Findings | None:
    """The findings of a population so far; None before anything has ended."""
    stretches = read_stretches(decisions)
    scores = {item.run_id: score(results[item.run_id], objective) for item in stretches if item.run_id in results}
    living = [item for item in stretches if math.isfinite(scores.get(item.run_id, math.inf))]
    if not living:
        return Findings(_describe_loss(stretches, scores)) if scores and len(scores) == len(stretches) else None
    winner = find_winner(stretches, results, objective)
    best = winner or min(living, key=lambda item: (-item.generation, scores[item.run_id]))
    lineage = trace_lineage(best, stretches)
    schedule = make_schedule(study, best, stretches, scores[best.run_id])
    replays = _tabulate_replays(decisions, results, objective)
    sentences = [
        _describe_loss(stretches, scores),
        _describe_best(lineage, schedule, is_winner=winner is not None),
        _describe_replays(replays) if winner else "",
        _describe_ends(stretches, scores),
    ]
    return Findings(
        sentence=" ".join(filter(None, sentences)),
        settings=best.settings,
        tables={
            "generations": _tabulate_generations(stretches, scores),
            "lineage of the best member": [_row_of(item, scores) for item in lineage],
            "schedule of the best member": schedule.rows(),
            **({REPLAYS: replays} if replays else {}),
        },
        data={
            "schedule": schedule.model_dump(mode="json"),
            "lineage": _list_drawn(stretches, lineage, results, scores),
        },
    )


def add_replays(findings: Findings | None, study: Study, corpus: CorpusFacts, results: Results) -> Findings | None:
    """The findings with the runs of `[search.replay] file` beside what the schedule came to where it was found."""
    specs, _ = ask_replays(study, corpus)
    if not specs or study.search.replay is None:
        return findings
    schedule, objective = read_schedule(Path(study.search.replay.file)), study.search.objective
    rows = [_row_of_replay(item.scale, item.seed, item.run_id, results, objective) for item in specs]
    if not any(row["score"] for row in rows):
        return findings
    sentence = f"The schedule of study {schedule.study!r}: {schedule.score:.4f} nats per token where it was found. "
    sentence += _describe_replays(rows)
    if findings is None:
        return Findings(sentence, tables={REPLAYS: rows}, data={"schedule": schedule.model_dump(mode="json")})
    return replace(findings, sentence=f"{findings.sentence} {sentence}", tables={**findings.tables, REPLAYS: rows})


def _describe_loss(stretches: Sequence[Stretch], scores: Mapping[str, float]) -> str:
    """That nobody lives any more, where that is so."""
    latest = find_latest(stretches)
    if not all(math.isinf(scores.get(item.run_id, 0.0)) for item in latest):
        return ""
    return (
        f"All {len(latest)} members were lost (diverged or failed), the last in generation "
        f"{max(item.generation for item in latest)}, and nobody was left to go on from; lower the learning rates."
    )


def _describe_best(lineage: Sequence[Stretch], schedule: Schedule, *, is_winner: bool) -> str:
    best, changes = lineage[-1], len(schedule.phases) - 1
    so_far = "is the best" if is_winner else f"is the best so far (generation {best.generation})"
    how_often = "once" if changes == 1 else f"{changes} times"
    came = f"which began as member {lineage[0].member} and " if lineage[0].member != best.member else "which "
    return (
        f"Member {best.member} {so_far}: {schedule.score:.4f} nats per token after {format_count(best.stop_tokens)} "
        f"tokens, {came}changed its settings {how_often}."
    )


def _describe_replays(replays: Sequence[Row]) -> str:
    """What the winner's schedule gave from scratch, rung by rung; a warning where it was not tried."""
    parts = []
    for scale in dict.fromkeys(row["scale"] for row in replays):
        scores = [row["score"] for row in replays if row["scale"] == scale and row["score"] is not None]
        lost = sum(row["scale"] == scale and row["status"] == "lost" for row in replays)
        spread = f" +- {statistics.stdev(scores):.4f} (standard deviation)" if len(scores) > 1 else ""
        tail = f", {lost} lost" if lost else ""
        if scores:
            parts.append(f"{statistics.fmean(scores):.4f}{spread} at {scale} over {len(scores)} seeds{tail}")
    if parts:
        return f"Its schedule trained from scratch: {'; '.join(parts)}."
    return (
        "It was picked as the best of the members' single losses, so it is flattered by their noise; [search.replay] "
        "trains its schedule from scratch with other seeds."
    )


def _describe_ends(stretches: Sequence[Stretch], scores: Mapping[str, float]) -> str:
    lost = sum(math.isinf(value) for value in scores.values())
    exploits = sum(item.kind == "exploit" for item in stretches)
    return f"{exploits} copies were taken" + (f", and {lost} stretches were lost and replaced." if lost else ".")


def _tabulate_generations(stretches: Sequence[Stretch], scores: Mapping[str, float]) -> list[Row]:
    rows = []
    for generation in range(1, max(item.generation for item in stretches) + 1):
        members = [item for item in stretches if item.generation == generation]
        ended = [scores[item.run_id] for item in members if item.run_id in scores]
        living = sorted(filter(math.isfinite, ended))
        rows.append(
            {
                "generation": generation,
                "tokens": members[0].stop_tokens,
                "ended": len(ended),
                "lost": len(ended) - len(living),
                "copied": sum(item.kind == "exploit" for item in members),
                "best": living[0] if living else None,
                "median": statistics.median(living) if living else None,
                "worst": living[-1] if living else None,
            }
        )
    return rows


def _tabulate_replays(decisions: Sequence[Decision], results: Results, objective: Mapping[str, float]) -> list[Row]:
    return [
        _row_of_replay(item.details["scale"], item.details["seed"], item.run_id, results, objective)
        for item in find_replays(decisions)
    ]


def _row_of_replay(scale: str, seed: int, run_id: str, results: Results, objective: Mapping[str, float]) -> Row:
    result = results.get(run_id)
    value = score(result, objective) if result else math.inf
    is_known = math.isfinite(value)
    return {
        "scale": scale,
        "seed": seed,
        "run_id": run_id,
        "status": "ended" if is_known else "lost" if result else "to do",
        "score": value if is_known else None,
    }


def _row_of(stretch: Stretch, scores: Mapping[str, float]) -> Row:
    value = scores.get(stretch.run_id, math.inf)
    settings = dict(stretch.settings)
    mixture = settings.pop("mixture", {})
    return {
        "generation": stretch.generation,
        "member": stretch.member,
        "kind": stretch.kind,
        "donor": stretch.donor,
        "run_id": stretch.run_id,
        "tokens": stretch.stop_tokens,
        "score": value if math.isfinite(value) else None,
        **settings,
        **{f"mixture.{domain}": share for domain, share in mixture.items()},
    }


def _list_drawn(
    stretches: Sequence[Stretch], lineage: Sequence[Stretch], results: Results, scores: Mapping[str, float]
) -> list[Row]:
    """What a figure shows of every stretch, with its own part of its run's curve."""
    winning = {item.run_id for item in lineage}
    rows = []
    for item in stretches:
        tokens, rates = _cut_curve(item, results)
        rows.append(
            {
                **_row_of(item, scores),
                "root": item.seed,
                "wins": item.run_id in winning,
                "start_tokens": item.start_tokens,
                "ended": item.run_id in results,
                "curve_tokens": tokens,
                "curve_lr": rates,
            }
        )
    return rows


def _cut_curve(stretch: Stretch, results: Results) -> tuple[list[int], list[float]]:
    """Tokens and learning rates of a stretch's own part of the curve; a copy begins with its new rate."""
    curve = results[stretch.run_id].curve if stretch.run_id in results else ()
    own = [(point.tokens, point.lr) for point in curve if point.tokens > stretch.start_tokens]
    if not own:
        return [], []
    before = [point.lr for point in curve if point.tokens <= stretch.start_tokens]
    kept = own[:: math.ceil(len(own) / CURVE_POINTS)]
    if before:
        kept.insert(0, (stretch.start_tokens, before[-1] if stretch.kind == "continue" else own[0][1]))
    if kept[-1] != own[-1]:
        kept.append(own[-1])
    return [tokens for tokens, _ in kept], [rate for _, rate in kept]
