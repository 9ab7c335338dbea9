"""The compute-optimal size of held-out budgets: ours beside the usual fits, on published isoFLOP runs.

Each set is fitted where C <= C_max / k and asked for N* of every larger budget that has a known optimum: the published
one where there is one (Porian et al. 2024), else that of the set's own full isoFLOP profile, marked (own). Error is the
mean of |N / N* - 1| within a set, then over sets. Coverage is that of 90 % intervals for the optimum one would measure.
The choice among the procedures is itself scored, by leaving out each set in turn.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

import scalelaws
from benchmarks.fitting.datasets import read_runs
from scalelaws import FitError, Observations
from scalelaws.splits.counting import Shape, compare_countings, tabulate_countings
from scalelaws.splits.isoflops import WINDOW_LOG, Method, find_isoflop_optima
from scalelaws.splits.size_laws import SizeLaw, combine_size_laws, derive_size_law, fit_size_law

FACTORS = (4, 10, 30)
GADRE_VOCABULARY = 50432
"""Rows of the embedding: (N_total - N) / width in their table."""
GADRE_SHAPE = Shape(GADRE_VOCABULARY, aspect=1024 / 24)
"""The aspect ratio of their largest model here."""
BAND = 1.001
"""Budgets that differ by rounding are one."""


RECOMMENDED = "profiles and posterior mode"
"""What `compare_approaches` calls the best."""


@dataclass(frozen=True, eq=False)
class RunSet:
    """One published set of isoFLOP runs and its optimal sizes by budget."""

    name: str
    runs: pd.DataFrame
    optima: dict[float, tuple[float, float]]
    """Budget -> (N*, standard deviation of ln N*)."""
    published: bool

    def below(self, factor: float) -> Observations:
        """The runs of the budgets that are fitted."""
        return observe(self.runs[BAND * self.runs.C.max() / factor >= self.runs.C])

    def held_out(self, factor: float) -> dict[float, tuple[float, float]]:
        """The optima of the budgets that are not."""
        return {c: found for c, found in self.optima.items() if c > BAND * self.runs.C.max() / factor}


def observe(runs: pd.DataFrame) -> Observations:
    """One set as observations."""
    return Observations(runs.N, runs.D, runs.loss, compute_flops=runs.C.astype(float))


def list_sets() -> Iterator[RunSet]:
    """Five set-ups of Porian et al. with their optima, and three of Open-Athena's collection without."""
    runs, optima = read_runs("formll_isoflops"), read_runs("formll_published_optima").dropna(subset=["N_opt"])
    for name, group in runs.groupby("experiment"):
        known = optima[optima.experiment == name]
        short = " ".join(str(name).split("|")[2:6])
        pairs = zip(known.N_opt, known.logN_std, strict=True)
        yield RunSet(short, group, dict(zip(known.C, pairs, strict=True)), published=True)
    collected = read_runs("athena_isoflops")
    for name, group in collected[collected.condition.ne("raw_loss")].groupby("experiment"):
        found = find_isoflop_optima(observe(group), draws=50)
        own = {
            found.optima[k].compute_flops: (found.optima[k].params.value, float(found.draws[:, k].std()))
            for k in found.usable
        }
        yield RunSet(f"{str(name).split('__')[0]} (own)", group, own, published=False)


def fit_isoflops(method: Method, window_log: float = WINDOW_LOG) -> Callable[[Observations], SizeLaw]:
    """Approach 2: optima of the budgets, and a power law through them."""
    return lambda runs: fit_size_law(find_isoflop_optima(runs, method=method, window_log=window_log))


def fit_law(objective: str, *, inside: bool) -> Callable[[Observations], SizeLaw]:
    """Approach 3; `inside` leaves out the sides of the isoFLOP curves, as approach 2 does."""

    def solve(runs: Observations) -> SizeLaw:
        kept = find_isoflop_optima(runs, draws=50).runs if inside else runs
        return derive_size_law(scalelaws.fit("chinchilla", kept, objective=objective, bootstrap=200))

    return solve


def fit_both(objective: str, *, inside: bool) -> Callable[[Observations], SizeLaw]:
    """The mean of approaches 2 and 3."""
    return lambda runs: combine_size_laws(fit_isoflops("profile")(runs), fit_law(objective, inside=inside)(runs))


PROCEDURES: dict[str, Callable[[Observations], SizeLaw]] = {
    "usual: Huber law, all runs": fit_law("huber", inside=False),
    "usual: parabolas, power law": fit_isoflops("parabola"),
    "fit('auto'), all runs": fit_law("auto", inside=False),
    "Huber law, runs in the window": fit_law("huber", inside=True),
    "posterior mode, runs in the window": fit_law("map", inside=True),
    "isoFLOP profiles, power law": fit_isoflops("profile"),
    "the same, window .05": fit_isoflops("profile", 0.05),
    "the same, window .2": fit_isoflops("profile", 0.2),
    "profiles and posterior mode": fit_both("map", inside=True),
    "profiles and fit('auto')": fit_both("auto", inside=False),
}


def score(law: SizeLaw, held: dict[float, tuple[float, float]]) -> tuple[float, float]:
    """Mean error and coverage over the held-out budgets."""
    found = [(law.predict(c), n) for c, (n, _) in held.items()]
    errors = [abs(item.value / n - 1) for item, n in found]
    inside = [(item.low or 0) <= n <= (item.high or np.inf) for item, n in found]
    return float(np.mean(errors)), float(np.mean(inside))


def measure() -> pd.DataFrame:
    """One row per set, factor and procedure; a procedure that refuses has no error."""
    rows = []
    for run_set in list_sets():
        for factor in FACTORS:
            for name, solve in PROCEDURES.items():
                started = time.process_time()
                try:
                    error, covered = score(solve(run_set.below(factor)), run_set.held_out(factor))
                except (ValueError, FitError):
                    error = covered = np.nan
                spent = time.process_time() - started
                rows.append((run_set.name, run_set.published, factor, name, error, covered, spent))
    return pd.DataFrame(rows, columns=["set", "published", "factor", "procedure", "error", "covered", "seconds"])


def choose_without(table: pd.DataFrame) -> pd.Series:
    """Error at each factor when the procedure is chosen by the other sets: what the choice itself is worth."""
    found = {}
    for (name, factor), held in table.groupby(["set", "factor"]):
        others = table[(table.set != name) & (table.factor == factor)].groupby("procedure").error.mean()
        found[(name, factor)] = float(held.set_index("procedure").error[others.idxmin()])
    return pd.Series(found).groupby(level=1).mean()


def describe_truths(factor: float) -> pd.DataFrame:
    """How well the optima that serve as truth are known: the errors in % that a forecast could not be rid of.

    `its own error` is the mean |N / N* - 1| of the truth itself, under its stated uncertainty; `law of all budgets` is
    the error of the recommended procedure when it is fitted to the held-out budgets too: how far the truths lie from
    one smooth law.
    """
    half_normal = np.sqrt(2 / np.pi)
    rows = []
    for run_set in list_sets():
        held = run_set.held_out(factor)
        sd = np.array([sd for _, sd in held.values()])
        error, _ = score(PROCEDURES[RECOMMENDED](run_set.below(1.0)), held)
        rows.append((run_set.name, len(held), 164.5 * sd.mean(), 100 * half_normal * sd.mean(), 100 * error))
    columns = ["set", "budgets", "half of its 90 % interval", "its own error", "law of all budgets"]
    return pd.DataFrame(rows, columns=columns).set_index("set")


def collect_misses() -> pd.DataFrame:
    """For each held-out budget: error of ln N*, the variance that law, scatter and truth explain, and reach."""
    rows = []
    for run_set in list_sets():
        for factor in FACTORS:
            try:
                law = PROCEDURES[RECOMMENDED](run_set.below(factor))
            except (ValueError, FitError):
                continue
            for c, (n, sd) in run_set.held_out(factor).items():
                known = law.draw(c).var() + law.scatter_log**2 + sd**2
                miss = np.log(law.predict(c).value / n)
                rows.append((run_set.name, miss, known, np.log(c / law.compute_range[1])))
    return pd.DataFrame(rows, columns=["set", "miss", "known", "reach"])


def fit_drift(misses: pd.DataFrame) -> float:
    """Drift of ln N* per e-fold of greatest likelihood, every set counted once."""
    weight = 1 / misses.groupby("set").miss.transform("count")
    grid = np.linspace(0, 0.3, 301)
    variance = [misses.known + (drift * misses.reach) ** 2 for drift in grid]
    return float(grid[np.argmin([(weight * (np.log(v) + misses.miss**2 / v)).sum() for v in variance])])


def show_countings() -> None:
    """The split of 1e22 FLOPs from the runs of Gadre et al. 2024, counted in three ways."""
    runs = read_runs("gadre")
    width = (runs.N_total - runs.N) / GADRE_VOCABULARY
    for corpus, rows in runs.groupby("train_set"):
        counted = Observations(
            rows.N_total, rows.D, rows.loss_c4_val, width=width[rows.index], params_convention="total"
        )
        splits = compare_countings(counted, "total", 1e22, GADRE_SHAPE, bootstrap=100)
        print(f"\n{corpus}: compute-optimal split of 1e22 FLOPs by the way of counting")
        print(tabulate_countings(splits).to_string(index=False, float_format="{:.4g}".format))


def main() -> None:
    """Tables of errors and coverage, and of countings."""
    warnings.simplefilter("ignore", RuntimeWarning)
    table = measure()
    order = list(PROCEDURES)
    for published, title in ((True, "published optima, 5 sets"), (False, "own optima, 3 sets")):
        part = table[table.published == published].groupby(["procedure", "factor"])
        print(f"\n{title}: mean error of N* (%), coverage of 90 % intervals (%)")
        both = pd.concat({"error": 100 * part.error.mean(), "covered": 100 * part.covered.mean()}, axis=1).unstack()
        print(both.loc[order].round(1).to_string())
    chosen = (100 * choose_without(table)).round(1).to_dict()
    print("\nprocedure chosen by the other seven sets, error (%) at each k:", chosen)
    at_ten = table[table.factor == FACTORS[1]].pivot(index="set", columns="procedure", values="error")[order]
    print(f"\nerror by set (%), k = {FACTORS[1]}; - where the procedure refuses")
    print((100 * at_ten).round(1).to_string(na_rep="-"))
    print(f"\nthe optima that serve as truth at k = {FACTORS[1]} (%)")
    print(describe_truths(FACTORS[1]).round(1).to_string())
    misses = collect_misses()
    alone = {name: round(fit_drift(part), 3) for name, part in misses.groupby("set")}
    without = [fit_drift(misses[misses.set != name]) for name in alone]
    print(f"\ndrift of ln N* per e-fold beyond the runs: all sets {fit_drift(misses):.3f}; with each set left out "
          f"{min(without):.3f} to {max(without):.3f}; each alone {alone}")  # fmt: skip
    show_countings()
    print(f"\nCPU seconds of one fit, median: {table.groupby('procedure').seconds.median()[order].round(2).to_dict()}")


if __name__ == "__main__":
    main()
