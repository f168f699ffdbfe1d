"""A few examples that stand for many: which ones, and what they say about the score on all.

Both come from what a few models (the sources of a merge) do on every example. Examples that all of them find alike
are one cluster, of which one anchor is scored. What a candidate then scores on all n examples is estimated as

    mean   the mean of its anchors' scores, each weighted by the size of its cluster;
    irt    the anchors' own scores and, of the other examples, what a two-parameter logistic model expects of a
           candidate of its ability ("p-IRT" of tinyBenchmarks, arXiv:2402.14992, as in MERGE^3, arXiv:2502.10436).

Pure functions of NumPy arrays in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit

RESTARTS, ROUNDS = 10, 100  # of k-means
SPREAD_A, SPREAD_B = 0.5, 2.0  # standard deviations of the priors of log(a) and b, those of abilities being 1
SPREAD_NEW = 2.0  # and of a candidate's ability: it may well be abler than every model the items were fitted on


class Items(NamedTuple):
    """What is known of n examples: a model of ability t solves one with probability sigmoid(a t - b)."""

    discrimination: np.ndarray  # (n,) a > 0
    difficulty: np.ndarray  # (n,) b

    def expected(self, ability: float) -> np.ndarray:
        """(n,) the probability to solve each."""
        return expit(self.discrimination * ability - self.difficulty)


# --- which ones ---------------------------------------------------------------------------------------------


def choose_anchors(profiles: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The examples nearest to the centres of `count` clusters (k-means), and the share of each cluster.

    Args:
        profiles: (n, d), what is known of each example; columns are scaled to unit variance.
        count: how many, at most n.
        rng: where the clusters start.

    Returns:
        (count,) indices in ascending order and (count,) weights, which sum to one.
    """
    size = len(profiles)
    if count >= size:
        return np.arange(size), np.full(size, 1 / size)
    points = profiles - profiles.mean(axis=0)
    spread = points.std(axis=0)
    points = points[:, spread > 0] / spread[spread > 0]
    inertia, labels, centres = min((_cluster(points, count, rng) for _ in range(RESTARTS)), key=lambda found: found[0])
    del inertia
    chosen = []
    for k in range(count):
        inside = np.flatnonzero(labels == k)
        chosen.append(inside[np.argmin(((points[inside] - centres[k]) ** 2).sum(axis=1))])
    order = np.argsort(chosen)
    return np.array(chosen)[order], (np.bincount(labels, minlength=count) / size)[order]


def _cluster(points: np.ndarray, count: int, rng: np.random.Generator) -> tuple[float, np.ndarray, np.ndarray]:
    """k-means from k-means++: the sum of squared distances, (n,) labels, (count, d) centres; no cluster is empty."""
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared(points, points[chosen])[:, 0]
    while len(chosen) < count:
        free = np.where(np.isin(np.arange(len(points)), chosen), 0.0, np.maximum(nearest, 1e-12))  # also among equals
        chosen.append(int(rng.choice(len(points), p=free / free.sum())))
        nearest = np.minimum(nearest, _squared(points, points[chosen[-1:]])[:, 0])
    centres, labels = points[chosen], np.full(len(points), -1)
    for _ in range(ROUNDS):
        distances = _squared(points, centres)
        before, labels = labels, distances.argmin(axis=1)
        for k in np.flatnonzero(np.bincount(labels, minlength=count) == 0):  # takes the point that fits worst
            shared = np.bincount(labels, minlength=count)[labels] > 1
            labels[np.argmax(np.where(shared, distances[np.arange(len(points)), labels], -1.0))] = k
        centres = np.stack([points[labels == k].mean(axis=0) for k in range(count)])
        if np.array_equal(before, labels):
            break
    return float(((points - centres[labels]) ** 2).sum()), labels, centres


def _squared(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n, k) squared distances."""
    return np.stack([((points - c) ** 2).sum(axis=1) for c in centres], axis=1)


# --- what they say ------------------------------------------------------------------------------------------


def fit_items(responses: np.ndarray) -> tuple[Items, np.ndarray]:
    """The two-parameter logistic model that is most probable given (m, n) scores from 0 to 1, and (m,) abilities.

    Priors make this well posed for a few models: abilities N(0, 1), log(a) N(0, 0.5^2), b N(0, 2^2).
    """
    from scipy.optimize import minimize  # here, because few runs need it and it takes long to import

    models, size = responses.shape
    share = np.clip(responses.mean(axis=0), 0.05, 0.95)
    start = np.concatenate([np.linspace(-0.1, 0.1, models), np.zeros(size), np.log(1 / share - 1)])
    level = responses.mean(axis=1)  # abilities begin in the order of the models' scores
    start[:models] = (level - level.mean()) / (level.std() or 1.0)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        ability, log_a, b = np.split(x, [models, models + size])
        a = np.exp(log_a)
        logits = np.outer(ability, a) - b
        value = -(responses * log_expit(logits) + (1 - responses) * log_expit(-logits)).sum()
        value += ((ability**2).sum() + (log_a**2).sum() / SPREAD_A**2 + (b**2).sum() / SPREAD_B**2) / 2
        error = expit(logits) - responses
        slopes = (
            error @ a + ability,
            (error * np.outer(ability, a)).sum(axis=0) + log_a / SPREAD_A**2,
            -error.sum(axis=0) + b / SPREAD_B**2,
        )
        return float(value), np.concatenate(slopes)

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 4000}).x
    ability, log_a, b = np.split(found, [models, models + size])
    return Items(np.exp(log_a), b), ability


def fit_ability(items: Items, scores: np.ndarray) -> float:
    """The most probable ability of a model with these scores (n,), from 0 to 1, on `items`; its prior is N(0, 2^2)."""
    a = items.discrimination
    top = SPREAD_NEW**2 * float(a.sum())  # the prior's pull is stronger than all examples beyond this
    low, high = -top, top
    for _ in range(100):  # the slope of the log-posterior falls with the ability
        middle = (low + high) / 2
        if float(a @ (scores - items.expected(middle))) > middle / SPREAD_NEW**2:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def weighted_mean(scores: np.ndarray, weights: np.ndarray) -> float:
    """The estimate `mean` from the anchors' scores (N,) and weights (N,)."""
    return float(scores @ weights)


def expected_mean(scores: np.ndarray, chosen: np.ndarray, items: Items) -> float:
    """The estimate `irt` from the scores (N,) on the examples `chosen` (N,) of all n `items`; NaN if a score is."""
    if not np.isfinite(scores).all():
        return float("nan")
    ability = fit_ability(Items(items.discrimination[chosen], items.difficulty[chosen]), scores)
    values = items.expected(ability)
    values[chosen] = scores
    return float(values.mean())
