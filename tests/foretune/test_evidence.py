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
