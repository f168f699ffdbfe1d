"""What a merge method is: two pure functions (`MergeFn`, `PrepareFn`) and a description of their parameters.

An example of ten lines is in README.md here ("Your own"). Three rules keep a method usable everywhere (in jit, in the
layer scan, under vmap, file by file): compute in float32 and do not branch in Python on a coefficient (`jnp.where`);
put what is slow and does not depend on coefficients (norms, sorted values) into `prepare`; draw random numbers only
from `uniform_field(keys[i], shape)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

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


class MergeFn(Protocol):
    """Makes one tensor of the merged model: pure, and called under jit, vmap and grad."""

    def __call__(
        self, sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
    ) -> Array:
        """Merge one tensor.

        Args:
            sources: N arrays of one shape, without the layer axis, in their stored dtypes. Unless the method's
                `base` is "first", their order must not matter.
            base: the base model's array, of that shape; None if there is none.
            coefficients: {parameter: float32}, (N,) for a per-model parameter, else ().
            prepared: what the method's `prepare` (and `pool`) gave for this tensor.
            keys: (N, 2) uint32, of one random field per source (`uniform_field`).

        Returns:
            The merged array, float32, of that shape.
        """


class PrepareFn(Protocol):
    """Computes what does not depend on coefficients: once per tensor, outside jit unless the tensors are traced."""

    def __call__(self, sources: Sequence[Array], base: Array | None) -> Any:
        """Prepare one tensor.

        Args:
            sources: N arrays of one shape, without the layer axis, in their stored dtypes.
            base: the base model's array, of that shape; None if there is none.

        Returns:
            A pytree of arrays whose shapes depend on those of the sources alone, for layers are stacked.
        """


class PoolFn(Protocol):
    """Joins what was prepared tensor by tensor, for methods that look at the whole parameter vector."""

    def __call__(self, prepared: list[tuple[Any, int]]) -> list[Any]:
        """Join the preparations of a model.

        Args:
            prepared: what `prepare` gave for each tensor of the model, and the tensor's number of elements.

        Returns:
            What `merge` receives as `prepared` for each of these tensors, in their order.
        """


class MergeMethod(NamedTuple):
    """A way to make one tensor out of the same tensor of several models.

    Attributes:
        name: as in recipes.
        parameters: its coefficients.
        merge: makes one tensor.
        prepare: what of it depends on no coefficient.
        pool: for methods whose preparation looks at all tensors of the model; None: each stands for itself.
        base: what a recipe's `base_model` is to the method. "required": the origin of the sources' task
            vectors, not one of them; "optional": the same if it is given; "first": one of the sources, which
            then comes first; "none": nothing, it only lends its configuration and tokenizer.
        num_sources: the fewest and the most sources (None: no limit), not counting the base.
        stochastic: whether `merge` draws from the random field.
        linear: whether the merged tensor is the sum of sources and base, each times a number that depends on
            coefficients alone, which are one for each source or for all.
        settled: the linear method that it is of sources which it has first merged alone, with weight one, where no
            parameter that this method lacks differs between candidates; None: there is none.
    """

    name: str
    parameters: tuple[Parameter, ...]
    merge: MergeFn
    prepare: PrepareFn = lambda sources, base: ()
    pool: PoolFn | None = None
    base: Literal["none", "first", "optional", "required"] = "none"
    num_sources: tuple[int, int | None] = (1, None)
    stochastic: bool = False
    linear: bool = False
    settled: MergeMethod | None = None


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
