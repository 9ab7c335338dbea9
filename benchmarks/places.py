"""Where the benchmarks find what they run."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "studies/lr_width_transfer"
TRANSFER = ROOT / "studies/transfer_ladder"
POPULATION = ROOT / "studies/pbt_small"
