"""How good candidates are, by who was preferred to whom: the Bradley-Terry model with its uncertainty.

    P(i is preferred to j) = sigmoid(strength_i - strength_j)

A tie is half a vote for each. What comes out is the most probable strengths and the normal distribution around them
(Laplace's approximation), under a prior by which those of one round lie around a level of their own: later rounds may
be better than all before, and votes against a candidate that was there before tell by how much. (choix fits the same
model; it has no ties and, where it has uncertainty, one prior mean for all.)

Pure functions of NumPy arrays in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, ndtr

SPREAD, LEVEL = 1.5, 5.0  # standard deviations of strengths in a round, and of a round's level
TOP = 0.5  # see `worth`
STEP = 2.0  # by which a strength moves at most in a turn of Newton's method


class Strengths(NamedTuple):
    """What is known of N candidates."""

    mean: np.ndarray  # (N,)
    covariance: np.ndarray  # (N, N)

    @property
    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, N) mean and variance of the strength of i less that of j."""
        variance = np.diag(self.covariance)
        spread = variance[:, None] + variance[None] - 2 * self.covariance
        return self.mean[:, None] - self.mean[None], np.maximum(spread, 1e-12)


def fit(wins: np.ndarray, rounds: np.ndarray) -> Strengths:
    """The strengths of N candidates.

    Args:
        wins: (N, N) how often i was preferred to j.
        rounds: (N,) ints, in which round each came in.
    """
    together = (rounds[:, None] == rounds[None]).astype(np.float64)
    size = together.sum(axis=1)
    prior = (np.eye(len(rounds)) - together / size) / SPREAD**2 + together / size**2 / LEVEL**2
    votes, mean = wins + wins.T, np.zeros(len(rounds))
    while True:
        chance = expit(mean[:, None] - mean[None])
        slope = (wins - votes * chance).sum(axis=1) - prior @ mean
        weight = votes * chance * (1 - chance)
        curvature = prior + np.diag(weight.sum(axis=1)) - weight
        step = np.linalg.solve(curvature, slope)
        largest = np.abs(step).max(initial=0.0)
        mean = mean + step * min(1.0, STEP / max(largest, STEP))
        if largest < 1e-9:
            return Strengths(mean, np.linalg.inv(curvature))


def worth(strengths: Strengths, top: float = TOP) -> np.ndarray:
    """(N, N) how much it is worth to ask about a pair; 0 for no pair.

    The variance of their gap, times how likely no gap is beside the likeliest one: what is not known of their order. It
    counts for more the nearer the weaker of the two is to the best: by `top` for each unit of strength. The expected
    information about all strengths, which takes an integral, does as well (experiments/people).
    """
    mean, variance = strengths.gaps
    weaker = np.minimum(strengths.mean[:, None], strengths.mean[None])
    found = variance * np.exp(-(mean**2) / (2 * variance) + top * (weaker - strengths.mean.max()))
    np.fill_diagonal(found, 0.0)
    return found


def in_order(strengths: Strengths, pairs: np.ndarray) -> float:
    """The share of pairs that are expected to be in the order of their means; 1 of none.

    Args:
        strengths: of N candidates.
        pairs: (N, N) bool, which of them count.
    """
    mean, variance = strengths.gaps
    return float(ndtr(np.abs(mean) / np.sqrt(variance))[pairs].mean()) if pairs.any() else 1.0
