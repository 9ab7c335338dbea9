"""Fixed points of x -> g(x) by steps whose length is learned from the last two residuals (Aitken's relaxation).

Legend: x (n,) place, R = g(x) - x residual, omega length of a step:  x_next = x + omega R.

A map that creeps towards its fixed point is walked with longer steps, one that swings around it with shorter ones.
Source: Irons and Tuck 1969; in this form Kuettler and Wall 2008, equation 44.
"""

from __future__ import annotations

import numpy as np

from scalelaws.observations import FloatArray

SHORTEST, LONGEST = 0.1, 4.0
"""Assumption: bounds of the length of a step, since two residuals tell one direction alone."""


class Relaxation:
    """The state between the steps: the last residual and the length of the last step."""

    def __init__(self) -> None:
        """Starts with a whole step."""
        self._length = 1.0
        self._residual: FloatArray | None = None

    def step(self, place: FloatArray, wanted: FloatArray) -> FloatArray:
        """The next place, where the map gave `wanted` at `place`."""
        residual = wanted - place
        if self._residual is not None:
            change = residual - self._residual
            length = -self._length * float(self._residual @ change) / max(float(change @ change), 1e-300)
            self._length = min(max(length, SHORTEST), LONGEST)
        self._residual = residual
        return np.asarray(place + self._length * residual)
