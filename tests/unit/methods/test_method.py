"""What holds for every method: laws for any tensor, edges of float32, and gradients."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jevomerge.methods.registry import MERGEKIT, get_method
from tests.unit.methods.cases import (
    KEYS,
    METHODS,
    SETTINGS,
    SHAPES,
    coefficients_of,
    expected,
    inputs,
    prepared_for,
    run,
)

SHAPE = SHAPES["matrix"]
# Without denormal numbers, which XLA flushes to zero.
tensors = arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))
CONVOLUTION = (6, 4, 3, 3)
PER_MODEL = {name: [p.name for p in m.parameters if p.per_model] for name, m in MERGEKIT.items()}
SYMMETRIC = [(n, s) for n, s in METHODS if MERGEKIT[n].base != "first" and MERGEKIT[n].num_sources[1] != 1]
ON_DELTAS = [(n, s) for n, s in METHODS if MERGEKIT[n].base == "required"]


@settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(tensors, min_size=3, max_size=3), st.integers(0, 2))
def test_one_hot_weight_returns_that_source_bit_for_bit(xs, i):
    weight = np.eye(3, dtype=np.float32)[i]
    np.testing.assert_array_equal(run("linear", "mergekit", xs, None, weight=weight), xs[i])
    np.testing.assert_array_equal(run("passthrough", "mergekit", xs[:1], None), xs[0])


@settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(tensors, min_size=3, max_size=3), st.integers(0, 2))
def test_one_hot_weight_returns_that_source(xs, i):
    weight = np.eye(3, dtype=np.float32)[i]
    close = {"atol": 1e-5 * max(1.0, float(np.abs(xs).max()))}
    for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "multislerp"):
        base = None if name == "multislerp" else xs[0] / 2
        np.testing.assert_allclose(run(name, "mergekit", xs, base, weight=weight), xs[i], **close, err_msg=name)
    for name, ends in (("slerp", [{"t": 0}, {"t": 1}]), ("nuslerp", [{"weight": [1, 0]}, {"weight": [0, 1]}])):
        for end, x in zip(ends, xs, strict=False):
            np.testing.assert_allclose(run(name, "mergekit", xs[:2], None, **end), x, **close, err_msg=name)


@settings(max_examples=20, deadline=None)
@hypothesis.given(tensors)
def test_merging_a_model_with_itself_changes_nothing(x):
    """With a base too, wherever nothing is dropped."""
    close = {"rtol": 0, "atol": 2e-5 * max(1.0, float(np.abs(x).max()))}
    same, base = [x, x], x / 2
    for name, given in [
        ("linear", {"weight": [0.3, 0.6]}),
        ("slerp", {"t": 0.3}),
        ("nuslerp", {"weight": [0.3, 0.6]}),
        ("nuslerp", {"weight": [0.3, 0.6], "nuslerp_flatten": 0}),
        ("multislerp", {"weight": [0.3, 0.6]}),
        ("karcher", {"tol": 1e-30}),
    ]:
        np.testing.assert_allclose(run(name, "mergekit", same, None, **given), x, **close, err_msg=name)
    for name in ("ties", "dare_ties", "della", "breadcrumbs"):
        found = run(name, "mergekit", same, base, weight=[0.3, 0.6], normalize=1)
        np.testing.assert_allclose(found, x, **close, err_msg=name)
    for name in ("ram", "sce"):
        found = run(name, "mergekit", same, base, epsilon=0.0)
        np.testing.assert_allclose(found, x, **close, err_msg=name)
    np.testing.assert_allclose(run("nearswap", "mergekit", [x], base, t=2e3), x, **close)


@pytest.mark.parametrize(("name", "semantics"), ON_DELTAS)
def test_sources_that_are_the_base_give_the_base(name, semantics):
    sources, base = inputs(name, SHAPE, 0.3)
    found = run(name, semantics, [base] * len(sources), base, **SETTINGS[name][0])
    np.testing.assert_allclose(found, base, atol=1e-6)


@pytest.mark.parametrize(("name", "semantics"), SYMMETRIC)
def test_order_of_sources_does_not_matter(name, semantics):
    sources, base = inputs(name, SHAPE, 0.3)
    order = [2, 0, 1] if len(sources) == 3 else [1, 0]
    for given in SETTINGS[name]:
        moved = given | {k: np.asarray(given[k])[order] for k in PER_MODEL[name] if np.ndim(given.get(k, 0))}
        first = run(name, semantics, sources, base, **given)
        keys = KEYS[jnp.asarray(order)]  # keys follow the sources' names
        found = run(name, semantics, [sources[i] for i in order], base, keys=keys, **moved)
        np.testing.assert_allclose(found, first, atol=3e-6, rtol=3e-6)


# Those with an absolute number among their parameters scale with it: t of nearswap, epsilon of ram, tol and eps of
# the means.
ABSOLUTE = {  # thresholds that are part of the formula, on numbers too small or too large
    ("arcee_fusion", 2.0**-12), ("arcee_fusion", 2.0**40),  # its softmax
    ("nearswap", 2.0**-12), ("model_stock", 2.0**-12), ("sce", 2.0**-12), ("ramplus_tl", 2.0**40),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "semantics", "scale"),
    [
        (name, semantics, scale)
        for name, semantics in METHODS
        for scale in (2.0**-12, 2.0**40)
        if (name, scale) not in ABSOLUTE or (name, semantics) == ("sce", "paper")
    ],
)
def test_scaling_all_tensors_scales_the_merge(name, semantics, scale):
    sources, base = inputs(name, SHAPE, 0.3)
    for given in SETTINGS[name]:
        absolute = {"nearswap": ("t",), "ram": ("epsilon",), "ramplus_tl": ("epsilon",)}.get(name, ())
        small = {"multislerp": {"eps": 1e-30}, "karcher": {"tol": 1e-30}}.get(name, {})
        defaults = {p.name: p.default for p in MERGEKIT[name].parameters}
        scaled = given | {k: given.get(k, defaults[k]) * scale for k in absolute}
        before = run(name, semantics, sources, base, **given | small)
        shrunk = [np.float32(scale) * s for s in sources], None if base is None else np.float32(scale) * base
        after = run(name, semantics, *shrunk, **scaled | small)
        np.testing.assert_allclose(after / scale, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_extreme_inputs_stay_finite(name, semantics):
    ones = np.ones(SHAPE, np.float32)
    noise = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    count = 1 if MERGEKIT[name].num_sources[1] == 1 else 2
    for a, b in [
        (0 * ones, 0 * ones),
        (0 * ones, noise),
        (ones, 2 * ones),
        (ones, -ones),
        (noise, -noise),
        (noise, -noise + 1e-4),
        (np.eye(*SHAPE, dtype=np.float32), 0 * ones),
        (1e-40 * ones, 1e-39 * ones),
        (1e-20 * noise, -1e-20 * noise),
        (1e30 * ones, -3e30 * ones),
        (1e30 * noise, 1e-30 * noise),
    ]:
        for given in SETTINGS[name]:
            cut = {k: v[:2] if np.ndim(v) else v for k, v in given.items()}
            for origin in (0 * ones, noise)[: 1 if given is not SETTINGS[name][0] else 2]:
                base = origin if MERGEKIT[name].base in ("required", "optional") else None
                merged = run(name, semantics, [a, b][:count], base, **cut)
                assert np.isfinite(merged).all(), (a.flat[0], b.flat[0], given)


# --- gradients ---------------------------------------------------------------------------------------------


PROBE = np.random.default_rng(5).normal(size=SHAPE)
WITH_PARAMETERS = [(n, s) for n, s in METHODS if MERGEKIT[n].parameters]


def loss(coefficients, method, tensors):
    sources, base, prepared = tensors
    merged = method.merge(sources, base, coefficients, prepared, KEYS[: len(sources)])
    return jnp.sum(jnp.asarray(PROBE, jnp.float32) * merged)


reverse, forward = (jax.jit(d(loss), static_argnums=1) for d in (jax.grad, jax.jacfwd))


def tensors_of(method, sources, base):
    sources, base = [jnp.asarray(s) for s in sources], None if base is None else jnp.asarray(base)
    return sources, base, prepared_for(method, sources, base)


def differences(name, semantics, sources, base, given, parameter, step=1e-6):
    """Central differences of the float64 formula."""
    method = get_method(name, semantics)
    start = coefficients_of(method, len(sources), **given)[parameter]
    start = np.asarray(given.get(parameter, np.asarray(start, np.float64)), np.float64)
    found = np.zeros(start.shape)
    for at in np.ndindex(start.shape):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[at] += sign * step
            ends.append((PROBE * expected(name, semantics, sources, base, **given | {parameter: moved})).sum())
        found[at] = (ends[0] - ends[1]) / (2 * step)
    return found


@pytest.mark.parametrize("distance", [0.01, 1.0], ids=["close", "far"])
@pytest.mark.parametrize(("name", "semantics"), WITH_PARAMETERS)
def test_gradients_are_those_of_the_formula(name, semantics, distance):
    method = get_method(name, semantics)
    sources, base = inputs(name, SHAPE, distance)
    tensors = tensors_of(method, sources, base)
    for given in SETTINGS[name]:
        coefficients = coefficients_of(method, len(sources), **given)
        found = reverse(coefficients, method, tensors)
        for p in method.parameters:
            assert np.isfinite(np.asarray(found[p.name])).all(), p.name
            if p.kind == "float" and p.differentiable and given.get("weight") != [0.5, -0.5]:  # nuslerp jumps there
                wanted = differences(name, semantics, sources, base, given, p.name)
                scale = max(1e-2, np.abs(wanted).max())
                np.testing.assert_allclose(
                    np.asarray(found[p.name]), wanted, rtol=1e-3, atol=1e-3 * scale, err_msg=p.name
                )


@pytest.mark.parametrize(("name", "semantics"), WITH_PARAMETERS)
def test_gradients_are_finite_everywhere(name, semantics):
    method = get_method(name, semantics)
    ones = np.ones(SHAPE, np.float32)
    noise = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    count = 1 if method.num_sources[1] == 1 else 2
    pairs = [
        (0 * ones, 0 * ones),
        (ones, ones),
        (ones, -ones),
        (noise, 0 * ones),
        (1e-40 * ones, ones),
        (1e30 * noise, noise),
    ]
    settings = [{k: v[:2] if np.ndim(v) else v for k, v in given.items()} for given in SETTINGS[name]]
    settings += [{p.name: 0.0 for p in method.parameters}, {p.name: 1.0 for p in method.parameters}]
    for pair in pairs:
        origin = 0 * ones if method.base in ("required", "optional") else None
        tensors = tensors_of(method, pair[:count], origin)
        for given in settings:
            coefficients = coefficients_of(method, count, **given)
            for p, g in reverse(coefficients, method, tensors).items():
                assert np.isfinite(np.asarray(g)).all(), (p, pair[0].flat[0], given)
        there = forward(coefficients, method, tensors)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1, np.abs(b).max())),
            there,
            reverse(coefficients, method, tensors),
        )


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_convolutions_are_tensors_like_others(name, semantics):
    sources, base = inputs(name, CONVOLUTION, 0.1)
    given = {k: v[: len(sources)] if np.ndim(v) else v for k, v in SETTINGS[name][0].items()}
    wanted = expected(name, semantics, sources, base, **given)
    np.testing.assert_allclose(run(name, semantics, sources, base, **given), wanted, rtol=0, atol=1e-5)
