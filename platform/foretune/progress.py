"""The progress of a launch: a bar with time left on stderr, weighted by FLOPs, so that a large run counts for more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from foretune.planning import Plan
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus

Publish = Callable[[dict[str, Any]], None]


class ProgressBar:
    """Watches a launch on a terminal. All of it goes to stderr: stdout belongs to the answer."""

    def __init__(self, *, quiet: bool = False) -> None:
        """A quiet bar still prints notes and what went wrong."""
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        self._flops_done: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._flops = 0.0
        """Of the whole stage."""
        self._given = 0.0
        """Of the runs that are decided on."""
        self._began: tuple[float, float] | None = None
        """When the first run of the stage was seen to train, and the FLOPs done by then: executors take their time to
        start."""

    def start_stage(self, plan: Plan) -> None:
        """Open a bar for the runs to do, and say what is already done or skipped."""
        self.close()
        role = plan.todo[0].role if plan.todo else "search"
        self._counts = {"runs": len(plan.todo), "completed": 0, "diverged": 0, "failed": 0}
        self._flops, self._flops_done, self._began = plan.flops, {}, None
        self._given = float(sum(spec.own_flops for spec in plan.todo))
        self.note(f"{role}: {len(plan.todo)} runs to do, {len(plan.done)} done before, {len(plan.skipped)} skipped")
        for skipped in plan.skipped[:5]:
            self.note(f"  skipped {skipped.scale} {_describe(skipped.point)}: {skipped.reason}")
        if plan.todo and not self._quiet:
            self._bar = tqdm(
                total=plan.flops,
                desc=role,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed} elapsed, {remaining} left]",
            )
            self._show()

    def add_runs(self, specs: Sequence[RunSpec], later: Sequence[RunSpec]) -> None:
        """A search has decided on further runs; what it will ask for later was estimated, and is estimated anew."""
        self._counts["runs"] += len(specs)
        self._given += sum(spec.own_flops for spec in specs)
        self._flops = self._given + sum(spec.own_flops for spec in later)
        if self._bar is not None:
            self._bar.total = self._flops
        self._show()

    def observe(self, spec: RunSpec, point: CurvePoint) -> None:
        """Advance by the share of the run that is done; a restarted run does not turn the bar back."""
        self._advance(spec, point.tokens)

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        """Count the run, and say why when it failed."""
        self._counts[outcome.status.value] += 1
        if outcome.status is RunStatus.FAILED:
            self.note(f"run {spec.run_id} ({spec.scale}, lr {spec.training.peak_lr:.3g}) failed: {outcome.reason}")
        self._advance(spec, spec.tokens)
        self._show()

    def report(self) -> dict[str, Any]:
        """Runs ended of the stage, and the minutes left at the rate of FLOPs since the first of them trained."""
        left = self._estimate_seconds()
        minutes = None if left is None else round(left / 60, 1)
        return {"runs": self._counts["runs"], "ended": self._count_ended(), "minutes_left": minutes}

    def note(self, message: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _estimate_seconds(self) -> float | None:
        """Seconds left; None before there is a rate."""
        done = sum(self._flops_done.values())
        if done >= self._flops:
            return 0.0
        began, before = self._began or (0.0, done)
        return (self._flops - done) * (time.monotonic() - began) / (done - before) if done > before else None

    def _advance(self, spec: RunSpec, tokens: int) -> None:
        share = max(0.0, 1 - (spec.tokens - tokens) / max(1, spec.own_tokens))
        flops = max(self._flops_done.get(spec.run_id, 0.0), share * spec.own_flops)
        if self._bar is not None:
            self._bar.update(flops - self._flops_done.get(spec.run_id, 0.0))
        self._flops_done[spec.run_id] = flops
        if self._began is None:
            self._began = time.monotonic(), flops

    def _count_ended(self) -> int:
        return self._counts["completed"] + self._counts["diverged"] + self._counts["failed"]

    def _show(self) -> None:
        if self._bar is not None:
            troubles = [f"{self._counts[kind]} {kind}" for kind in ("diverged", "failed") if self._counts[kind]]
            self._bar.set_postfix_str(", ".join([f"{self._count_ended()}/{self._counts['runs']} runs", *troubles]))


def _describe(point: Any) -> str:
    return ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )
