"""`mixed` with one of its ideas taken away: it draws as ever, and what is taken away shows in what it learns."""

import math
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jevomerge.strategies.paths import Mixed, random_of
from jevomerge.strategies.strategy import checked_scores, strict_ranks


class Ranked:
    """What a generation says: who is how good, and the constants of `mixed` (explained there)."""

    def __init__(self, strategy: Mixed, key: jax.Array, population: ArrayLike, fitness: ArrayLike):
        size, slots = strategy.population_size, strategy.space.num_slots
        self.population, scores = checked_scores(size, strategy.num_genes, population, fitness, None)
        ranks = strict_ranks(scores, random_of(key).permutation(size)).astype(int)
        weights = np.maximum(0, math.log(size / 2 + 1) - np.log(np.arange(1, size + 1)))
        weights /= weights.sum()
        effective = 1 / np.sum(weights**2)
        self.rate = min(0.7, effective / (strategy.samples * math.sqrt(slots) * math.log(slots + 1)))
        self.margin = min(0.25, 1 / slots)
        self.weights, self.utilities = weights[ranks], (weights - 1 / size)[ranks]
        self.slots, self.others = self.population[:, :slots].astype(np.float32) > 0.5, self.population[:, slots:]

    def probability(self, before: np.ndarray, credit: np.ndarray) -> np.ndarray:
        """Of the slots, when each candidate counts with its `credit`."""
        moved = before + self.rate * credit @ (self.slots - before)
        return np.clip(moved, self.margin, 1 - self.margin)


class Pbil(Mixed):
    """Slots without the baseline: p += rate (sum_i w_i x_i - p) with w_i >= 0."""

    def tell(self, key: Any, state: Any, population: Any, fitness: Any, tie_break: Any = None) -> Any:
        ranked = Ranked(self, key, population, fitness)
        told = super().tell(key, state, population, fitness)
        return told | {"probability": ranked.probability(state["probability"], ranked.weights)}


class Unconditional(Mixed):
    """Every candidate counts for every slot and scale, whether its path uses them or not."""

    def tell(self, key: Any, state: Any, population: Any, fitness: Any, tie_break: Any = None) -> Any:
        ranked = Ranked(self, key, population, fitness)
        steps = (ranked.others - state["center"]) / state["width"]
        dimension = max(1.0, ranked.others.shape[1])
        rate = (3 + math.log(dimension)) / (5 * math.sqrt(dimension))  # of SNES
        growth = ranked.utilities @ (steps**2 - 1)
        return state | {
            "probability": ranked.probability(state["probability"], ranked.utilities),
            "center": np.clip(state["center"] + state["width"] * (ranked.utilities @ steps), 0, 1),
            "width": np.clip(state["width"] * np.exp(rate / 2 * growth), 1e-6, 0.5),
        }
