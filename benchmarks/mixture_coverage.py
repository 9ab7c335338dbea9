"""Do the intervals of a search over mixtures hold what they say? On planted losses whose optimum is known.

    python -m benchmarks mixture_coverage

Planted are means of one loss per domain: log-linear laws (Ye et al. 2024), powers of each domain's own share (BiMix, Ge
et al. 2024), both at once (diminishing returns), and, of no law at all, a random sum of bumps. Each has a small size,
whose parameters differ a little from the target's, and lognormal noise that the search is not told. Three, five and
eight domains; 8, 16 and 32 runs, all at the target or three in four small at first. The first half are the natural
mixture at every size and a design around it, as a study begins; the others the search itself proposes, eight at a time:
intervals must hold on runs that a search has chosen.

Coverage of 90 % intervals of: the loss of random mixtures, half of them of few domains; that of the recommended one,
which was chosen for being low; the difference between natural and recommended; the shares of the true optimum (within
.01); and of the 90 % bound on the regret of the recommended one. Width: median of the difference's interval. Score:
mean interval score of the difference (width + 20 x what the truth lies outside by; Gneiting and Raftery 2007), lower is
better. Regret: mean, of the recommended. All three in units of the spread of the loss over mixtures. Under "mode" the
same from the process at its most probable hyperparameters, which proposals go by. The seeds differ from those on which
the priors of the process were chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from foretune.search.mixing.beliefs import MixtureBelief, fit_belief
from foretune.search.mixing.designs import draw_dirichlet
from foretune.search.mixing.multifidelity import fit_surface
from foretune.search.mixing.optimum import spread_mixtures
from foretune.search.mixing.problem import Fidelity, MixingProblem, Observed
from foretune.search.mixing.proposal import propose
from foretune.search.mixing.recommendation import Fit, compare, recommend
from foretune.search.mixing.simplex import FloatArray

SEEDS = (10, 11)
"""Of the planted losses; 0 to 2 were used to choose the priors."""
DOMAINS, RUNS = (3, 5, 8), (8, 16, 32)
NOISES = (0.05, 0.25)
"""Standard deviation of a run over the spread (sd) of ln loss over mixtures: a quiet and a noisy proxy (an
assumption)."""
SMALL_SHARE = 0.75
"""Of the runs of a search over two sizes that are small at first."""
BATCH = 8
ALIKE = 0.1
"""Relative change of a law's parameters from the small size to the target: ranks correlate by .9 to 1."""
LEVEL = 1.25
"""Loss of the small size over that of the target."""
KNEE = 0.01
"""Share that a power law counts a domain to have without any (BiMix is infinite there)."""
BUMPS, BUMP_WIDTH, BUMP_SD = 30, 0.4, 0.05
"""Number, width in shares and spread in ln loss of the bumps."""
Z90 = 1.6449
BEYOND = 20.0
"""Factor of the interval score at 90 %: 2 / .1."""
SHARE_STEP = 0.01
TRIED = 40
"""Random mixtures whose loss is asked for."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A loss of mixtures (m, d) for each of two sizes, the target second."""

    sizes: tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]]
    natural: FloatArray

    @cached_property
    def spread(self) -> float:
        """Standard deviation of ln loss over mixtures at the target."""
        tried = np.random.default_rng(1).dirichlet(np.ones(len(self.natural)), 1000)
        return float(np.log(self.sizes[1](tried)).std())

    def measure(self, shares: FloatArray, level: FloatArray) -> FloatArray:
        """Losses (m,) without noise."""
        small, target = (size(shares) for size in self.sizes)
        return np.where(level == 1, target, LEVEL * small)


def vary(values: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Parameters of the small size, and of the target."""
    return values * (1 + ALIKE * rng.standard_normal(values.shape)), values


def draw_slopes(d: int, rng: np.random.Generator) -> FloatArray:
    """(d, d) of ln excess: a domain's own tokens help most, others a little or do harm."""
    slopes = 0.3 * rng.standard_normal((d, d))
    slopes[np.diag_indices(d)] = -rng.uniform(0.5, 2.5, d)
    return slopes


def plant_log_linear(d: int, rng: np.random.Generator) -> Planted:
    floor, excess = rng.uniform(1.5, 2.5, d), rng.uniform(0.5, 1.5, d)
    sizes = tuple(
        lambda r, t=slopes: (floor + excess * np.exp(r @ t.T)).mean(axis=1) for slopes in vary(draw_slopes(d, rng), rng)
    )
    return Planted(sizes, draw_natural(d, rng))


def plant_own_share(d: int, rng: np.random.Generator) -> Planted:
    floor, excess = rng.uniform(1.5, 2.5, d), rng.uniform(0.3, 1.0, d)
    sizes = tuple(
        lambda r, a=powers: (floor + excess * (r + KNEE) ** -a).mean(axis=1)
        for powers in vary(rng.uniform(0.1, 0.35, d), rng)
    )
    return Planted(sizes, draw_natural(d, rng))


def plant_diminishing(d: int, rng: np.random.Generator) -> Planted:
    floor, excess, powers = rng.uniform(1.5, 2.5, d), rng.uniform(0.5, 1.5, d), rng.uniform(0.05, 0.2, d)
    sizes = tuple(
        lambda r, t=slopes: (floor + excess * np.exp(r @ t.T) * (1 + r / KNEE) ** -powers).mean(axis=1)
        for slopes in vary(draw_slopes(d, rng), rng)
    )
    return Planted(sizes, draw_natural(d, rng))


def plant_bumps(d: int, rng: np.random.Generator) -> Planted:
    middles = rng.dirichlet(np.full(d, 0.5), BUMPS)
    probe = rng.dirichlet(np.full(d, 0.7), 500)

    def wave(r: FloatArray) -> FloatArray:
        return np.exp(-((r[:, None] - middles) ** 2).sum(axis=2) / (2 * BUMP_WIDTH**2))

    heights = rng.standard_normal(BUMPS)
    heights = heights - heights.mean()
    heights = heights * BUMP_SD / (wave(probe) @ heights).std()
    mean = (wave(probe) @ heights).mean()
    sizes = tuple(lambda r, h=h: 3.0 * np.exp(wave(r) @ h - mean) for h in vary(heights, rng))
    return Planted(sizes, draw_natural(d, rng))


def draw_natural(d: int, rng: np.random.Generator) -> FloatArray:
    shares = np.exp(0.7 * rng.standard_normal(d))
    return np.asarray(shares / shares.sum())


FAMILIES: Mapping[str, Callable[[int, np.random.Generator], Planted]] = {
    "log-linear": plant_log_linear,
    "own share": plant_own_share,
    "diminishing": plant_diminishing,
    "bumps": plant_bumps,
}
"""By name."""


@dataclass(frozen=True)
class Cell:
    """A kind of search on a kind of loss."""

    family: str
    domains: int
    runs: int
    noise: float
    sizes: int

    @property
    def problem(self) -> MixingProblem:
        """As the search reads it; the noise is not told."""
        sizes = (Fidelity("small", 1e7, 1e9, 0.1), Fidelity("target", 1e8, 1e9, 1.0))
        return MixingProblem(tuple("abcdefgh"[: self.domains]), sizes[2 - self.sizes :])


def list_cells() -> Iterator[Cell]:
    for family, domains, runs, noise, sizes in product(FAMILIES, DOMAINS, RUNS, NOISES, (1, 2)):
        yield Cell(family, domains, runs, noise, sizes)


def search(cell: Cell, seed: int) -> tuple[Planted, Observed]:
    """A planted loss and the runs of a search for its optimum."""
    rng = np.random.default_rng([seed, cell.domains, cell.runs, list(FAMILIES).index(cell.family)])
    planted = FAMILIES[cell.family](cell.domains, rng)
    problem, first = cell.problem, cell.runs // 2
    shares = np.concatenate([
        np.tile(planted.natural, (cell.sizes, 1)),
        draw_dirichlet(problem.region, planted.natural, first - cell.sizes, rng),
    ])  # fmt: skip
    level = np.zeros(first, dtype=int)
    level[: cell.sizes] = np.arange(cell.sizes)
    if cell.sizes == 2:
        level[1 : 1 + round((1 - SMALL_SHARE) * first)] = 1
    seen = run(cell, planted, shares, level, rng)
    while len(seen.level) < cell.runs:
        found = propose(problem, seen, min(BATCH, cell.runs - len(seen.level)), rng)
        more = run(cell, planted, np.array([p.shares for p in found]), np.array([p.level for p in found]), rng)
        seen = Observed(
            np.concatenate([seen.shares, more.shares]), np.concatenate([seen.level, more.level]),
            np.concatenate([seen.loss, more.loss]),
        )  # fmt: skip
    return planted, seen


def run(cell: Cell, planted: Planted, shares: FloatArray, level: np.ndarray, rng: np.random.Generator) -> Observed:
    at = level + 2 - cell.sizes
    loss = planted.measure(shares, at) * np.exp(cell.noise * planted.spread * rng.standard_normal(len(level)))
    return Observed(shares, level, loss)


def find_best(planted: Planted, domains: int) -> FloatArray:
    """The true optimum at the target: from the best of many mixtures, and corners, by sequential programming."""
    from scipy.optimize import minimize

    tried = np.concatenate([np.random.default_rng(0).dirichlet(np.full(domains, 0.5), 2000), np.eye(domains)])
    starts = tried[np.argsort(planted.sizes[1](tried))[:4]]
    ends = [
        minimize(
            lambda r: float(planted.sizes[1](r[None])[0]), start, method="SLSQP", bounds=[(0, 1)] * domains,
            constraints={"type": "eq", "fun": lambda r: r.sum() - 1}, options={"ftol": 1e-10},
        ).x
        for start in starts
    ]  # fmt: skip
    ends = [np.maximum(end, 0) / np.maximum(end, 0).sum() for end in ends] + [starts[0]]
    return min(ends, key=lambda end: float(planted.sizes[1](end[None])[0]))


@dataclass(frozen=True)
class Verdict:
    """What the intervals of one search came to."""

    held: tuple[float, ...]
    """By HEADS: share of the intervals that held."""
    width: float
    score: float
    regret: float


HEADS = ("losses", "its loss", "difference", "regret", "shares")


def fit_mode(problem: MixingProblem, observed: Observed) -> MixtureBelief:
    """The process at its most probable hyperparameters, as if they were known."""
    surface = fit_surface(problem, observed)
    return MixtureBelief(surface, (surface,), np.ones(1))


FITS: Mapping[str, Fit] = {"belief": fit_belief, "mode": fit_mode}


def judge(cell: Cell, planted: Planted, seen: Observed, fit: Fit) -> Verdict:
    """The intervals against the truth."""
    problem = cell.problem
    belief = fit(problem, seen)
    found = recommend(problem, seen, np.random.default_rng(0), fit=lambda *_: belief)
    gain = compare(problem, seen, found.shares, planted.natural, fit=lambda *_: belief)
    tried = spread_mixtures(problem.region, TRIED, np.random.default_rng(1))
    level, best = np.full(TRIED, problem.target), find_best(planted, cell.domains)
    own, natural, lowest = planted.sizes[1](np.stack([found.shares, planted.natural, best]))
    misses = np.abs(belief.expect(tried, level) - np.log(planted.sizes[1](tried))) / belief.spread(tried, level)
    shares = (found.share_low - SHARE_STEP <= best) & (best <= found.share_high + SHARE_STEP)
    half, miss, unit = Z90 * gain.gain_sd, abs(natural - own - gain.gain), planted.spread * lowest
    held = (
        float((misses < Z90).mean()),
        float(abs(own - found.loss) < Z90 * found.loss_sd),
        float(miss < half),
        float(own - lowest <= found.regret_high),
        float(shares.mean()),
    )
    return Verdict(held, 2 * half / unit, (2 * half + BEYOND * max(miss - half, 0.0)) / unit, (own - lowest) / unit)


def report(title: str, verdicts: list[tuple[Cell, Mapping[str, Verdict]]]) -> None:
    for name in FITS:
        found = [item[name] for _, item in verdicts]
        held = np.array([item.held for item in found]).mean(axis=0)
        cells = "".join(f"{share:11.2f}" for share in held)
        width = np.median([item.width for item in found])
        score, regret = np.mean([[item.score, item.regret] for item in found], axis=0)
        print(f"  {title:30} {name:7}{cells}{width:9.2f}{score:8.2f}{regret:8.3f}   {len(found)} searches", flush=True)


def main() -> None:
    print(f"{'':40}" + "".join(f"{head:>11}" for head in HEADS) + f"{'width':>9}{'score':>8}{'regret':>8}")
    found: list[tuple[Cell, Mapping[str, Verdict]]] = []
    started = time.process_time()
    for seed, cell in product(SEEDS, list_cells()):
        planted, seen = search(cell, seed)
        found.append((cell, {name: judge(cell, planted, seen, fit) for name, fit in FITS.items()}))
    enough = [item for item in found if item[0].runs >= 2 * item[0].domains]
    for family in FAMILIES:
        report(family, [item for item in enough if item[0].family == family])
    for sizes in (1, 2):
        report(f"{sizes} size{'s' * (sizes > 1)}", [item for item in enough if item[0].sizes == sizes])
    for noise in NOISES:
        report(f"noise {noise:g} of the spread", [item for item in enough if item[0].noise == noise])
    report("fewer than 2 runs a domain", [item for item in found if item[0].runs < 2 * item[0].domains])
    print(f"  {time.process_time() - started:.0f} CPU s")


if __name__ == "__main__":
    main()
