"""Reinforced agent merging: what one task vector alone changes is kept whole (Yuan et al., 2026).

https://arxiv.org/abs/2601.13572
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, task_vectors, weighted_sum
from jevomerge.methods.prepare import totals

EPSILON = Parameter("epsilon", 1e-5, domain=(0.0, 1e-3), differentiable=False)


def _active(deltas: Sequence[Array], epsilon: Array) -> tuple[list[Array], Array]:
    """Where each task vector changes an element, and how many do."""
    active = [jnp.abs(d) > epsilon for d in deltas]
    return active, sum((float32(a) for a in active[1:]), float32(active[0]))


def _merge(sources: Sequence[Array], base: Array | None, epsilon: Array, factors: Sequence[Array]) -> Array:
    """Base plus the mean of the active task vectors of each element; times its factor if there is one only."""
    assert base is not None
    deltas = task_vectors(sources, base)
    active, count = _active(deltas, epsilon)
    kept = [jnp.where(a, d, 0.0) for a, d in zip(active, deltas, strict=True)]
    alone = [jnp.where(count == 1, f, 1.0) for f in factors]
    return float32(base) + weighted_sum(alone, kept) / jnp.maximum(count, 1.0)


def merge_ram(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """Base plus, for each element, the mean of the task vectors larger than epsilon there.

    `sources`: N arrays of the base's shape; `epsilon`: ().
    """
    return _merge(sources, base, coefficients["epsilon"], [jnp.float32(1)] * len(sources))


def merge_ramplus_tl(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """As `ram`, but what is unique to a task vector times 1 + r clip(shared / unique, 0, alpha).

    `shared` and `unique` count the elements of the tensor that it changes with others, and alone. `sources`: N
    arrays of the base's shape; coefficients: ().
    """
    epsilon, alpha = coefficients["epsilon"], jnp.maximum(coefficients["alpha"], 0.0)

    def shares(base: Array, *sources: Array) -> list[Array]:
        active, count = _active(task_vectors(sources, base), epsilon)
        return [float32(a & c) for c in (count > 1, count == 1) for a in active]

    assert base is not None
    counts = jnp.stack(totals(shares, [base, *sources]))
    shared, unique = counts[: len(sources)], counts[len(sources) :]
    overlap = shared / jnp.maximum(unique, jnp.maximum(epsilon, 1e-12))
    return _merge(sources, base, epsilon, list(1 + coefficients["r"] * jnp.clip(overlap, 0.0, alpha)))


RAM = MergeMethod("ram", (EPSILON,), merge_ram, base="required")
RAMPLUS_TL = MergeMethod(
    "ramplus_tl",
    (Parameter("r", 0.1), Parameter("alpha", 0.2), EPSILON),
    merge_ramplus_tl,
    base="required",
)
