"""What preparations share: on a CPU they run in NumPy, block by block, and never copy more than one tensor.

XLA's sort takes many times as long as NumPy's there (experiments/bench_kernels) and its sums are in float32.
Elsewhere the same is written in jax.numpy, so that a sharded tensor never has to come to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# A table of sorted values up to this size is exact; of more values every k-th is kept, so that a share of the
# elements is off by at most 1/65536 and the table stays small next to the tensor.
TABLE_SIZE = 1 << 16
BLOCK = 1 << 18  # elements worked on at a time: they fit a core's cache in float64


def traced(*arrays: Any) -> bool:
    """Whether one of them has no value yet, inside jit, vmap or grad."""
    return any(isinstance(x, jax.core.Tracer) for x in arrays)


def on_host(*arrays: Any) -> bool:
    """Whether arrays live in this process's memory, where NumPy reads them without a copy; tracers do not."""
    return jax.default_backend() == "cpu" and jax.process_count() == 1 and not traced(*arrays)


def row_blocks(arrays: Sequence[Array], base: Array | None, dtype: type) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, (N, R, C) block) of the N arrays, minus `base` if given, as matrices (rows, last axis) of `dtype`."""
    width = arrays[0].shape[-1] if arrays[0].ndim else 1
    matrices = [np.asarray(x).reshape(-1, width) for x in arrays]
    origin = None if base is None else np.asarray(base).reshape(-1, width)
    step = max(1, BLOCK // max(1, width * len(matrices)))
    for start in range(0, matrices[0].shape[0], step):
        rows = slice(start, start + step)
        block: np.ndarray = np.stack([m[rows].astype(dtype) for m in matrices])
        if origin is not None:
            block -= origin[rows].astype(dtype)
        yield rows, block


def totals(f: Callable[..., list[Array]], arrays: Sequence[Array]) -> list[Array]:
    """Sums over a tensor of the N arrays `f` makes of `arrays`, elementwise; for use in jit.

    On a CPU block by block: XLA would keep whole tensors between one sum and the next.
    """
    size = arrays[0].size
    blocks = max(1, -(-size // BLOCK))
    if blocks == 1 or not on_host():
        return [jnp.sum(x) for x in f(*arrays)]
    while size % blocks:
        blocks += 1
    rows = [x.reshape(blocks, -1) for x in arrays]
    _, sums = jax.lax.scan(lambda _, row: ((), [jnp.sum(x) for x in f(*row)]), (), rows)
    return [jnp.sum(x) for x in sums]


def thin(descending: np.ndarray | Array) -> Array:
    """(min(size, TABLE_SIZE),) of the sorted values, evenly spaced from the first to the last."""
    size = descending.shape[0]
    if size > TABLE_SIZE:
        descending = descending[np.round(np.linspace(0, size - 1, TABLE_SIZE)).astype(np.int32)]
    return jnp.asarray(descending)


def look_up(table: Array, size: Array, rank: Array) -> Array:
    """The `rank`-th largest of `size` values (the first is 1), of which `table` is what `thin` kept."""
    at = (rank - 1) * ((table.size - 1) / jnp.maximum(size - 1, 1.0))
    below = jnp.clip(jnp.floor(at), 0, table.size - 1)
    fraction = jnp.clip(at - below, 0.0, 1.0)
    low = table[below.astype(jnp.int32)]
    high = table[jnp.minimum(below + 1, table.size - 1).astype(jnp.int32)]
    return low + fraction * (high - low)


def whole(share: Array, size: Array) -> Array:
    """int(share * size), also where floating point makes 0.29 * 100 a 28.999999."""
    return jnp.floor(share * size + 1e-3)
