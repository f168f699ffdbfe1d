"""Task arithmetic and the methods built on it: `base + lambda * combine_i(w_i * sparsify(x_i - base))`.

    task_arithmetic   no sparsification, plain sum                  (Ilharco et al., 2023)
    ties              keep the largest, elect a sign per element    (Yadav et al., 2023)
    dare_linear       keep a random share, plain sum                (Yu et al., 2024)
    dare_ties         keep a random share, elect a sign per element

`paper` and `mergekit` semantics differ in two places.  TIES trims over the whole parameter vector in the
paper, tensor by tensor in mergekit.  DARE rescales what it keeps by 1/density in the paper (and in the
mergekit that the evolutionary merging paper used), so that the L1 norm is preserved in mergekit today.

Unlike mergekit, coefficients are never rounded to the checkpoint's dtype, and elements tied in magnitude are
kept or dropped together: which of two equal elements survives does not depend on a memory layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.merge.field import uniform_field
from jevomerge.merge.method import Coefficients, MergeMethod, Parameter, float32, weighted_sum

# A tensor up to this size is trimmed exactly; of a larger one every k-th magnitude is kept, so that the share
# kept is off by at most 1/65536 and the table stays small next to the tensor.
TABLE_SIZE = 1 << 16


def task_vectors(sources: Sequence[Array], base: Array) -> list[Array]:
    """x_i - base, in float32."""
    return [float32(x) - float32(base) for x in sources]


# --- magnitude trimming -------------------------------------------------------------------------------------


def prepare_magnitudes(sources: Sequence[Array], base: Array | None) -> Array:
    """(N, min(size, TABLE_SIZE)) magnitudes of each task vector in descending order, evenly thinned."""
    assert base is not None
    return jnp.stack([_thin(_descending(jnp.abs(d).reshape(-1))) for d in task_vectors(sources, base)])


def _descending(x: Array) -> Array:
    # XLA's sort on a CPU takes 59 times as long as NumPy's (experiments/bench_kernels).
    if jax.default_backend() == "cpu":
        return jnp.asarray(np.sort(np.asarray(x))[::-1])
    return jnp.sort(x, descending=True)


def _thin(descending: Array) -> Array:
    size = descending.size
    if size <= TABLE_SIZE:
        return descending
    return descending[np.round(np.linspace(0, size - 1, TABLE_SIZE)).astype(np.int32)]


def pool_magnitudes(prepared: list[tuple[Any, int]]) -> list[Any]:
    """One table per source over the whole parameter vector, from the tensors' tables (TIES as in the paper)."""
    sizes = [size for _, size in prepared]
    tables = []
    for source in range(prepared[0][0].shape[0]):
        values = np.concatenate([np.asarray(table[source]) for table, _ in prepared])
        # An entry of a thinned table stands for size / TABLE_SIZE elements.
        weights = np.concatenate(
            [np.full(t.shape[1], n / t.shape[1]) for (t, _), n in zip(prepared, sizes, strict=True)]
        )
        order = np.argsort(-values, kind="stable")
        values, rank = values[order], np.cumsum(weights[order])
        entries = min(sum(sizes), TABLE_SIZE)
        wanted = np.linspace(1, sum(sizes), entries)
        tables.append(values[np.minimum(np.searchsorted(rank, wanted - 1e-6), values.size - 1)])
    pooled = jnp.asarray(np.stack(tables))
    return [(pooled, jnp.float32(sum(sizes)))] * len(prepared)


def trim(delta: Array, density: Array, table: Array, size: Array) -> Array:
    """The `density * size` largest elements of a task vector (equal ones together), the rest zero.

    `table` holds the magnitudes among all `size` elements, descending, possibly thinned.
    """
    kept = jnp.floor(density * size + 1e-3)  # 0.29 * 100 is 28.999999 in floating point
    at = (kept - 1) * ((table.size - 1) / jnp.maximum(size - 1, 1.0))
    below = jnp.clip(jnp.floor(at), 0, table.size - 1)
    fraction = jnp.clip(at - below, 0.0, 1.0)
    low = table[below.astype(jnp.int32)]
    high = table[jnp.minimum(below + 1, table.size - 1).astype(jnp.int32)]
    threshold = low + fraction * (high - low)
    keep = (jnp.abs(delta) >= threshold) & (kept >= 1)
    return jnp.where(keep | (density >= 1), delta, 0.0)


# --- combination --------------------------------------------------------------------------------------------


def combine(base: Array, deltas: Sequence[Array], coefficients: Coefficients, *, elect_sign: bool) -> Array:
    """Base plus lambda times the weighted sum of task vectors, or of those that agree with the elected sign.

    The sign of an element is that of its weighted sum (ties: +); normalisation divides by the sum of the
    weights that took part.
    """
    weights = list(coefficients["weight"])
    if elect_sign:
        positive = weighted_sum(weights, deltas) >= 0
        # Comparing w * d with zero by signs avoids forming the product twice.
        agree = [jnp.where(positive, w * d > 0, w * d < 0) for w, d in zip(weights, deltas, strict=True)]
        deltas = [jnp.where(a, d, 0.0) for a, d in zip(agree, deltas, strict=True)]
        divisor = weighted_sum(weights, [float32(a) for a in agree])
        divisor = jnp.where(divisor == 0, 1.0, divisor)
    else:
        total = sum(weights[1:], weights[0])
        divisor = jnp.where(jnp.abs(total) < 1e-8, 1.0, total)
    mixed = weighted_sum(weights, deltas)
    mixed = jnp.where(coefficients["normalize"] > 0, mixed / divisor, mixed)
    return float32(base) + coefficients["lambda"] * mixed


def _rescale_l1(masked: Array, delta: Array) -> Array:
    """Give the masked delta the L1 norm it had (mergekit's `rescale`), unless one of them vanishes."""
    before, after = jnp.sum(jnp.abs(delta)), jnp.sum(jnp.abs(masked))
    return jnp.where((before < 1e-7) | (after < 1e-7), 1.0, before / jnp.maximum(after, 1e-30))


Sparsify = Callable[[int, Array, Coefficients, Any, Array], Array]


def _keep_all(i: int, delta: Array, coefficients: Coefficients, prepared: Any, keys: Array) -> Array:
    return delta


def _keep_largest(i: int, delta: Array, coefficients: Coefficients, prepared: Any, keys: Array) -> Array:
    table, size = prepared if isinstance(prepared, tuple) else (prepared, jnp.float32(delta.size))
    kept = trim(delta, coefficients["density"][i], table[i], size)
    # A cond, because `rescale` is off by default and costs two reductions.
    factor = jax.lax.cond(coefficients["rescale"] > 0, _rescale_l1, lambda *_: jnp.float32(1.0), kept, delta)
    return kept * factor


def _keep_random(rescale_l1: bool) -> Sparsify:
    def sparsify(i: int, delta: Array, coefficients: Coefficients, prepared: Any, keys: Array) -> Array:
        density = coefficients["density"][i]
        kept = jnp.where(uniform_field(keys[i], delta.shape) < density, delta, 0.0)
        factor = _rescale_l1(kept, delta) if rescale_l1 else 1 / jnp.maximum(density, 1e-6)
        return kept * jnp.where((coefficients["rescale"] > 0) & (density < 1), factor, 1.0)

    return sparsify


def _method(
    name: str, sparsify: Sparsify, *, elect_sign: bool, normalize: bool, rescale: bool | None, **extra: Any
) -> MergeMethod:
    """A member of the family; `rescale` None: it does not sparsify."""

    def merge(
        sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
    ) -> Array:
        assert base is not None
        deltas = [
            sparsify(i, delta, coefficients, prepared, keys) for i, delta in enumerate(task_vectors(sources, base))
        ]
        return combine(base, deltas, coefficients, elect_sign=elect_sign)

    parameters = [
        Parameter("weight", None, per_model=True),
        Parameter("normalize", float(normalize), kind="bool"),
        Parameter("lambda", 1.0),
    ]
    if rescale is not None:
        parameters += [Parameter("density", 1.0, per_model=True), Parameter("rescale", float(rescale), kind="bool")]
    return MergeMethod(name, tuple(parameters), merge, base="required", **extra)


TASK_ARITHMETIC = _method("task_arithmetic", _keep_all, elect_sign=False, normalize=False, rescale=None)
_TIES: dict[str, Any] = {"elect_sign": True, "normalize": True, "rescale": False, "prepare": prepare_magnitudes}
TIES = _method("ties", _keep_largest, **_TIES)
TIES_PAPER = _method("ties", _keep_largest, **_TIES, pool=pool_magnitudes)
DARE_LINEAR, DARE_LINEAR_PAPER, DARE_TIES, DARE_TIES_PAPER = (
    _method(name, _keep_random(rescale_l1=l1), elect_sign=elect, normalize=False, rescale=True)
    for name, elect in (("dare_linear", False), ("dare_ties", True))
    for l1 in (True, False)
)
