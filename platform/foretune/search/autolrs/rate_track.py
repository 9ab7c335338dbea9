"""One model on its way through AutoLRS: a pure function from what was decided and measured to what is next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foretune.records import Phase, Result, RunSpec, RunStatus
from foretune.search.autolrs.line_process import Floats, fit_line
from foretune.search.autolrs.stages import Move, Stage, forecast_trial, plan_stages
from foretune.sections import SearchSection
from foretune.space import LogRange
from scalelaws.curves.exponentials import LossForecast

PLACES = np.linspace(0.0, 1.0, 201)
"""Rates that may be tried, as shares of the range on a logarithmic axis: 2 % apart over two decades."""


@dataclass(frozen=True)
class Track:
    """One model on its way: what was decided for it and what came of that."""

    base: RunSpec
    """The whole run, at the rate of the warm-up."""
    rates: LogRange
    """Rates that may be tried."""
    search: SearchSection
    """The settings of the search."""
    moves: tuple[Move, ...]
    """What was decided, in order."""
    results: Mapping[str, Result]
    """What came of runs, by id."""

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of the run."""
        return plan_stages(self.search.autolrs, self.base.training)

    @cached_property
    def trunk(self) -> Move:
        """The last stage that was settled on, or the warm-up; it stops at step 0 where there is none."""
        settled = [move for move in self.moves if move.kind != "try"]
        if settled:
            return settled[-1]
        return self._make("warm-up", 0, self.base.training.peak_lr, stop_step=self.base.training.warmup_steps)

    @property
    def loss(self) -> float:
        """Held-out loss at the end of the run, which has arrived."""
        loss = self.results[self.trunk.run_id].loss
        assert loss is not None, "a completed run has a loss"
        return loss

    @property
    def is_waiting(self) -> bool:
        """Whether a run is under way."""
        return not all(self._has_ended(move) for move in self.moves)

    @property
    def has_arrived(self) -> bool:
        """Whether the whole run is trained."""
        return self.trunk.stop_step == self.base.training.steps and self.has_completed(self.trunk)

    def list_trials(self, number: int) -> list[Move]:
        """The trials of a stage."""
        return [move for move in self.moves if move.kind == "try" and move.stage == number]

    def decide(self) -> list[Move]:
        """What can be decided now; nothing while runs are waited for, and when the run has arrived or is lost."""
        trunk = self.trunk
        if trunk.stop_step:
            if not self.moves:
                return [trunk]
            if not self._has_ended(trunk):
                return []
            if not self.has_completed(trunk):
                return self._settle(trunk.stage)
        return [] if self.has_arrived else self._search(trunk.stage + 1)

    def has_completed(self, move: Move) -> bool:
        """Whether a run has come to its end."""
        result = self.results.get(move.run_id)
        return result is not None and result.status is RunStatus.COMPLETED

    def forecast(self, move: Move) -> LossForecast | None:
        """Where the rate of a trial would lead; None where it was lost."""
        result = self.results.get(move.run_id)
        return forecast_trial(result, self.stages[move.stage - 1]) if result else None

    def list_path(self) -> list[Move]:
        """The stages as they were trained in the end, each settled on once."""
        return list({move.stage: move for move in self.moves if move.kind == "settle"}.values())

    @property
    def search_flops(self) -> float:
        """Training FLOPs of all that is not part of the final run: trials and abandoned stages."""
        lineage = {run_id for move in self.list_path() for run_id in (move.run_id, move.parent_run_id)}
        beside = [move.run_id for move in self.moves if move.kind != "warm-up" and move.run_id not in lineage]
        return sum(self.results[run_id].spent_flops for run_id in beside if run_id in self.results)

    def expect(self) -> list[RunSpec]:
        """Runs that cost what all runs of the track will; their rates are stand-ins."""
        trunk, count = self.trunk, self.search.autolrs.candidates
        moves = [trunk] if trunk.stop_step else []
        for number in range(1, len(self.stages) + 1):
            rates = [self.rates.place((place + 0.5) / count) for place in range(count)]
            trials = [self._make_trial(number, rate, trunk) for rate in rates]
            trunk = self._make_stage(trials[0], {})
            moves += [*trials, trunk]
        return [self.make_spec(move) for move in moves]

    def make_spec(self, move: Move) -> RunSpec:
        """The run of a move."""
        is_last = move.stop_step == self.base.training.steps
        return self.base.model_copy(
            update={
                "phases": move.phases,
                "stop_step": 0 if is_last else move.stop_step,
                "parent_run_id": move.parent_run_id,
                "parent_step": move.parent_step,
                "keep_state": not is_last,
            }
        )

    def list_retained(self) -> list[str]:
        """The runs that may be gone on from: the trunk, and the trials of the stage that it is in or before."""
        if self.has_arrived:
            return []
        near = (self.trunk.stage, self.trunk.stage + 1)
        return [move.run_id for move in self.moves if move is self.trunk or (move.kind == "try" and move.stage in near)]

    def _search(self, number: int) -> list[Move]:
        """Further trials of a stage, or its rate when there have been enough."""
        search, trials = self.search, self.list_trials(number)
        waiting = sum(not self._has_ended(move) for move in trials)
        free = search.batch - waiting if not search.synchronous or not waiting else 0
        wanted = min(free, search.autolrs.candidates - len(trials))
        if wanted > 0:
            return self._try(number, trials, wanted)
        return [] if waiting or len(trials) < search.autolrs.candidates else self._settle(number)

    def _try(self, number: int, trials: Sequence[Move], count: int) -> list[Move]:
        """Trials of rates that are expected low or unknown; the first of a stage is the one that the run has had.

        Those not measured yet count as measured at their mean, so that the next one is tried elsewhere (Desautels et
        al. 2014, section 4.1).
        """
        ended = [move for move in trials if self._has_ended(move)]
        assumed = [self._place(move.lr) for move in trials if not self._has_ended(move)]
        moves = []
        for _ in range(count):
            first = not ended and not assumed
            assumed.append(self._place(self.trunk.lr) if first else self._choose_place(ended, assumed))
            moves.append(self._make_trial(number, self.rates.place(assumed[-1]), self.trunk))
        return moves

    def _choose_place(self, ended: Sequence[Move], assumed: Sequence[float]) -> float:
        """Where the mean less many standard deviations is lowest."""
        places, (values, sds) = np.array([self._place(move.lr) for move in ended]), self._judge(ended)
        if assumed:
            means = fit_line(places, values, sds).predict(np.array(assumed))[0] if ended else np.zeros(len(assumed))
            places, values = np.append(places, assumed), np.append(values, means)
            sds = np.append(sds, np.zeros(len(assumed)))
        untried = PLACES[np.abs(PLACES[:, None] - places).min(axis=1) > 1e-9]
        mean, sd = fit_line(places, values, sds).predict(untried)
        return float(untried[(mean - self.search.autolrs.exploration * sd).argmin()])

    def _settle(self, number: int) -> list[Move]:
        """The stage at the rate that is expected best of those that have not failed it; none when all have."""
        settled = {move.lr for move in self.moves if move.kind == "settle" and move.stage == number}
        trials = self.list_trials(number)
        open_trials = [move for move in trials if self.has_completed(move) and move.lr not in settled]
        if not open_trials:
            return []
        values, deviations = self._judge(trials)
        process = fit_line(np.array([self._place(move.lr) for move in trials]), values, deviations)
        means, _ = process.predict(np.array([self._place(move.lr) for move in open_trials]))
        return [
            self._make_stage(open_trials[int(means.argmin())], {move.run_id: self.forecast(move) for move in trials})
        ]

    def _judge(self, ended: Sequence[Move]) -> tuple[Floats, Floats]:
        """Forecasts of trials that have ended, and their standard deviations.

        A lost one counts as worse than the worst by as much as that is worse than the best, so that the process
        stays smooth; the published code takes 1e6.
        """
        found = [self.forecast(move) for move in ended]
        losses = [one.loss for one in found if one] or [0.0]
        usual = float(np.median([one.sd for one in found if one] or [0.0]))
        penalty = max(losses) + ((max(losses) - min(losses)) or 1.0)
        values = [one.loss if one else penalty for one in found]
        return np.array(values), np.array([one.sd if one else usual for one in found])

    def _make_trial(self, number: int, lr: float, trunk: Move) -> Move:
        stage = self.stages[number - 1]
        phases = (*trunk.phases, Phase(start_step=stage.start, settings={"peak_lr": lr}))
        return self._make(
            "try",
            number,
            lr,
            phases=phases,
            stop_step=stage.trial_stop,
            parent_step=stage.start,
            parent_run_id=trunk.run_id if stage.start else "",
        )

    def _make_stage(self, trial: Move, forecasts: Mapping[str, LossForecast | None]) -> Move:
        stage = self.stages[trial.stage - 1]
        return self._make(
            "settle",
            trial.stage,
            trial.lr,
            phases=trial.phases,
            stop_step=stage.stop,
            parent_step=stage.trial_stop,
            parent_run_id=trial.run_id,
            forecasts={key: (found.loss, found.sd) if found else None for key, found in forecasts.items()},
        )

    def _make(self, kind: str, stage: int, lr: float, *, stop_step: int, **fields: Any) -> Move:
        """A move with the id of its run."""
        move = Move(
            scale=self.base.scale,
            seed=self.base.seed,
            stage=stage,
            lr=lr,
            stop_step=stop_step,
            passed_over=self._list_failed(),
            kind=kind,
            **fields,
        )
        return move.model_copy(update={"run_id": self.make_spec(move).run_id})

    def _place(self, lr: float) -> float:
        """The share of the range at which a rate lies, on a logarithmic axis."""
        share = math.log(lr / self.rates.low) / math.log(self.rates.high / self.rates.low)
        return min(max(share, 0.0), 1.0)

    def _has_ended(self, move: Move) -> bool:
        return move.run_id in self.results or move.run_id in self._list_failed()

    def _list_failed(self) -> tuple[str, ...]:
        """Runs that failed for good: those known by now, and those that earlier decisions went past."""
        passed = [run_id for move in self.moves for run_id in move.passed_over]
        now = [key for move in self.moves if (key := move.run_id) in self.results and self._is_failed(key)]
        return tuple(dict.fromkeys([*passed, *now]))

    def _is_failed(self, run_id: str) -> bool:
        return self.results[run_id].status is RunStatus.FAILED
