"""Model Stock: fine-tuned models averaged, and the average drawn towards their base (Jang et al., 2024).

https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, weighted_sum
from jevomerge.methods.prepare import on_host
from jevomerge.methods.spherical import Gram, gram_of, inner_products, prepare_gram

SHORT = 1e-6  # mergekit counts task vectors whose lengths multiply to less than this as more orthogonal


def prepare_model_stock(sources: Sequence[Array], base: Array | None) -> tuple[Gram, Gram]:
    """Lengths and angles of the task vectors, and of their rows."""
    if not on_host(*sources, base):
        return prepare_gram(sources, base), prepare_gram(sources, base, -1)
    rows = inner_products(sources, base, -1)  # once is enough: the whole tensor's are their sums
    return gram_of(rows.sum(axis=tuple(range(2, rows.ndim)))), gram_of(rows)


def merge_model_stock(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: tuple[Gram, Gram], keys: Array
) -> Array:
    """t mean_i(x_i) + (1 - t) base, t = N c / (1 + (N - 1) c), c the mean cosine between two task vectors.

    `sources`: N arrays of the base's shape. t is of the whole tensor, or of every row if `filter_wise`. Where the
    denominator vanishes (opposite task vectors) it is the base.
    """
    assert base is not None
    whole, rows = (_ratio(gram) for gram in prepared)
    t = jnp.where(coefficients["filter_wise"] > 0, rows, whole)
    count = len(sources)
    return weighted_sum([1 - t, *[t / count] * count], [float32(x) for x in (base, *sources)])


def _ratio(gram: Gram) -> Array:
    """The paper's interpolation ratio t, (...) for a gram of norms (N, ...)."""
    norms, gaps = gram
    count = norms.shape[0]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosines = [(1 - gaps[i, j]) * jnp.minimum(norms[i] / SHORT * norms[j], 1.0) for i, j in pairs]
    cosine = sum(cosines[1:], cosines[0]) / len(pairs)
    below = 1 + (count - 1) * cosine
    singular = jnp.abs(below) < 1e-6
    return jnp.where(singular, 0.0, count * cosine / jnp.where(singular, 1.0, below))


MODEL_STOCK = MergeMethod(
    name="model_stock",
    parameters=(Parameter("filter_wise", 0.0, kind="bool"),),
    merge=merge_model_stock,
    prepare=prepare_model_stock,
    base="required",
    num_sources=(2, None),
)
