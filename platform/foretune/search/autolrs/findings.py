"""What AutoLRS has found: the schedules, what they came to, what the search cost, and the best one from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from foretune.search.autolrs.rate_track import Track
from foretune.search.edges import find_edges
from foretune.search.interface import Findings, History
from foretune.search.replaying.findings import REPLAYS, describe_replays, tabulate_replays
from foretune.search.replaying.schedule import Schedule, SchedulePhase
from foretune.study import Study


def find_schedule(study: Study, tracks: Sequence[Track]) -> Schedule | None:
    """The schedule of the best run that has arrived; None where none has."""
    best = min((track for track in tracks if track.has_arrived), key=lambda track: track.loss, default=None)
    return make_schedule(study.study.name, best) if best else None


def make_schedule(study: str, track: Track) -> Schedule:
    """The rates of a run that has arrived against the share of its tokens."""
    horizon = track.base.training.tokens
    phases: list[SchedulePhase] = []
    for row in _list_rates(track):
        phase = SchedulePhase(start_share=row["tokens"] / horizon, settings={"peak_lr": row["peak_lr"]})
        if not phases or phases[-1].settings != phase.settings:
            phases.append(phase)
    return Schedule(study=study, run_id=track.trunk.run_id, tokens=horizon, score=track.loss, phases=tuple(phases))


def tell_schedules(study: Study, tracks: Sequence[Track], history: History) -> Findings | None:
    """The schedules that were found, what they came to and what the search for them cost; None before one is."""
    begun, tracks = len(tracks), [track for track in tracks if track.has_arrived]
    if not tracks:
        return None
    best = min(tracks, key=lambda track: track.loss)
    losses = [track.loss for track in tracks if track.base.scale == best.base.scale]
    seed, mean = "", ""
    if len(losses) > 1:
        seed = f" and seed {best.base.seed}, the best of {len(losses)},"
        mean = f"; the mean of {len(losses)} seeds is {sum(losses) / len(losses):.4f}, up to {max(losses):.4f}"
    edges = "".join(f"; {told}" for told in _find_edges(study, best))
    rates = " -> ".join(f"{move.lr:.3g}" for move in best.list_path())
    share = sum(track.search_flops for track in tracks) / sum(track.base.compute_flops for track in tracks)
    lost = f"; {begun - len(tracks)} of {begun} models did not arrive" if begun > len(tracks) else ""
    schedule = make_schedule(study.study.name, best)
    replays = tabulate_replays(history.decisions, schedule, history.results, {})
    return Findings(
        sentence=(
            f"At scale {best.base.scale}{seed} the learning rate went {rates} and the loss came to {best.loss:.4f}"
            f"{mean}; the search cost {share:.2f} times the training itself{lost}{edges}. "
            f"{describe_replays(replays)}"
        ).strip(),
        settings={"schedule": _list_rates(best)},
        tables={
            "Schedules found": [row for track in tracks for row in _list_rows(track)],
            **({REPLAYS: replays} if replays else {}),
        },
        data={
            "schedule": schedule.model_dump(mode="json"),
            "schedules": [_describe(track) for track in tracks],
        },
    )


def _find_edges(study: Study, track: Track) -> list[str]:
    """What to know of the rates that lie at an end of the range, each once."""
    leaf = study.search.leaves()[0]
    told = [edge for move in track.list_path() for edge in find_edges(leaf, {"peak_lr": move.lr})]
    return list(dict.fromkeys(told))


def _list_rates(track: Track) -> list[dict[str, float]]:
    """The rates of a run and the tokens from which on they hold, the warm-up's first."""
    training = track.base.training
    first = [{"tokens": 0, "peak_lr": training.peak_lr}] if training.warmup_steps else []
    begins = [training.tokens_at(track.stages[move.stage - 1].start) for move in track.list_path()]
    rates = [move.lr for move in track.list_path()]
    return first + [{"tokens": tokens, "peak_lr": lr} for tokens, lr in zip(begins, rates, strict=True)]


def _list_rows(track: Track) -> Iterator[dict[str, Any]]:
    """A row for every stage."""
    for move in track.list_path():
        stage, result = track.stages[move.stage - 1], track.results.get(move.run_id)
        forecast, deviation = move.forecasts[move.parent_run_id] or (math.nan, math.nan)
        yield {
            "scale": track.base.scale,
            "seed": track.base.seed,
            "stage": move.stage,
            "from_tokens": track.base.training.tokens_at(stage.start),
            "to_tokens": track.base.training.tokens_at(stage.stop),
            "peak_lr": move.lr,
            "forecast_loss": forecast,
            "forecast_sd": deviation,
            "held_out_loss": result.loss if result else None,
            "tried": len(move.forecasts),
            "lost": sum(found is None for found in move.forecasts.values()),
        }


def _describe(track: Track) -> dict[str, Any]:
    return {
        "scale": track.base.scale,
        "seed": track.base.seed,
        "tokens": track.base.training.tokens,
        "rates": _list_rates(track),
        "loss": track.loss,
        "training_flops": track.base.compute_flops,
        "search_flops": track.search_flops,
    }
