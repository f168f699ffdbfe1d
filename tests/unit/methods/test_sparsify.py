"""What the methods on task vectors keep: tables of magnitudes, shares and ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.methods.field import merge_keys
from jevomerge.methods.prepare import TABLE_SIZE
from jevomerge.methods.registry import MERGEKIT, get_method
from jevomerge.methods.sparsify import pool_magnitudes, prepare_ranks
from tests import reference
from tests.unit.methods.cases import KEYS, SHAPES, coefficients_of, inputs, run

RNG = np.random.default_rng(0)
SHAPE = SHAPES["matrix"]


def test_ties_of_the_paper_trims_over_the_whole_vector():
    """Two tensors of which one moved ten times as far: nearly everything kept is in that one."""
    method = get_method("ties", "paper")
    far, near = 1.0 * RNG.normal(size=SHAPE), 0.1 * RNG.normal(size=(8, 8))
    zero = [jnp.zeros(SHAPE, jnp.float32), jnp.zeros((8, 8), jnp.float32)]
    moved = [jnp.asarray(x, jnp.float32) for x in (far, near)]
    rows = [(method.prepare([m], z), m.size) for m, z in zip(moved, zero, strict=True)]
    whole = reference.keep_top(np.concatenate([far.ravel(), near.ravel()]), 0.4)
    coefficients = coefficients_of(method, 1, weight=1.0, density=0.4)
    found = [
        np.asarray(method.merge([m], z, coefficients, p, KEYS[:1])).ravel()
        for m, z, p in zip(moved, zero, method.pool(rows), strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-6)


@pytest.mark.parametrize(("sizes", "tolerance"), [((97, 64, 300), 0), ((3 * TABLE_SIZE, 1000), 1e-3)])
def test_tables_are_pooled_inside_jit_as_outside(sizes, tolerance):
    """Not exactly where an entry stands for several elements: sums of those are in float32 inside."""
    deltas = [jnp.asarray(RNG.normal(size=n), jnp.float32) for n in sizes]
    prepared = [MERGEKIT["ties"].prepare([d], jnp.zeros_like(d)) for d in deltas]
    pool = lambda prepared: pool_magnitudes(list(zip(prepared, sizes, strict=True)))[0][0]  # noqa: E731
    outside, inside = pool(prepared), jax.jit(pool)(prepared)
    assert outside.size == inside.size == sum(sizes)
    np.testing.assert_allclose(np.asarray(inside.table), np.asarray(outside.table), atol=tolerance)


def test_thinned_table_keeps_the_right_share():
    size = 5 * TABLE_SIZE
    delta, zero = RNG.normal(size=size).astype(np.float32), np.zeros(size, np.float32)
    for density in (0.001, 0.1, 0.5, 0.9, 0.999):
        merged = run("ties", "mergekit", [delta], zero, weight=[1.0], density=[density])
        assert abs(np.mean(merged != 0) - density) < 2 / TABLE_SIZE
        merged = run("breadcrumbs", "mergekit", [delta], zero, weight=[1.0], density=[density], gamma=[0.03])
        assert abs(np.mean(merged != 0) - density) < 4 / TABLE_SIZE
        outliers = np.mean(np.abs(delta) > np.abs(merged).max())
        assert abs(outliers - min(0.03, 1 - density)) < 2 / TABLE_SIZE


def test_equal_magnitudes_are_kept_or_dropped_together():
    delta, zero = np.array([3, -2, 2, 2, 1, 0], np.float32), np.zeros(6, np.float32)
    merged = run("ties", "mergekit", [delta], zero, weight=[1.0], density=[0.5])
    np.testing.assert_array_equal(merged, [3, -2, 2, 2, 0, 0])
    merged = run("breadcrumbs", "mergekit", [delta], zero, weight=[1.0], density=[0.5], gamma=[0.2])
    np.testing.assert_array_equal(merged, [0, -2, 2, 2, 0, 0])


@pytest.mark.parametrize("size", [1, 7, 64, 99])
def test_breadcrumbs_keeps_small_tensors(size):
    """mergekit up to 0.1.4 dropped them whole, as gamma * size is less than one."""
    delta = RNG.permutation(np.arange(1, size + 1)).astype(np.float32)
    merged = run("breadcrumbs", "mergekit", [delta], np.zeros(size, np.float32), weight=[1.0], density=[0.5])
    np.testing.assert_array_equal(merged, reference.keep_top(delta, 0.5))


SPARSE = [
    (name, s)
    for name, m in MERGEKIT.items()
    if "density" in {p.name for p in m.parameters}
    for s in ("mergekit", "paper")
]


@pytest.mark.parametrize(("name", "semantics"), SPARSE)
def test_density_zero_is_the_base_and_density_one_the_source(name, semantics):
    (source, *_), base = inputs(name, SHAPE, 0.3)
    nothing, everything = (run(name, semantics, [source], base, weight=[1.0], density=[d]) for d in (0.0, 1.0))
    np.testing.assert_array_equal(nothing, base)
    np.testing.assert_allclose(everything, source, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
def test_expectation_is_the_task_vector(name, semantics):
    """Mean over many fields, to 5 standard errors of each element, and the share kept."""
    delta = RNG.normal(size=(8, 32)).astype(np.float32)
    draws, density = 2000, 0.4
    keys = jnp.asarray(np.stack([merge_keys(seed, "a", "w") for seed in range(draws)]))[:, None]
    method = get_method(name, semantics)
    xs, zero = [jnp.asarray(delta)], jnp.zeros(delta.shape)
    coefficients, prepared = coefficients_of(method, 1, weight=1.0, density=density), method.prepare(xs, zero)
    merged = np.asarray(jax.jit(jax.vmap(lambda k: method.merge(xs, zero, coefficients, prepared, k)))(keys))
    kept = (merged != 0).mean(axis=0)
    assert abs(kept.mean() - density) < 5 * 0.5 / np.sqrt(draws * delta.size)
    if semantics == "paper":
        error = np.abs(merged.mean(axis=0) - delta) / (merged.std(axis=0) / np.sqrt(draws))
        assert error.max() < 5
    else:
        np.testing.assert_allclose(np.abs(merged).sum(axis=(1, 2)), np.abs(delta).sum(), rtol=1e-5)
    # How often an element is kept depends on its rank in its row for DELLA, on nothing for DARE.
    half = {"dare_linear": 0.0, "della_linear": 0.15 if semantics == "mergekit" else 0.075}[name]
    wanted = reference.della_probability(delta, density, half)
    assert np.abs(kept - wanted).max() < 5 * 0.5 / np.sqrt(draws)


def test_della_of_rows_of_one_element_and_of_ties():
    delta, zero = np.ones((4096, 1), np.float32), np.zeros((4096, 1), np.float32)
    merged = run("della_linear", "mergekit", [delta], zero, weight=[1.0], density=[0.3], rescale=0)
    assert abs(merged.mean() - 0.3) < 5 * 0.5 / 64
    equal = np.asarray(prepare_ranks([jnp.ones((3, 5))], jnp.zeros((3, 5)))[0])
    np.testing.assert_array_equal(np.sort(equal, axis=-1), np.tile(np.arange(5), (3, 1)))


@pytest.mark.parametrize(("width", "dtype"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_ranks_are_small_integers(width, dtype):
    x = RNG.normal(size=(2, width)).astype(np.float32)
    (ranks,) = prepare_ranks([jnp.asarray(x)], jnp.zeros_like(x))
    assert ranks.dtype == dtype
    order = np.argsort(np.abs(x), axis=-1, kind="stable")
    np.testing.assert_array_equal(np.asarray(ranks), np.argsort(order, axis=-1))


def test_masks_are_nested_in_density():
    (source, *_), base = inputs("dare_linear", SHAPE, 0.3)
    for name in ("dare_linear", "della_linear"):
        few, many = (run(name, "mergekit", [source], base, weight=[1.0], density=[d]) != base for d in (0.3, 0.5))
        assert (few <= many).all()
        assert few.sum() < many.sum()
