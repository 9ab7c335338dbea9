"""`make bench`: every benchmark in turn; `python -m benchmarks NAME ...` runs some of them."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "fitting.speed",
    "fitting.published_settings",
    "fitting.learning_rates",
    "fitting.loss_laws",
    "fitting.allocation",
    "fitting.curves",
    "fitting.mixtures",
    "fitting.downstream",
    "fitting.repetition",
    "fitting.design",
    "fitting.coverage",
    "mixture_search",
    "mixture_coverage",
    "parametrization",
    "trainer",
    "packing",
    "packed_grid",
    "forks",
    "generations",
    "diagnostics",
    "driver_kill",
    "ray_overhead",
    "samplers",
    "halving",
    "searches",
    "autolrs",
    "pbt_toy",
    "pbt_explore",
    "pbt_kill",
    "pbt_search",
    "transfer_regret",
    "transfer_ladder",
    "expert_balance",
    "online_mixtures",
    "mixture_live",
)
"""Those on published runs first, then those that train."""


def main() -> int:
    """Run the benchmarks named on the command line, or all."""
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            print(f"no benchmark {name!r}; there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
        print(f"\n== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
