"""What stands between evosax and a good search over merge coefficients, behind the interface of `strategies.strategy`.

Of evosax 0.3.2, and what is done about it:

- Ties. Accuracy on k of N items ties all the time. evosax gives tied candidates the same recombination weight, so on
  a plateau the steps cancel and the width collapses: from 1/6 to 7e-5 in 30 generations, where broken ties leave 0.07.
  evosax therefore never sees a fitness, only a strict ranking: by fitness, then `tie_break`, then a permutation drawn
  from the key. DE and PSO remember fitnesses of earlier generations, but all they do with them is compare: memory and
  newcomers are ranked together, and a newcomer wins a full tie (drift along a plateau). They need a fitness that means
  the same in every generation; with a fresh minibatch each time, one lucky score stays for ever.
- The box. evosax has no bounds. A candidate outside is redrawn, at last clipped, and evosax is told what was evaluated.
- Scale. `std_init` is 1 in evosax: six times too wide for a unit box.
- Diagonal loading. evosax adds 1e-8 to the diagonal of C at each ask, whatever the size of C, which shrinks as it
  adapts; large populations then stall. Only sigma^2 C has a meaning, so scale is moved to sigma until det C is about 1
  (`_balanced`; the slow test of an ellipsoid at P = 100 fails without it).
- Separable CMA-ES learns n variances at the rate that is safe for n (n + 1) / 2 covariances (`_separable_rates`).
- PSO. evosax draws one pair of numbers for all genes of a particle, which then hardly leaves the line to the best.
  Here each gene has its own pair, with Clerc's constants (`_swarmed`).
- Precision. Up to 256 genes all is float64, beyond that float32; always on the host CPU, under evosax's own
  promotion rules, and without touching the program's settings.

Otherwise its CMA-ES is that of Hansen's tutorial (arXiv:1604.00772): told the same samples it moves like `cmaes` to
1e-6, and it needs as many evaluations as `cmaes` and `cma`; the tests compare them.

`METHODS` are the algorithms that are tuned and tested one by one. Every other one that evosax ships can be had by its
class's name, and every other one by its class, see `method_of`; what these are like is found by trying: whether their
parameters can be traced (else they are computed outside jit), which rows of a population mirror others (these are
redrawn together), whether they learn from what they drew and not from what they are told (a candidate that took the
place of a drawn one is then told as a failure), where they keep earlier fitnesses. How well they do: README.md here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import (
    ASEBO,
    CMA_ES,
    PSO,
    SNES,
    DifferentialEvolution,
    Open_ES,
    RandomSearch,
    Sep_CMA_ES,
    algorithms,
    iAMaLGaM_Full,
    xNES,
)
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from numpy.typing import ArrayLike

from jevomerge.errors import InputError
from jevomerge.strategies.strategy import State, checked_scores, checked_settings, on_host, strict_ranks

MAX_GENES_FLOAT64 = 256
INERTIA, PULL = 0.7298, 1.49618  # Clerc and Kennedy's constriction, phi = 4.1
MAX_DRAWS = 100  # per candidate and generation, as in `cmaes`


class Method(NamedTuple):
    """An evosax algorithm: how to build it, and what it needs."""

    build: Callable[[int, jax.Array, float], EvolutionaryAlgorithm]  # (population size, a solution, sigma)
    fewest: int  # the smallest population with which the method is itself
    memory: tuple[str, ...] | None = ()  # where in its state evosax keeps earlier fitnesses; None: to be found
    elite: Callable[[int], int] | None = None  # of P, how many of the best count by rank, all others alike; None: all


METHODS: dict[str, Method] = {
    "cma_es": Method(lambda size, x, _: CMA_ES(size, x), fewest=4),  # one parent only: c_mu = 0, Eq. (58)
    "sep_cma_es": Method(lambda size, x, _: Sep_CMA_ES(size, x), fewest=4, elite=lambda size: size // 2),
    "snes": Method(lambda size, x, _: SNES(size, x), fewest=2, elite=lambda size: -(-size // 2)),
    "open_es": Method(
        lambda size, x, sigma: Open_ES(
            size, x, optimizer=optax.adam(sigma / 10), std_schedule=optax.constant_schedule(sigma)
        ),
        fewest=2,
    ),
    "de": Method(lambda size, x, _: DifferentialEvolution(size, x), fewest=4, memory=("fitness",)),
    "pso": Method(lambda size, x, _: PSO(size, x), fewest=2, memory=("fitness_best",)),
    "random": Method(
        lambda size, x, _: RandomSearch(size, x, lambda key: jax.random.uniform(key, x.shape, x.dtype)),
        fewest=1,
        elite=lambda size: 1,
    ),
}
TUNED: dict[type, str] = {
    CMA_ES: "cma_es",
    Sep_CMA_ES: "sep_cma_es",
    SNES: "snes",
    Open_ES: "open_es",
    DifferentialEvolution: "de",
    PSO: "pso",
    RandomSearch: "random",
}
SHIPPED: dict[str, type[EvolutionaryAlgorithm]] = {c.__name__: c for c in algorithms.values()} | algorithms
REFUSED: dict[str, str] = {
    "GuidedES": "wants the gradient of the fitness in every generation",
    "SV_CMA_ES": "searches with several populations, each with a fitness of its own",
    "SV_Open_ES": "searches with several populations, each with a fitness of its own",
    "DiffusionEvolution": "follows a schedule of a given number of generations, and does not get there in hundreds",
}


def method_of(algorithm: type[EvolutionaryAlgorithm]) -> Method:
    """A class of evosax, also one that evosax does not ship, with settings for a unit box.

    A constructor that takes a schedule of the width gets sigma, and with it an optimizer that takes Adam's steps of
    sigma / 10, as for `open_es`: evosax's own are for a width of 1.
    """
    options = inspect.signature(algorithm).parameters

    def build(size: int, x: jax.Array, sigma: float) -> EvolutionaryAlgorithm:
        chosen: dict[str, Any] = {}
        if "std_schedule" in options:
            chosen["std_schedule"] = optax.constant_schedule(width_of(algorithm, sigma, x.size))
            if "optimizer" in options:
                chosen["optimizer"] = optax.adam(sigma / 10)
        return algorithm(size, x, **chosen)

    return Method(build, fewest=2, memory=None)


def width_of(algorithm: type[EvolutionaryAlgorithm], sigma: float, num_genes: int) -> float:
    """What a class must be given as its width to begin with sigma."""
    if issubclass(algorithm, xNES) and not issubclass(algorithm, SNES):
        return sigma**0.5  # it multiplies by it twice
    if issubclass(algorithm, ASEBO):
        return sigma * num_genes**0.5  # the trace of its covariance is 1
    return 0.0 if issubclass(algorithm, iAMaLGaM_Full) else sigma  # which adds it to a covariance of full width


def make_evosax(
    name: str,
    method: Method,
    num_genes: int,
    population_size: int | None = None,
    mean: ArrayLike = 0.5,
    sigma: float = 1 / 6,
) -> EvosaxStrategy:
    """The strategy of an evosax algorithm; arguments as for `make_strategy`. Raises ValueError for what cannot work."""
    size, center, sigma = checked_settings(name, method.fewest, num_genes, population_size, mean, sigma)
    if name in REFUSED:
        raise ValueError(f"{name} {REFUSED[name]}: choose another strategy, such as cma_es")
    failures: list[Exception] = []
    for wanted in dict.fromkeys((size, size + size % 2)):  # some draw +/- pairs
        try:
            strategy = EvosaxStrategy(name, method, wanted, center, sigma)
        except (AssertionError, TypeError, ValueError) as error:
            failures.append(error)
            continue
        if wanted != size and population_size is not None:
            raise ValueError(f"{name} samples +/- pairs: use population_size {wanted}, not {size}")
        return strategy
    why = str(failures[0]) or type(failures[0]).__name__
    raise ValueError(f"{name} cannot be used: {why}; choose another strategy, such as cma_es") from failures[0]


class EvosaxStrategy:
    """An algorithm of evosax with its settings; built by `make_evosax`, which checks them. Holds no state."""

    several_goals, replayed = False, False

    def __init__(self, name: str, method: Method, population_size: int, mean: np.ndarray, sigma: float) -> None:
        self.name, self.population_size, self.num_genes = name, population_size, mean.size
        self.elite = None if method.elite is None else method.elite(population_size)
        self.injectable = name in ("cma_es", "sep_cma_es")
        self._method = method
        self._draws = max(1, min(MAX_DRAWS, 2**20 // (population_size * mean.size)))  # 8 MB of candidates at most
        self._memory, self._partner, self._from_draw = method.memory or (), None, False
        with self._host():
            self._mean, self._sigma = jnp.asarray(mean), sigma
            self._evosax: Any = method.build(population_size, self._mean, sigma)
            self._params = self._adapted(_traced(lambda: self._evosax.default_params))
            first = self._initial(jax.random.key(0))
            leaves, self._structure = jax.tree_util.tree_flatten_with_path(first)
            self._first = {
                jax.tree_util.keystr(path, simple=True, separator="_"): np.asarray(jnp.asarray(leaf))
                for path, leaf in leaves
            }
            if method.memory is None:
                self._find_out(first)
        self._jitted_ask, self._jitted_tell = jax.jit(self._ask), jax.jit(self._tell)

    @functools.cached_property
    def remembers(self) -> bool:
        """Whether a search goes on differently if a generation is better, in the same order, than all before."""
        if not self._memory:
            return False
        fitness, asked = np.arange(self.population_size, dtype=np.float64), []
        for step in (1, -1):
            key = jax.random.key(0)
            state = self.init(key)
            for generation in range(16):
                key = jax.random.fold_in(key, generation)
                population, state = self.ask(key, state)
                state = self.tell(key, state, population, fitness + step * generation * len(fitness))
            asked.append(self.ask(key, state)[0])
        return not np.array_equal(asked[0], asked[1])

    def init(self, key: jax.Array) -> State:
        """As in `Strategy`."""
        with self._host() as cpu:
            state = self._from_evosax(self._initial(jax.device_put(key, cpu)))
        if self._memory:  # rows fitness and tie-break of what is remembered; nothing yet, which any newcomer beats
            state["remembered"] = np.full((2, sum(self._first[name].size for name in self._memory)), np.nan)
        if self._from_draw:
            state["drawn"] = np.zeros((self.population_size, self.num_genes))
        return state

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """As in `Strategy`."""
        with self._host() as cpu:
            population, asked = self._jitted_ask(jax.device_put(key, cpu), self._to_evosax(state))
            drawn = np.asarray(population, np.float64)
            if not np.isfinite(drawn).all():
                raise InputError(
                    f"search.strategy: {self.name} asks for NaN: what it draws from has shrunk to a point, or grown "
                    "without bound; ask for fewer `evaluations`, or choose another strategy"
                )
            return drawn, state | self._from_evosax(asked) | ({"drawn": drawn} if self._from_draw else {})

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """As in `Strategy`; equal fitness is ordered by `tie_break`, then at random."""
        size = self.population_size
        population, scores = checked_scores(size, self.num_genes, population, fitness, tie_break)
        if self._from_draw:
            scores[0, (population != state["drawn"]).any(axis=1)] = np.nan
        if np.isnan(scores[0]).all():
            return dict(state)
        with self._host() as cpu:
            key = jax.device_put(key, cpu)
            luck = np.asarray(jax.random.permutation(key, size))
            both = np.concatenate([scores, state["remembered"]], axis=1) if self._memory else scores
            held = both.shape[1] - size
            ranks = strict_ranks(both, np.concatenate([luck, size + np.resize(luck, held)]))
            dtype = self._mean.dtype
            known = self._to_evosax(state | self._remembered(ranks[size:]))
            told = self._jitted_tell(key, population.astype(dtype), ranks[:size].astype(dtype), known)
            state = state | self._from_evosax(told)
        if self._memory:  # evosax now holds the ranks of those that it keeps
            kept = np.concatenate([state[name].ravel() for name in self._memory])
            state["remembered"] = both[:, np.argsort(ranks)[kept.astype(np.int64)]]
        return state

    def mean(self, state: State) -> np.ndarray | None:
        """As in `Strategy`."""
        centred = "mean" in self._first and self.name != "random"
        return state["mean"].astype(np.float64) if centred else None

    def _ask(self, key: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        def draw(key: jax.Array) -> tuple[jax.Array, Any]:
            population, asked = self._evosax.ask(key, state, self._params)
            if self.name == "pso":
                population = _swarmed(key, state)
            if isinstance(self._evosax, PopulationBasedAlgorithm):
                start = self._mean + self._sigma * jax.random.normal(key, population.shape, population.dtype)
                population = jnp.where(state.generation_counter == 0, start, population)
            return population, asked

        # All draws at once, (D, P, n): the eigendecomposition does not depend on the key, vmap leaves it alone.
        draws, asked = jax.vmap(draw)(jax.random.split(key, self._draws))
        outside = jnp.sum(jnp.abs(draws - jnp.clip(draws, 0, 1)), axis=-1)  # (D, P)
        if self._partner is not None:
            outside = outside + outside[:, self._partner]
        chosen = jnp.argmin(outside, axis=0)  # the first draw inside the box; if there is none, the nearest to it
        members = jnp.arange(self.population_size)
        population = jnp.clip(draws[chosen, members], 0, 1)
        # What the state says of each member belongs to its draw; what else it says is the same in all of them.
        asked = jax.tree.map(lambda leaf: leaf[chosen, members] if leaf.shape[1:2] == members.shape else leaf[0], asked)
        if self.name == "pso":
            asked = asked.replace(velocity=population - state.population)  # the step that was taken
        return population, asked

    def _tell(self, key: jax.Array, population: jax.Array, ranks: jax.Array, state: Any) -> Any:
        told, _ = self._evosax.tell(key, population, ranks, state, self._params)
        if self.name in ("cma_es", "sep_cma_es"):
            return _balanced(told)
        if "mean" in self._first and self.name != "random":  # a gradient step may leave the box
            return told.replace(mean=jnp.clip(told.mean, 0, 1))
        return told

    def _adapted(self, params: Any) -> Any:
        """The parameters of evosax for a unit box."""
        if self._method.memory is None or self.name in ("cma_es", "sep_cma_es", "snes"):
            width = width_of(type(self._evosax), self._sigma, self.num_genes)
            if hasattr(params, "std_init"):
                params = params.replace(std_init=jnp.asarray(width, self._mean.dtype))
        if self.name == "sep_cma_es":
            params = _separable_rates(params, self.num_genes)
        return params

    def _initial(self, key: jax.Array) -> Any:
        """The state of evosax before the first generation."""
        algorithm, size = self._evosax, self.population_size
        if isinstance(algorithm, PopulationBasedAlgorithm):
            # evosax wants an evaluated population first; `_ask` draws it, a first `tell` fills it in
            first = algorithm._init(key, self._params)
            fields = {"population", "population_best"} & vars(first).keys()
            first = first.replace(**dict.fromkeys(fields, jnp.tile(self._mean, (size, 1))))
            return first if self._method.memory else first.replace(fitness=jnp.arange(size, dtype=self._mean.dtype))
        first = algorithm.init(key, self._mean, self._params)
        return first.replace(C=first.C * self._sigma**2) if isinstance(algorithm, iAMaLGaM_Full) else first

    def _find_out(self, first: Any) -> None:
        """What an algorithm is like that nobody has looked at: see the module. Raises ValueError if it cannot work."""
        size, keys = self.population_size, jax.random.split(jax.random.key(0), 4)
        (one, asked), (_, again) = (self._evosax.ask(key, first, self._params) for key in keys[:2])
        if one.shape != (size, self.num_genes):
            raise ValueError(f"it asks for {len(one)} candidates where {size} are expected")
        fitness = -1000.5 - np.arange(size)  # better than any rank, and nothing that is in its state
        told, _ = self._evosax.tell(keys[0], one, jnp.asarray(fitness), asked, self._params)
        leaves = zip(self._first.items(), map(np.asarray, jax.tree.leaves(told)), strict=True)
        self._memory = tuple(
            name
            for (name, before), leaf in leaves
            if name != "best_fitness"
            and leaf.ndim < 2
            and np.isin(leaf, [*fitness, *before.flat]).all()
            and np.isin(leaf, fitness).any()
        )
        for key in keys[2:]:
            later, told = self._evosax.ask(key, told, self._params)
            told, _ = self._evosax.tell(key, later, jnp.asarray(fitness), told, self._params)
        if not np.isfinite(later).all():
            raise ValueError(f"with a population of {size} over {self.num_genes} genes it asks for NaN")
        if isinstance(self._evosax, PopulationBasedAlgorithm):
            return
        steps = np.asarray(one) - np.asarray(self._mean)
        marks = steps @ np.random.default_rng(0).normal(size=self.num_genes)  # opposite ones for mirror images
        sums = np.abs(marks[:, None] + marks)
        np.fill_diagonal(sums, np.inf)
        if np.allclose(steps, -steps[partner := sums.argmin(axis=1)], atol=1e-5 * self._sigma):
            self._partner = partner
        both = zip(jax.tree.leaves(asked), jax.tree.leaves(again), strict=True)
        self._from_draw = any(np.shape(a) == one.shape and not np.array_equal(a, b) for a, b in both)

    def _host(self) -> AbstractContextManager[jax.Device]:
        return on_host(x64=self.num_genes <= MAX_GENES_FLOAT64)

    def _remembered(self, ranks: np.ndarray) -> State:
        """The leaves of evosax's state that hold the fitnesses it remembers, here their ranks."""
        leaves = [self._first[name] for name in self._memory]
        parts = np.split(ranks, np.cumsum([leaf.size for leaf in leaves])[:-1]) if leaves else []
        return {n: p.reshape(leaf.shape) for n, p, leaf in zip(self._memory, parts, leaves, strict=True)}

    def _to_evosax(self, state: State) -> Any:
        leaves = [np.asarray(state.get(name, first), first.dtype) for name, first in self._first.items()]
        return jax.tree.unflatten(self._structure, leaves)

    def _from_evosax(self, evosax_state: Any) -> State:
        """Leaves by name, less evosax's record of the best, which is without meaning when it is told ranks."""
        known = any(name.startswith("best_") for name in self._memory)  # the record, with which newcomers are ranked
        dropped = ("best_solution", "best_fitness") if known else tuple(n for n in self._first if n.startswith("best_"))
        leaves = zip(self._first.items(), jax.tree.leaves(evosax_state), strict=True)
        return {name: np.asarray(leaf, first.dtype) for (name, first), leaf in leaves if name not in dropped}


def _traced(compute: Callable[[], Any]) -> Any:
    """What a function without arguments returns, in one program if it can be traced: not each operation for itself."""
    try:
        return jax.jit(compute)()
    except (jax.errors.JAXTypeError, TypeError):  # Python that looks at a value
        return compute()


def _balanced(state: Any) -> Any:
    """The same search distribution and future, with the scale of C moved to sigma, so that det C is about 1.

    Eqs. (40) to (47) of arXiv:1604.00772 are invariant under sigma -> a sigma, C -> C / a^2, p_c -> p_c / a.
    """
    scale = jnp.exp(jnp.mean(jnp.log(state.D)))
    return state.replace(std=state.std * scale, C=state.C / scale**2, p_c=state.p_c / scale)


def _swarmed(key: jax.Array, state: Any) -> jax.Array:
    """(P, n) where the particles go next, each gene drawn for itself (Clerc and Kennedy 2002)."""
    own, swarm = PULL * jax.random.uniform(key, (2, *state.population.shape), state.population.dtype)
    leader = state.population_best[jnp.argmin(state.fitness_best)]
    pull = own * (state.population_best - state.population) + swarm * (leader[None] - state.population)
    return state.population + INERTIA * state.velocity + pull


def _separable_rates(params: Any, num_genes: int) -> Any:
    """Learning rates (n + 2) / 3 times those of the full matrix (Ros and Hansen, PPSN 2008), at most 1 together.

    `cmaes` accelerates c_mu only, from an older and larger value; this needs fewer evaluations (see the tests).
    """
    c_1 = params.c_1 * (num_genes + 2) / 3
    return params.replace(c_1=c_1, c_mu=jnp.minimum(params.c_mu * (num_genes + 2) / 3, 1 - c_1))
