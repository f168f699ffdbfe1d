"""What every search strategy is: init, ask and tell over the unit box, fitness maximised.

    strategy = make_strategy("cma_es", num_genes=6)
    state = strategy.init(key)
    population, state = strategy.ask(key_ask, state)               # (P, n) in [0, 1]
    state = strategy.tell(key_tell, state, population, fitness)    # (P,), higher is better, NaN = failed

A strategy holds constants. What changes is in `state`: a flat dict of NumPy arrays whose names, shapes and dtypes stay
the same for the whole search. Every result is a function of (key, state, arguments), so a search that is saved, killed
and restored continues bit for bit. (NumPy, because a float64 `jax.Array` does not survive a program without x64.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

State = dict[str, np.ndarray]

PARETO = "nsga2"  # for several goals; see jevomerge.strategies.pareto


class Strategy(Protocol):
    """A search method with its settings. A search asks what it can do, never who it is."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def population_size(self) -> int:
        """P, how many candidates a generation has."""

    @property
    def elite(self) -> int | None:
        """How many of the best count by rank, all others alike, so that racing may stop these; None: all count."""

    @property
    def remembers(self) -> bool:
        """Whether it compares fitnesses of different generations, which then must mean the same in all of them."""

    @property
    def injectable(self) -> bool:
        """Whether it learns from candidates that it did not draw; its state has the `mean`, `std` and `C` of CMA-ES."""

    @property
    def several_goals(self) -> bool:
        """Whether it is told the score of every task, (P, K), and not the fitness."""

    @property
    def replayed(self) -> bool:
        """Whether its state is out of reach, in an object: a search is then replayed from its start, not restored."""

    def init(self, key: jax.Array, /) -> State:
        """The state before the first generation."""

    def ask(self, key: jax.Array, state: State, /) -> tuple[np.ndarray, State]:
        """The next candidates.

        Args:
            key: of what is drawn.
            state: of `init` or `tell`; it is not changed.

        Returns:
            (P, n) float64 in [0, 1], and the state to `tell` their fitness to.
        """

    def tell(
        self,
        key: jax.Array,
        state: State,
        population: ArrayLike,
        fitness: ArrayLike,
        tie_break: ArrayLike | None = None,
        /,
    ) -> State:
        """The state that has learnt from a generation.

        Args:
            key: of what is drawn, to break full ties for example.
            state: of `ask`; it is not changed.
            population: (P, n), what was evaluated: what was asked for, unless the search put candidates of its own
                in some places.
            fitness: (P,), with several goals (P, K); higher is better, NaN is a failure and worse than -inf.
            tie_break: (P,), higher is better, orders those of equal fitness.

        Returns:
            The next state; after a generation that failed entirely, all NaN, the same.
        """

    def mean(self, state: State, /) -> np.ndarray | None:
        """The centre of the search distribution, (n,) float64; None where there is none."""


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


def checked_settings(
    name: str, fewest: int, num_genes: int, population_size: int | None, mean: ArrayLike, sigma: float
) -> tuple[int, np.ndarray, float]:
    """Population size, mean (n,) and sigma of a strategy. Raises ValueError, with the remedy."""
    if num_genes < 1:
        raise ValueError(f"num_genes is {num_genes}: a search needs at least one gene")
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
