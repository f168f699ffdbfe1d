"""A fixed field of uniform numbers per source and tensor: the randomness of DARE, without a random device.

A candidate's density moves a threshold over the field, so the fitness landscape is deterministic and masks
are nested: what density 0.3 keeps, 0.5 keeps too. The field depends only on the run's seed, the source's
name and the tensor's name, never on an order, a host or a shape of a mesh, and it is recomputed from a
counter wherever it is needed instead of being stored (ten times faster than `jax.random` on a CPU,
see experiments/bench_kernels: every candidate needs one number per parameter and source).
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def merge_keys(seed: int, source: str, tensor: str) -> np.ndarray:
    """(2,) uint32 key of the field of one tensor of one source."""
    digest = hashlib.blake2s(f"{seed}\0{source}\0{tensor}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4").copy()


def uniform_field(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers in [0, 1), float32, one per element in row-major order.

    Two keyed rounds of a 32-bit integer finaliser (the xorshift-multiply hash found by C. Wellons' search,
    "lowbias32", bias 0.17) over the element's index.
    """
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    bits = _mix(_mix(index ^ key[0]) + key[1])
    return ((bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)).reshape(shape)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
