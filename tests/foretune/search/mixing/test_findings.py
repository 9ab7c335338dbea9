"""What a search over mixtures says of its recommendation."""

from __future__ import annotations

import math

import pytest

from foretune.search.comparing import Noise
from foretune.search.mixing.course import Advice
from foretune.search.mixing.findings import estimate_certainty

SHARES = {"code": 0.5, "docs": 0.5}


def make_advice(gain: float, gain_sd: float) -> Advice:
    """A gain over the natural mixture at a loss of 2 nats, the noise fitted as 1 %."""
    return Advice(
        searched=8, planned=8, shares=SHARES, low=SHARES, high=SHARES, loss=2.0, loss_sd=0.01, noise_sd=0.02,
        gain=gain, gain_sd=gain_sd, probability=1.0, message="", best={}, best_loss=None,
    )  # fmt: skip


def find_t3(t: float) -> float:
    """Student's distribution with three degrees of freedom, in closed form."""
    x = t / math.sqrt(3)
    return 0.5 + (x / (1 + x * x) + math.atan(x)) / math.pi


@pytest.mark.parametrize(("sd", "t"), [(0.01, 3.0), (0.005, 3.0), (0.02, 1.5)])
def test_a_gain_is_as_sure_as_replicates_allow(sd: float, t: float) -> None:
    """Replicates that scatter twice as much as the fit has it halve the gain beside its standard deviation."""
    certainty = estimate_certainty(make_advice(0.03, 0.01), Noise(sd, 3, 3 * sd))
    assert certainty == pytest.approx(find_t3(t), abs=1e-9)


@pytest.mark.parametrize("noise", [None, Noise(0.01, 1, 0.16), Noise(0.01, 2, 0.044)])
def test_few_replicates_say_nothing(noise: Noise | None) -> None:
    assert estimate_certainty(make_advice(0.03, 0.001), noise) is None


def test_one_degree_of_freedom_is_singular() -> None:
    assert Noise(0.01, 1, 0.16).describe() == "1.00% of the loss between seeds (1 degree of freedom, below 16.00%)"
    assert "(2 degrees of freedom" in Noise(0.01, 2, 0.04).describe()
