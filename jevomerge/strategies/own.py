"""Search strategies of the user's own, of two kinds.

1. `init(key)`, `ask(key, state)` and `tell(key, state, population, fitness, tie_break)`, as in `Strategy`. The state
   may be any pytree of arrays whose structure, shapes and dtypes stay the same. It is saved and restored, bit for bit.

2. `ask()` gives (P, n) candidates in the unit box, `tell(population, fitness)` learns from them: (P,), higher is
   better. The simplest there is, and nearly that of other packages, most of which minimise:

    class Pycma:
        def __init__(self, num_genes, population_size, mean, sigma, seed):
            options = {"bounds": [0, 1], "popsize": population_size, "seed": seed + 1, "verbose": -9}
            self.search = cma.CMAEvolutionStrategy(mean, sigma, options)
        def ask(self):
            return self.search.ask()
        def tell(self, population, fitness):
            self.search.tell(list(population), list(-fitness))

   Its state is out of reach, so there are no snapshots: a search that is resumed starts at generation 0 and finds what
   it asks for in evaluations.jsonl, which takes no time. What it asks for must therefore be determined by its seed and
   by what it is told; several processes each have one of their own, which must agree.

Either may say more of itself by an attribute: `population_size`; `remembers = False` if it compares no fitnesses of
different generations, so that minibatches are fine; `elite`, how many of the best count by rank, all others alike, so
that racing is fine. All of it runs on the host, outside jit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jevomerge.errors import InputError
from jevomerge.strategies.strategy import State, checked_scores, on_host


class OwnStrategy:
    """What a user's strategy of either kind has in common."""

    injectable, several_goals = False, False

    def __init__(self, name: str, own: Any, num_genes: int, population_size: int) -> None:
        """`own` is the user's object."""
        self.name, self.population_size, self.num_genes = name, population_size, num_genes
        self.elite: int | None = getattr(own, "elite", None)
        self.remembers: bool = getattr(own, "remembers", True)

    def mean(self, state: State) -> None:
        """Not known."""
        return None

    def _checked(self, population: Any) -> np.ndarray:
        """What it asks for, as (P, n) float64, in the box; what is outside is clipped."""
        asked, wanted = np.asarray(population, np.float64), (self.population_size, self.num_genes)
        if asked.shape != wanted or not np.isfinite(asked).all():
            found = "some are not finite" if asked.shape == wanted else f"its shape is {asked.shape}"
            raise InputError(f"search.strategy: {self.name} must ask for {wanted} numbers in [0, 1]; {found}")
        return np.clip(asked, 0, 1)


class PureStrategy(OwnStrategy):
    """The first kind: all of its state is in what `init` returns."""

    replayed = False

    def __init__(self, name: str, own: Any, num_genes: int, population_size: int) -> None:
        """`own` has `init`, `ask` and `tell`."""
        super().__init__(name, own, num_genes, population_size)
        self._own = own
        with on_host(x64=True):
            named, structure = jax.tree_util.tree_flatten_with_path(own.init(jax.random.key(0)))
        self._structure: Any = structure
        self._names = [jax.tree_util.keystr(path, simple=True, separator="_") or "state" for path, _ in named]
        try:
            self._like = [np.asarray(leaf) for _, leaf in named]
            numbers = all(array.dtype.kind in "biuf" for array in self._like)
        except TypeError:  # a random key
            numbers = False
        if not numbers or len(set(self._names)) < len(self._names):
            raise ValueError(
                f"{name}: the state that init returns must be a pytree of arrays of numbers, each with a name of its "
                "own; what has another state needs no init: an object with ask() and tell(population, fitness)"
            )

    def init(self, key: jax.Array) -> State:
        """As in `Strategy`."""
        with on_host(x64=True) as cpu:
            return self._flat(self._own.init(jax.device_put(key, cpu)))

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """As in `Strategy`."""
        with on_host(x64=True) as cpu:
            population, asked = self._own.ask(jax.device_put(key, cpu), self._tree(state))
            return self._checked(population), self._flat(asked)

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """As in `Strategy`."""
        population, scores = checked_scores(self.population_size, self.num_genes, population, fitness, tie_break)
        if np.isnan(scores[0]).all():
            return dict(state)
        with on_host(x64=True) as cpu:
            return self._flat(self._own.tell(jax.device_put(key, cpu), self._tree(state), population, *scores))

    def _tree(self, state: State) -> Any:
        return jax.tree.unflatten(self._structure, [state[name] for name in self._names])

    def _flat(self, tree: Any) -> State:
        arrays, structure = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)], jax.tree.structure(tree)
        same = structure == self._structure and [a.shape for a in arrays] == [a.shape for a in self._like]
        if not same:
            raise InputError(f"search.strategy: {self.name}: its state must keep the structure and shapes of init's")
        return {n: np.asarray(a, b.dtype) for n, a, b in zip(self._names, arrays, self._like, strict=True)}


class ReplayedStrategy(OwnStrategy):
    """The second kind: its state is in the object, of which `init` makes a new one."""

    replayed = True

    def __init__(self, name: str, make: Callable[[], Any], num_genes: int, population_size: int) -> None:
        """`make` returns an object with `ask` and `tell` that nobody has asked yet."""
        super().__init__(name, own := make(), num_genes, population_size)
        self._make, self._own = make, own

    def init(self, key: jax.Array) -> State:
        """No state; the search that is asked and told begins anew."""
        self._own = self._make()
        return {}

    def ask(self, key: jax.Array, state: State) -> tuple[np.ndarray, State]:
        """As in `Strategy`, of the one search that goes on."""
        return self._checked(self._own.ask()), {}

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
    ) -> State:
        """As in `Strategy`; a failure is told as the worst fitness of its generation, a tie remains one."""
        population, (fitness, _) = checked_scores(self.population_size, self.num_genes, population, fitness, tie_break)
        if not np.isnan(fitness).all():
            self._own.tell(population, np.where(np.isnan(fitness), np.nanmin(fitness), fitness))
        return {}


def make_own(
    name: str, make: Callable[[], Any], num_genes: int, population_size: int | None
) -> PureStrategy | ReplayedStrategy:
    """The strategy of what `make` returns, a new one each time. Raises ValueError if it is not of either kind."""
    own = make()
    if not (callable(getattr(own, "ask", None)) and callable(getattr(own, "tell", None))):
        raise ValueError(f"{name} is no strategy: {type(own).__name__} has no `ask` and `tell`")
    if type(own).__module__.partition(".")[0] in ("cma", "cmaes"):
        raise ValueError(f"{name} minimises, and fitness is maximised: wrap it as in jevomerge/strategies/own.py")
    kind = PureStrategy if hasattr(own, "init") else ReplayedStrategy
    size = getattr(own, "population_size", None) or getattr(own, "popsize", None) or population_size
    if size is None:
        with on_host(x64=True):
            key = jax.random.key(0)
            asked = own.ask(key, own.init(key))[0] if kind is PureStrategy else own.ask()
        size = len(asked)
    if population_size not in (None, size):
        raise ValueError(f"{name} has a population of {size}: leave `population` out, or make it {size}")
    return kind(name, own if kind is PureStrategy else make, num_genes, int(size))


def copies_of(own: Any) -> Callable[[], Any]:
    """A function that returns copies of an object as it is now. Raises ValueError if it cannot be copied."""
    try:
        pristine = copy.deepcopy(own)
    except Exception as error:  # of the user's object
        raise ValueError(
            f"{type(own).__name__} cannot be copied ({error}): give its class, or a function that makes one from "
            "(num_genes, population_size, mean, sigma, seed)"
        ) from None
    return lambda: copy.deepcopy(pristine)
