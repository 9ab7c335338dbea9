"""What a fit may see of a ledger's runs."""

from __future__ import annotations

import pandas as pd
import pytest

from foretune.errors import InputError
from foretune.evidence import gather_observations


def test_runs_that_all_diverged_are_refused_in_words() -> None:
    columns = {"source": "trained", "role": "search", "parametrization": "mup", "loss": float("nan"), "reason": ""}
    frame = pd.DataFrame([{"status": "diverged", **columns}] * 3)
    with pytest.raises(InputError, match="no runs to fit: all 3 diverged; lower the learning rates"):
        gather_observations(frame)


def make_frame(**changes: list[object]) -> pd.DataFrame:
    """Four sound runs of one study."""
    columns: dict[str, object] = {
        "run_id": ["a", "b", "c", "d"],
        "status": "completed",
        "source": "trained",
        "role": "search",
        "parametrization": "mup",
        "params_non_embedding": [1e6, 1e6, 4e6, 4e6],
        "tokens": [1e8, 1e8, 4e8, 4e8],
        "horizon_tokens": [1e8, 1e8, 4e8, 4e8],
        "schedule": "wsd",
        "peak_lr": [1e-3, 2e-3, 1e-3, 2e-3],
        "loss": [3.0, 3.1, 2.5, 2.6],
        "setting_changes": 0,
        "mix/code": 0.75,
        "mix/text": 0.25,
    }
    return pd.DataFrame(columns | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"horizon_tokens": [1e8, 2e8, 4e8, 4e8]}, "stopped by a search before the end of their schedule"),
        ({"setting_changes": [0, 2, 0, 0]}, "whose settings changed along the run"),
        ({"role": ["search", "baseline", "search", "search"]}, "baselines of a search"),
        ({"learned/code": [None, 0.5, None, None]}, "that learned settings or their mixture along the run"),
    ],
)
def test_what_a_search_left_unfinished_or_changed_poisons_no_fit(changes: dict[str, list[object]], reason: str) -> None:
    observations = gather_observations(make_frame(**changes))
    assert [(item.reason, item.runs) for item in observations.excluded] == [(reason, 1)]
    assert sorted(observations.loss) == [2.5, 2.6, 3.0]


def test_a_constant_rate_has_no_end_to_stop_before() -> None:
    frame = make_frame(horizon_tokens=[1e8, 2e8, 4e8, 4e8]).assign(schedule="constant")
    assert len(gather_observations(frame).loss) == 4


def test_runs_of_several_mixtures_are_fitted_together_only_by_name() -> None:
    frame = make_frame(**{"mix/code": [0.75, 0.75, 0.5, 0.75], "mix/text": [0.25, 0.25, 0.5, 0.25]})
    with pytest.raises(InputError, match=r"the runs have 2 data mixtures.*--pool mixture"):
        gather_observations(frame)
    assert len(gather_observations(frame, pool=["mixture"]).loss) == 4
    assert len(gather_observations(make_frame(**{"mix/code": [0.75, 0.75, 0.75 + 1e-9, 0.75]})).loss) == 4
