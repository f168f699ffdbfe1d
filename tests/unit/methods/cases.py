"""What the tests of methods share: settings, tensors, and one tensor through a method or its float64 formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.methods.field import merge_keys, uniform_field
from jevomerge.methods.registry import MERGEKIT, PAPER, get_method
from tests import reference

KEYS = jnp.asarray(np.stack([merge_keys(0, name, "w") for name in "abc"]))
METHODS = [(name, "mergekit") for name in MERGEKIT] + [(n, "paper") for n in PAPER if PAPER[n] is not MERGEKIT[n]]
SHAPES = {"matrix": (24, 16), "vector": (40,)}
W = [0.7, 0.4, -0.5]
D = [0.81, 0.37, 0.52]

# Two settings of every method; what is not given has its default.
SETTINGS = {
    "linear": [{"weight": [0.2, 0.9, -0.3]}, {"weight": W, "normalize": 0}],
    "passthrough": [{}, {"scale": [-0.3]}],
    "slerp": [{"t": 0.3}, {"t": 1.2}],
    "nuslerp": [
        {"weight": [0.7, 0.4]},
        {"weight": [0.2, 0.9], "nuslerp_flatten": 0},
        {"weight": [0.2, 0.9], "nuslerp_flatten": 0, "nuslerp_row_wise": 1},
        {"weight": [0.5, -0.5]},
    ],
    "multislerp": [{"weight": [0.5, 0.2, 0.6]}, {"weight": [0.5, 0.2, 0.6], "normalize_weights": 0, "eps": 0.1}],
    "karcher": [{}, {"max_iter": 1}, {"max_iter": 60, "tol": 1e-7}],
    "model_stock": [{}, {"filter_wise": 1}],
    "arcee_fusion": [{}],
    "nearswap": [{"t": 0.003}, {"t": 0.4}],
    "sce": [{}, {"select_topk": 0.3}, {"select_topk": 0.0}],
    "ram": [{}, {"epsilon": 0.01}],
    "ramplus_tl": [{}, {"epsilon": 0.01, "r": 0.4, "alpha": 0.9}],
    "task_arithmetic": [{"weight": W}, {"weight": W, "normalize": 1, "lambda": 1.3}],
    "ties": [{"weight": W, "density": D}, {"weight": W, "density": D, "normalize": 0, "rescale": 1, "lambda": 0.8}],
    **{
        name: [{"weight": W, "density": D}, {"weight": W, "density": D, "normalize": 1, "rescale": 0, "lambda": 1.3}]
        for name in ("dare_linear", "dare_ties")
    },
    **{
        name: [
            {"weight": W, "density": D},
            {"weight": W, "density": D, "gamma": [0.05, 0.3, 0.11], "normalize": 1, "rescale": 1, "lambda": 1.3},
        ]
        for name in ("breadcrumbs", "breadcrumbs_ties")
    },
    **{
        name: [
            {"weight": W, "density": D},
            {"weight": W, "density": [0.9, 0.3, 1.0], "epsilon": [0.3, 0.1, 0.2], "normalize": 0, "lambda": 1.3},
        ]
        for name in ("della", "della_linear")
    },
}


def inputs(name, shape, distance, seed=0):
    """(sources, base or None): as many as the method takes, up to three, `distance` from a base."""
    rng = np.random.default_rng(seed)
    method = MERGEKIT[name]
    base = rng.normal(size=shape).astype(np.float32)
    sources = [base + distance * rng.normal(size=shape).astype(np.float32) for _ in range(method.num_sources[1] or 3)]
    return [s.astype(np.float32) for s in sources], base if method.base == "required" else None


def coefficients_of(method, count, **given):
    """Of `count` sources; parameters not given keep their defaults, and per-model ones may be given as one number."""
    found = {}
    for p in method.parameters:
        value = given.get(p.name, p.default)
        found[p.name] = jnp.asarray([value] * count if p.per_model and np.ndim(value) == 0 else value, jnp.float32)
    return found


@functools.lru_cache
def jitted(method):
    return jax.jit(method.merge)


def prepared_for(method, sources, base):
    prepared = method.prepare(sources, base)
    return method.pool([(prepared, sources[0].size)])[0] if method.pool else prepared


def run(name, semantics, sources, base, keys=KEYS, jit=True, **given):
    """One tensor through a method."""
    method = get_method(name, semantics)
    sources, base = [jnp.asarray(s) for s in sources], None if base is None else jnp.asarray(base)
    merge = jitted(method) if jit else method.merge
    coefficients = coefficients_of(method, len(sources), **given)
    return np.asarray(merge(sources, base, coefficients, prepared_for(method, sources, base), keys[: len(sources)]))


def expected(name, semantics, sources, base, **given):
    """The same in float64."""
    method = get_method(name, semantics)
    numbers = {k: np.asarray(v, np.float64) for k, v in coefficients_of(method, len(sources), **given).items()}
    return reference.METHODS[name](
        [s.astype(np.float64) for s in sources],
        None if base is None else base.astype(np.float64),
        paper=semantics == "paper",
        fields=[np.asarray(uniform_field(key, sources[0].shape)) for key in KEYS[: len(sources)]],
        **numbers | {k: v for k, v in given.items() if k in numbers},  # not rounded to float32
    )
