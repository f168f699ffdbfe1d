"""Strategies of the user's own: what they are told, what they may be, how they continue."""

import cma
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.errors import InputError
from jevomerge.strategies.registry import make_strategy


def sphere(x):
    return -np.sum((x - 0.3) ** 2, axis=-1)


def run(strategy, number, objective=sphere, state=None, first=0):
    """The state after `number` generations and the populations (number, P, n)."""
    key, seen = jax.random.key(0), []
    state = strategy.init(key) if state is None else state
    for generation in range(first, first + number):
        population, state = strategy.ask(jax.random.fold_in(key, generation), state)
        state = strategy.tell(key, state, population, objective(population))
        seen.append(population)
    return state, np.stack(seen)


def pycma(mean, sigma, size, seed):
    options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9} | ({} if size is None else {"popsize": size})
    return cma.CMAEvolutionStrategy(mean, sigma, options)


class Pycma:
    """As in the docstring of `own`."""

    def __init__(self, num_genes, population_size, mean, sigma, seed):
        self.search = pycma(mean, sigma, population_size, seed)

    def ask(self):
        return self.search.ask()

    def tell(self, population, fitness):
        self.search.tell(list(population), list(-fitness))


@pytest.mark.parametrize("size", [None, 12])
def test_another_packages_search_is_the_same_as_in_its_own_loop(size):
    strategy = make_strategy(Pycma, 4, size, 0.5, 0.2, seed=3)
    assert strategy.population_size == (size or 8)  # 4 + floor(3 ln 4)
    _, seen = run(strategy, 20)
    search = pycma(np.full(4, 0.5), 0.2, size, 3)
    for population in seen:
        np.testing.assert_array_equal(population, expected := search.ask())
        search.tell(expected, list(-sphere(np.array(expected))))
    assert sphere(seen[-1]).max() > sphere(seen[0]).max() / 10


def test_a_hidden_state_is_replayed_from_its_start():
    """`init` begins anew, with what it is told again it asks the same again; other seeds ask something else."""
    strategy = make_strategy(Pycma, 4, seed=3)
    assert strategy.replayed
    state, seen = run(strategy, 8)
    assert state == {}
    run(strategy, 3)
    np.testing.assert_array_equal(run(strategy, 8)[1], seen)
    assert not np.array_equal(run(make_strategy(Pycma, 4, seed=4), 1)[1], seen[:1])


class Climber:
    """Draws about the best that it has seen; its state is a tree with a tuple in it."""

    population_size = 6

    def __init__(self, num_genes, population_size, mean, sigma, seed):
        self.mean, self.sigma = jnp.asarray(mean), sigma

    def init(self, key):
        return {"best": (self.mean, jnp.asarray(-jnp.inf)), "told": 0}

    def ask(self, key, state):
        population = state["best"][0] + self.sigma * jax.random.normal(key, (6, self.mean.size), self.mean.dtype)
        return jnp.clip(population, 0, 1), state

    def tell(self, key, state, population, fitness, tie_break):
        first = np.argmax(fitness + 1e-9 * tie_break)
        best = (population[first], fitness[first]) if fitness[first] > state["best"][1] else state["best"]
        return {"best": best, "told": state["told"] + 1}


def test_a_state_is_a_flat_dict_of_arrays_that_continues():
    strategy = make_strategy(Climber, 3)
    assert not strategy.replayed
    whole, seen = run(strategy, 10)
    assert {k: (v.shape, v.dtype.kind) for k, v in whole.items()} == {
        "best_0": ((3,), "f"),
        "best_1": ((), "f"),
        "told": ((), "i"),
    }
    assert whole["best_0"].dtype == np.float64
    assert whole["told"] == 10
    assert whole["best_1"] == sphere(seen).max()
    half, _ = run(strategy, 4)
    resumed, rest = run(make_strategy(Climber, 3), 6, state={k: np.array(v.tolist()) for k, v in half.items()}, first=4)
    np.testing.assert_array_equal(rest, seen[4:])
    assert all(np.array_equal(whole[k], resumed[k]) for k in whole)


class Recorder:
    """Asks for numbers that leave the box, and keeps what it is told."""

    told = ()

    def ask(self):
        return [[-1.0, 0.5], [2.0, 0.5], [0.5, 0.5]]

    def tell(self, population, fitness):
        self.told = (*self.told, (population, fitness))


def test_what_is_told_is_what_was_evaluated_and_a_failure_is_the_worst():
    strategy, key = make_strategy(Recorder(), 2), jax.random.key(0)
    population, state = strategy.ask(key, strategy.init(key))
    np.testing.assert_array_equal(population, [[0, 0.5], [1, 0.5], [0.5, 0.5]])
    state = strategy.tell(key, state, population, [np.nan, 2.0, 1.0])
    strategy.tell(key, state, population, [np.nan] * 3)  # a generation that failed entirely teaches nothing
    [(told, fitness)] = strategy._own.told
    np.testing.assert_array_equal(told, population)
    np.testing.assert_array_equal(fitness, [1, 2, 1])


def test_an_object_is_left_as_it_was():
    own = Recorder()
    strategy, key = make_strategy(own, 2), jax.random.key(0)
    population, state = strategy.ask(key, strategy.init(key))
    strategy.tell(key, state, population, [0.0, 1.0, 2.0])
    assert own.told == ()
    strategy.init(key)
    assert strategy._own.told == ()


class Generator(Recorder):
    def __init__(self):
        self.rows = (row for row in [])


class Empty:
    def __init__(self, *arguments):
        pass


class RandomKey(Climber):
    def init(self, key):
        return {"key": key}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Generator(), "cannot be copied .* give its class"),
        (Empty, "Empty has no `ask` and `tell`"),
        (RandomKey, "must be a pytree of arrays of numbers"),
        (cma.CMAEvolutionStrategy([0.5] * 2, 0.2, {"verbose": -9}), "minimises"),
    ],
)
def test_what_is_no_strategy_is_refused_with_the_remedy(own, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(own, 2)


class Growing(Climber):
    def tell(self, key, state, population, fitness, tie_break):
        return {**state, "more": 0}


class Short(Recorder):
    population_size = 4


def test_what_breaks_its_word_later_is_said():
    with pytest.raises(InputError, match="Growing: its state must keep"):
        run(make_strategy(Growing, 2), 1)
    with pytest.raises(InputError, match=r"Short must ask for \(4, 2\) numbers in \[0, 1\]; its shape is \(3, 2\)"):
        run(make_strategy(Short(), 2), 1)


def test_it_says_itself_whether_minibatches_and_racing_are_fine():
    assert make_strategy(Recorder(), 2).remembers
    assert make_strategy(Recorder(), 2).elite is None
    own = Recorder()
    own.remembers, own.elite = False, 2
    assert (make_strategy(own, 2).remembers, make_strategy(own, 2).elite) == (False, 2)
