"""Racing stops only what it may, and a search never notices."""

import jax
import numpy as np
import pytest

from jevomerge.fitness.racing import DELTA, upper_bound
from jevomerge.genome.route import PathSpace
from jevomerge.strategies.evosax import METHODS
from jevomerge.strategies.paths import PATH_METHODS, make_path_strategy
from jevomerge.strategies.registry import make_strategy

SPACE = PathSpace(("a", "b"), (4, 4), 2)
RACING = [name for name, method in METHODS.items() if method.elite is not None] + list(PATH_METHODS)


@pytest.mark.parametrize("size", [9, 16])
@pytest.mark.parametrize("name", RACING)
def test_a_search_learns_the_same_however_the_rest_is_ranked(name, size):
    strategy = make_strategy(name, 5, size) if name in METHODS else make_path_strategy(name, SPACE, size)
    key, rng = jax.random.key(0), np.random.default_rng(0)
    states = [strategy.init(key)] * 2
    for generation in range(4):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        (population, asked), (again, _) = (strategy.ask(keys[0], state) for state in states)
        np.testing.assert_array_equal(population, again)
        fitness = rng.permutation(size).astype(float)
        shuffled = fitness.copy()
        rest = np.flatnonzero(fitness < size - strategy.elite)
        shuffled[rest] = rng.permutation(shuffled[rest]) - 100
        assert len(rest) == size - strategy.elite > 1
        states = [strategy.tell(keys[1], asked, population, f) for f in (fitness, shuffled)]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].elite is None])
def test_others_learn_from_every_rank(name):
    """So racing is refused for them."""
    size, key, rng = 12, jax.random.key(0), np.random.default_rng(0)
    strategy = make_strategy(name, 5, size)
    states, same = [strategy.init(key)] * 2, True
    for generation in range(4):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        (population, asked), (again, other) = (strategy.ask(keys[0], state) for state in states)
        same = same and np.array_equal(population, again)
        fitness = rng.permutation(size).astype(float)
        rest = np.argsort(fitness)[: size // 2]
        shuffled = fitness.copy()
        shuffled[rest] = shuffled[rest[::-1]]
        states = [strategy.tell(keys[1], asked, population, fitness), strategy.tell(keys[1], other, again, shuffled)]
    assert not same


def test_the_exact_bound_is_what_full_marks_would_give():
    rng = np.random.default_rng(0)
    scores = (rng.random((6, 40)) < 0.4).astype(float)
    seen = np.arange(40) < 25
    strata = np.repeat([0, 1], [15, 25])
    bound = upper_bound(scores, seen, strata, (0.0, 1.0), "exact")
    np.testing.assert_allclose(bound, np.where(seen, scores, 1).mean(axis=1))
    likelihoods = -rng.random((6, 40))
    bound = upper_bound(likelihoods, seen, strata, (-np.inf, 0.0), "exact")
    np.testing.assert_allclose(bound, np.where(seen, likelihoods, 0).mean(axis=1))
    # Nothing is improbable of scores that have no lowest value; where the range is another, so is the bound.
    probable = upper_bound(likelihoods, seen, strata, (-np.inf, 0.0), "hoeffding")
    np.testing.assert_array_equal(probable, bound)
    wide = upper_bound(10 * scores - 5, seen, strata, (-5.0, 5.0), "hoeffding")
    np.testing.assert_allclose(wide, 10 * upper_bound(scores, seen, strata, (0.0, 1.0), "hoeffding") - 5)
    np.testing.assert_allclose(upper_bound(scores, seen | True, strata, (0.0, 1.0), "hoeffding"), scores.mean(axis=1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_probable_bound_holds_as_often_as_it_says(share):
    """On random parts of 100 examples, of which some lie in a part that is seen first."""
    rng = np.random.default_rng(1)
    scores = (rng.random((1, 100)) < share).astype(float)
    strata = np.repeat([0, 1], [30, 70])
    wrong, exact, probable = 0, 0.0, 0.0
    for _ in range(4000):
        seen = np.zeros(100, bool)
        seen[:30] = True
        seen[30 + rng.permutation(70)[:20]] = True
        bound = upper_bound(scores, seen, strata, (0.0, 1.0), "hoeffding").item()
        wrong += bound < scores.mean()
        probable += bound
        exact += upper_bound(scores, seen, strata, (0.0, 1.0), "exact").item()
    assert wrong <= 4000 * DELTA
    assert probable < exact or share == 0.9  # where full marks are near anyway
