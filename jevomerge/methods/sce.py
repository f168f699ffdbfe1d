"""SCE: select elements that vary, calculate weights, erase minority signs (Wan et al., 2024).

https://arxiv.org/abs/2408.07990
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, task_vectors, weighted_sum
from jevomerge.methods.prepare import look_up, on_host, row_blocks, thin, totals, whole

TINY = 1e-37  # below it float32 is denormal, which XLA takes for zero


class Variances(NamedTuple):
    """Sorted variances over the task vectors, which are divided by `scale` so that no square overflows.

    Attributes:
        table: (min(size, TABLE_SIZE),) descending, evenly thinned.
        size: () the number of elements it stands for.
        nonzero: () how many of them are not zero.
        scale: () the largest magnitude.
    """

    table: Array
    size: Array
    nonzero: Array
    scale: Array


def _variance(deltas: Sequence[Any]) -> Any:
    mean = sum(deltas[1:], deltas[0]) * (1 / len(deltas))
    squares = [(d - mean) ** 2 for d in deltas]
    return sum(squares[1:], squares[0]) * (1 / len(deltas))


def prepare_sce(sources: Sequence[Array], base: Array | None) -> Variances:
    """Sort the elements by their variance over the task vectors."""
    if on_host(*sources, base):
        return _prepare_on_host(sources, base)
    deltas = task_vectors(sources, base)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(d)) for d in deltas]))
    scale = jnp.where(largest > TINY, largest, 1.0)
    values = jnp.sort(_variance([d / scale for d in deltas]).reshape(-1), descending=True)
    return Variances(thin(values), jnp.float32(values.size), float32(jnp.count_nonzero(values)), scale)


def _prepare_on_host(sources: Sequence[Array], base: Array | None) -> Variances:
    largest = max(float(np.abs(block).max()) for _, block in row_blocks(sources, base, np.float32))
    scale = np.float32(largest if largest > TINY else 1.0)
    values = np.empty(sources[0].size, np.float32)
    rows_of = values.reshape(-1, sources[0].shape[-1] if sources[0].ndim else 1)
    for rows, block in row_blocks(sources, base, np.float32):
        rows_of[rows] = _variance(list(block / scale))
    values.sort()
    return Variances(thin(values[::-1]), *(jnp.float32(x) for x in (values.size, np.count_nonzero(values), scale)))


def _method(uniform_below: float) -> MergeMethod:
    """`uniform_below`: weights are equal if the mean squares add up to less."""

    def merge_sce(
        sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Variances, keys: Array
    ) -> Array:
        """Base plus a weighted mean, over the task vectors that agree with the sign of their sum, of each element.

        `sources`: N arrays of the base's shape; `select_topk`: (). Elements count whose variance over the task vectors
        is among the int(select_topk * n) largest, n the number of nonzero variances; all if select_topk >= 1. A task
        vector's weight is its share of the sum of squares of these elements. mergekit makes the weights equal if the
        mean squares add up to less than 1e-6, which the paper does not, and returns a wrong shape if nothing is
        selected; this returns the base.
        """
        assert base is not None
        topk, scale = coefficients["select_topk"], prepared.scale
        kept = whole(topk, prepared.nonzero)
        # Less a rounding error of the variance, which is computed here a second time.
        threshold = look_up(prepared.table, prepared.size, kept) * (1 - 1e-6)

        def selected(base: Array, *sources: Array) -> list[Array]:
            deltas = [d / scale for d in task_vectors(sources, base)]
            select = ((_variance(deltas) >= threshold) & (kept >= 1)) | (topk >= 1)
            return [jnp.where(select, d, 0.0) for d in deltas]

        # Select; calculate weights ...
        squares = totals(lambda *xs: [d * d * (1 / base.size) for d in selected(*xs)], [base, *sources])
        energies, deltas = jnp.stack(squares), selected(base, *sources)
        total = jnp.sum(energies)
        uniform = (total * scale * scale < uniform_below) | (total <= 0)
        weights = list(jnp.where(uniform, 1 / len(deltas), energies / jnp.where(uniform, 1.0, total)))
        # ... and erase minorities, as TIES does.
        positive = sum(deltas[1:], deltas[0]) >= 0
        agree = [jnp.where(positive, d > 0, d < 0) for d in deltas]
        divisor = jnp.maximum(weighted_sum(weights, [float32(a) for a in agree]), 1e-6)
        mixed = weighted_sum(weights, [jnp.where(a, d, 0.0) for a, d in zip(agree, deltas, strict=True)]) / divisor
        return float32(base) + scale * mixed

    return MergeMethod(
        name="sce",
        parameters=(Parameter("select_topk", 1.0, differentiable=False),),
        merge=merge_sce,
        prepare=prepare_sce,
        base="required",
    )


SCE, SCE_PAPER = _method(1e-6), _method(0.0)
