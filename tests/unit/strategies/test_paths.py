"""The strategies over paths: they find planted paths, resume bit for bit, and learn only from what a path uses."""

import importlib.util
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.genome.route import PathSpace, active, encode, express_path, hops_of
from jevomerge.strategies.paths import PATH_METHODS, make_path_strategy

SCALINGS = ("none", "per_hop", "matrix", "network")
NAMES = list(PATH_METHODS)
SMALL = PathSpace(("a", "b"), (4, 4), 2)
make = lru_cache(make_path_strategy)
each_name = pytest.mark.parametrize("name", NAMES)


def load_landscape() -> Any:
    """The synthetic landscape that experiments search too."""
    file = Path(__file__).parents[3] / "experiments" / "landscape.py"
    spec = importlib.util.spec_from_file_location("landscape", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generations(strategy, objective, number, seed=0, tie_break=None, state=None, first=0):
    """The state after `number` generations, from `first`, and the populations (number, P, n)."""
    key, seen = jax.random.key(seed), []
    state = strategy.init(key) if state is None else state
    for generation in range(first, first + number):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        second = None if tie_break is None else tie_break(population)
        state = strategy.tell(keys[1], state, population, objective(population), second)
        seen.append(population)
    return state, np.stack(seen)


def linear(population: np.ndarray) -> np.ndarray:
    """A generic objective: every gene counts, another weight each."""
    return population @ np.sin(np.arange(population.shape[1]))


@each_name
def test_a_planted_path_is_found_sooner_than_at_random(name):
    """M = 8, r = 2, n = 33: medians of 5 seeds of the best of 640."""
    module, best = load_landscape(), {"random": [], name: []}
    for seed in range(5):
        landscape = module.Landscape(SMALL, seed)
        for method, scores in best.items():
            strategy = make_path_strategy(method, SMALL, 16)
            _, seen = generations(strategy, landscape, 40, seed)
            scores.append(landscape(np.concatenate(seen)).max())
    print({method: np.median(scores) for method, scores in best.items()})
    assert np.median(best[name]) > 0.8 > 0.4 > np.median(best["random"])


@each_name
@pytest.mark.parametrize("scaling", SCALINGS)
def test_candidates_are_genomes_of_the_box_and_near_the_start_at_first(name, scaling):
    space = PathSpace(("a", "b"), (3, 5), 2, scaling)
    strategy = make(name, space, 256)
    _, seen = generations(strategy, linear, 3)
    assert seen.shape == (3, 256, space.num_genes)
    assert seen.dtype == np.float64
    assert seen.min() >= 0
    assert seen.max() <= 1
    on = np.mean(seen[0, :, : space.num_slots] > 0.5, axis=0)
    np.testing.assert_allclose(on[1:3], 0.977, atol=0.06)  # Phi(2); mixed keeps every slot at 1/T or more
    np.testing.assert_allclose(on[3:], 0.5, atol=0.15)
    scales = seen[0, :, space.num_slots :]
    if scales.size:
        np.testing.assert_allclose(scales.mean(), 0.5, atol=0.02)
        np.testing.assert_allclose(scales.std(), 1 / 6, atol=0.02)


@each_name
def test_a_saved_search_continues_bit_for_bit(name, tmp_path: Path):
    """Six generations at once, and three, an Orbax checkpoint, a new strategy, and three more."""
    import orbax.checkpoint as ocp

    strategy = make(name, SMALL, 8)
    whole, seen = generations(strategy, linear, 6)
    half, _ = generations(strategy, linear, 3)
    again = make_path_strategy(name, SMALL, 8)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", again.init(jax.random.key(5)))
    resumed, seen_again = generations(again, linear, 3, state=restored, first=3)
    np.testing.assert_array_equal(seen[3:], seen_again)
    chex.assert_trees_all_equal(whole, resumed, strict=True)


@each_name
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_state_never_changes_its_structure(name, scaling):
    strategy = make(name, PathSpace(("a", "b"), (3, 5), 2, scaling), 8)
    initial = strategy.init(jax.random.key(0))
    before = {key: leaf.copy() for key, leaf in initial.items()}
    state, seen = generations(strategy, linear, 3, state=initial)
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, state)
    assert all(type(leaf) is np.ndarray for leaf in state.values())
    chex.assert_trees_all_equal(initial, before)  # nothing is changed in place
    _, seen_again = generations(strategy, linear, 3)
    np.testing.assert_array_equal(seen, seen_again)
    assert not np.array_equal(seen[0], generations(strategy, linear, 1, seed=1)[1][0])


@each_name
def test_nan_is_worst_and_ties_are_broken_by_the_second_key(name):
    strategy = make(name, SMALL, 8)

    def failing(value):
        return lambda x: np.where(linear(x) < np.median(linear(x)), value, linear(x))

    nan, _ = generations(strategy, failing(np.nan), 4)
    low, _ = generations(strategy, failing(-1e300), 4)
    chex.assert_trees_all_equal(nan, low, strict=True)
    alone, _ = generations(strategy, linear, 4)
    tied, _ = generations(strategy, lambda x: np.zeros(len(x)), 4, tie_break=linear)
    chex.assert_trees_all_equal(alone, tied, strict=True)
    population, asked = strategy.ask(jax.random.key(9), alone)
    failed = strategy.tell(jax.random.key(9), asked, population, np.full(8, np.nan))
    chex.assert_trees_all_equal(failed, asked, strict=True)


def test_full_ties_are_broken_at_random():
    """On a plateau the probabilities drift, with no direction: the mean over 200 seeds stays."""
    strategy = make("mixed", SMALL, 16)
    drifted = [generations(strategy, lambda x: np.zeros(len(x)), 3, seed)[0]["probability"] for seed in range(200)]
    free = slice(4, 16)
    assert np.std(drifted, axis=0)[free].min() > 0.01
    np.testing.assert_allclose(np.mean(drifted, axis=0)[free], 0.5, atol=4 * np.std(drifted) / np.sqrt(200))


@pytest.mark.parametrize("scaling", ["per_hop", "matrix"])
def test_a_scale_learns_only_from_candidates_that_use_it(scaling):
    """Other values of the genes that are off, the same ranks: the same state. A gene of use to none stays as it was."""
    space = PathSpace(("a", "b"), (3, 4), 2, scaling)
    strategy = make("mixed", space, 12)
    state = strategy.init(jax.random.key(0))
    population, state = strategy.ask(jax.random.key(1), state)
    used = np.stack([np.asarray(active(space, jnp.asarray(genome))) for genome in population])
    noise = np.random.default_rng(0).random(population.shape)
    changed = np.where(used, population, noise)
    assert not np.array_equal(changed, population)
    fitness = np.arange(12.0)
    told = strategy.tell(jax.random.key(2), state, population, fitness)
    chex.assert_trees_all_equal(told, strategy.tell(jax.random.key(2), state, changed, fitness), strict=True)
    scales = used[:, space.num_slots :]
    idle = ~scales.any(axis=0)
    moved = (told["center"] != state["center"]) | (told["width"] != state["width"])
    assert not np.any(moved & idle)
    assert np.all(moved[~idle])
    if scaling == "matrix":
        assert idle.any()


def test_mixed_follows_the_natural_gradient():
    """One step written out: p += rate sum u (x - p), m += s sum u z, s *= exp(rate / 2 sum u (z^2 - 1))."""
    space = PathSpace(("a",), (2,), 2)
    strategy = make("mixed", space, 4)
    state = strategy.init(jax.random.key(0))
    population = np.array(
        [  # slots 0 to 3, then their scales and that of an appended end
            [0.2, 0.9, 0.1, 0.1, 0.6, 0.7, 0.5, 0.5, 0.5],
            [0.2, 0.9, 0.9, 0.1, 0.5, 0.6, 0.3, 0.5, 0.9],
            [0.9, 0.1, 0.1, 0.9, 0.4, 0.5, 0.5, 0.2, 0.5],
            [0.9, 0.1, 0.9, 0.1, 0.3, 0.5, 0.8, 0.5, 0.1],
        ]
    )
    told = strategy.tell(jax.random.key(0), state, population, [4.0, 3.0, 2.0, 1.0])
    weights = np.maximum(0, np.log(3) - np.log([1, 2, 3, 4]))
    utility = weights / weights.sum() - 1 / 4
    effective = 1 / np.sum((weights / weights.sum()) ** 2)
    rate = min(0.7, effective / (0.25 * 2 * np.log(5)))
    probability = state["probability"].copy()
    for k in (1, 2, 3):  # slot 0 is always on
        bits = population[:, k] > 0.5
        probability[k] += rate * sum(u * (bit - state["probability"][k]) for u, bit in zip(utility, bits, strict=True))
    np.testing.assert_allclose(told["probability"], np.clip(probability, 0.25, 0.75), rtol=1e-12)
    in_use = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 1], [1, 0, 0, 1, 0], [1, 0, 1, 0, 1]], bool)
    steps = np.where(in_use, (population[:, 4:] - 0.5) * 6, np.nan)
    np.testing.assert_allclose(told["center"], 0.5 + utility @ np.nan_to_num(steps) / 6, rtol=1e-12)
    growth = utility @ np.nan_to_num(steps**2 - 1)
    dimension = in_use.sum() / 4
    std_rate = (3 + np.log(dimension)) / (5 * np.sqrt(dimension))
    np.testing.assert_allclose(told["width"], np.exp(std_rate / 2 * growth) / 6, rtol=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_edits_are_what_they_say(scaling):
    """By hand: a repeated block comes twice in a row with its scales, an exchange keeps how many slots are on."""
    space = PathSpace(("a", "b"), (4, 3), 3, scaling)
    strategy, rng = make("path_program", space, 8), np.random.default_rng(0)
    start = encode(space, hops_of([("a", 0, 3), ("b", 1, 3), ("a", 3, 4)]), on=0.75, off=0.25)
    start[space.num_slots :] = rng.random(space.num_scales)

    def path_of(genome):
        path = express_path(space, jnp.asarray(genome))
        length = int(path.length)
        return path.layers[:length].tolist(), path.scales[:length].tolist()

    layers, scales = path_of(start)
    repeated = 0
    for _ in range(100):
        genome = start.copy()
        strategy._repeat(rng, genome)
        new, new_scales = path_of(genome)
        if new == layers:
            continue  # it did not fit
        repeated += 1
        blocks = [(i, j) for i in range(6) for j in range(i + 1, 7) if layers[:j] + layers[i:] == new]
        assert blocks
        if scaling == "per_hop":
            assert any(scales[:j] + scales[i:] == new_scales for i, j in blocks)
        genome = start.copy()
        strategy._exchange(rng, genome)
        assert np.sum(genome[: space.num_slots] > 0.5) == np.sum(start[: space.num_slots] > 0.5)
        assert sorted(genome) == sorted(start)
        strategy._rescale(rng, genome := start.copy())
        changed = genome != start
        assert not np.any(changed & ~np.asarray(active(space, jnp.asarray(start))))
        assert not np.any(changed[: space.num_slots])
    assert repeated > 20


def test_the_best_paths_are_asked_for_again():
    """So that luck on a minibatch does not last: the best of a generation is a candidate of the next."""
    strategy = make("path_program", SMALL, 16)
    _, seen = generations(strategy, linear, 5)
    for population, following in pairwise(seen):
        np.testing.assert_array_equal(following[0], population[np.argmax(linear(population))])


@each_name
def test_genes_before_the_path_are_searched_too(name):
    """Three genes with an optimum of their own, and as many slots on as possible; the start is where it belongs."""
    space = PathSpace(("a", "b"), (3, 2), 2, "per_hop")
    strategy = make_path_strategy(name, space, 32, before=3)
    assert strategy.num_genes == 3 + space.num_genes
    first, _ = strategy.ask(jax.random.key(0), strategy.init(jax.random.key(0)))
    assert np.mean(first[:, 4:6] > 0.5) > 0.8 > 0.65 > np.mean(first[:, 6:13] > 0.5)  # slots 1 and 2 of the first pass
    optimum = np.array([0.1, 0.8, 0.4])

    def objective(x):
        return np.mean(x[:, 3:13] > 0.5, axis=1) - 2 * np.abs(x[:, :3] - optimum).sum(axis=1)

    state, seen = generations(strategy, objective, 60)
    best = seen[-1][np.argmax(objective(seen[-1]))]
    np.testing.assert_allclose(best[:3], optimum, atol=0.05)
    assert np.sum(best[4:13] > 0.5) >= 8
    if (mean := strategy.mean(state)) is not None:
        np.testing.assert_allclose(mean[:3], optimum, atol=0.05)


def test_strategies_of_the_parameter_space_work_on_paths():
    strategy = make_path_strategy("sep_cma_es", SMALL, 8)
    _, seen = generations(strategy, linear, 2)
    assert seen.shape == (2, 8, SMALL.num_genes)
    np.testing.assert_allclose(strategy.mean(strategy.init(jax.random.key(0)))[:5], [5 / 6] * 4 + [0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixd",), "did you mean 'mixed'"),
        (("zzz",), "the strategies over paths are mixed, path_program, cma_es"),
        (("mixed", 3), "use 4 or more"),
        (("mixed", 8, 2.0), r"33 numbers in \[0, 1\]"),
        (("path_program", 8, None, -1.0), "positive number"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(arguments, message):
    name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        make_path_strategy(name, SMALL, *rest)
