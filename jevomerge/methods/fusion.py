"""Taking from one model what should replace or approach another's elements.

arcee_fusion  the elements that matter most                     (Arcee, 2024)
nearswap      the elements that hardly differ                   (alchemonaut, 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, weighted_sum
from jevomerge.methods.prepare import on_host, row_blocks


class Importance(NamedTuple):
    """What makes an element of a fusion important.

    Attributes:
        divergence: (..., 1) of every row's softmax from the base's.
        threshold: () of importance.
    """

    divergence: Array
    threshold: Array


def prepare_fusion(sources: Sequence[Array], base: Array | None) -> Importance:
    """Divergence of every row, and the threshold from exact quantiles (mergekit samples a million elements)."""
    assert base is not None
    (x,) = sources
    if on_host(x, base):
        divergence, ordered = _sort_on_host(x, base)
    else:
        own, origin = (jnp.atleast_1d(float32(y)) for y in (x, base))
        divergence = _divergence(own, origin, jnp).reshape((*x.shape[:-1], 1) if x.ndim else ())
        ordered = jnp.sort((jnp.abs(float32(x) - float32(base)) * divergence).reshape(-1))
    first, middle, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return Importance(divergence, jnp.float32(middle + 1.5 * (third - first)))


def _sort_on_host(x: Array, base: Array) -> tuple[Array, Any]:
    width = x.shape[-1] if x.ndim else 1
    values, divergence = np.empty((x.size // width, width), np.float32), np.empty((x.size // width, 1), np.float32)
    for rows, (own, origin) in row_blocks([x, base], None, np.float32):
        divergence[rows] = _divergence(own.astype(np.float64), origin.astype(np.float64), np)
        np.multiply(np.abs(own - origin), divergence[rows], out=values[rows])
    ordered = values.reshape(-1)
    ordered.sort()
    return jnp.asarray(divergence.reshape((*x.shape[:-1], 1) if x.ndim else ())), ordered


def _divergence(x: Any, base: Any, xp: Any) -> Any:
    """KL(softmax(x) + 1e-8 || softmax(base) + 1e-8) along the last axis, by NumPy or jax.numpy."""
    exponentials = [xp.exp(y - y.max(axis=-1, keepdims=True)) for y in (x, base)]
    p, q = (e / e.sum(axis=-1, keepdims=True) + 1e-8 for e in exponentials)
    # Minus the difference of two equal sums: no term is negative, so that small divergences do not cancel.
    return (p * xp.log(p / q) - (p - q)).sum(axis=-1, keepdims=True)


def merge_fusion(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Importance, keys: Array
) -> Array:
    """The source where |x - base| times its row's divergence is an outlier, elsewhere the base.

    `sources`: one array of the base's shape. An outlier is not less than median + 1.5 (third - first quartile) of the
    tensor.
    """
    assert base is not None
    delta = float32(sources[0]) - float32(base)
    important = jnp.abs(delta) * prepared.divergence >= prepared.threshold
    return float32(base) + jnp.where(important, delta, 0.0)


ARCEE_FUSION = MergeMethod(
    "arcee_fusion", (), merge_fusion, prepare=prepare_fusion, base="required", num_sources=(1, 1)
)


def merge_nearswap(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """w x + (1 - w) base with w = clip(t / |x - base|, 0, 1): the base moved towards x by at most t.

    `sources`: one array of the base's shape; `t`: ().
    """
    assert base is not None
    x, origin = float32(sources[0]), float32(base)
    share = jnp.clip(coefficients["t"] / jnp.maximum(jnp.abs(x - origin), 1e-6), 0.0, 1.0)
    return weighted_sum([share, 1 - share], [x, origin])


NEARSWAP = MergeMethod(
    "nearswap", (Parameter("t", None, domain=(0.0, 0.01)),), merge_nearswap, base="required", num_sources=(1, 1)
)
