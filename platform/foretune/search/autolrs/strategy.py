"""AutoLRS (Jin et al. 2021, arXiv 2105.10762): before every stage of a run rates are tried; the best one trains it.

Three things are not as in the published code. The loss is forecast by `scalelaws.curves.exponentials`; a rate is chosen
by the mean of the process over the trials, which one lucky forecast does not decide; and a stage goes on from the trial
of its rate, whose steps are not trained a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.records import RunSpec
from foretune.search.autolrs.rate_track import Track
from foretune.search.autolrs.stages import KINDS, read_move
from foretune.search.edges import find_edges
from foretune.search.interface import Asked, Findings, History, Strategy, number_decisions
from foretune.sections import LR_FREE
from foretune.space import LogRange
from foretune.study import Study

FEWEST_TRIAL_STEPS = 10
"""Steps of a trial below which nothing can be forecast from it (assumption; the paper takes 100)."""
SEARCHED = ("peak_lr", "seed")
"""What the space of this search may hold."""


class AutoLRS(Strategy):
    """A learning rate that is searched while the model trains, at every rung and for every seed of the space."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """See Strategy."""
        problems = [*_space_problems(study), *_setting_problems(study)]
        return problems or list(dict.fromkeys(_stage_problems(study, corpus)))  # seeds have the same stages

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """See Strategy."""
        tracks, skipped = list_tracks(study, corpus, history)
        new = [move.decide() for track in tracks for move in track.decide()]
        decisions = number_decisions(history.decisions, new)
        tracks, _ = list_tracks(study, corpus, History(history.results, decisions))
        passed_over = {run_id for track in tracks for move in track.moves for run_id in move.passed_over}
        specs = [track.make_spec(move) for track in tracks for move in track.moves if move.run_id not in passed_over]
        return Asked(
            tuple(specs),
            tuple(skipped),
            decisions,
            retained=frozenset(run_id for track in tracks for run_id in track.list_retained()),
            finished=not any(track.is_waiting for track in tracks),
        )

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """See Strategy; the rates are stand-ins, as many as will be tried."""
        return [spec for track in list_tracks(study, corpus, History())[0] for spec in track.expect()]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """See Strategy."""
        tracks, _ = list_tracks(study, corpus, history)
        return _tell(study, [track for track in tracks if track.has_arrived], len(tracks))


def list_tracks(study: Study, corpus: CorpusFacts, history: History) -> tuple[list[Track], list[Skipped]]:
    """The models that are trained, one for each rung and seed, and those that would be of no use with the reason."""
    held_out = study.verification.scale if study.verification else ""
    moves = [read_move(item) for item in history.decisions if item.kind in KINDS]
    rates = study.search.space["peak_lr"]
    assert isinstance(rates, LogRange), "find_problems checks it"
    tracks, skipped = [], []
    for scale in study.scales:
        for seed in study.search.axis("seed") or (study.study.seed,) if scale.name != held_out else ():
            point = {"peak_lr": study.training.peak_lr or rates.place(0.5), "seed": seed}
            base = resolve_run(study, scale, point, corpus)
            if obstacle := find_obstacle(base, study, corpus):
                skipped.append(Skipped(scale.name, point, obstacle))
                continue
            own = tuple(move for move in moves if (move.scale, move.seed) == (scale.name, seed))
            tracks.append(Track(base, rates, study.search, own, history.results))
    return tracks, skipped


def _space_problems(study: Study) -> Iterator[str]:
    space = study.search.space
    for key in [key for key in space if key not in SEARCHED]:
        yield f"search.space.{key}: autolrs searches the learning rate alone; set {key} elsewhere in the study"
    if not isinstance(space.get("peak_lr"), LogRange):
        got = "nothing" if "peak_lr" not in space else f"a {type(space['peak_lr']).__name__}"
        yield f"search.space.peak_lr: autolrs needs bounds on a logarithmic axis, got {got}; give {{ low, high }}"


def _setting_problems(study: Study) -> Iterator[str]:
    training = study.training
    if training.schedule != "constant":
        yield (
            f"training.schedule: autolrs makes the schedule itself, got {training.schedule!r}; "
            'set schedule = "constant" (a warm-up is kept)'
        )
    if training.optimizer in LR_FREE:
        yield f"training.optimizer: {training.optimizer!r} needs no schedule; take another one, or another strategy"
    if training.timescale is not None:
        yield "training.timescale: it ties the weight decay to one learning rate; give weight_decay"
    if study.search.branches:
        yield "search.branches: autolrs searches the learning rate of one model at a time; leave them out"
    if study.search.objective:
        yield "search.objective: autolrs forecasts the run's own loss; leave it out"


def _stage_problems(study: Study, corpus: CorpusFacts) -> Iterator[str]:
    for track in list_tracks(study, corpus, History())[0]:
        stage = min(track.stages, key=lambda stage: stage.trial_stop - stage.start)
        steps = stage.trial_stop - stage.start
        if steps < FEWEST_TRIAL_STEPS:
            yield (
                f"search.autolrs.first_stage: a stage of {stage.stop - stage.start} steps at scale "
                f"{track.base.scale!r} tries rates for {steps} of them, fewer than {FEWEST_TRIAL_STEPS}; raise "
                "first_stage or trial, or train longer"
            )


def _tell(study: Study, tracks: Sequence[Track], begun: int) -> Findings | None:
    """The schedules that were found, what they came to and what the search for them cost."""
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
    return Findings(
        sentence=(
            f"At scale {best.base.scale}{seed} the learning rate went {rates} and the loss came to {best.loss:.4f}"
            f"{mean}; the search cost {share:.2f} times the training itself{lost}{edges}."
        ),
        settings={"schedule": _list_rates(best)},
        tables={"Schedules found": [row for track in tracks for row in _list_rows(track)]},
        data={"schedules": [_describe(track) for track in tracks]},
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
        "rates": _list_rates(track),
        "loss": track.loss,
        "training_flops": track.base.compute_flops,
        "search_flops": track.search_flops,
    }
