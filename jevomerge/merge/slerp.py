"""Spherical linear interpolation of two models (Shoemake, 1985), each tensor taken as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.merge.method import Coefficients, MergeMethod, Parameter, float32

PARALLEL = 0.9995  # above this |cosine| the sphere is flat: mergekit interpolates linearly, and so do we


def prepare_slerp(sources: Sequence[Array], base: Array | None) -> Array:
    """The cosine between the two tensors: all that slerp needs to know about them as a whole."""
    a, b = (float32(jnp.asarray(x)).reshape(-1) for x in sources)
    scale = [jnp.max(jnp.abs(x)) for x in (a, b)]  # huge and denormal vectors must not over- or underflow
    a, b = (x / jnp.where(m > 0, m, 1.0) for x, m in zip((a, b), scale, strict=True))
    norms = jnp.sqrt(jnp.sum(a * a)) * jnp.sqrt(jnp.sum(b * b))
    return jnp.sum(a * b) / jnp.where(norms > 0, norms, 1.0)


def merge_slerp(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """sin((1-t) a)/sin a * x_0 + sin(t a)/sin a * x_1 with a the angle between them; t = 0 is x_0."""
    t = coefficients["t"]
    flat = jnp.abs(prepared) > PARALLEL
    angle = jnp.arccos(jnp.where(flat, 0.0, prepared))
    w0 = jnp.where(flat, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    w1 = jnp.where(flat, t, jnp.sin(t * angle) / jnp.sin(angle))
    return w0 * float32(sources[0]) + w1 * float32(sources[1])


SLERP = MergeMethod(
    name="slerp",
    parameters=(Parameter("t", None),),
    merge=merge_slerp,
    prepare=prepare_slerp,
    base="first",
    num_sources=(2, 2),
)
