"""Racing: a candidate that cannot be among the best any more is not scored to the end.

A search that only asks who the best are, and in which order, learns the same from a candidate whose score is known to
be too low as from the score itself. "exact" stops a candidate when all its other examples could not save it: such a
search is unchanged. "hoeffding" does when that is improbable: a candidate that belongs to the best is stopped with a
probability of at most `DELTA` each time it is looked at, for the examples seen are a random part of all.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

Rule = Literal["exact", "hoeffding"]
DELTA = 0.01
PIECES = 8  # in which examples are scored, so that there is something to stop


class Stopped(NamedTuple):
    """What is known of a candidate that was stopped."""

    bound: float  # on its fitness
    examples: int  # that it was scored on


def upper_bound(
    scores: np.ndarray, seen: np.ndarray, strata: np.ndarray, bounds: tuple[float, float], rule: Rule
) -> np.ndarray:
    """(M,) what the mean score over all n examples can still be, at most.

    Args:
        scores: (M, n); what they are where not `seen` does not matter.
        seen: (n,) bool.
        strata: (n,) ints; in each, those seen are a random part (hoeffding).
        bounds: the lowest and the highest score there is.
        rule: "hoeffding" is Serfling's inequality for draws without replacement (Annals of Statistics 2, 1974); it is
            never above the exact bound, which takes its place where there is no lowest score.
    """
    lowest, top = bounds
    total = np.zeros(len(scores))
    for stratum in np.unique(strata):
        inside = strata == stratum
        known, size = scores[:, inside & seen], int(inside.sum())
        count = known.shape[1]
        bound = (known.sum(axis=1) + top * (size - count)) / size
        if rule == "hoeffding" and math.isfinite(lowest) and 0 < count < size:
            spread = (1 - (count - 1) / size) * math.log(1 / DELTA) / (2 * count)
            bound = np.minimum(bound, known.mean(axis=1) + (top - lowest) * math.sqrt(spread))
        total += bound * size
    return total / scores.shape[1]
