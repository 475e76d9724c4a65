"""Logistic regression of hits on one variable, by maximum likelihood or Firth's penalised likelihood."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

__all__ = ["Bools", "Estimator", "Floats", "LogisticFit", "fit_logistic", "penalised_loss", "separated", "size_at"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Estimator = Literal["firth", "ml"]


class LogisticFit(NamedTuple):
    """Logistic regressions ``logit p = intercept + slope x``, one per weight vector; arrays of shape (B,).

    `covariance` (B, 2, 2) is the inverse Fisher information; `separated` marks data whose likelihood is unbounded.
    """

    intercept: Floats
    slope: Floats
    covariance: Floats
    separated: Bools


def separated(x: Floats, hits: Bools, weights: Floats) -> Bools:
    """Return, per weight vector (B, K), whether a size divides hits from misses (or there are only hits or misses)."""
    drawn = weights > 0

    def extent(of: Bools) -> tuple[Floats, Floats]:
        group = drawn & of
        return np.where(group, x, np.inf).min(axis=1), np.where(group, x, -np.inf).max(axis=1)

    (low_hit, high_hit), (low_miss, high_miss) = extent(hits), extent(~hits)
    result: Bools = (high_miss <= low_hit) | (high_hit <= low_miss)
    return result


def fit_logistic(
    x: npt.ArrayLike,
    hits: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    estimator: Estimator = "firth",
    iterations: int = 500,
) -> LogisticFit:
    """Fit logistic regressions by Newton's method, all weight vectors at once.

    Parameters
    ----------
    x : array-like, (K,)
    hits : array-like of bool, (K,)
    weights : array-like, (B, K), optional
        How often each observation counts; once by default (B = 1).
    estimator : {'firth', 'ml'}
        Firth's penalised likelihood, whose score is ``sum w (y - p) x + sum h (1/2 - p) x`` with the leverages h; or
        maximum likelihood, for which Firth's stands in where hits and misses are separated.
    iterations : int

    Notes
    -----
    x is centred and scaled first; a step that lowers the likelihood is halved, so the iteration climbs from 0. So is
    one that neither climbs nor shrinks: with two observations Firth's steps are twice too long, to and fro.
    """
    raw, y = np.asarray(x, dtype=np.float64), np.asarray(hits, dtype=bool)
    w = np.ones((1, raw.size)) if weights is None else np.asarray(weights, dtype=np.float64)
    centre, scale = raw.mean(), raw.std() or 1.0
    z = (raw - centre) / scale
    apart = separated(raw, y, w)
    firth = apart | (estimator == "firth")
    beta, accepted = np.zeros((2, len(w), 2))
    height, length = np.full(len(w), -np.inf), np.full(len(w), np.inf)
    covariance = np.full((len(w), 2, 2), np.nan)
    active = np.arange(len(w))
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(iterations):
            b, v = beta[active], w[active]
            eta = b[:, :1] + b[:, 1:] * z
            p = expit(eta)
            information = v * p * (1 - p)
            i0, i1, i2 = information.sum(axis=1), information @ z, information @ z**2
            determinant = i0 * i2 - i1**2
            likelihood = (v * np.where(y, -np.logaddexp(0, -eta), -np.logaddexp(0, eta))).sum(axis=1)
            likelihood += np.where(firth[active], np.log(determinant) / 2, 0.0)
            climbed, level = likelihood >= height[active] - 1e-10, likelihood <= height[active] + 1e-10
            residual = v * (y - p)
            # leverage of each observation: information * (1, z) I^-1 (1, z)^T
            leverage = information * (i2[:, None] - 2 * i1[:, None] * z + i0[:, None] * z**2) / determinant[:, None]
            residual += np.where(firth[active, None], leverage * (0.5 - p), 0.0)
            s0, s1 = residual.sum(axis=1), residual @ z
            step = np.stack([i2 * s0 - i1 * s1, i0 * s1 - i1 * s0], axis=1) / determinant[:, None]
            step *= np.minimum(1, 4 / np.maximum(np.abs(step).max(axis=1), 1e-300))[:, None]
            step = np.where(climbed[:, None], step, (accepted[active] - b) / 2)
            climbers = active[climbed]
            height[climbers], accepted[climbers] = likelihood[climbed], b[climbed]
            inverse = np.stack([i2, -i1, -i1, i0], axis=1).reshape(-1, 2, 2) / determinant[:, None, None]
            covariance[climbers] = inverse[climbed]
            last, length[active] = length[active], np.abs(step).max(axis=1) / (1 + np.abs(b).max(axis=1))
            stuck = climbed & level & (length[active] > 0.9 * last)
            beta[active] = b + np.where(stuck[:, None], step / 2, step)
            active = active[length[active] > 1e-11]  # false where a singular case made it NaN
            if not active.size:
                break
    beta[~(length < 1e-6)] = np.nan  # no convergence
    back = np.array([[1.0, -centre / scale], [0.0, 1 / scale]])
    intercept, slope = back @ beta.T
    with np.errstate(invalid="ignore"):
        return LogisticFit(intercept, slope, back @ covariance @ back.T, apart)


def size_at(fit: LogisticFit, probability: float) -> Floats:
    """Return ``ln a_p``, (B,); infinite where larger defects are not found more often."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.where(fit.slope > 0, (logit(probability) - fit.intercept) / fit.slope, np.inf)
    return np.where(np.isnan(fit.slope), np.nan, result)


def penalised_loss(x: Floats, hits: Bools, intercept: float, slope: float, firth: bool) -> float:
    """Return the negative log-likelihood, with Firth's penalty: half the log-determinant of the information."""
    eta = intercept + slope * x
    value = float(np.logaddexp(0, np.where(hits, -eta, eta)).sum())
    if not firth:
        return value
    information = expit(eta) * expit(-eta)
    i0, i1, i2 = information.sum(), information @ x, information @ x**2
    return value - 0.5 * math.log(max(i0 * i2 - i1**2, 1e-300))
