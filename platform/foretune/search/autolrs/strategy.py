"""AutoLRS (Jin et al. 2021, arXiv 2105.10762): before every stage of a run rates are tried; the best one trains it.

Three things are not as in the published code. The loss is forecast by `scalelaws.curves.exponentials`; a rate is chosen
by the mean of the process over the trials, which one lucky forecast does not decide; and a stage goes on from the trial
of its rate, whose steps are not trained a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import zip_longest

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.records import RunSpec
from foretune.search.autolrs.findings import find_schedule, tell_schedules
from foretune.search.autolrs.rate_track import Track
from foretune.search.autolrs.stages import KINDS, read_move
from foretune.search.interface import Asked, Findings, History, Strategy, number_decisions
from foretune.search.replaying.replays import (
    decide_replays,
    expect_replays,
    find_replay_problems,
    find_useless_replays,
    list_replays,
)
from foretune.search.replaying.schedule import Schedule, SchedulePhase
from foretune.search.sampling import list_rungs, list_seeds
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
        problems = [*_space_problems(study), *_setting_problems(study), *find_replay_problems(study)]
        problems = problems or list(dict.fromkeys(_stage_problems(study, corpus)))  # seeds have the same stages
        return problems or list(find_useless_replays(study, corpus, _stand_in(study)))

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """See Strategy."""
        tracks, skipped = list_tracks(study, corpus, history)
        new = [move.decide() for track in tracks for move in track.decide()]
        decisions = number_decisions(history.decisions, new)
        tracks, _ = list_tracks(study, corpus, history.extend(decisions))
        is_waiting = any(track.is_waiting for track in tracks)
        schedule = None if is_waiting else find_schedule(study, tracks)
        decisions = number_decisions(decisions, decide_replays(study, corpus, decisions, schedule))
        passed_over = {run_id for track in tracks for move in track.moves for run_id in move.passed_over}
        specs = [track.make_spec(move) for track in tracks for move in track.moves if move.run_id not in passed_over]
        return Asked(
            (*specs, *list_replays(study, corpus, decisions, schedule)),
            tuple(skipped),
            decisions,
            retained=frozenset(run_id for track in tracks for run_id in track.list_retained()),
            finished=not is_waiting,
        )

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """See Strategy; the rates are stand-ins, as many as will be tried."""
        rounds = zip_longest(*(track.expect() for track in list_tracks(study, corpus, History())[0]))
        searched = [spec for specs in rounds for spec in specs if spec]
        return [*searched, *expect_replays(study, corpus, _stand_in(study))]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """See Strategy."""
        tracks, _ = list_tracks(study, corpus, history)
        return tell_schedules(study, tracks, history)


def list_tracks(study: Study, corpus: CorpusFacts, history: History) -> tuple[list[Track], list[Skipped]]:
    """The models that are trained, one for each rung and seed, and those that would be of no use with the reason."""
    moves = [(item, read_move(item)) for item in history.decisions if item.kind in KINDS]
    rates, start = _get_rates(study), _choose_start(study)
    tracks, skipped = [], []
    for scale in list_rungs(study):
        for seed in list_seeds(study):
            point = {"peak_lr": start, "seed": seed}
            base = resolve_run(study, scale, point, corpus)
            if obstacle := find_obstacle(base, study, corpus):
                skipped.append(Skipped(scale.name, point, obstacle))
                continue
            own = [(item, move) for item, move in moves if (move.scale, move.seed) == (scale.name, seed)]
            track = Track(base, rates, study.search, tuple(move for _, move in own), history.results)
            for item, move in own:
                history.remake(item, partial(track.make_spec, move))
            tracks.append(track)
    return tracks, skipped


def _get_rates(study: Study) -> LogRange:
    """The rates that may be tried."""
    rates = study.search.space["peak_lr"]
    assert isinstance(rates, LogRange), "find_problems checks it"
    return rates


def _choose_start(study: Study) -> float:
    """The rate of the warm-up."""
    return study.training.peak_lr or _get_rates(study).place(0.5)


def _stand_in(study: Study) -> Schedule:
    """A schedule that costs what the one to be found will."""
    phase = SchedulePhase(start_share=0.0, settings={"peak_lr": _choose_start(study)})
    return Schedule(study=study.study.name, run_id="", tokens=0, score=0.0, phases=(phase,))


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
