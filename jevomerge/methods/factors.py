"""The two matrices of LoRA adapters merged each by itself, as PEFT's `add_weighted_adapter` does with one rank.

What comes out is of that rank too, but no sum of what the adapters add: of two with equal weights, B_1 A_2 is in it as
well. A method merges task vectors, which here are the matrices themselves; each side takes the root of an adapter's
weight and scale, and A their sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod

OTHER = 0x9E3779B9  # what the keys of B's random fields differ by from A's


def has_factors(method: MergeMethod) -> bool:
    """Whether a method can merge them: one of weighted task vectors, each tensor by itself."""
    return method.base == "required" and method.pool is None and any(p.name == "weight" for p in method.parameters)


def even_factors(downs: Sequence[Array], ups: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """N times A (r, I) and B (O, r) of one rank, or of none, of which zeros are made."""
    rank = max(x.shape[0] for x in downs)
    return (
        [jnp.pad(x, ((0, rank - x.shape[0]), (0, 0))) for x in downs],
        [jnp.pad(x, ((0, 0), (0, rank - x.shape[1]))) for x in ups],
    )


def prepare_factors(method: MergeMethod, downs: Sequence[Array], ups: Sequence[Array], scales: Array) -> Any:
    """What depends on no coefficient; arguments as of `merge_factors`, `scales`: (N,) of the adapters."""
    return scales, *(method.prepare(xs, jnp.zeros_like(xs[0])) for xs in (downs, ups))


def merge_factors(
    method: MergeMethod, downs: Sequence[Array], ups: Sequence[Array], own: Coefficients, prepared: Any, keys: Array
) -> tuple[Array, Array]:
    """N times A (R, I), N times B (O, R) -> those of the result, float32.

    Args:
        method: as in recipes.
        downs: A; zeros of an adapter that has none here.
        ups: B, without its scale.
        own: the method's coefficients; `lambda` is a part of all weights.
        prepared: by `prepare_factors`.
        keys: (N, 2) of the random fields of A, from which those of B follow.
    """
    scales, *shares = prepared
    signed = own["weight"] * own.get("lambda", 1.0) * scales
    size = jnp.abs(signed)
    root = jnp.where(size > 0, jnp.sqrt(jnp.where(size > 0, size, 1.0)), 0.0)  # whose gradient is finite
    sides = (downs, jnp.sign(signed) * root, shares[0], keys), (ups, root, shares[1], keys ^ jnp.uint32(OTHER))
    found = []
    for xs, weight, share, key in sides:
        coefficients = {**own, **({"lambda": jnp.float32(1)} if "lambda" in own else {}), "weight": weight}
        found.append(method.merge(xs, jnp.zeros_like(xs[0]), coefficients, share, key))
    return found[0], found[1]
