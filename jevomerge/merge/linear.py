"""Weighted averages of models (model soups, Wortsman et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.merge.method import Coefficients, MergeMethod, Parameter, float32, weighted_sum


def merge_linear(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """sum_i w_i x_i, divided by sum_i w_i if `normalize` (and if that sum is not zero)."""
    weights = coefficients["weight"]
    total = weights.sum()
    divide = (coefficients["normalize"] > 0) & (total != 0)
    weights = weights / jnp.where(divide, total, 1.0)
    return weighted_sum(list(weights), [float32(x) for x in sources])


LINEAR = MergeMethod(
    name="linear",
    parameters=(Parameter("weight", None, per_model=True), Parameter("normalize", 1.0, kind="bool")),
    merge=merge_linear,
)
