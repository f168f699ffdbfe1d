"""Strategies by name, by class and by module: what evosax ships, tried one by one, and what cannot be had."""

import sys
from functools import lru_cache

import chex
import evosax.algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

from jevomerge.strategies.evosax import METHODS, REFUSED, SHIPPED, TUNED
from jevomerge.strategies.registry import make_strategy, register
from jevomerge.strategies.strategy import on_host

pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")  # of PGPE
OTHERS = sorted({c.__name__ for c in SHIPPED.values()} - {c.__name__ for c in TUNED} - REFUSED.keys())
KINDS = ("LM_MA_ES", "MA_ES", "MR15_GA", "PGPE", "iAMaLGaM_Full")  # one for each thing that is found by trying
each_other = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in KINDS else pytest.mark.slow) for n in OTHERS]
)
strategy_of = lru_cache(make_strategy)


def sphere(x):
    return -np.sum((x - np.linspace(0.25, 0.75, x.shape[-1])) ** 2, axis=-1)


def generations(strategy, number, seed=0, state=None, first=0, told=sphere):
    """The state after `number` generations, from `first`, and the populations (number, P, n)."""
    key, seen = jax.random.key(seed), []
    state = strategy.init(key) if state is None else state
    for generation in range(first, first + number):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        state = strategy.tell(keys[1], state, population, told(population))
        seen.append(population)
    return state, np.stack(seen)


def test_every_algorithm_of_evosax_is_tuned_or_tried_or_refused():
    shipped = {c.__name__ for c in evosax.algorithms.algorithms.values()}
    assert shipped == {c.__name__ for c in TUNED} | set(OTHERS) | REFUSED.keys()
    assert set(TUNED.values()) == METHODS.keys()
    assert len(OTHERS) == 26


@each_other
def test_every_other_one_searches_in_the_box_and_continues_bit_for_bit(name):
    strategy = strategy_of(name, 6, 10)
    whole, seen = generations(strategy, 30)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert len(np.unique(seen[0], axis=0)) >= 9  # ESMC asks for its mean twice
    assert sphere(seen).max() > sphere(seen[0]).max()
    again = make_strategy(SHIPPED[name], 6, 10)
    half, _ = generations(strategy, 15)
    chex.assert_trees_all_equal_shapes_and_dtypes(strategy.init(jax.random.key(7)), half)
    resumed, rest = generations(again, 15, state={k: v.copy() for k, v in half.items()}, first=15)
    np.testing.assert_array_equal(rest, seen[15:])
    chex.assert_trees_all_equal(whole, resumed, strict=True)


def best_of_evosax(name, seed):
    """The least loss in 300 evaluations of evosax's own loop, which is told the sphere and knows no box."""
    with on_host(x64=True):
        cls, key, kwargs = SHIPPED[name], jax.random.key(seed), {}
        if name == "iAMaLGaM_Full":
            kwargs["std_schedule"] = optax.constant_schedule(1 / 6)
        algorithm = cls(10, jnp.full(6, 0.5), **kwargs)
        params = algorithm.default_params
        params = params.replace(std_init=jnp.asarray(1 / 6)) if hasattr(params, "std_init") else params
        if issubclass(cls, PopulationBasedAlgorithm):
            population = 0.5 + jax.random.normal(key, (10, 6)) / 6
            losses = [-sphere(np.asarray(population))]
            state = algorithm.init(key, population, jnp.asarray(losses[0]), params)
        else:
            losses, state = [], algorithm.init(key, jnp.full(6, 0.5), params)
        while len(losses) < 30:
            keys = jax.random.split(jax.random.fold_in(key, len(losses)))
            population, state = algorithm.ask(keys[0], state, params)
            losses.append(-sphere(np.asarray(population)))
            state, _ = algorithm.tell(keys[1], population, jnp.asarray(losses[-1]), state, params)
        return np.min(losses)


@pytest.mark.parametrize("name", KINDS)
def test_it_comes_as_far_as_in_a_loop_of_evosax_alone(name):
    """The best of 300 evaluations, geometric means of 5 seeds; both keep within a factor of 3, or ours is better."""
    strategy = strategy_of(name, 6, 10)
    ours = [-sphere(generations(strategy, 30, seed)[1]).max() for seed in range(5)]
    theirs = [best_of_evosax(name, seed) for seed in range(5)]
    print(f"{name}: ours {scipy.stats.gmean(ours):.1e}, evosax {scipy.stats.gmean(theirs):.1e}")
    assert scipy.stats.gmean(ours) < 3 * scipy.stats.gmean(theirs)


@pytest.mark.parametrize("name", ["MA_ES", "xNES", "ASEBO", "iAMaLGaM_Full"])
def test_the_first_generation_is_as_wide_as_sigma(name):
    """Kolmogorov-Smirnov, gene by gene; the box is 5 sigma away."""
    strategy = make_strategy(name, 4, 500, 0.5, 0.1)
    population, _ = strategy.ask(jax.random.key(3), strategy.init(jax.random.key(0)))
    for gene in population.T:
        assert scipy.stats.kstest(gene, scipy.stats.norm(0.5, 0.1).cdf).pvalue > 1e-3


def test_parameters_that_cannot_be_traced_are_computed_outside_jit():
    """LM-MA-ES asks `int(...)` of an array: the parameters are those that evosax computes by itself."""
    with on_host(x64=True):
        algorithm = evosax.algorithms.LM_MA_ES(10, jnp.full(6, 0.5))
        with pytest.raises(jax.errors.ConcretizationTypeError):
            jax.jit(lambda: algorithm.default_params)()
        expected = algorithm.default_params.replace(std_init=jnp.asarray(1 / 6))
    chex.assert_trees_all_close(strategy_of("LM_MA_ES", 6, 10)._params, expected, rtol=1e-12)


def test_pairs_stay_pairs_at_the_edge_of_the_box():
    """A draw outside is redrawn with its mirror image; as long as a pair is inside, it is symmetric."""
    strategy = make_strategy("PGPE", 3, 40, 0.6, 0.15)
    for seed in range(20):
        population, _ = strategy.ask(jax.random.key(seed), strategy.init(jax.random.key(0)))
        np.testing.assert_allclose(population[:20] + population[20:], 1.2, atol=1e-12)


def test_what_learns_from_its_draws_takes_a_stranger_for_a_failure():
    """MA-ES keeps its z: a source in the place of a draw, however good, must not be taken for that draw."""
    strategy, key = strategy_of("MA_ES", 6, 10), jax.random.key(1)
    population, state = strategy.ask(key, strategy.init(key))
    fitness, other = sphere(population), population.copy()
    other[-1] = 1.0
    strange = strategy.tell(key, state, other, np.where(np.arange(10) == 9, 9.0, fitness))
    failed = strategy.tell(key, state, population, np.where(np.arange(10) == 9, np.nan, fitness))
    np.testing.assert_array_equal(strange["std"], failed["std"])
    np.testing.assert_array_equal(strange["M"], failed["M"])
    np.testing.assert_allclose(strange["mean"], failed["mean"], atol=1e-12)
    assert not np.allclose(strategy.tell(key, state, population, np.arange(10.0))["mean"], failed["mean"])


@pytest.mark.parametrize("name", [*METHODS, *KINDS, pytest.param("SimulatedAnnealing", marks=pytest.mark.slow)])
def test_who_remembers_is_found_by_trying(name):
    expected = name in ("de", "pso", "MR15_GA", "iAMaLGaM_Full", "SimulatedAnnealing")
    assert strategy_of(name, 6, 10).remembers == expected


def test_a_population_keeps_the_better_of_old_and_new():
    """MR15-GA: its fitnesses are those of its members, whatever generation they are of."""
    strategy = strategy_of("MR15_GA", 6, 10)
    state, seen = generations(strategy, 6)
    everyone = seen.reshape(-1, 6)
    best = everyone[np.argsort(-sphere(everyone))][:10]
    np.testing.assert_array_equal(np.sort(state["population"], axis=0), np.sort(best, axis=0))
    np.testing.assert_allclose(np.sort(state["remembered"][0]), np.sort(sphere(best)))


@pytest.mark.parametrize("given", ["CMA_ES", evosax.algorithms.CMA_ES, "evosax.algorithms:CMA_ES"])
def test_a_class_that_is_tuned_is_the_tuned_one(given):
    strategy = make_strategy(given, 6, 10)
    assert strategy.name == "cma_es"
    chex.assert_trees_all_equal(*(generations(s, 3)[0] for s in (strategy, strategy_of("cma_es", 6, 10))), strict=True)


OWN = """
import numpy as np
from evosax.algorithms import MA_ES

class Random:
    population_size, remembers = 5, False
    def __init__(self, num_genes, population_size, mean, sigma, seed):
        self.shape, self.rng = (5, num_genes), np.random.default_rng(seed)
    def ask(self):
        return self.rng.random(self.shape)
    def tell(self, population, fitness):
        pass

def factory(num_genes, population_size, mean, sigma, seed):
    return MA_ES(population_size, mean)

made = Random(3, None, None, None, 4)
nothing = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable module, and an installed package with an entry point to it."""
    (tmp_path / "my_search.py").write_text(OWN)
    info = tmp_path / "my_search-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-search\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jevomerge.strategies]\nmine = my_search:Random\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_search", None)


def test_a_users_own_by_module_by_entry_point_and_by_itself(module):
    import my_search

    expected = np.random.default_rng(4).random((5, 3))
    for given in ("my_search:Random", "mine", my_search.Random, "my_search:made", my_search.made):
        strategy = make_strategy(given, 3, seed=4)
        assert (strategy.population_size, strategy.remembers) == (5, False)
        population, _ = strategy.ask(jax.random.key(0), strategy.init(jax.random.key(0)))
        np.testing.assert_array_equal(population, expected, err_msg=str(given))


def test_a_function_may_make_an_algorithm_of_evosax(module):
    made, named = make_strategy("my_search:factory", 6, 10), strategy_of("MA_ES", 6, 10)
    np.testing.assert_array_equal(generations(made, 3)[1], generations(named, 3)[1])


def test_what_is_registered_has_a_name():
    class Mine(evosax.algorithms.MA_ES):
        pass

    name = register(Mine)
    assert name.endswith("<locals>.Mine")
    np.testing.assert_array_equal(
        generations(make_strategy(name, 6, 10), 2)[1], generations(strategy_of("MA_ES", 6, 10), 2)[1]
    )


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ("GuidedES", None, "GuidedES wants the gradient"),
        (evosax.algorithms.SV_CMA_ES, None, "several populations"),
        ("LM_MA_ES", 20, "with a population of 20 over 6 genes it asks for NaN; choose another"),
        ("PGPE", 9, "use population_size 10"),
        ("MA_SE", None, "did you mean 'MA_ES'"),
        ("no_such_module:Class", None, "cannot be imported: No module named 'no_such_module'"),
        ("my_search:Rnadom", None, "cannot be imported: .* has no attribute 'Rnadom'"),
        ("my_search:nothing", None, "it has no `ask`"),
        ("my_search:factory", None, "cannot be made: TypeError"),
        ("my_search:Random", 6, "has a population of 5"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(module, given, size, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(given, 6, size)


def test_a_default_population_is_made_even_for_pairs():
    assert make_strategy("PGPE", 6).population_size == 10
