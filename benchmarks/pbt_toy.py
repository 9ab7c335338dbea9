"""The toy of Jaderberg et al. 2017 (figure 2) through the platform's own exploit and explore code.

Two workers descend surrogates that each sees one parameter only, so neither can reach the optimum 1.2 alone: copying
joins what they found, and exploring their weights goes beyond. Known results (20 seeds, uniform explore): exploit and
explore 1.19, explore only 1.10, exploit only and neither .39.

Symbols
    theta  (worker, 2)  parameters, from .9           h  (worker, 2)  weights of the surrogate, the settings
    Q = 1.2 - theta0^2 - theta1^2   what is judged    surrogate = 1.2 - h0 theta0^2 - h1 theta1^2   what is climbed
"""

from __future__ import annotations

import statistics

import numpy as np

from foretune.search.population.exploiting import Standing, choose_donor
from foretune.search.population.exploring import explore_settings
from foretune.sections import PopulationSection
from foretune.space import LinearRange

STEPS, READY, RATE, SEEDS = 200, 4, 0.01, 20
KNOWN = {(True, True): 1.19, (False, True): 1.10, (True, False): 0.39, (False, False): 0.39}
"""Q by (exploit, explore), as published in the figure and measured apart from this code."""
RULES = PopulationSection(
    size=4, ready_tokens=1, exploit="truncation", quantile=0.5, resample_probability=0.0, factors=(1.1, 0.9)
)
"""Half of two workers copies the other half; factors of 1.1 and .9 move a weight by a tenth of its range. The size is
that of a study."""
AXES = {name: LinearRange(low=0.0, high=1.0, scale="linear") for name in ("h0", "h1")}


def main() -> None:
    """One line for each way to train, with the spread over the seeds."""
    print(f"{SEEDS} seeds; Q at the end (best 1.2): mean, standard deviation, and what is known")
    for (exploit, explore), known in KNOWN.items():
        ends = [train_toy(seed, exploit=exploit, explore=explore) for seed in range(SEEDS)]
        name = " + ".join(["exploit"] * exploit + ["explore"] * explore) or "neither"
        print(f"  {name:17} {statistics.fmean(ends):6.3f} {statistics.stdev(ends):6.3f}   {known:.2f}")


def train_toy(seed: int, *, exploit: bool, explore: bool) -> float:
    """The better Q of two workers after `STEPS` steps, ready every `READY`."""
    rng = np.random.default_rng(seed)
    theta = np.full((2, 2), 0.9)
    settings = [{"h0": 1.0, "h1": 0.0}, {"h0": 0.0, "h1": 1.0}]
    for step in range(1, STEPS + 1):
        weights = np.array([[item["h0"], item["h1"]] for item in settings])
        theta -= RATE * 2 * weights * theta
        if step % READY == 0:
            donors = _find_donors(theta, rng) if exploit else [0, 1]
            theta = theta[donors]
            settings = [
                explore_settings(settings[donor], AXES, (), RULES, rng)
                if explore and (donor != worker or not exploit)
                else settings[donor]
                for worker, donor in enumerate(donors)
            ]
    return float(max(1.2 - (theta**2).sum(axis=1)))


def _find_donors(theta: np.ndarray, rng: np.random.Generator) -> list[int]:
    standings = [Standing(worker, float((values**2).sum() - 1.2)) for worker, values in enumerate(theta)]
    return [choose_donor(own, [standings[1 - own.member]], RULES, rng).member for own in standings]


if __name__ == "__main__":
    main()
