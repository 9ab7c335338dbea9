"""Coordinates in which the long valley of a sum of powers is straight, so that Newton's steps follow it.

Legend (shapes):
    B problems      T power terms      P = 2T + 1
    t (B, P)  coefficients (e, a_j, alpha_j):  L = exp e + sum_j exp(a_j - alpha_j u_j), u centred
    s  = exp e + sum_j exp a_j         the loss in the middle of the runs, in units of exp e at the place of the step
    m_j = a_j + ln alpha_j             ln of the slope of a term there

Runs tell s and m_j, and hardly how s is shared out between floor and terms: along the valley the exponents change, s
and m_j do not, and e and a_j follow a curve. In (s, m, alpha) the valley is straight. Where an exponent or the floor is
almost nothing these coordinates end; such problems step in t itself.
"""

from __future__ import annotations

import numpy as np

from scalelaws.observations import BoolArray, FloatArray

LEAST_EXPONENT = 0.01
"""Assumption: below it, and below zero, a problem steps in t."""
LEAST_FLOOR = 0.01
"""Assumption: so it does where the floor is less than this share of the largest term in the middle of the runs."""
SHRINK = 0.1
"""A step takes floor and exponents no further down than to a tenth; the next one may go on."""


def _is_straight(t: FloatArray) -> BoolArray:
    """Which problems have the coordinates, (B,)."""
    terms = t.shape[1] // 2
    floor = t[:, 0] - t[:, 1 : 1 + terms].max(axis=1) > np.log(LEAST_FLOOR)
    return np.asarray(floor & (t[:, 1 + terms :] > LEAST_EXPONENT).all(axis=1))


def _read(t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """1 or 0 for straight or not (B,); terms over floor and inverse exponents (B, T), 0 where not."""
    terms, straight = t.shape[1] // 2, _is_straight(t)
    kept = straight[:, None]
    ratio = np.exp(np.where(kept, t[:, 1 : 1 + terms] - t[:, :1], -np.inf))
    return straight.astype(np.float64), ratio, np.where(kept, 1 / np.where(kept, t[:, 1 + terms :], 1.0), 0.0)


def straighten(t: FloatArray, gradient: FloatArray, hessian: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Gradient (B, P) and Hessian (B, P, P) by (s, m, alpha), from those by t.

    With J = dt / dq: g_q = J' g and H_q = J' H J + sum_k g_k d2 t_k / dq2.
    """
    terms, (straight, ratio, inverse) = t.shape[1] // 2, _read(t)
    m, a = np.arange(1, 1 + terms), np.arange(1 + terms, 1 + 2 * terms)
    jacobian = np.zeros_like(hessian)
    jacobian[:, np.arange(t.shape[1]), np.arange(t.shape[1])] = 1.0
    jacobian[:, 0, m], jacobian[:, 0, a], jacobian[:, m, a] = -ratio, ratio * inverse, -inverse
    turned = np.swapaxes(jacobian, 1, 2)
    bend = -straight[:, None, None] * jacobian[:, 0, :, None] * jacobian[:, 0, None, :]
    bend[:, m, m] -= ratio
    bend[:, m, a] += ratio * inverse
    bend[:, a, m] += ratio * inverse
    bend[:, a, a] -= 2 * ratio * inverse**2
    second = turned @ hessian @ jacobian + gradient[:, 0, None, None] * bend
    second[:, a, a] += gradient[:, m] * inverse**2
    return (turned @ gradient[:, :, None])[..., 0], second


def follow(t: FloatArray, step: FloatArray) -> FloatArray:
    """Where a step (B, P) in (s, m, alpha) leads, in t."""
    terms, (straight, ratio, inverse) = t.shape[1] // 2, _read(t)
    there = t + step
    grown = np.maximum(1 + step[:, 1 + terms :] * inverse, SHRINK)
    floor = 1 + step[:, 0] + (ratio * (1 - np.exp(step[:, 1 : 1 + terms]) / grown)).sum(axis=1)
    on = straight > 0
    there[on, 0] = t[on, 0] + np.log(np.maximum(floor[on], SHRINK))
    there[:, 1 : 1 + terms] -= np.log(grown)
    there[on, 1 + terms :] = t[on, 1 + terms :] * grown[on]
    return there
