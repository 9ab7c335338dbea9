"""The time left is told by the rate of training, not by how long an executor took to start."""

from __future__ import annotations

import time

import pytest

from foretune.planning import Plan
from foretune.progress import ProgressBar
from foretune.records import CurvePoint
from foretune_factories import make_spec


def test_the_time_left_goes_by_the_rate_since_the_first_run_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten runs at 10 s each after 100 s in which an executor started: 85 s are left when the first is 1.5 runs on."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    specs = tuple(make_spec(seed=seed) for seed in range(10))
    bar = ProgressBar(quiet=True)
    bar.start_stage(Plan("study", specs, (), ()))
    assert bar.report()["minutes_left"] is None
    for clock, run, share in ((105.0, 0, 0.5), (110.0, 0, 1.0), (115.0, 1, 0.5)):  # noqa: B007
        tokens = round(share * specs[run].tokens)
        bar.observe(specs[run], CurvePoint(step=1, tokens=tokens, lr=0.01, loss=3.0))
    assert bar.report()["minutes_left"] == round(85 / 60, 1)
