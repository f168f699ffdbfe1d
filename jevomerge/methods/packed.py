"""Task vectors in eight bits: each row of a matrix as whole numbers from -127 to 127 and the size of their step.

Two of them are stored as one number of 16 bits, half a row, or half a column, apart: XLA moves arrays of that type from
the memory of the host layer by layer, but makes a copy of the whole of one of int8 (compiled for a TPU v5e by libtpu
0.0.52). As bfloat16, which it moves too, some words would be no numbers, and do not always arrive as they were.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jevomerge.models.specs import ParamSpec

MOST = 127
WORD = np.dtype(np.int16)


@flax.struct.dataclass
class Packed:
    """A leaf of a source, as it differs from another one: a pytree that scans over its leading axes."""

    words: Any  # (..., R, C / 2) int16, or (..., R / 2, C): the first half in the low bits
    step: Any  # (..., R, 1) float32
    axis: Literal[-1, -2] = flax.struct.field(pytree_node=False, default=-1)  # which is half as long


def packs(spec: ParamSpec) -> bool:
    """Whether a leaf is packed: matrices are, but for those with a row for every token."""
    return len(spec.shape) == 2 and not spec.vocabulary and not any(n % 2 for n in spec.shape)


def places_of(spec: ParamSpec, where: NamedSharding) -> Packed:
    """Where the parts of a packed leaf lie, of one that lies at `where`: halves are of an axis that is not split."""
    *rows, columns = (*where.spec, *[None] * len(spec.leaf_shape))[: len(spec.leaf_shape)]
    step = NamedSharding(where.mesh, P(*rows, None), memory_kind=where.memory_kind)
    return Packed(where, step, -1 if columns is None else -2)


def pack(x: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(R, C) of a source and of what it is counted from -> whole numbers, step, squared norms of error and difference.

    The error of an element is at most half a step, a 254th of the largest difference in its row.
    """
    delta = x.astype(np.float32) - origin.astype(np.float32)
    step = np.abs(delta).max(axis=1, keepdims=True) / np.float32(MOST)
    size = float(np.vdot(delta, delta))
    scaled = delta / np.where(step > 0, step, np.float32(1))
    whole = np.rint(scaled).astype(np.int8)
    scaled -= whole
    scaled *= step
    return whole, step, float(np.vdot(scaled, scaled)), size


def words_of(whole: np.ndarray, axis: int) -> np.ndarray:
    """Whole numbers two by two, along an axis."""
    low, high = np.split(whole, 2, axis)
    return low.view(np.uint8).astype(WORD) | (high.astype(WORD) << 8)


def unpack(packed: Packed, origin: Array) -> Array:
    """(..., R, C) of the source in float32, from those of what it is counted from."""
    words = packed.words.astype(jnp.int32)
    whole = jnp.concatenate([(words << 24) >> 24, words >> 8], axis=packed.axis)
    return origin.astype(jnp.float32) + whole.astype(jnp.float32) * packed.step


def unpacked(inputs: list[Any], base: Any) -> list[Any]:
    """Sources of a tensor, those that are packed in float32: they are counted from the base, or from the first."""
    origin = inputs[0] if base is None else base
    return [unpack(x, origin) if isinstance(x, Packed) else x for x in inputs]
