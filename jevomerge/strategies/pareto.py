"""Several goals at once: NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6, 2002) over the unit box, and Pareto fronts.

A candidate dominates another if it is nowhere worse and somewhere better; the front is what nothing dominates.

    strategy = make_nsga2(num_genes=6, num_objectives=2)
    state = strategy.init(key)
    population, state = strategy.ask(key_ask, state)                # (P, n) in [0, 1]
    state = strategy.tell(key_tell, state, population, objectives)  # (P, K), higher is better, NaN = failed

Parents and children compete for P places: by front, then by crowding distance, then by the second criterion, then by
luck. The next children are made of winners of such tournaments, by simulated binary crossover and polynomial mutation.

Pure JAX: evosax has no method for several goals, EvoX computes in PyTorch, and pymoo's state is an object to pickle,
not arrays for a checkpoint; with the same number of evaluations both come as far (experiments/bench_pareto).

Two relatives are not here. MAP-Elites (arXiv:1504.04909) keeps the best candidate in each cell of a grid of behaviours.
All that is known of a candidate's behaviour is its score in each task, so that, as in CycleQD (arXiv:2410.14735), there
is a grid per task, of which the others' scores are the axes. It would fit init, ask and tell, but with the evaluations
that a merge can have it finds clearly less than NSGA-II (experiments/bench_pareto), and it needs a range and bins for
every task. M2N2 (arXiv:2508.16204) merges two members of its archive with one another, on either side of a random split
point of the flat parameter vector. A candidate is then a function of its ancestry, not of a genome over
fixed sources: the archive would be whole models, and no line of evaluations.jsonl could say how to make one again. Its
competition and its choice of partners also need the score on each example, of which tell knows only the means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jevomerge.strategies.strategy import PARETO, State, checked_settings, on_host

ETA_CROSSOVER, ETA_MUTATION = 15.0, 20.0  # the larger, the nearer are children to parents; pymoo's defaults
CROSSOVER = 0.9  # of the pairs; the genes of a pair are crossed each with probability 1/2


# --- pure functions -----------------------------------------------------------------------------------------


def nondominated_ranks(objectives: Array) -> Array:
    """(N, K), higher is better -> (N,) int: 0 for the front, 1 for the front of the rest, ...; with NaN the last.

    Section III-A of the paper, whose loop over candidates is one over fronts here.
    """
    failed = jnp.isnan(objectives).any(1)
    values = jnp.where(failed[:, None], -jnp.inf, objectives)
    no_worse = (values[:, None] >= values).all(2)
    dominates = no_worse & ~no_worse.T

    def peel(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ranks, left, level = carry
        beaten = (dominates & left[:, None]).any(0)
        return jnp.where(left & ~beaten, level, ranks), left & beaten, level + 1

    level = jnp.zeros((), jnp.int32)
    start = jnp.zeros(len(values), jnp.int32), jnp.ones(len(values), bool), level
    return jax.lax.while_loop(lambda carry: carry[1].any(), peel, start)[0]


def crowding_distances(objectives: Array, ranks: Array) -> Array:
    """(N,) the sides of the box between the neighbours of each point in its front, as shares of the front's extent.

    Section III-B. Infinite for the extremes of an objective; one in which a front has no extent does not count.
    """
    count = len(ranks)

    def along(values: Array) -> Array:
        order = jnp.lexsort((values, ranks))
        sorted_values, front = values[order], ranks[order]
        ends = jnp.concatenate([jnp.ones(1, bool), front[1:] != front[:-1], jnp.ones(1, bool)])
        low, high = (f(values, ranks, count)[front] for f in (jax.ops.segment_min, jax.ops.segment_max))
        gaps = (jnp.roll(sorted_values, -1) - jnp.roll(sorted_values, 1)) / jnp.where(high > low, high - low, 1)
        distance = jnp.where(ends[:-1] | ends[1:], jnp.inf, gaps)
        return jnp.zeros(count, values.dtype).at[order].set(jnp.where(high > low, distance, 0))

    return jax.vmap(along, in_axes=1)(jnp.where(jnp.isnan(objectives), 0, objectives)).sum(0)


def places(key: Array, objectives: Array, tie_break: Array) -> Array:
    """(N,) int, 0 the best: by front, crowding distance, second criterion (higher is better), luck.

    The first two are the crowded-comparison operator of Section III-B.
    """
    ranks = nondominated_ranks(objectives)
    luck = jax.random.uniform(key, ranks.shape)
    before = jnp.triu(jnp.ones((len(ranks), len(ranks)), bool), 1)
    # Compared pair by pair, the least important first: XLA takes seconds to compile a sort by several keys.
    for keys in (luck, -tie_break, -crowding_distances(objectives, ranks), ranks):
        before = (keys[:, None] < keys[None]) | ((keys[:, None] == keys[None]) & before)
    return before.sum(0)


def simulated_binary_crossover(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Two (N, n) parents -> two children each, spread around them like offspring of binary crossover; in the box.

    Deb and Agrawal, Complex Systems 9, 1995; the distribution is cut to the box on either side.
    """
    keys = jax.random.split(key, 4)
    low, high = jnp.minimum(first, second), jnp.maximum(first, second)
    distance = jnp.where(high - low > 1e-14, high - low, 1)
    luck = jax.random.uniform(keys[0], first.shape, first.dtype)

    def apart(room: Array) -> Array:
        """How many times as far from each other as their parents children are, `room` being left beside one."""
        alpha = 2 - (1 + 2 * room / distance) ** -(ETA_CROSSOVER + 1)
        inside = luck * alpha <= 1
        return jnp.where(inside, luck * alpha, 1 / jnp.where(inside, 1, 2 - luck * alpha)) ** (1 / (ETA_CROSSOVER + 1))

    middle = low + high
    lower, upper = (middle - apart(low) * distance) / 2, (middle + apart(1 - high) * distance) / 2
    swap = jax.random.bernoulli(keys[1], 0.5, first.shape)
    children = jnp.where(swap, upper, lower), jnp.where(swap, lower, upper)
    crossed = jax.random.bernoulli(keys[2], 0.5, first.shape) & (high - low > 1e-14)
    crossed &= jax.random.bernoulli(keys[3], CROSSOVER, (len(first), 1))
    one, two = (jnp.clip(jnp.where(crossed, c, p), 0, 1) for c, p in zip(children, (first, second), strict=True))
    return one, two


def polynomial_mutation(key: Array, genomes: Array) -> Array:
    """(N, n) -> the same with each gene changed with probability 1/n, and one at least; in the box."""
    keys, (count, genes) = jax.random.split(key, 3), genomes.shape
    luck = jax.random.uniform(keys[0], genomes.shape, genomes.dtype)
    down = luck < 0.5
    u, room = jnp.where(down, luck, 1 - luck), jnp.where(down, genomes, 1 - genomes)
    step = 1 - (2 * u + (1 - 2 * u) * (1 - room) ** (ETA_MUTATION + 1)) ** (1 / (ETA_MUTATION + 1))
    changed = jax.random.bernoulli(keys[1], 1 / genes, genomes.shape)
    one = jax.random.randint(keys[2], (count, 1), 0, genes) == jnp.arange(genes)
    changed |= one & ~changed.any(1, keepdims=True)  # a child that is its parent would be scored for nothing
    return jnp.clip(jnp.where(changed, genomes + jnp.where(down, -step, step), genomes), 0, 1)


def offspring(key: Array, state: Mapping[str, Array]) -> Array:
    """The children (P, n) of a state's population, P >= 2."""
    keys = jax.random.split(key, 4)
    count = len(state["population"])
    place = places(keys[0], state["objectives"], state["tie_break"])
    pairs = -(-count // 2)
    shuffled = jnp.argsort(jax.random.uniform(keys[1], (3, count))).reshape(-1)
    rivals = shuffled[: 4 * pairs].reshape(2, 2, pairs)  # each candidate is in two tournaments or three
    winners = jnp.where(place[rivals[0]] < place[rivals[1]], rivals[0], rivals[1])
    children = simulated_binary_crossover(keys[2], *(state["population"][w] for w in winners))
    return polynomial_mutation(keys[3], jnp.concatenate(children)[:count])


@jax.jit
def next_generation(key: Array, state: Mapping[str, Array], mean: Array, sigma: Array) -> Array:
    """(P, n) what is scored next: as long as nobody has a score N(mean, sigma^2 I) cut to the box, then children."""
    shape, dtype = state["population"].shape, state["population"].dtype
    drawn = jax.random.truncated_normal(key, -mean / sigma, (1 - mean) / sigma, shape, dtype)
    start = jnp.clip(mean + sigma * drawn, 0, 1)
    return jnp.where(jnp.isnan(state["objectives"]).all(), start, offspring(key, state))


@jax.jit
def survivors(key: Array, state: Mapping[str, Array], new: Mapping[str, Array]) -> dict[str, Array]:
    """The better half of two populations, the best first: one turn of the main loop, Section III-C."""
    both = {name: jnp.concatenate([state[name], new[name]]) for name in state}
    place = places(key, both["objectives"], both["tie_break"])
    ordered = {name: jnp.zeros_like(value).at[place].set(value) for name, value in both.items()}
    return {name: value[: len(place) // 2] for name, value in ordered.items()}


# --- the strategy -------------------------------------------------------------------------------------------


def make_nsga2(
    num_genes: int,
    num_objectives: int,
    population_size: int | None = None,
    mean: ArrayLike = 0.5,
    sigma: float = 1 / 6,
) -> Nsga2:
    """NSGA-II over the unit box; `mean` and `sigma` as in `make_strategy`, a large sigma starts all over the box.

    `population_size` is 4 + floor(3 ln n) by default, and at least 20. Raises ValueError, with the remedy.
    """
    if population_size is None:
        population_size = max(20, 4 + math.floor(3 * math.log(num_genes)))
    return Nsga2(num_objectives, *checked_settings(PARETO, 4, num_genes, population_size, mean, sigma))


class Nsga2:
    """NSGA-II with its settings; see the module. Holds no state."""

    name = PARETO
    elite = None  # it compares all of them
    remembers, injectable, several_goals, replayed = True, False, True, False

    def __init__(self, num_objectives: int, population_size: int, mean: np.ndarray, sigma: float) -> None:
        self.num_objectives, self.population_size, self.num_genes = num_objectives, population_size, mean.size
        self._mean, self._sigma = mean, sigma

    def init(self, key: jax.Array) -> State:
        """As in `Strategy`: nobody has been scored; `key` is not used."""
        size = self.population_size
        return {
            "population": np.tile(self._mean, (size, 1)),
            "objectives": np.full((size, self.num_objectives), np.nan),
            "tie_break": np.full(size, -np.inf),
        }

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """As in `Strategy`."""
        with on_host(x64=True) as cpu:
            return np.asarray(next_generation(jax.device_put(key, cpu), state, self._mean, self._sigma)), dict(state)

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        objectives: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """The state with the better half of what it held and of a population (P, n) that scored `objectives` (P, K).

        A row with NaN is worse than all others. `tie_break` (P,), higher is better, orders what NSGA-II does not.
        """
        size = self.population_size
        tie_break = np.zeros(size) if tie_break is None else tie_break
        new = {
            "population": np.asarray(population, np.float64),
            "objectives": np.asarray(objectives, np.float64),
            "tie_break": np.asarray(tie_break, np.float64),
        }
        if any(value.shape != state[name].shape for name, value in new.items()):
            raise ValueError(
                f"tell wants population ({size}, {self.num_genes}), objectives ({size}, {self.num_objectives}) and "
                f"tie_break ({size},) or None, got {', '.join(str(value.shape) for value in new.values())}"
            )
        with on_host(x64=True) as cpu:
            told = survivors(jax.device_put(key, cpu), state, new)
            return {name: np.asarray(value) for name, value in told.items()}

    def mean(self, state: State) -> None:
        """There is no centre."""
        return None


# --- of a run's records -------------------------------------------------------------------------------------


def objectives_of(records: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> np.ndarray:
    """(E, K) the mean score of each task, by which candidates are compared; NaN if any score is missing."""
    means = [[np.mean(np.array(r["scores"][task], np.float64)) for task in tasks] for r in records]
    return np.array(means, np.float64).reshape(-1, len(tasks))


def front_of(records: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[int]:
    """The front of a run, by number, from the best to the worst in the first task.

    Of several with the same objectives it is the one with the best fitness, then second criterion, then the first.
    """
    objectives = objectives_of(records, tasks)
    known = np.flatnonzero(~np.isnan(objectives).any(1))
    second = [-np.inf if r["tie_break"] is None else r["tie_break"] for r in records]
    fitness = [np.nan if r["fitness"] is None else r["fitness"] for r in records]
    preference = -np.array([second, fitness], np.float64)[:, known]
    front: list[int] = []
    for i in known[np.lexsort([known, *preference, *-objectives[known].T[::-1]])]:
        if not (objectives[front] >= objectives[i]).all(1).any():  # what dominates or equals it has come before
            front.append(int(i))
    return front


def front_points(
    records: Sequence[Mapping[str, Any]], tasks: Sequence[str], best: int, exports: int
) -> list[dict[str, Any]]:
    """The front of a run as in result.json: number, fitness, objectives, and of `exports` points what they are called.

    `best`, the number of a point of the front, is always among these; see `spread_out`.
    """
    front, objectives = front_of(records, tasks), objectives_of(records, tasks)
    chosen = [front[i] for i in spread_out(objectives[front], front.index(best), exports)]
    points = []
    for i in front:
        search = dict(zip(tasks, objectives[i].tolist(), strict=True))
        name = {"export": "best" if i == best else f"front/evaluation_{i}"} if i in chosen else {}
        points.append({"evaluation": i, "fitness": records[i]["fitness"], "search": search, **name})
    return points


def spread_out(points: np.ndarray, first: int, count: int) -> list[int]:
    """Up to `count` of (F, K) points: `first`, the best of each objective, then always the farthest from those chosen.

    Distances are Euclidean, each objective a share of its extent.
    """
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1)
    chosen = list(dict.fromkeys([first, *points.argmax(0).tolist()]))[:count]
    while len(chosen) < min(count, len(points)):
        distance = np.linalg.norm(scaled[:, None] - scaled[chosen], axis=2).min(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen
