"""What a population has found: its best member, how that came to be, and what its schedule gives from scratch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.quantities import format_count
from foretune.records import Decision, Result
from foretune.search.interface import Findings, score
from foretune.search.population.lineage import (
    Stretch,
    find_latest,
    find_winner,
    make_schedule,
    read_stretches,
    trace_lineage,
)
from foretune.search.replaying.findings import REPLAYS, describe_replays, tabulate_replays
from foretune.search.replaying.schedule import Schedule

CURVE_POINTS = 24
"""Most points of a stretch's curve that a figure gets."""

UNTRIED = (
    "It was picked as the best of the members' single losses, so it is flattered by their noise; [search.replay] "
    "trains its schedule from scratch with other seeds."
)
"""What is said of a winner whose schedule was not trained from scratch."""

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
    replays = tabulate_replays(decisions, schedule, results, objective)
    sentences = [
        _describe_loss(stretches, scores),
        _describe_best(lineage, schedule, is_winner=winner is not None),
        (describe_replays(replays) or UNTRIED) if winner else "",
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
    how_often = {0: "never changed its settings", 1: "changed its settings once"}.get(
        changes, f"changed its settings {changes} times"
    )
    came = f"began as member {lineage[0].member} and " if lineage[0].member != best.member else ""
    return (
        f"Member {best.member} {so_far}: {schedule.score:.4f} nats per token after {format_count(best.stop_tokens)} "
        f"tokens; it {came}{how_often}."
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
