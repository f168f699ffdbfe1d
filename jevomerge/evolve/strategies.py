"""Search strategies: evosax behind one init / ask / tell over the unit box, fitness maximised.

    strategy = make_strategy("cma_es", num_genes=6)
    state = strategy.init(key)
    population, state = strategy.ask(key_ask, state)               # (P, n) in [0, 1]
    state = strategy.tell(key_tell, state, population, fitness)    # (P,), higher is better, NaN = failed

A strategy holds constants. What changes is in `state`: a flat dict of NumPy arrays whose names, shapes and dtypes stay
the same for the whole search. Every result is a function of (key, state, arguments), so a search that is saved, killed
and restored continues bit for bit. (NumPy, because a float64 `jax.Array` does not survive a program without x64.)

What stands between evosax 0.3.2 and a good search over merge coefficients, and what is done about it:

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
- Precision. Up to 256 genes all is float64, beyond that float32; always on the host CPU, under evosax's own
  promotion rules, and without touching the program's settings.

Otherwise its CMA-ES is that of Hansen's tutorial (arXiv:1604.00772): told the same samples it moves like `cmaes` to
1e-6, and it needs as many evaluations as `cmaes` and `cma`; the tests compare them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import CMA_ES, PSO, SNES, DifferentialEvolution, Open_ES, RandomSearch, Sep_CMA_ES
from numpy.typing import ArrayLike

State = dict[str, np.ndarray]

MAX_GENES_FLOAT64 = 256
PARETO = "nsga2"  # for several goals; see jevomerge.evolve.pareto
MAX_DRAWS = 100  # per candidate and generation, as in `cmaes`


class Method(NamedTuple):
    """An evosax algorithm: how to build it, and what it needs."""

    build: Callable[[int, jax.Array, float], Any]  # (population size, a solution, sigma) -> algorithm
    fewest: int  # the smallest population with which the method is itself
    memory: str | None = None  # where evosax keeps the fitness of earlier generations that newcomers must match
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
    "de": Method(lambda size, x, _: DifferentialEvolution(size, x), fewest=4, memory="fitness"),
    "pso": Method(lambda size, x, _: PSO(size, x), fewest=2, memory="fitness_best"),
    "random": Method(
        lambda size, x, _: RandomSearch(size, x, lambda key: jax.random.uniform(key, x.shape, x.dtype)),
        fewest=1,
        elite=lambda size: 1,
    ),
}


def make_strategy(
    name: str,
    num_genes: int,
    population_size: int | None = None,
    mean: ArrayLike = 0.5,
    sigma: float = 1 / 6,
) -> Strategy:
    """The search strategy `name`, a key of `METHODS`, over the unit box of `num_genes` dimensions.

    `mean`, a number or (n,), and `sigma` give the first generation, N(mean, sigma^2 I) cut to the box; `random` ignores
    them. `population_size` is 4 + floor(3 ln n) by default, rounded up to even for `open_es`. These are the paper's
    settings (arXiv:2403.13187, Methods) and Optuna's, made for CMA-ES; give DE and PSO 20 candidates or more, with few
    they stall. Raises ValueError, with the remedy, for what cannot work.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name.lower().replace("-", "_"), [*METHODS, PARETO], n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = f"{', '.join(METHODS)}, and {PARETO} for several goals"
        raise ValueError(f"unknown strategy {name!r}: {hint}the strategies are {known}")
    if num_genes < 1:
        raise ValueError(f"num_genes is {num_genes}: a search needs at least one gene")
    size, center, sigma = checked_settings(name, METHODS[name].fewest, num_genes, population_size, mean, sigma)
    if name == "open_es" and size % 2:
        if population_size is not None:
            raise ValueError(f"open_es samples +/- pairs: use population_size {size + 1}, not {size}")
        size += 1
    return Strategy(name, size, center, sigma)


def checked_settings(
    name: str, fewest: int, num_genes: int, population_size: int | None, mean: ArrayLike, sigma: float
) -> tuple[int, np.ndarray, float]:
    """Population size, mean (n,) and sigma of a strategy. Raises ValueError, with the remedy."""
    if population_size is None:
        population_size = 4 + math.floor(3 * math.log(num_genes))
    if population_size < fewest:
        raise ValueError(f"population_size {population_size} is too small for {name}: use {fewest} or more")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}: use a positive number in units of the box, such as 1/6")
    center = np.asarray(mean, np.float64)
    if center.shape not in ((), (num_genes,)) or not np.all((center >= 0) & (center <= 1)):
        raise ValueError(f"mean is {mean!r}: use a number or {num_genes} numbers in [0, 1]")
    return population_size, np.broadcast_to(center, num_genes), float(sigma)


class Strategy:
    """A search method with its settings; built by `make_strategy`, which checks them. Holds no state."""

    def __init__(self, name: str, population_size: int, mean: np.ndarray, sigma: float) -> None:
        self.name, self.population_size, self.num_genes = name, population_size, mean.size
        self._memory = METHODS[name].memory
        elite = METHODS[name].elite
        self.elite = None if elite is None else elite(population_size)
        self._draws = max(1, min(MAX_DRAWS, 2**20 // (population_size * mean.size)))  # 8 MB of candidates at most
        with self._host():
            self._mean, self._sigma = jnp.asarray(mean), sigma
            self._evosax = METHODS[name].build(population_size, self._mean, sigma)
            self._params = jax.jit(lambda: self._evosax.default_params)()  # not each operation for itself
            if name in ("cma_es", "sep_cma_es", "snes"):
                self._params = self._params.replace(std_init=jnp.asarray(sigma, self._mean.dtype))
            if name == "sep_cma_es":
                self._params = _separable_rates(self._params, mean.size)
            key = jax.random.key(0)  # evosax asks for one, none of these methods uses it
            if self._memory:  # evosax wants an evaluated population first; `_ask` draws it, a first `tell` fills it in
                first = self._evosax._init(key, self._params)
                fields = {"population", "population_best"} & vars(first).keys()
                first = first.replace(**dict.fromkeys(fields, jnp.tile(self._mean, (population_size, 1))))
            else:
                first = self._evosax.init(key, self._mean, self._params)
            leaves, self._structure = jax.tree_util.tree_flatten_with_path(first)
            self._first = {
                jax.tree_util.keystr(path, simple=True, separator="_"): np.asarray(jnp.asarray(leaf))
                for path, leaf in leaves
            }
        self._jitted_ask, self._jitted_tell = jax.jit(self._ask), jax.jit(self._tell)

    def init(self, key: jax.Array) -> State:
        """The state before the first generation. No method here draws anything yet; `key` is for one that would."""
        state = {name: leaf.copy() for name, leaf in self._first.items() if not name.startswith("best_")}
        if self._memory:  # rows fitness and tie-break of what is remembered; nothing yet, which any newcomer beats
            state["remembered"] = np.full((2, self.population_size), np.nan)
        return state

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """The next candidates, (P, n) float64 in [0, 1], and the state to `tell` their fitness to."""
        with self._host() as cpu:
            population, asked = self._jitted_ask(jax.device_put(key, cpu), self._to_evosax(state))
            return np.asarray(population, np.float64), state | self._from_evosax(asked)

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """The state that has learnt the `fitness` (P,), higher is better, of the `population` (P, n) just asked for.

        Equal fitness is ordered by `tie_break` (P,), higher is better, then at random; NaN ranks below -inf. A
        generation that failed entirely, all NaN, teaches nothing and leaves the state as it was.
        """
        size = self.population_size
        population, scores = checked_scores(size, self.num_genes, population, fitness, tie_break)
        if np.isnan(scores[0]).all():
            return dict(state)
        with self._host() as cpu:
            key = jax.device_put(key, cpu)
            luck = np.asarray(jax.random.permutation(key, size))
            if self._memory:
                both = np.concatenate([scores, state["remembered"]], axis=1)
                ranks, old_ranks = np.split(strict_ranks(both, np.concatenate([luck, size + luck])), 2)
                state = state | {
                    self._memory: old_ranks,
                    "remembered": np.where(ranks < old_ranks, scores, state["remembered"]),
                }
            else:
                ranks = strict_ranks(scores, luck)
            dtype = self._mean.dtype
            told = self._jitted_tell(key, population.astype(dtype), ranks.astype(dtype), self._to_evosax(state))
            return state | self._from_evosax(told)

    def mean(self, state: State) -> np.ndarray | None:
        """The centre of the search distribution, (n,) float64; None for methods without one: DE, PSO, random."""
        return None if self._memory or self.name == "random" else state["mean"].astype(np.float64)

    def _ask(self, key: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        def draw(key: jax.Array) -> tuple[jax.Array, Any]:
            population, asked = self._evosax.ask(key, state, self._params)
            if self._memory:
                start = self._mean + self._sigma * jax.random.normal(key, population.shape, population.dtype)
                population = jnp.where(state.generation_counter == 0, start, population)
            return population, asked

        # All draws at once, (D, P, n): the eigendecomposition does not depend on the key, vmap leaves it alone.
        draws, asked = jax.vmap(draw)(jax.random.split(key, self._draws))
        asked = jax.tree.map(lambda leaf: leaf[0], asked)
        outside = jnp.sum(jnp.abs(draws - jnp.clip(draws, 0, 1)), axis=-1)  # (D, P)
        chosen = jnp.argmin(outside, axis=0)  # the first draw inside the box; if there is none, the nearest to it
        population = jnp.clip(draws[chosen, jnp.arange(self.population_size)], 0, 1)
        if self.name == "pso":
            asked = asked.replace(velocity=population - state.population)  # the step that was taken
        return population, asked

    def _tell(self, key: jax.Array, population: jax.Array, ranks: jax.Array, state: Any) -> Any:
        told, _ = self._evosax.tell(key, population, ranks, state, self._params)
        if self.name in ("cma_es", "sep_cma_es"):
            return _balanced(told)
        if self.name in ("snes", "open_es"):  # a gradient step may leave the box, a mean of points inside cannot
            return told.replace(mean=jnp.clip(told.mean, 0, 1))
        return told

    def _host(self) -> AbstractContextManager[jax.Device]:
        return on_host(x64=self.num_genes <= MAX_GENES_FLOAT64)

    def _to_evosax(self, state: State) -> Any:
        leaves = [np.asarray(state.get(name, first), first.dtype) for name, first in self._first.items()]
        return jax.tree.unflatten(self._structure, leaves)

    def _from_evosax(self, evosax_state: Any) -> State:
        """Leaves by name, less evosax's record of the best, which is without meaning when it is told ranks."""
        leaves = zip(self._first.items(), jax.tree.leaves(evosax_state), strict=True)
        return {name: np.asarray(leaf, first.dtype) for (name, first), leaf in leaves if not name.startswith("best_")}


@contextmanager
def on_host(*, x64: bool) -> Iterator[jax.Device]:
    """The CPU of this process, and numerical rules that are the same in every program: those of evosax."""
    cpu = jax.local_devices(backend="cpu")[0]
    with (
        jax.default_device(cpu),
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield cpu


def checked_scores(
    size: int, genes: int, population: ArrayLike, fitness: ArrayLike, tie_break: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """What `tell` is told, as population (P, n) and scores (2, P): fitness and tie-break. Raises ValueError."""
    population, fitness = np.asarray(population, np.float64), np.asarray(fitness, np.float64)
    tie_break = np.zeros(size) if tie_break is None else np.asarray(tie_break, np.float64)
    if population.shape != (size, genes) or not fitness.shape == tie_break.shape == (size,):
        raise ValueError(
            f"tell wants population ({size}, {genes}), fitness ({size},) and tie_break ({size},) or None, "
            f"got {population.shape}, {fitness.shape} and {tie_break.shape}"
        )
    return population, np.stack([fitness, tie_break])


def strict_ranks(scores: np.ndarray, luck: np.ndarray) -> np.ndarray:
    """Ranks 0 (best) to N - 1 by the rows of `scores` (fitness, tie-break), higher first, NaN last; then by `luck`."""
    fitness, tie_break = scores
    return np.argsort(np.lexsort((luck, -tie_break, -fitness))).astype(np.float64)


def _balanced(state: Any) -> Any:
    """The same search distribution and future, with the scale of C moved to sigma, so that det C is about 1.

    Eqs. (40) to (47) of arXiv:1604.00772 are invariant under sigma -> a sigma, C -> C / a^2, p_c -> p_c / a.
    """
    scale = jnp.exp(jnp.mean(jnp.log(state.D)))
    return state.replace(std=state.std * scale, C=state.C / scale**2, p_c=state.p_c / scale)


def _separable_rates(params: Any, num_genes: int) -> Any:
    """Learning rates (n + 2) / 3 times those of the full matrix (Ros and Hansen, PPSN 2008), at most 1 together.

    `cmaes` accelerates c_mu only, from an older and larger value; this needs fewer evaluations (see the tests).
    """
    c_1 = params.c_1 * (num_genes + 2) / 3
    return params.replace(c_1=c_1, c_mu=jnp.minimum(params.c_mu * (num_genes + 2) / 3, 1 - c_1))
