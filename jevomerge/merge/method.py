"""What a merge method is: two pure functions and a description of their parameters.

An example of ten lines is in the README ("Your own").  Three rules keep a method usable everywhere (in jit, in the
layer scan, under vmap, file by file): compute in float32 and do not branch in Python on a coefficient (`jnp.where`);
put what is slow and does not depend on coefficients (norms, sorted values) into `prepare`; draw random numbers only
from `uniform_field(keys[i], shape)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

Coefficients = Mapping[str, Array]


class Parameter(NamedTuple):
    """A coefficient of a method.

    `per_model` ones arrive in `merge` as one value per source, (N,), the others as a scalar; all float32.
    `linear` and the methods of `task_arithmetic` also take (N, 1, D) or (N, R, 1) for a tensor (R, D): a value
    per column or row.
    """

    name: str
    default: float | None  # None: the user must give it
    per_model: bool = False
    domain: tuple[float, float] = (0.0, 1.0)  # where a gene for it lives unless the config says otherwise
    kind: Literal["float", "int", "bool"] = "float"  # a bool is 0 or 1
    differentiable: bool = True  # a float whose gradient is that of the merge; elsewhere gradients are finite


class MergeMethod(NamedTuple):
    """A way to make one tensor out of the same tensor of several models.

    Attributes:
        name: as in recipes.
        parameters: its coefficients.
        merge: `(sources, base, coefficients, prepared, keys) -> leaf`, pure, in float32, one tensor without
            the layer axis.  `sources` is a sequence of N arrays in their stored dtype, `keys` is (N, 2) uint32
            (see `merge_keys`).  Unless `base` is "first" the order of the sources must not matter.
        prepare: `(sources, base) -> prepared`, a pytree of arrays: whatever does not depend on coefficients.
            Runs once per run and tensor, outside jit.
        pool: `[(prepared, size)] -> [prepared]`, over all tensors of the model, for methods whose
            preparation looks at the whole parameter vector.
        base: what a recipe's `base_model` is to the method.  "required": the origin of the sources' task
            vectors, not one of them; "optional": the same if it is given; "first": one of the sources, which
            then comes first; "none": nothing, it only lends its configuration and tokenizer.
        num_sources: the fewest and the most sources (None: no limit), not counting the base.
        stochastic: whether `merge` draws from the random field.
    """

    name: str
    parameters: tuple[Parameter, ...]
    merge: Callable[[Sequence[Array], Array | None, Coefficients, Any, Array], Array]
    prepare: Callable[[Sequence[Array], Array | None], Any] = lambda sources, base: ()
    pool: Callable[[list[tuple[Any, int]]], list[Any]] | None = None
    base: Literal["none", "first", "optional", "required"] = "none"
    num_sources: tuple[int, int | None] = (1, None)
    stochastic: bool = False


def weighted_sum(weights: Sequence[Array], arrays: Sequence[Array]) -> Array:
    """Sum of w_i x_i, unrolled: faster than an einsum over a stacked axis (experiments/bench_kernels)."""
    total = weights[0] * arrays[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total = total + weight * array
    return total


def task_vectors(sources: Sequence[Array], base: Array | None) -> list[Array]:
    """x_i - base in float32; the sources themselves where there is no base."""
    return [float32(x) if base is None else float32(x) - float32(base) for x in sources]


def float32(x: Array) -> Array:
    """Merges are computed in float32 and rounded once, at the end."""
    return x.astype(jnp.float32)
