"""Weighted averages of models (model soups, Wortsman et al., 2022, https://arxiv.org/abs/2203.05482), and one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, weighted_sum


def merge_linear(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """sum_i w_i x_i, divided by sum_i w_i if `normalize` (and if that sum is not zero).

    `sources`: N arrays of one shape; `weight`: (N,). Weights of one give the paper's uniform soup. Weights are float32
    whatever the checkpoint's dtype, to which mergekit rounds them.
    """
    weights = coefficients["weight"]
    total = jnp.sum(weights, axis=0)
    divide = (coefficients["normalize"] > 0) & (total != 0)
    weights = weights / jnp.where(divide, total, 1.0)[None]
    return weighted_sum(list(weights), [float32(x) for x in sources])


LINEAR = MergeMethod(
    name="linear",
    parameters=(Parameter("weight", None, per_model=True), Parameter("normalize", 1.0, kind="bool")),
    merge=merge_linear,
    linear=True,
)


def merge_passthrough(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
) -> Array:
    """scale * x: one source as it is, for models stacked from slices; `sources`: one array, `scale`: (1,)."""
    return coefficients["scale"][0] * float32(sources[0])


PASSTHROUGH = MergeMethod(
    name="passthrough",
    parameters=(Parameter("scale", 1.0, per_model=True, domain=(0.0, 2.0)),),
    merge=merge_passthrough,
    num_sources=(1, 1),
)
