"""Task arithmetic and the methods built on it: `base + lambda * combine_i(w_i * sparsify(x_i - base))`.

    task_arithmetic           no sparsification      Ilharco et al., 2023, https://arxiv.org/abs/2212.04089
    ties                      trim                   Yadav et al., 2023, https://arxiv.org/abs/2306.01708
    dare_linear, dare_ties    dare                   Yu et al., 2024, https://arxiv.org/abs/2311.03099
    breadcrumbs, _ties        breadcrumbs            Davari and Belilovsky, 2023, https://arxiv.org/abs/2312.06795
    della_linear, della       della                  Deep et al., 2024, https://arxiv.org/abs/2406.11617

ties, *_ties and della elect a sign per element, the others add task vectors up.

Where paper and mergekit differ there are two methods, and a comment at them says in what. Unlike mergekit,
coefficients are never rounded to the checkpoint's dtype. PEFT has its own of some, and magnitude_prune.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.methods.method import Coefficients, MergeMethod, Parameter, float32, task_vectors, weighted_sum
from jevomerge.methods.sparsify import (
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


def combine(
    base: Array, deltas: Sequence[Array], coefficients: Coefficients, *, elect_sign: bool, one_vote: bool = False
) -> Array:
    """Base plus lambda times the weighted sum of task vectors, or of those that agree with the elected sign.

    `deltas` are N arrays of the base's shape. The sign of an element is that of its weighted sum (ties: +);
    normalisation divides by the sum of the weights that took part. With `one_vote` both count sources, not weights.
    """
    weights = list(coefficients["weight"])
    if elect_sign:
        votes = [jnp.ones_like(w) for w in weights] if one_vote else weights
        positive = weighted_sum(votes, deltas) >= 0  # TIES, algorithm 1, step 2: elect final signs
        # Comparing w * d with zero by signs avoids forming the product twice.
        agree = [jnp.where(positive, w * d > 0, w * d < 0) for w, d in zip(votes, deltas, strict=True)]
        deltas = [jnp.where(a, d, 0.0) for a, d in zip(agree, deltas, strict=True)]
        divisor = weighted_sum(votes, [float32(a) for a in agree])
        divides = divisor != 0
    else:
        divisor = sum(weights[1:], weights[0])
        divides = jnp.abs(divisor) >= 1e-8
    # TIES, algorithm 1, step 3: disjoint merge. Its mean divides by a count, which are weights of one.
    mixed = weighted_sum(weights, deltas) / jnp.where(divides & (coefficients["normalize"] > 0), divisor, 1.0)
    return float32(base) + coefficients["lambda"] * mixed


def _method(
    name: str,
    keep: Keep | None = None,
    *,
    elect_sign: bool,
    normalize: bool,
    one_vote: bool = False,
    rescale: bool = False,
    preserve_l1: bool = True,
    more: tuple[Parameter, ...] = (),
    **extra: Any,
) -> MergeMethod:
    """A member of the family, with its defaults; `more`: parameters of `keep` besides density."""
    combined = functools.partial(combine, elect_sign=elect_sign, one_vote=one_vote)
    sparse = (Parameter("density", 1.0, per_model=True, differentiable=False), *more) if keep else ()

    def merge(
        sources: Sequence[Array], base: Array | None, coefficients: Coefficients, prepared: Any, keys: Array
    ) -> Array:
        """`sources`: N arrays of the base's shape; `weight`, `density`, ...: (N,); `normalize`, `lambda`, ...: ()."""
        assert base is not None
        if keep is None:
            return combined(base, task_vectors(sources, base), coefficients)
        deltas = []
        for i, x in enumerate(sources):
            own = {p.name: coefficients[p.name][i] for p in sparse} | {"rescale": coefficients["rescale"]}
            share = prepared[i] if prepared else ()
            deltas.append(sparsify(keep, x, base, own, share, keys[i], preserve_l1=preserve_l1))
        return combined(base, deltas, coefficients)

    parameters = (
        Parameter("weight", None, per_model=True),
        *sparse,
        Parameter("normalize", float(normalize), kind="bool"),
        *((Parameter("rescale", float(rescale), kind="bool"),) if keep else ()),
        Parameter("lambda", 1.0, domain=(0.0, 2.0)),
    )
    if keep and not elect_sign:  # a sum of what is kept
        extra |= {"settled": TASK_ARITHMETIC}
    return MergeMethod(name, parameters, merge, base="required", **extra)


TASK_ARITHMETIC = _method("task_arithmetic", elect_sign=False, normalize=False, linear=True)

# The paper trims over the whole parameter vector, mergekit tensor by tensor.
TIES = _method("ties", trim, elect_sign=True, normalize=True, prepare=prepare_magnitudes)
TIES_PAPER = TIES._replace(pool=pool_magnitudes)

# The paper (and the mergekit of March 2024, with which the evolutionary merging paper worked) divides what is kept by
# its probability; mergekit today scales it to the L1 norm that the task vector had.
_DARE: dict[str, Any] = {"keep": dare, "normalize": False, "rescale": True, "stochastic": True}
DARE_LINEAR = _method("dare_linear", elect_sign=False, **_DARE)
DARE_LINEAR_PAPER = _method("dare_linear", elect_sign=False, preserve_l1=False, **_DARE)
DARE_TIES = _method("dare_ties", elect_sign=True, **_DARE)
DARE_TIES_PAPER = _method("dare_ties", elect_sign=True, preserve_l1=False, **_DARE)

# One method: mergekit up to 0.1.4 differs in small tensors alone (see `breadcrumbs`).
_BREADCRUMBS: dict[str, Any] = {
    "keep": breadcrumbs,
    "normalize": False,
    "more": (Parameter("gamma", 0.01, per_model=True, domain=(0.0, 0.1), differentiable=False),),
    "prepare": prepare_magnitudes,
}
BREADCRUMBS = _method("breadcrumbs", elect_sign=False, **_BREADCRUMBS)
BREADCRUMBS_TIES = _method("breadcrumbs_ties", elect_sign=True, **_BREADCRUMBS)

# The paper's probabilities span epsilon and what is kept is divided by them; mergekit's span 2 epsilon and it is scaled
# to the L1 norm that the task vector had.
_DELLA: dict[str, Any] = {
    "rescale": True,
    "more": (Parameter("epsilon", 0.15, per_model=True, domain=(0.0, 0.5), differentiable=False),),
    "prepare": prepare_ranks,
    "stochastic": True,
}
DELLA = _method("della", della(1.0), elect_sign=True, normalize=True, **_DELLA)
DELLA_PAPER = _method("della", della(0.5), elect_sign=True, normalize=True, preserve_l1=False, **_DELLA)
DELLA_LINEAR = _method("della_linear", della(1.0), elect_sign=False, normalize=False, **_DELLA)
DELLA_LINEAR_PAPER = _method("della_linear", della(0.5), elect_sign=False, normalize=False, preserve_l1=False, **_DELLA)

# PEFT's combination types: signs are elected, and counted, without the weights; what is kept is divided by its
# probability, as in DARE's paper.
TIES_PEFT = _method("ties", trim, elect_sign=True, normalize=True, one_vote=True, prepare=prepare_magnitudes)
DARE_TIES_PEFT = _method(
    "dare_ties", elect_sign=True, one_vote=True, preserve_l1=False, **(_DARE | {"normalize": True})
)
MAGNITUDE_PRUNE = _method("magnitude_prune", trim, elect_sign=False, normalize=False, prepare=prepare_magnitudes)
