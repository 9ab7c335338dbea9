"""Planted truths and the folder of published runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from planting import basics
from scalelaws import Observations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def published_runs() -> Callable[[str], pd.DataFrame]:
    """Reads one file of published runs, or skips with the reason."""
    folder = Path(os.environ.get("FORETUNE_PUBLIC_DATA", ROOT.parent / "shared" / "data"))

    def read(name: str) -> pd.DataFrame:
        path = folder / f"{name}.csv"
        if not path.is_file():
            pytest.skip(f"the published runs {path} are not here; set FORETUNE_PUBLIC_DATA to their folder")
        return pd.read_csv(path)

    return read


@pytest.fixture(scope="session")
def fewest_hits() -> Callable[[int], int]:
    """Fewest hits of so many intervals at 90 %, but for a chance of 0.1 %; more hits are caution, not error."""
    return lambda repetitions: int(binom.ppf(0.001, repetitions, 0.9))


@pytest.fixture
def basin() -> Callable[[np.ndarray, float, float], np.ndarray]:
    return basics.lift


@pytest.fixture
def plant_loss() -> Callable[..., Observations]:
    return basics.plant_loss


@pytest.fixture
def plant_settings() -> Callable[..., Observations]:
    return basics.plant_settings
