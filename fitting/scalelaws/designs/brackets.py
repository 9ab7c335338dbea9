"""Runs that bracket: where the best run of a cell lies at the edge of what was tried there, the next one lies beyond.

A surface that was seen from one side only can settle on a wrong optimum and then choose runs that never correct it. The
remedy needs no model: an optimum at the edge of what was tried is a bound, so try beyond the edge.
"""

from __future__ import annotations

import numpy as np

from scalelaws.designs.candidates import SAME_SETTING, Candidates
from scalelaws.observations import FloatArray, Observations

RUNS_TO_BRACKET = 3
"""Cells of fewer runs are left alone: they hardly weigh in a fit, and the best of two is always at an edge."""
REACH = float(np.log(2))
"""How far beyond the edge the next run should lie: a factor of two (an assumption; grids have steps of 1.4 to 2)."""


def find_brackets(done: Observations, candidates: Candidates) -> list[int]:
    """Candidates beyond the edges at which cells' best runs lie; cells of most runs first. Needs learning rates."""
    brackets: list[int] = []
    for rows in sorted(done.cells(), key=len, reverse=True):
        sound = rows[~done.diverged[rows]]
        if len(rows) < RUNS_TO_BRACKET or len(sound) == 0:
            continue
        same = np.abs(np.log(candidates.params_non_embedding / done.params_non_embedding[rows[0]])) < SAME_SETTING
        same &= np.abs(np.log(candidates.tokens / done.tokens[rows[0]])) < SAME_SETTING
        free = np.flatnonzero(same)
        best = sound[np.argmin(done.loss[sound])]
        brackets += [row for row in _step_out(done, rows, int(best), candidates, free) if row not in brackets]
    return brackets


def _step_out(done: Observations, rows: np.ndarray, best: int, candidates: Candidates, free: np.ndarray) -> list[int]:
    """Among `free` the run beyond each edge of learning rate and batch at which the best run lies."""
    pairs = [(done.peak_lr, candidates.peak_lr), (done.batch_tokens, candidates.batch_tokens)]
    tried = [np.log(ours) for ours, theirs in pairs if ours is not None and theirs is not None]
    offered = [np.log(theirs[free]) for ours, theirs in pairs if ours is not None and theirs is not None]
    found = []
    for axis, value in enumerate(tried):
        for side in (-1, 1):
            edge = float((side * value[rows]).max())
            beyond = side * offered[axis] > edge + SAME_SETTING
            if side * value[best] < edge - SAME_SETTING or not beyond.any():
                continue
            goal = [level[best] + side * REACH * (place == axis) for place, level in enumerate(tried)]
            found.append(int(free[_nearest(offered, goal, beyond)]))
    return found


def _nearest(offered: list[FloatArray], goal: list[float], allowed: np.ndarray) -> int:
    distance = np.sum([(values - there) ** 2 for values, there in zip(offered, goal, strict=True)], axis=0)
    return int(np.argmin(np.where(allowed, distance, np.inf)))
