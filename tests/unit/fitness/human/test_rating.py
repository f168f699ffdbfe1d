"""The Bradley-Terry model against SciPy's minimiser, and what is asked next against draws."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from jevomerge.fitness.human.rating import LEVEL, SPREAD, Strengths, fit, in_order, worth


def slow(votes, rounds):
    """Minus the log of the posterior, vote by vote: votes are (i, j, what part of it i had)."""

    def loss(x):
        total = 0.0
        for i, j, won in votes:
            total -= won * np.log(1 / (1 + np.exp(x[j] - x[i]))) + (1 - won) * np.log(1 / (1 + np.exp(x[i] - x[j])))
        for k in set(rounds):
            own = x[np.array(rounds) == k]
            total += ((own - own.mean()) ** 2).sum() / (2 * SPREAD**2) + own.mean() ** 2 / (2 * LEVEL**2)
        return total

    return loss


def hessian(f, x, h=1e-3):
    n, steps = len(x), h * np.eye(len(x))
    return np.array(
        [
            [
                (f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) / (4 * h * h)
                for b in steps
            ]
            for a in steps
        ]
    ).reshape(n, n)  # fmt: skip


def wins_of(votes, count):
    wins = np.zeros((count, count))
    for i, j, won in votes:
        wins[i, j] += won
        wins[j, i] += 1 - won
    return wins


@pytest.mark.parametrize("seed", range(3))
def test_the_most_probable_strengths_and_their_uncertainty(seed):
    rng = np.random.default_rng(seed)
    rounds = np.array([0, 0, 0, 1, 1, 2])
    votes = [(*rng.choice(6, 2, replace=False), rng.choice([0.0, 0.5, 1.0])) for _ in range(25)]
    votes += [(5, i, 1.0) for i in range(5) for _ in range(3)]  # one that never loses
    found = fit(wins_of(votes, 6), rounds)
    loss = slow(votes, rounds)
    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(found.mean, best, atol=1e-4)  # so far off is what goes by differences
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian(loss, best)), rtol=1e-3, atol=1e-4)


def test_who_is_always_preferred_has_a_finite_strength_and_ties_make_equals():
    always = fit(np.array([[0.0, 1e4], [0.0, 0.0]]), np.zeros(2, int))
    assert 5 < always.mean[0] - always.mean[1] < 50
    np.testing.assert_allclose(fit(np.full((3, 3), 2.0) - 2 * np.eye(3), np.zeros(3, int)).mean, 0, atol=1e-9)
    nobody = fit(np.zeros((2, 2)), np.zeros(2, int))
    np.testing.assert_allclose(nobody.mean, 0)


def test_a_later_round_may_be_better_than_all_before():
    """A strength per round is hardly drawn to zero, as those in it are to each other."""
    wins = np.zeros((4, 4))
    wins[2:, 1] = 6  # the two new ones beat the best so far
    wins[1, 0] = 6
    found = fit(wins, np.array([0, 0, 1, 1])).mean
    assert found[0] < found[1] < found[2] == pytest.approx(found[3])
    assert found[2] - found[1] > 1.5


def test_what_is_worth_asking_is_what_is_not_known_and_near_the_top():
    wins = np.zeros((5, 5))
    wins[0, 1] = wins[1, 0] = 5
    found = worth(fit(wins, np.zeros(5, int)))
    np.testing.assert_array_equal(np.diag(found), 0)
    np.testing.assert_allclose(found, found.T)
    assert found[0, 2] > found[0, 1]  # who was not compared
    wins[2:4, :2] = wins[:2, 4] = 2
    found = worth(fit(wins, np.zeros(5, int)))
    assert found[2, 3] == pytest.approx(found.max())  # the two best
    assert found[2, 4] < found[0, 2]  # of the best and the worst the order is known


def test_the_share_of_pairs_in_order_is_that_of_draws():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    mean, covariance = rng.normal(size=5), root @ root.T / 5
    draws = multivariate_normal(mean, covariance, seed=0).rvs(20000)
    pairs = np.triu(np.ones((5, 5), bool), 1)
    same = np.sign(draws[:, :, None] - draws[:, None]) == np.sign(mean[:, None] - mean[None])
    assert in_order(Strengths(mean, covariance), pairs) == pytest.approx(same[:, pairs].mean(), abs=0.01)
    assert in_order(Strengths(mean, covariance), np.zeros((5, 5), bool)) == 1
