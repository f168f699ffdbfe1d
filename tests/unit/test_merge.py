"""Every method against float64 NumPy, the laws it must obey, and the ways to run it against each other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jevomerge.merge import get_method
from jevomerge.merge.field import merge_keys, uniform_field
from jevomerge.merge.task_arithmetic import TABLE_SIZE
from tests import reference

SHAPE = (24, 16)
KEYS = jnp.asarray(np.stack([merge_keys(0, name, "w") for name in "abc"]))
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=SHAPE).astype(np.float32)
SOURCES = [BASE + 0.3 * RNG.normal(size=SHAPE).astype(np.float32) for _ in range(3)]
METHODS = [
    (name, semantics)
    for name in ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
    for semantics in ("mergekit", "paper")
]


def run(name, semantics, sources, base, keys=KEYS, jit=True, **given):
    """One tensor through a method; parameters not given keep their defaults."""
    method = get_method(name, semantics)
    sources = [jnp.asarray(s) for s in sources]
    base = jnp.asarray(base) if method.base == "required" else None
    prepared = method.prepare(sources, base)
    if method.pool:
        prepared = method.pool([(prepared, sources[0].size)])[0]
    coefficients = {}
    for p in method.parameters:
        value = given.get(p.name, p.default)
        coefficients[p.name] = jnp.asarray(
            [value] * len(sources) if p.per_model and np.ndim(value) == 0 else value, jnp.float32
        )
    merge = jax.jit(method.merge) if jit else method.merge
    return np.asarray(merge(sources, base, coefficients, prepared, keys[: len(sources)]))


def field(i, shape=SHAPE):
    return np.asarray(uniform_field(KEYS[i], shape))


@pytest.mark.parametrize("normalize", [False, True])
def test_linear(normalize):
    weight = [0.2, 0.9, -0.3]
    expected = reference.linear([s.astype(np.float64) for s in SOURCES], weight, normalize)
    np.testing.assert_allclose(
        run("linear", "paper", SOURCES, None, weight=weight, normalize=normalize), expected, atol=1e-6
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(t):
    a, b = (s.astype(np.float64) for s in SOURCES[:2])
    np.testing.assert_allclose(run("slerp", "paper", SOURCES[:2], None, t=t), reference.slerp(a, b, t), atol=2e-6)


def test_slerp_of_nearly_parallel_tensors_is_linear():
    near = SOURCES[0] * np.float32(1.0001)
    found = run("slerp", "paper", [SOURCES[0], near], None, t=0.5)
    np.testing.assert_allclose(found, (SOURCES[0] + near) / 2, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("name", "elect"), [("task_arithmetic", False), ("ties", True), ("dare_linear", False), ("dare_ties", True)]
)
@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
def test_task_arithmetic_family(name, elect, normalize, semantics):
    weight, density, lam = [0.7, 0.4, -0.5], [0.8, 0.35, 0.5], 1.3
    base = BASE.astype(np.float64)
    deltas = [s.astype(np.float64) - base for s in SOURCES]
    if name == "ties":
        deltas = [reference.keep_top(d, p) for d, p in zip(deltas, density, strict=True)]
    elif name.startswith("dare"):
        masked = [np.where(field(i) < p, d, 0) for i, (d, p) in enumerate(zip(deltas, density, strict=True))]
        if semantics == "paper":
            deltas = [m / p for m, p in zip(masked, density, strict=True)]
        else:
            deltas = [m * np.abs(d).sum() / np.abs(m).sum() for m, d in zip(masked, deltas, strict=True)]
    expected = reference.generalized(base, deltas, weight, normalize, lam, elect)
    given = {"weight": weight, "density": density, "lambda": lam, "normalize": normalize}
    # float32; dividing by weights that nearly cancel magnifies its rounding, hence a relative part too
    np.testing.assert_allclose(run(name, semantics, SOURCES, BASE, **given), expected, atol=3e-6, rtol=2e-6)


def test_ties_of_the_paper_trims_over_the_whole_vector():
    """Two tensors of which one moved ten times as far: nearly everything kept is in that one."""
    method = get_method("ties", "paper")
    far, near = 1.0 * RNG.normal(size=SHAPE), 0.1 * RNG.normal(size=(8, 8))
    zero = [jnp.zeros(SHAPE, jnp.float32), jnp.zeros((8, 8), jnp.float32)]
    moved = [jnp.asarray(x, jnp.float32) for x in (far, near)]
    rows = [(method.prepare([m], z), m.size) for m, z in zip(moved, zero, strict=True)]
    whole = reference.keep_top(np.concatenate([far.ravel(), near.ravel()]), 0.4)
    coefficients = {p.name: jnp.float32(p.default or 1.0) for p in method.parameters}
    coefficients |= {"weight": jnp.ones(1), "density": jnp.full((1,), 0.4), "rescale": jnp.float32(0)}
    found = [
        np.asarray(method.merge([m], z, coefficients, p, KEYS[:1])).ravel()
        for m, z, p in zip(moved, zero, method.pool(rows), strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-6)


def test_thinned_table_keeps_the_right_share():
    size = 5 * TABLE_SIZE
    delta = RNG.normal(size=size).astype(np.float32)
    for density in (0.001, 0.1, 0.5, 0.9, 0.999):
        merged = run("ties", "mergekit", [delta], np.zeros(size, np.float32), weight=[1.0], density=[density])
        assert abs(np.mean(merged != 0) - density) < 2 / TABLE_SIZE


def test_ties_keeps_or_drops_equal_magnitudes_together():
    delta = np.array([3, -2, 2, 2, 1, 0], np.float32)
    merged = run("ties", "mergekit", [delta], np.zeros(6, np.float32), weight=[1.0], density=[0.5])
    np.testing.assert_array_equal(merged, [3, -2, 2, 2, 0, 0])


def test_density_zero_is_the_base_and_density_one_the_source():
    for name in ("ties", "dare_linear", "dare_ties"):
        for semantics in ("mergekit", "paper"):
            nothing = run(name, semantics, SOURCES[:1], BASE, weight=[1.0], density=[0.0])
            everything = run(name, semantics, SOURCES[:1], BASE, weight=[1.0], density=[1.0])
            np.testing.assert_array_equal(nothing, BASE)
            np.testing.assert_allclose(everything, SOURCES[0], atol=1e-6)


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_pure_with_and_without_jit(name, semantics):
    sources = SOURCES[:2]
    given = {"weight": [0.6, 0.7], "t": 0.4, "density": 0.5}
    with_jit, without = (run(name, semantics, sources, BASE, jit=jit, **given) for jit in (True, False))
    np.testing.assert_allclose(with_jit, without, atol=1e-6)


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_order_of_sources_does_not_matter(name, semantics):
    if name == "slerp":
        forward = run(name, semantics, SOURCES[:2], BASE, t=0.3)
        np.testing.assert_allclose(run(name, semantics, SOURCES[1::-1], BASE, t=0.7), forward, atol=1e-6)
        return
    order = [2, 0, 1]
    weight, density = np.array([0.7, 0.4, 0.5]), np.array([0.8, 0.35, 0.5])
    first = run(name, semantics, SOURCES, BASE, weight=weight, density=density)
    shuffled = run(
        name,
        semantics,
        [SOURCES[i] for i in order],
        BASE,
        keys=KEYS[jnp.asarray(order)],  # keys follow the sources' names
        weight=weight[order],
        density=density[order],
    )
    np.testing.assert_allclose(shuffled, first, atol=1e-6)


# Without denormal numbers, which XLA flushes to zero.
tensors = arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))


@settings(max_examples=40, deadline=None)
@given(st.lists(tensors, min_size=3, max_size=3), st.integers(0, 2))
def test_one_hot_weight_returns_that_source_bit_for_bit(xs, i):
    weight = np.eye(3, dtype=np.float32)[i]
    np.testing.assert_array_equal(run("linear", "mergekit", xs, None, weight=weight), xs[i])


@settings(max_examples=40, deadline=None)
@given(tensors)
def test_merging_a_model_with_itself_changes_nothing(x):
    tolerance = 1e-5 * max(1.0, float(np.abs(x).max()))
    same = [x, x]
    np.testing.assert_allclose(run("linear", "paper", same, None, weight=[0.3, 0.6]), x, atol=tolerance)
    np.testing.assert_allclose(run("slerp", "paper", same, None, t=0.3), x, atol=tolerance)
    for name in ("ties", "dare_linear", "dare_ties", "task_arithmetic"):
        np.testing.assert_array_equal(run(name, "paper", same, x, weight=[0.3, 0.6], density=0.5), x)


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_extreme_inputs_stay_finite(name, semantics):
    ones = np.ones(SHAPE, np.float32)
    for a, b in [
        (0 * ones, 0 * ones),
        (ones, 2 * ones),
        (ones, -ones),
        (1e-40 * ones, 1e-39 * ones),
        (1e30 * ones, -3e30 * ones),
    ]:
        merged = run(name, semantics, [a, b], 0 * ones, weight=[0.5, 0.25], t=0.5, density=0.5)
        assert np.isfinite(merged).all(), (name, a.flat[0], b.flat[0])


def test_bfloat16_sources_are_merged_in_float32():
    halves = [jnp.asarray(s, jnp.bfloat16) for s in SOURCES]
    found = run("linear", "paper", halves, None, weight=[0.31, 0.33, 0.36])
    exact = reference.linear([np.asarray(h, np.float64) for h in halves], [0.31, 0.33, 0.36], True)
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_coefficients_are_traced_once():
    method = get_method("dare_ties", "paper")
    traced = jax.jit(chex.assert_max_traces(method.merge, n=1))
    for density in (0.1, 0.9):
        coefficients = {p.name: jnp.float32(1) for p in method.parameters}
        coefficients |= {"weight": jnp.ones(3), "density": jnp.full((3,), density)}
        traced([jnp.asarray(s) for s in SOURCES], jnp.asarray(BASE), coefficients, (), KEYS)


# --- the random field ---------------------------------------------------------------------------------------


def test_field_is_uniform_and_uncorrelated():
    size = (256, 1024)
    draws = [
        np.asarray(uniform_field(jnp.asarray(merge_keys(s, n, t)), size)).ravel()
        for s, n, t in [(0, "a", "w"), (0, "b", "w"), (0, "a", "v"), (1, "a", "w")]
    ]
    for u in draws:
        counts = np.bincount((u * 256).astype(int), minlength=256)
        chi2 = ((counts - u.size / 256) ** 2 / (u.size / 256)).sum()
        assert 150 < chi2 < 370  # 255 degrees of freedom, 5 sigma
        for lag in (1, 2, 64, 1024):
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / np.sqrt(u.size)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 5 / np.sqrt(draws[0].size)


def test_masks_are_nested_in_density():
    u = field(0)
    assert ((u < 0.3) <= (u < 0.5)).all()


def test_field_does_not_depend_on_jit_or_on_vmap():
    plain = np.stack([field(i) for i in range(3)])
    mapped = jax.jit(jax.vmap(functools.partial(uniform_field, shape=SHAPE)))(KEYS)
    np.testing.assert_array_equal(np.asarray(mapped), plain)
