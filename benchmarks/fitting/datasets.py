"""The folder of published runs: FORETUNE_PUBLIC_DATA, or shared/data beside the project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(os.environ.get("FORETUNE_PUBLIC_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def read_runs(name: str) -> pd.DataFrame:
    """One file of published runs; ends the benchmark with the reason where there is none."""
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        sys.exit(f"the published runs {path} are not here; set FORETUNE_PUBLIC_DATA to their folder")
    return pd.read_csv(path)
