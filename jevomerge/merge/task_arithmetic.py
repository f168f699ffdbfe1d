"""Task arithmetic and the methods built on it: `base + lambda * combine_i(w_i * sparsify(x_i - base))`.

    task_arithmetic           no sparsification      Ilharco et al., 2023, https://arxiv.org/abs/2212.04089
    ties                      trim                   Yadav et al., 2023, https://arxiv.org/abs/2306.01708
    dare_linear, dare_ties    dare                   Yu et al., 2024, https://arxiv.org/abs/2311.03099
    breadcrumbs, _ties        breadcrumbs            Davari and Belilovsky, 2023, https://arxiv.org/abs/2312.06795
    della_linear, della       della                  Deep et al., 2024, https://arxiv.org/abs/2406.11617

ties, *_ties and della elect a sign per element, the others add task vectors up.

`paper` and `mergekit` semantics differ in three places.  TIES trims over the whole parameter vector in the
paper, tensor by tensor in mergekit.  DARE and DELLA rescale what they keep by 1/probability in the papers (and
DARE in the mergekit that the evolutionary merging paper used), so that the L1 norm is preserved in mergekit
today.  DELLA's probabilities span epsilon in the paper, 2 epsilon in mergekit.

Unlike mergekit, coefficients are never rounded to the checkpoint's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.merge.method import Coefficients, MergeMethod, Parameter, float32, task_vectors, weighted_sum
from jevomerge.merge.sparsify import (
    Keep,
    breadcrumbs,
    dare,
    della,
    pool_magnitudes,
    prepare_magnitudes,
    prepare_ranks,
    sparsify,
    trim,
)


def combine(base: Array, deltas: Sequence[Array], coefficients: Coefficients, *, elect_sign: bool) -> Array:
    """Base plus lambda times the weighted sum of task vectors, or of those that agree with the elected sign.

    The sign of an element is that of its weighted sum (ties: +); normalisation divides by the sum of the
    weights that took part.
    """
    weights = list(coefficients["weight"])
    if elect_sign:
        positive = weighted_sum(weights, deltas) >= 0
        # Comparing w * d with zero by signs avoids forming the product twice.
        agree = [jnp.where(positive, w * d > 0, w * d < 0) for w, d in zip(weights, deltas, strict=True)]
        deltas = [jnp.where(a, d, 0.0) for a, d in zip(agree, deltas, strict=True)]
        divisor = weighted_sum(weights, [float32(a) for a in agree])
        divides = divisor != 0
    else:
        divisor = sum(weights[1:], weights[0])
        divides = jnp.abs(divisor) >= 1e-8
    mixed = weighted_sum(weights, deltas) / jnp.where(divides & (coefficients["normalize"] > 0), divisor, 1.0)
    return float32(base) + coefficients["lambda"] * mixed


def _method(
    name: str,
    keep: Keep | None = None,
    *,
    elect_sign: bool,
    normalize: bool,
    rescale: bool = False,
    preserve_l1: bool = True,
    more: tuple[Parameter, ...] = (),
    **extra: Any,
) -> MergeMethod:
    """A member of the family, with its defaults; `more`: parameters of `keep` besides density."""
    sparse = (Parameter("density", 1.0, per_model=True, differentiable=False), *more) if keep else ()

    def merge(
        sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
    ) -> Array:
        assert base is not None
        if keep is None:
            return combine(base, task_vectors(sources, base), coefficients, elect_sign=elect_sign)
        deltas = []
        for i, x in enumerate(sources):
            own = {p.name: coefficients[p.name][i] for p in sparse} | {"rescale": coefficients["rescale"]}
            share = prepared[i] if prepared else ()
            deltas.append(sparsify(keep, x, base, own, share, keys[i], preserve_l1=preserve_l1))
        return combine(base, deltas, coefficients, elect_sign=elect_sign)

    parameters = (
        Parameter("weight", None, per_model=True),
        *sparse,
        Parameter("normalize", float(normalize), kind="bool"),
        *((Parameter("rescale", float(rescale), kind="bool"),) if keep else ()),
        Parameter("lambda", 1.0, domain=(0.0, 2.0)),
    )
    return MergeMethod(name, parameters, merge, base="required", **extra)


TASK_ARITHMETIC = _method("task_arithmetic", elect_sign=False, normalize=False)

_TIES: dict[str, Any] = {"elect_sign": True, "normalize": True, "prepare": prepare_magnitudes}
TIES = _method("ties", trim, **_TIES)
TIES_PAPER = _method("ties", trim, **_TIES, pool=pool_magnitudes)

DARE_LINEAR, DARE_LINEAR_PAPER, DARE_TIES, DARE_TIES_PAPER = (
    _method(name, dare, elect_sign=elect, normalize=False, rescale=True, preserve_l1=l1, stochastic=True)
    for name, elect in (("dare_linear", False), ("dare_ties", True))
    for l1 in (True, False)
)

_GAMMA = Parameter("gamma", 0.01, per_model=True, domain=(0.0, 0.1), differentiable=False)
BREADCRUMBS, BREADCRUMBS_TIES = (
    _method(name, breadcrumbs, elect_sign=elect, normalize=False, more=(_GAMMA,), prepare=prepare_magnitudes)
    for name, elect in (("breadcrumbs", False), ("breadcrumbs_ties", True))
)

_DELLA: dict[str, Any] = {
    "rescale": True,
    "more": (Parameter("epsilon", 0.15, per_model=True, domain=(0.0, 0.5), differentiable=False),),
    "prepare": prepare_ranks,
    "stochastic": True,
}
DELLA, DELLA_PAPER, DELLA_LINEAR, DELLA_LINEAR_PAPER = (
    _method(name, della(1.0 if l1 else 0.5), elect_sign=elect, normalize=elect, preserve_l1=l1, **_DELLA)
    for name, elect in (("della", True), ("della_linear", False))
    for l1 in (True, False)
)
