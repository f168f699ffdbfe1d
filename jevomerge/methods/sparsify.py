"""What the methods on task vectors keep of one: the largest elements, all but the largest, a random share.

    trim          the largest                                       (TIES, Yadav et al., 2023)
    breadcrumbs   the largest but for the very largest              (Davari and Belilovsky, 2023)
    dare          a random share                                    (Yu et al., 2024)
    della         a random share, the larger the likelier           (Deep et al., 2024)

A density is looked up in what was prepared once: sorted magnitudes, or ranks within a row. Elements tied in
magnitude are kept or dropped together: which of two equal elements survives depends on no memory layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.methods.field import uniform_field
from jevomerge.methods.method import Coefficients, float32
from jevomerge.methods.prepare import TABLE_SIZE, look_up, on_host, row_blocks, thin, traced, whole

# (delta, its coefficients, its share of the preparation, its key) -> (mask, probability that an element is kept)
Keep = Callable[[Array, Coefficients, Any, Array], tuple[Array, Array]]
VANISHES = 1e-7  # task vectors with a smaller L1 norm are not rescaled


class Magnitudes(NamedTuple):
    """Sorted magnitudes of a task vector.

    Attributes:
        table: (min(size, TABLE_SIZE),) descending, evenly thinned.
        size: () the number of elements it stands for, float32.
    """

    table: Array
    size: Array


def prepare_magnitudes(sources: Sequence[Array], base: Array | None) -> list[Magnitudes]:
    """Sort the task vectors by magnitude, one after the other and in place."""
    assert base is not None
    return [Magnitudes(thin(_descending(x, base)), jnp.float32(x.size)) for x in sources]


def _descending(x: Array, base: Array) -> np.ndarray | Array:
    if not on_host(x, base):
        return jnp.sort(jnp.abs(float32(x) - float32(base)).reshape(-1), descending=True)
    magnitudes = np.empty(x.size, np.float32)
    flat = magnitudes.reshape(-1, x.shape[-1] if x.ndim else 1)
    for rows, (block,) in row_blocks([x], base, np.float32):
        np.abs(block, out=flat[rows])
    magnitudes.sort()
    return magnitudes[::-1]


def pool_magnitudes(prepared: list[tuple[list[Magnitudes], int]]) -> list[list[Magnitudes]]:
    """One table per source over the whole parameter vector, from the tensors' tables (TIES as in the paper)."""
    sizes = [size for _, size in prepared]
    pooled = []
    for source in range(len(prepared[0][0])):
        tables = [tensor[source].table for tensor, _ in prepared]
        xp: Any = jnp if traced(*tables) else np  # NumPy sums in float64
        values = xp.concatenate([xp.asarray(t) for t in tables])
        # An entry of a thinned table stands for size / TABLE_SIZE elements.
        weights = np.concatenate([np.full(t.size, n / t.size) for t, n in zip(tables, sizes, strict=True)])
        order = xp.argsort(-values, stable=True)
        values, rank = values[order], xp.cumsum(xp.asarray(weights)[order])
        wanted = np.linspace(1, sum(sizes), min(sum(sizes), TABLE_SIZE)) - 1e-6
        table = values[xp.minimum(xp.searchsorted(rank, xp.asarray(wanted)), values.size - 1)]
        pooled.append(Magnitudes(jnp.asarray(table), jnp.float32(sum(sizes))))
    return [pooled] * len(prepared)


def trim(delta: Array, coefficients: Coefficients, prepared: Magnitudes, key: Array) -> tuple[Array, Array]:
    """Keep the density * size largest elements, at least one (TIES, algorithm 1, step 1: trim)."""
    density = coefficients["density"]
    kept = jnp.maximum(whole(density, prepared.size), 1.0)
    large = jnp.abs(delta) >= look_up(prepared.table, prepared.size, kept)
    return (large & (density > 0)) | (density >= 1), density


def breadcrumbs(delta: Array, coefficients: Coefficients, prepared: Magnitudes, key: Array) -> tuple[Array, Array]:
    """Keep the density * size largest elements after the gamma * size largest, which are outliers.

    The outliers are fewer where not enough elements are left to keep. mergekit up to 0.1.4 keeps nothing of a
    tensor in which gamma * size is less than one element.
    """
    density, size = coefficients["density"], prepared.size
    kept = jnp.minimum(whole(density, size), size)
    outliers = jnp.clip(whole(coefficients["gamma"], size), 0.0, size - kept)
    largest = look_up(prepared.table, size, outliers + 1)
    smallest = look_up(prepared.table, size, outliers + kept)
    magnitude = jnp.abs(delta)
    return (magnitude <= largest) & (magnitude >= smallest) & (kept >= 1), density


def dare(delta: Array, coefficients: Coefficients, prepared: Any, key: Array) -> tuple[Array, Array]:
    """Keep an element with probability density, one minus the drop rate p of the paper."""
    density = coefficients["density"]
    return uniform_field(key, delta.shape) < density, density


def prepare_ranks(sources: Sequence[Array], base: Array | None) -> list[Array]:
    """Rank of every element's magnitude within its row (last axis), 0 the smallest, as small integers; per source."""
    assert base is not None
    return [_ranks(x, base) for x in sources]


def _ranks(x: Array, base: Array) -> Array:
    width = x.shape[-1] if x.ndim else 1
    dtype = next(t for t in (np.uint8, np.uint16, np.uint32) if width - 1 <= np.iinfo(t).max)
    if not x.ndim:
        return jnp.zeros((), dtype)
    if not on_host(x, base):
        return jnp.argsort(jnp.argsort(jnp.abs(float32(x) - float32(base)), axis=-1), axis=-1).astype(dtype)
    ranks = np.empty((x.size // width, width), dtype)
    for rows, (block,) in row_blocks([x], base, np.float32):
        order = np.argsort(np.abs(block, out=block), axis=-1, kind="stable")
        np.put_along_axis(ranks[rows], order, np.arange(width, dtype=dtype)[None], axis=-1)
    return jnp.asarray(ranks.reshape(x.shape))


def della(half_width: float) -> Keep:
    """Keep an element with probability density + h (2 rank / (n - 1) - 1), h = epsilon * half_width (MagPrune).

    `rank` is that of its magnitude in its row of n. Probabilities are clipped to [0, 1], where mergekit
    raises; density >= 1 keeps everything, density <= 0 nothing. In a row of one element the probability is
    the density; mergekit divides by zero.
    """

    def keep(delta: Array, coefficients: Coefficients, ranks: Array, key: Array) -> tuple[Array, Array]:
        density, h = coefficients["density"], half_width * coefficients["epsilon"]
        last = (delta.shape[-1] if delta.ndim else 1) - 1
        place = float32(ranks) * (2 / last) - 1 if last else jnp.zeros_like(delta)
        probability = jnp.clip(density + h * place, 0.0, 1.0)
        probability = jnp.where(density >= 1, 1.0, jnp.where(density <= 0, 0.0, probability))
        return uniform_field(key, delta.shape) < probability, probability

    return keep


def sparsify(
    keep: Keep, x: Array, base: Array, coefficients: Coefficients, prepared: Any, key: Array, *, preserve_l1: bool
) -> Array:
    """What `keep` keeps of x - base, scaled up if `rescale`.

    `preserve_l1`: to the L1 norm it had, as in mergekit; otherwise by 1/probability, as in the papers.
    """

    def masked(x: Array, base: Array) -> tuple[Array, Array, Array]:
        delta = float32(x) - float32(base)
        mask, probability = keep(delta, coefficients, prepared, key)
        return delta, jnp.where(mask, delta, 0.0), probability

    _, kept, probability = masked(x, base)
    rescale = coefficients["rescale"] > 0
    if not preserve_l1:  # "drop and rescale" of DARE, 1 / (1 - p), and of DELLA
        return kept * jnp.where(rescale, 1 / jnp.clip(probability, 1e-6, 1.0), 1.0)
    # A cond, because two reductions cost as much as the merge; it computes the mask again rather than keep it.
    return kept * jax.lax.cond(rescale, lambda *xs: _l1_ratio(*masked(*xs)[:2]), lambda *_: jnp.float32(1), x, base)


def _l1_ratio(delta: Array, kept: Array) -> Array:
    # Means, because sums overflow; 3e38 is the largest float32.
    parts, zero = tuple(jnp.atleast_1d(jnp.abs(x) * (1 / x.size)) for x in (delta, kept)), jnp.float32(0)
    # Both sums in one reduction: apart, XLA would keep whole tensors from one to the other.
    rows = jax.lax.reduce(parts, (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (parts[0].ndim - 1,))
    before, after = (jnp.sum(row) for row in rows)
    vanishes = jnp.minimum(before, after) < VANISHES / delta.size
    return jnp.where(vanishes, 1.0, jnp.minimum(before / jnp.where(vanishes, 1.0, after), 3e38))
