"""NSGA-II and fronts: against pymoo, brute force, and what a front is."""

import itertools

import jax
import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.population import Population
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.problems import get_problem
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scipy.stats import ks_2samp

from jevomerge.strategies.pareto import (
    CROSSOVER,
    crowding_distances,
    front_of,
    front_points,
    make_nsga2,
    nondominated_ranks,
    objectives_of,
    polynomial_mutation,
    simulated_binary_crossover,
    spread_out,
)
from jevomerge.strategies.strategy import on_host


def run(function, *arguments):
    """A pure function as the strategy runs it."""
    with on_host(x64=True):
        return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def dominates(a, b):
    return np.all(a >= b) and np.any(a > b)


def ranks_by_hand(objectives):
    ranks, left = np.full(len(objectives), -1), set(range(len(objectives)))
    for level in itertools.count():
        if not left:
            return ranks
        front = {i for i in left if not any(dominates(objectives[j], objectives[i]) for j in left)}
        ranks[list(front)] = level
        left -= front


@pytest.mark.parametrize("goals", [2, 3])
def test_ranks_and_crowding_are_those_of_pymoo(goals):
    objectives = np.random.default_rng(goals).normal(size=(120, goals))
    ranks = run(nondominated_ranks, objectives)
    fronts = NonDominatedSorting().do(-objectives)
    assert len(fronts) > 3
    distances = run(crowding_distances, objectives, ranks)
    for level, front in enumerate(fronts):
        assert sorted(np.flatnonzero(ranks == level)) == sorted(front)
        expected = goals * calc_crowding_distance(-objectives[front], filter_out_duplicates=False)
        np.testing.assert_allclose(distances[front], expected)


def test_ranks_with_ties_and_failures():
    """Scores are shares of a few examples: ties galore."""
    objectives = np.random.default_rng(0).integers(0, 5, (120, 2)) / 4
    np.testing.assert_array_equal(run(nondominated_ranks, objectives), ranks_by_hand(objectives))
    failed = objectives.copy()
    failed[:40, 1], failed[3, 0] = np.nan, 9.0
    ranks = run(nondominated_ranks, failed)
    np.testing.assert_array_equal(ranks[40:], ranks_by_hand(objectives[40:]))
    assert (ranks[:40] == ranks[40:].max() + 1).all()
    assert not np.isnan(run(crowding_distances, failed, ranks)).any()


def test_crossover_is_that_of_pymoo():
    """How far children are from each other, and where, for parents near a corner and in the middle."""
    problem, count = get_problem("zdt1", n_var=1), 4000
    for a, b in ((0.02, 0.3), (0.45, 0.6)):
        first, second = np.full((count, 1), a), np.full((count, 1), b)
        found = np.concatenate(run(simulated_binary_crossover, jax.random.key(0), first, second))[:, 0]
        parents = Population.new(X=np.array([[a], [b]]))
        operator = SBX(prob=1.0, prob_var=1.0, prob_exch=0.0, eta=15)
        pairs = np.tile([0, 1], (count, 1))
        expected = operator.do(problem, parents, pairs, random_state=np.random.default_rng(0)).get("X")[:, 0]
        changed = found[~np.isin(found, (a, b))]
        np.testing.assert_allclose(len(changed) / len(found), CROSSOVER / 2, atol=0.03)
        assert ks_2samp(changed, expected).pvalue > 1e-3


def test_mutation_is_that_of_pymoo():
    problem, count = get_problem("zdt1", n_var=1), 4000
    for gene in (0.03, 0.5):
        genomes = np.full((count, 1), gene)
        found = run(polynomial_mutation, jax.random.key(0), genomes)[:, 0]
        operator = PM(prob=1.0, prob_var=1.0, eta=20)
        expected = operator.do(problem, Population.new(X=genomes), random_state=np.random.default_rng(0)).get("X")[:, 0]
        assert (found != gene).all()  # of one gene, that one always
        assert ks_2samp(found, expected).pvalue > 1e-3
    children = run(polynomial_mutation, jax.random.key(1), np.full((count, 30), 0.5))
    changed = (children != 0.5).sum(1)
    assert changed.min() == 1
    np.testing.assert_allclose(changed.mean(), 1 + (1 - 1 / 30) ** 30, atol=0.06)


def generations(strategy, objective, number, seed=0, state=None, first=0):
    key, seen = jax.random.key(seed), []
    state = strategy.init(key) if state is None else state
    for generation in range(first, number):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        state = strategy.tell(keys[1], state, population, objective(population))
        seen.append(population)
    return state, np.stack(seen)


def test_hypervolume_is_that_of_pymoo():
    """On ZDT1, minimised, at equal numbers of evaluations."""
    problem, size, number = get_problem("zdt1", n_var=5), 20, 60
    volume, found, expected = HV(ref_point=np.full(2, 1.1)), [], []
    for seed in range(2):
        strategy = make_nsga2(5, 2, size, 0.5, 10.0)
        state, _ = generations(strategy, lambda x: -problem.evaluate(x), number, seed)
        found.append(volume(-state["objectives"]))
        algorithm = NSGA2(pop_size=size)
        algorithm.setup(problem, termination=("n_gen", number), seed=seed)
        while algorithm.has_next():
            algorithm.next()
        expected.append(volume(algorithm.pop.get("F")))
    assert np.mean(found) > np.mean(expected) - 0.01
    assert min(found) > 0.94 * volume(problem.pareto_front())


def two_goals(x):
    """Near two points: the front is the line between them."""
    return -np.stack([np.abs(x - 0.3).sum(1), np.abs(x - 0.7).sum(1)], axis=1)


def test_the_state_is_all_there_is():
    """Another instance, given the state of one, goes on bit for bit; shapes and dtypes stay."""
    strategy = make_nsga2(5, 2, 20)
    first = strategy.init(jax.random.key(0))
    halfway, _ = generations(strategy, two_goals, 4)
    ended, seen = generations(strategy, two_goals, 8)
    restored = {name: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape) for name, v in halfway.items()}
    again, later = generations(make_nsga2(5, 2, 20), two_goals, 8, state=restored, first=4)
    np.testing.assert_array_equal(later, seen[4:])
    for name, value in ended.items():
        np.testing.assert_array_equal(again[name], value)
        assert (value.shape, value.dtype) == (first[name].shape, first[name].dtype)
    assert seen.dtype == np.float64
    assert ((seen >= 0) & (seen <= 1)).all()


def test_survivors_are_the_better_half():
    """No front is kept in part while one behind it is kept at all; what fails is the first to go."""
    strategy, key = make_nsga2(5, 2, 20), jax.random.key(0)
    population, state = strategy.ask(key, strategy.init(key))
    objectives = two_goals(population)
    objectives[:5, 0] = np.nan
    state = strategy.tell(key, state, population, objectives)
    assert np.isnan(state["objectives"]).any(1).sum() == 5
    children, state = strategy.ask(key, state)
    assert not (children[:, None] == state["population"]).all(2).any()
    told = strategy.tell(key, state, children, two_goals(children))
    assert not np.isnan(told["objectives"]).any()
    everyone = np.concatenate([objectives[5:], two_goals(children)])
    ranks = ranks_by_hand(everyone)
    kept = (everyone[:, None] == told["objectives"]).all(2).any(1)
    assert ranks[kept].max() <= ranks[~kept].min()
    np.testing.assert_array_equal(kept.sum(), 20)


def test_a_generation_that_failed_is_drawn_anew():
    strategy, key = make_nsga2(5, 2, 20), jax.random.key(0)
    population, state = strategy.ask(key, strategy.init(key))
    state = strategy.tell(key, state, population, np.full((20, 2), np.nan))
    np.testing.assert_array_equal(strategy.ask(key, state)[0], population)


def test_equals_are_ordered_by_the_second_criterion():
    strategy, key = make_nsga2(5, 2, 20), jax.random.key(0)
    state, second = strategy.init(key), np.random.default_rng(0).normal(size=(2, 20))
    for generation in range(2):
        population, state = strategy.ask(key, state)
        state = strategy.tell(key, state, population, np.ones((20, 2)), second[generation])
    np.testing.assert_array_equal(sorted(state["tie_break"]), np.sort(second.ravel())[20:])


def test_the_start_is_around_the_mean():
    mean = np.linspace(0.1, 0.9, 5)
    strategy, key = make_nsga2(5, 2, 20, mean, 0.05), jax.random.key(0)
    state = strategy.init(key)
    population = np.concatenate([strategy.ask(k, state)[0] for k in jax.random.split(key, 20)])
    np.testing.assert_allclose(population.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(population.std(0)[1:4], 0.05, atol=0.01)
    with pytest.raises(ValueError, match="tell wants population"):
        strategy.tell(key, state, population[:20], np.zeros((20, 3)))


# --- of a run's records -------------------------------------------------------------------------------------


def record(one, two, tie_break=0.0):
    scores = {"one": [one - 0.1, one + 0.1], "two": [two]}
    failed = one is None or two is None or None in scores["two"]
    return {"scores": scores, "fitness": None if failed else (one + two) / 2, "tie_break": tie_break}


def records(count=300):
    rng = np.random.default_rng(0)
    return [record(*np.round(rng.random(2), 1), tie_break=float(rng.random())) for _ in range(count)]


def test_the_front_is_what_nothing_dominates():
    rows = records()
    rows[7] = {"scores": {"one": [2.0, None], "two": [2.0]}, "fitness": None, "tie_break": None}
    objectives = objectives_of(rows, ["one", "two"])
    assert np.isnan(objectives[7]).any()
    front = front_of(rows, ["one", "two"])
    others = [i for i in range(len(rows)) if i != 7]
    alone = {i for i in others if not any(dominates(objectives[j], objectives[i]) for j in others)}
    assert set(front) <= alone
    assert {tuple(objectives[i]) for i in front} == {tuple(objectives[i]) for i in alone}
    assert len({tuple(objectives[i]) for i in front}) == len(front)  # of equals one, the best by the second criterion
    for i in front:
        equal = [j for j in alone if (objectives[j] == objectives[i]).all()]
        assert rows[i]["tie_break"] == max(rows[j]["tie_break"] for j in equal)
    assert list(objectives[front, 0]) == sorted(objectives[front, 0], reverse=True)


def test_exported_are_the_best_the_extremes_and_the_farthest():
    points = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [6.0, 4.0], [9.0, 2.0], [10.0, 0.0]])
    assert spread_out(points, 2, 1) == [2]
    assert spread_out(points, 2, 4) == [2, 5, 0, 3]
    assert sorted(spread_out(points, 0, 9)) == [0, 1, 2, 3, 4, 5]
    assert spread_out(points[:1], 0, 3) == [0]
    rows = [record(*p) for p in points / 10]
    found = front_points(rows, ["one", "two"], 2, 3)
    assert {p["evaluation"]: p.get("export") for p in found} == {
        5: "front/evaluation_5", 4: None, 3: None, 2: "best", 1: None, 0: "front/evaluation_0",
    }  # fmt: skip
    np.testing.assert_allclose([p["search"]["one"] for p in found], points[::-1, 0] / 10)
