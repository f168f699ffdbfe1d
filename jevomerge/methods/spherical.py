"""Methods that treat a tensor as a vector on a sphere.

    slerp        the great circle through two models               (Shoemake, 1985)
    nuslerp      the same with weights, row by row, or about a base
    multislerp   a weighted mean direction and a weighted mean length of any number of models
    karcher      the point with the least mean squared angle to all (Karcher, 1977)

All of them return a linear combination of their sources, and its coefficients follow from the sources' lengths
and the angles between them. So these few numbers are prepared once per tensor, and a merge is a computation
on N numbers followed by one weighted sum.

Fine-tuned models are nearly parallel, so the angles are kept as gaps, 1 - cosine: float32 knows a cosine of
0.9999 to three digits of its angle, a gap of 0.0001 to seven.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, task_vectors, weighted_sum
from jevomerge.methods.prepare import on_host, row_blocks

FLAT = 0.9995  # above this |cosine| slerp is linear, as in mergekit
CANCELLED = 1e-3  # vectors whose sum is shorter than this share of their lengths have no direction in float32


class Gram(NamedTuple):
    """Lengths and angles of N vectors; of every row or column where a tensor is that many vectors.

    Attributes:
        norms: (N, ...).
        gaps: (N, N, ...) 1 - cosine: 0 if parallel, 2 if opposite, 1 to a zero vector.
    """

    norms: Array
    gaps: Array


def prepare_gram(sources: Sequence[Array], base: Array | None, axis: int | None = None) -> Gram:
    """Lengths and angles of the sources, or of their task vectors if there is a base.

    `axis` None: a tensor is one vector; -1: every row is one; 0: every column. The further axes of the result
    are those of the tensor, with size 1 along a vector.
    """
    if not on_host(*sources, base):
        return _gram_on_device(task_vectors(sources, base), axis if sources[0].ndim else None)
    return gram_of(inner_products(sources, base, axis))


def gram_of(products: np.ndarray) -> Gram:
    """Lengths and angles from inner products, (N, N, ...) float64."""
    norms = np.sqrt(np.einsum("ii...->i...", products))
    lengths = norms[:, None] * norms[None]
    gaps = 1 - products / np.where(lengths > 0, lengths, 1)
    gaps[np.arange(len(gaps)), np.arange(len(gaps))] = 0
    return Gram(jnp.asarray(norms, jnp.float32), jnp.asarray(np.clip(gaps, 0, 2), jnp.float32))


def inner_products(sources: Sequence[Array], base: Array | None, axis: int | None) -> np.ndarray:
    """(N, N, ...) in float64, which no float32 overflows or underflows."""
    count, shape = len(sources), sources[0].shape
    if axis is not None and len(shape) < 2:
        return inner_products(sources, base, None).reshape(count, count, *(1,) * len(shape))
    if axis == 0:
        sources, base = (
            [x.reshape(shape[0], -1) for x in sources],
            base if base is None else base.reshape(shape[0], -1),
        )
    products: list[Any] = []
    for _, block in row_blocks(sources, base, np.float64):
        flat = block.reshape(count, -1)
        spec = {-1: "irc,jrc->ijr", 0: "irc,jrc->ijc"}
        products.append(flat @ flat.T if axis is None else np.einsum(spec[axis], block, block))
    if axis == -1:
        return np.concatenate(products, axis=-1).reshape(count, count, *shape[:-1], 1)
    return sum(products[1:], products[0]).reshape(count, count, *(() if axis is None else (1, *shape[1:])))


@functools.partial(jax.jit, static_argnums=1)
def _gram_on_device(vectors: list[Array], axis: int | None) -> Gram:
    """In float32: scaled by the largest element first, gaps from differences of unit vectors."""
    total = functools.partial(jnp.sum, axis=axis, keepdims=axis is not None)
    largest = [jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None) for x in vectors]
    vectors = [x / jnp.where(m > 0, m, 1.0) for x, m in zip(vectors, largest, strict=True)]
    norms = [jnp.sqrt(total(x * x)) for x in vectors]
    units = [x / jnp.where(n > 0, n, 1.0) for x, n in zip(vectors, norms, strict=True)]
    apart = [
        jnp.where((n > 0) & (m > 0), total((u - v) ** 2) / 2, 1.0)
        for u, n in zip(units, norms, strict=True)
        for v, m in zip(units, norms, strict=True)
    ]
    count, shape = len(vectors), norms[0].shape
    other = (jnp.eye(count) == 0).reshape(count, count, *(1,) * len(shape))
    gaps = jnp.where(other, jnp.clip(jnp.stack(apart).reshape(count, count, *shape), 0.0, 2.0), 0.0)
    return Gram(jnp.stack([n * m for n, m in zip(norms, largest, strict=True)]), gaps)


def _form(gaps: Array, weights: Array) -> Array:
    """sum_ij w_i gap_ij w_j; |sum_i w_i u_i|^2 of unit vectors is (sum_i w_i)^2 less this."""
    return jnp.sum(weights[:, None] * gaps * weights[None], axis=(0, 1))


# --- two models ---------------------------------------------------------------------------------------------


def _on_circle(t: Array, gap: Array, flat: Array) -> tuple[Array, Array]:
    """Weights of the two ends at t along the arc between them; where `flat`, along the chord."""
    gap = jnp.where(flat, 1.0, gap)
    angle, sine = 2 * jnp.arcsin(jnp.sqrt(gap / 2)), jnp.sqrt(gap * (2 - gap))
    first, last = jnp.sin((1 - t) * angle) / sine, jnp.sin(t * angle) / sine
    return jnp.where(flat, 1 - t, first), jnp.where(flat, t, last)


def merge_slerp(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Gram, keys: Array
) -> Array:
    """sin((1-t) a)/sin a * x_0 + sin(t a)/sin a * x_1 with a the angle between them; t = 0 is x_0.

    `sources`: two arrays of one shape, or one; `t`: (). As in mergekit (1 - t) x_0 + t x_1 if |cos a| > 0.9995, also
    for opposite tensors, and a single source as it is.
    """
    if len(sources) == 1:
        return float32(sources[0])
    gap = prepared.gaps[0, 1]
    weights = _on_circle(coefficients["t"], gap, jnp.abs(1 - gap) > FLAT)
    return weighted_sum(weights, [float32(x) for x in sources])


SLERP = MergeMethod(
    name="slerp",
    parameters=(Parameter("t", None),),
    merge=merge_slerp,
    prepare=lambda sources, base: prepare_gram(sources, None),
    base="first",
    num_sources=(1, 2),
)


def prepare_nuslerp(sources: Sequence[Array], base: Array | None) -> tuple[Gram, Gram, Gram]:
    """Lengths and angles of the whole tensor, of its rows and of its columns."""
    return prepare_gram(sources, base), prepare_gram(sources, base, -1), prepare_gram(sources, base, 0)


def merge_nuslerp(
    sources: Sequence[Array],
    base: Array | None,
    coefficients: Coefficients,
    prepared: tuple[Gram, Gram, Gram],
    keys: Array,
) -> Array:
    """Slerp at t = w_1 / (w_0 + w_1), of the task vectors if there is a base; t = 1/2 if the weights cancel.

    `sources`: two arrays of one shape; `weight`: (2,). `nuslerp_flatten`: a tensor is one vector; otherwise every row
    (last axis), or every column (first axis) if `nuslerp_row_wise`. Vectors within 1e-3 of opposite are interpolated
    linearly; mergekit divides by the float32 sine of pi there.
    """
    weight = coefficients["weight"]
    total = weight[0] + weight[1]
    cancels = jnp.abs(total) < 1e-6
    t = jnp.where(cancels, 0.5, weight[1] / jnp.where(cancels, 1.0, total))

    def at(gram: Gram, sources: Sequence[Array], base: Array | None) -> Array:
        gap = gram.gaps[0, 1]
        flat = (gap < 1e-12) | (2 - gap < CANCELLED**2 / 2)
        merged = weighted_sum(_on_circle(t, gap, flat), task_vectors(sources, base))
        return merged if base is None else float32(base) + merged

    # A switch, because a `where` over rows and columns would make the weights as large as the tensor.
    which = jnp.where(coefficients["nuslerp_flatten"] > 0, 0, jnp.where(coefficients["nuslerp_row_wise"] > 0, 2, 1))
    return jax.lax.switch(which, [functools.partial(at, gram) for gram in prepared], sources, base)


NUSLERP = MergeMethod(
    name="nuslerp",
    parameters=(
        Parameter("weight", None, per_model=True),
        Parameter("nuslerp_flatten", 1.0, kind="bool"),
        Parameter("nuslerp_row_wise", 0.0, kind="bool"),
    ),
    merge=merge_nuslerp,
    prepare=prepare_nuslerp,
    base="optional",
    num_sources=(2, 2),
)


# --- any number of models -----------------------------------------------------------------------------------


def merge_multislerp(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Gram, keys: Array
) -> Array:
    """sum_i w_i |x_i| times the direction of sum_i w_i u_i, u_i = x_i / (|x_i| + eps); about the base if given.

    `sources`: N arrays of one shape; `weight`: (N,). mergekit adds an exponential map, in the tangent space at that
    direction, of the weighted mean of the u_i's tangents. That mean is zero by the choice of the direction, so that
    only its rounding errors and a cosine of eps remain of the map. Vectors that cancel give their weighted sum;
    mergekit raises unless there are two.
    """
    weight, eps = coefficients["weight"], jax.lax.stop_gradient(coefficients["eps"])
    total = jnp.sum(weight)
    weight = weight / jnp.where((coefficients["normalize_weights"] > 0) & (total != 0), total, 1.0)
    divisor = jnp.where(prepared.norms + eps > 0, prepared.norms + eps, 1.0)
    units = weight * (prepared.norms / divisor)
    squared = jnp.sum(units) ** 2 - _form(prepared.gaps, units)
    cancels = squared <= jnp.maximum(eps, CANCELLED * jnp.sum(jnp.abs(units))) ** 2
    length = jnp.sum(weight * prepared.norms) * jnp.cos(eps) / jnp.sqrt(jnp.where(cancels, 1.0, squared))
    factor = jnp.where(cancels, 1.0, jnp.clip(length / divisor, -1e37, 1e37))  # finite next to a vanishing source
    merged = weighted_sum(list(factor * weight), task_vectors(sources, base))
    return merged if base is None else float32(base) + merged


MULTISLERP = MergeMethod(
    name="multislerp",
    parameters=(
        Parameter("weight", None, per_model=True),
        Parameter("normalize_weights", 1.0, kind="bool"),
        Parameter("eps", 1e-8, domain=(1e-8, 1e-4), differentiable=False),
    ),
    merge=merge_multislerp,
    prepare=prepare_gram,
    base="optional",
)


def merge_karcher(
    sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Gram, keys: Array
) -> Array:
    """The Karcher mean of the directions, times the mean length.

    `sources`: N arrays of one shape; coefficients: (). At most `max_iter` steps along the mean logarithm, until it is
    shorter than `tol`; tensors not longer than `tol` have no direction. Steps take no gradient: what they converge to
    depends on no coefficient. A base model does not take part; mergekit averages it in like a source, contrary to its
    documentation.
    """
    tol, max_iter, (norms, gaps) = jax.lax.stop_gradient((coefficients["tol"], coefficients["max_iter"], prepared))
    share = float32(norms > tol)
    share = share / jnp.maximum(jnp.sum(share), 1.0)

    # The mean is sum_i c_i u_i, of unit length: (sum c)^2 = 1 + c gaps c. Every difference of numbers close
    # to one is written in terms of gaps, so that nothing cancels for nearly parallel models.
    def unit(c: Array, otherwise: Array) -> Array:
        squared = jnp.sum(c) ** 2 - _form(gaps, c)
        short = squared <= (CANCELLED * jnp.sum(jnp.abs(c))) ** 2
        return jnp.where(short, otherwise, c / jnp.sqrt(jnp.where(short, 1.0, squared)))

    def logarithm(c: Array) -> tuple[Array, Array]:
        """Coefficients and length of the mean over i of the tangent that leads to u_i."""
        form = _form(gaps, c)
        below = -form / (1 + jnp.sqrt(1 + form))  # 1 - sum c
        gap = jnp.clip(jnp.sum(gaps * c[None], axis=1) + below, 0.0, 2.0)
        angle, sine = 2 * jnp.arcsin(jnp.sqrt(gap / 2)), jnp.sqrt(gap * (2 - gap))
        leads = (angle >= tol) & (sine > CANCELLED * gap)  # nowhere from where it is, nor to the opposite point
        pull = jnp.where(leads, share * angle / jnp.where(leads, sine, 1.0), 0.0)
        tangent = pull - c * jnp.sum(pull * (1 - gap))
        rest = jnp.sum(pull * (below + (1 - below) * gap))  # sum of tangent
        return tangent, jnp.sqrt(jnp.maximum(rest**2 - _form(gaps, tangent), 0.0))

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        done, c, tangent, length = state
        c = unit(jnp.cos(length) * c + jnp.sin(length) / length * tangent, c)
        return done + 1, c, *logarithm(c)

    first = jnp.where(jnp.arange(len(sources)) == jnp.argmax(share), 1.0, 0.0)
    start = unit(share, first)
    _, c, _, _ = jax.lax.while_loop(
        lambda state: (state[0] < max_iter) & (state[3] >= tol) & (state[3] > 0),
        step,
        (jnp.float32(0), start, *logarithm(start)),
    )
    weights = jnp.where(share > 0, c / jnp.where(share > 0, norms, 1.0), 0.0)
    return jnp.mean(norms) * weighted_sum(list(weights), [float32(x) for x in sources])


KARCHER = MergeMethod(
    name="karcher",
    parameters=(
        Parameter("max_iter", 10.0, domain=(1.0, 50.0), kind="int"),
        Parameter("tol", 1e-5, domain=(1e-8, 1e-3), differentiable=False),
    ),
    merge=merge_karcher,
    prepare=lambda sources, base: prepare_gram(sources, None),
)
