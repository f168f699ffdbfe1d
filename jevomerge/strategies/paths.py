"""Search strategies that know what a path is, with the interface of `jevomerge.strategies.strategy`.

    strategy = make_path_strategy("mixed", space, population_size=64)      # or "path_program", or another
    state = strategy.init(key)                                            # then ask and tell, as there

To CMA-ES a slot is a real number of which only the sign counts, and a scale is a gene even where its slot is off; at
n = 4288 it learns no covariance in 100 generations. Two that use the structure:

mixed         Slots are Bernoulli variables, scales Gaussian ones. Both follow the natural gradient of the expected
              utility (Ollivier et al., arXiv:1106.3708): p += rate sum_i u_i (x_i - p) for the slots, which with its
              weights is PBIL with a baseline, and SNES (Wierstra et al., arXiv:1106.4487) for the scales, where a
              candidate counts for a scale only if the scale is used by its path.
path_program  A genetic algorithm over paths: runs of slots go on, off or elsewhere, a block of hops is repeated, scales
              in use are changed, two paths are cut and joined. What it edits is the genome, so that the archive, a
              resume and the space see what they always see.

Both take the first generation N(mean, sigma^2) literally: a slot is on with probability Phi((mean - 1/2) / sigma).
Both forget the fitness of earlier generations, so minibatches are fine; `path_program` asks for its best again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from jevomerge.genome.route import Hop, PathSpace, active_genes, encode, place
from jevomerge.strategies.registry import make_strategy
from jevomerge.strategies.strategy import State, Strategy, checked_scores, checked_settings, strict_ranks

GENE_ON, GENE_OFF = 0.75, 0.25  # what a slot that is on or off is written as


def make_path_strategy(
    strategy: Any,
    space: PathSpace,
    population_size: int | None = None,
    mean: ArrayLike | None = None,
    sigma: float = 1 / 6,
    seed: int = 0,
    before: int = 0,
) -> Strategy:
    """A search strategy over paths: a name of `PATH_METHODS`, or whatever `make_strategy` knows.

    `mean` is the paper's start by default: A's first pass at 1/2 + 2 sigma, other slots at 1/2, scales at 1. `before`
    is how many genes that always count, of a merge for example, stand before those of the path; the default for them
    is 1/2. `seed` is as for `make_strategy`. Raises ValueError, with the remedy, for what cannot work.
    """
    if mean is None:
        whole = [Hop(space.models[0], i) for i in range(space.depths[0])]
        path = encode(space, whole, on=float(np.clip(0.5 + 2 * sigma, 0, 1)))
        mean = np.concatenate([np.full(before, 0.5), path])
    genes = before + space.num_genes
    method = PATH_METHODS.get(strategy) if isinstance(strategy, str) else None
    if method is None:
        return make_strategy(strategy, genes, population_size, mean, sigma, seed, others=tuple(PATH_METHODS))
    return method(space, *checked_settings(strategy, method.fewest, genes, population_size, mean, sigma), before)


class PathStrategy(ABC):
    """A search method over paths with its settings. Holds no state; all is NumPy in float64.

    Inside, genes are in the order slots, scales, others: those that stand before the path are turned to the end.
    """

    name: str
    fewest: int  # the smallest population with which the method is itself
    elite: int
    remembers, injectable, several_goals, replayed = False, False, False, False

    def __init__(self, space: PathSpace, population_size: int, mean: np.ndarray, sigma: float, before: int = 0) -> None:
        self.space, self.population_size, self.num_genes = space, population_size, mean.size
        self._before, self._start, self._sigma = before, np.roll(mean, -before), sigma

    @abstractmethod
    def init(self, key: jax.Array) -> State:
        """As in `Strategy`; `key` is not used."""

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """As in `Strategy`."""
        return np.roll(self._draw(random_of(key), state), self._before, axis=1), dict(state)

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """As in `Strategy`; equal fitness is ordered by `tie_break`, then at random."""
        population, scores = checked_scores(self.population_size, self.num_genes, population, fitness, tie_break)
        if np.isnan(scores[0]).all():
            return dict(state)
        ranks = strict_ranks(scores, random_of(key).permutation(self.population_size)).astype(np.int64)
        return state | self._learn(state, np.roll(population, -self._before, axis=1), ranks)

    def mean(self, state: State) -> np.ndarray | None:
        """As in `Strategy`."""
        return None

    @abstractmethod
    def _draw(self, rng: np.random.Generator, state: State) -> np.ndarray:
        """Candidates (P, n)."""

    @abstractmethod
    def _learn(self, state: State, population: np.ndarray, ranks: np.ndarray) -> State:
        """What changes in the state by a population (P, n) with ranks (P,), 0 the best."""

    def _slots(self, population: np.ndarray) -> np.ndarray:
        """(..., T) bool, with the precision in which the space decides."""
        return population[..., : self.space.num_slots].astype(np.float32) > 0.5

    def _in_use(self, population: np.ndarray) -> np.ndarray:
        """(P, n) bool: which genes matter."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            path = np.asarray(active_genes(self.space, population[:, : self.space.num_genes].astype(np.float32)))
        return np.pad(path, ((0, 0), (0, self._before)), constant_values=True)


def random_of(key: jax.Array) -> np.random.Generator:
    """NumPy's generator for a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


class Mixed(PathStrategy):
    """Natural gradients of Bernoulli slots and of conditional Gaussian scales; see the module."""

    name, fewest = "mixed", 4
    samples = 0.25  # of sqrt(T) ln T: the parents behind a whole step of a slot

    def __init__(self, space: PathSpace, population_size: int, mean: np.ndarray, sigma: float, before: int = 0) -> None:
        super().__init__(space, population_size, mean, sigma, before)
        slots = space.num_slots
        weights = np.maximum(0, math.log(population_size / 2 + 1) - np.log(np.arange(1, population_size + 1)))
        weights /= weights.sum()
        self.elite = int(np.sum(weights > 0))
        self._utilities = weights - 1 / population_size  # they sum to 0: what makes no difference does not move
        # A slot's signal must beat the drift of all the others, which takes a sample that grows like sqrt(T) ln T (as
        # for UMDA on OneMax, Witt, Algorithmica 2019): a smaller one is made up for by a smaller rate. The constant is
        # measured (experiments/data_flow_strategies), for 100 generations: 1 is too slow at T = 192.
        effective = 1 / np.sum(weights**2)
        self._slot_rate = min(0.7, effective / (self.samples * math.sqrt(slots) * math.log(slots + 1)))
        self._margin = min(0.25, 1 / slots)  # no slot is ever decided: about one in a candidate is tried

    def init(self, key: jax.Array) -> State:
        """Probabilities of the slots, means and standard deviations of all other genes."""
        start, others = np.split(self._start, [self.space.num_slots])
        probability = np.clip(ndtr((start - 0.5) / self._sigma), self._margin, 1 - self._margin)
        return {"probability": probability, "center": others.copy(), "width": np.full(others.shape, self._sigma)}

    def mean(self, state: State) -> np.ndarray:
        """Probabilities of the slots, so that the likelier ones are on, and the other genes' centres."""
        return np.roll(np.concatenate([state["probability"], state["center"]]), self._before)

    def _draw(self, rng: np.random.Generator, state: State) -> np.ndarray:
        size = self.population_size
        slots = rng.random((size, self.space.num_slots)) < state["probability"]
        others = rng.normal(state["center"], state["width"], (size, state["center"].size))
        return np.hstack([np.where(slots, GENE_ON, GENE_OFF), np.clip(others, 0, 1)])

    def _learn(self, state: State, population: np.ndarray, ranks: np.ndarray) -> State:
        utility, total = self._utilities[ranks], self.space.num_slots
        used = self._in_use(population)
        slots = np.where(used[:, :total], self._slots(population) - state["probability"], 0)
        steps = (population[:, total:] - state["center"]) / state["width"]
        probability = state["probability"] + self._slot_rate * utility @ slots
        center = state["center"] + state["width"] * (utility @ np.where(used[:, total:], steps, 0))
        growth = utility @ np.where(used[:, total:], steps**2 - 1, 0)
        dimension = max(1.0, used[:, total:].sum(axis=1).mean())  # not all genes, only those in use
        rate = (3 + math.log(dimension)) / (5 * math.sqrt(dimension))  # of SNES
        return {
            "probability": np.clip(probability, self._margin, 1 - self._margin),
            "center": np.clip(center, 0, 1),
            "width": np.clip(state["width"] * np.exp(rate / 2 * growth), 1e-6, 0.5),
        }


class PathProgram(PathStrategy):
    """A genetic algorithm whose edits are those one would make to a path by hand; see the module."""

    name, fewest = "path_program", 4

    @property
    def elite(self) -> int:  # type: ignore[override]
        """The parents."""
        return self.population_size // 2

    def init(self, key: jax.Array) -> State:
        """No generation yet."""
        return {"ranked": np.zeros((self.population_size, self.num_genes)), "generation": np.zeros((), np.int64)}

    def _draw(self, rng: np.random.Generator, state: State) -> np.ndarray:
        size = self.population_size
        if state["generation"] == 0:
            population = np.clip(rng.normal(self._start, self._sigma, (size, self.num_genes)), 0, 1)
            population[:, : self.space.num_slots] = np.where(self._slots(population), GENE_ON, GENE_OFF)
            return population
        best = max(1, size // 16)  # asked again: under minibatches a good score may have been luck
        return np.stack([*state["ranked"][:best], *(self._child(rng, state["ranked"]) for _ in range(size - best))])

    def _learn(self, state: State, population: np.ndarray, ranks: np.ndarray) -> State:
        return {"ranked": population[np.argsort(ranks)], "generation": np.asarray(state["generation"] + 1)}

    def _child(self, rng: np.random.Generator, ranked: np.ndarray) -> np.ndarray:
        parents = ranked[: self.elite]
        genome, other = parents[rng.integers(len(parents), size=2)]
        genome = genome.copy()
        if rng.random() < 0.5:
            self._join(rng, genome, other)
        edits = [self._flip, self._exchange, self._repeat] + (
            [self._rescale] if self.num_genes > self.space.num_slots else []
        )
        for _ in range(rng.geometric(0.5)):
            edits[rng.integers(len(edits))](rng, genome)
        return genome

    def _join(self, rng: np.random.Generator, genome: np.ndarray, other: np.ndarray) -> None:
        """Another path from some slot on, with its scales; genes that belong to no slot come from either."""
        total, cut = self.space.num_slots, rng.integers(1, self.space.num_slots + 1)
        take = rng.random(genome.size) < 0.5
        take[:total] = np.arange(total) >= cut
        if self.space.scaling == "per_hop":
            take[total : 2 * total + 1] = np.arange(total + 1) >= cut
        genome[take] = other[take]

    def _flip(self, rng: np.random.Generator, genome: np.ndarray) -> None:
        """A run of slots goes on or off: hops are inserted or deleted."""
        start, stop = self._run(rng, self.space.num_slots)
        genome[start:stop] = GENE_OFF if self._slots(genome)[start] else GENE_ON

    def _exchange(self, rng: np.random.Generator, genome: np.ndarray) -> None:
        """Two runs of slots change places, with their scales: hops move to another model, depth or repetition."""
        first, second = self._run(rng, self.space.num_slots), self._run(rng, self.space.num_slots)
        size = min(first[1] - first[0], second[1] - second[0], abs(first[0] - second[0]))
        offsets = (0, self.space.num_slots) if self.space.scaling == "per_hop" else (0,)
        for offset in offsets:
            here, there = (slice(offset + start, offset + start + size) for start, _ in (first, second))
            genome[here], genome[there] = genome[there].copy(), genome[here].copy()

    def _repeat(self, rng: np.random.Generator, genome: np.ndarray) -> None:
        """A block of hops comes twice in a row, if that fits into the repetitions."""
        total, layers = self.space.num_slots, self.space.num_layers
        slots = np.flatnonzero(self._slots(genome) | (np.arange(total) == 0)).tolist()
        if slots[-1] % layers != self.space.end:
            slots.append(total)
        start, stop = self._run(rng, len(slots))
        slots = slots[:stop] + slots[start:]
        path = [self.space.end if t == total else t % layers for t in slots]
        if (placed := place(self.space, path)) is None:
            return
        genome[:total] = GENE_OFF
        genome[[t for t in placed if t < total]] = GENE_ON
        if self.space.scaling == "per_hop":  # every hop takes its scale along
            genome[total + np.array(placed)] = genome[total + np.array(slots)]

    def _rescale(self, rng: np.random.Generator, genome: np.ndarray) -> None:
        """Some of the scales (and other genes) in use change, by large or small steps."""
        total = self.space.num_slots
        used = total + np.flatnonzero(self._in_use(genome[None])[0, total:])
        if not used.size:
            return
        chosen = rng.choice(used, min(used.size, _heavy(rng)), replace=False)
        step = self._sigma * 10 ** -rng.uniform(0, 1.5)
        genome[chosen] = np.clip(genome[chosen] + rng.normal(0, step, chosen.size), 0, 1)

    def _run(self, rng: np.random.Generator, total: int) -> tuple[int, int]:
        """A run [start, stop) in range(total), often one, sometimes long."""
        start = int(rng.integers(total))
        return start, min(total, start + _heavy(rng))


def _heavy(rng: np.random.Generator) -> int:
    """A whole number of 1 or more, of k or more with probability 1 / k."""
    return int(1 / (1 - rng.random()))


PATH_METHODS: dict[str, type[Any]] = {"mixed": Mixed, "path_program": PathProgram}
