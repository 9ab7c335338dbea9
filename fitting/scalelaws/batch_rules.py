"""How the learning rate follows the batch: the rules that large-batch training uses, each with its source.

Legend: B batch in tokens, eta learning rate, B_noise gradient noise scale in tokens, eta_max the peak over all batches
"""

from __future__ import annotations

import math


def scale_linearly(peak_lr: float, batch_from: float, batch_to: float) -> float:
    """eta proportional to B: stochastic gradient descent (Goyal et al. 2017, arXiv 1706.02677, section 2.1)."""
    _check(peak_lr=peak_lr, batch_from=batch_from, batch_to=batch_to)
    return peak_lr * batch_to / batch_from


def scale_by_square_root(peak_lr: float, batch_from: float, batch_to: float) -> float:
    """eta proportional to sqrt(B): Adam (Malladi et al. 2022, arXiv 2205.10287; Hoffer et al. 2017, arXiv 1705.08741).

    The rule also moves the betas: see `scale_beta`.
    """
    _check(peak_lr=peak_lr, batch_from=batch_from, batch_to=batch_to)
    return peak_lr * math.sqrt(batch_to / batch_from)


def scale_beta(beta: float, batch_from: float, batch_to: float) -> float:
    """1 - beta proportional to B: an average over as many tokens as before (Malladi et al. 2022)."""
    _check(batch_from=batch_from, batch_to=batch_to)
    moved = 1 - (1 - beta) * batch_to / batch_from
    if not 0 <= beta < 1 or moved < 0:
        raise ValueError(f"beta must lie between 0 and 1, before and after; got {beta:g} and {moved:g}")
    return moved


def find_surge_rate(max_lr: float, batch: float, noise_batch: float) -> float:
    """Adam's best rate, which rises with sqrt(B) up to B_noise and falls beyond (Li et al. 2024, arXiv 2405.14578).

    eta* = 2 eta_max / (sqrt(B_noise / B) + sqrt(B / B_noise)).
    """
    _check(max_lr=max_lr, batch=batch, noise_batch=noise_batch)
    ratio = math.sqrt(batch / noise_batch)
    return 2 * max_lr / (ratio + 1 / ratio)


def find_noise_limited_rate(max_lr: float, batch: float, noise_batch: float) -> float:
    """Gradient descent: eta_max / (1 + B_noise / B) (McCandlish et al. 2018, arXiv 1812.06162)."""
    _check(max_lr=max_lr, batch=batch, noise_batch=noise_batch)
    return max_lr / (1 + noise_batch / batch)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite; got {value}")
