"""Lengths and angles, and what is made of them."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.methods import spherical
from tests.unit.methods.cases import SETTINGS, SHAPES, expected, inputs, run

SHAPE = SHAPES["matrix"]


@pytest.mark.parametrize("axis", [None, -1, 0])
@pytest.mark.parametrize("shape", [(24, 16), (40,), (4, 6, 5)])
@pytest.mark.parametrize("distance", [1e-3, 0.1, 10.0])
def test_lengths_and_angles_on_host_and_device(shape, axis, distance):
    """Gaps of 1e-6 to four digits, where cosines in float32 have none."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=shape)
    exact = [center + distance * rng.normal(size=shape) for _ in range(3)]
    xs = [jnp.asarray(x, jnp.float32) for x in exact]
    exact = [np.asarray(x, np.float64) for x in xs]
    total = functools.partial(np.sum, axis=axis, keepdims=axis is not None)
    units = [x / np.sqrt(total(x * x)) for x in exact]
    gaps = np.array([[total((u - v) ** 2) / 2 for v in units] for u in units])
    for gram, digits in [(spherical.prepare_gram(xs, None, axis), 1e-6), (spherical._gram_on_device(xs, axis), 1e-3)]:
        assert gram.gaps.shape == gaps.shape
        np.testing.assert_allclose(np.asarray(gram.norms), np.sqrt([total(x * x) for x in exact]), rtol=2e-6)
        np.testing.assert_allclose(np.asarray(gram.gaps), gaps, rtol=digits, atol=1e-10)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_about_an_optional_base(name):
    sources, _ = inputs(name, SHAPES["matrix"], 0.3)
    base = np.random.default_rng(1).normal(size=SHAPES["matrix"]).astype(np.float32)
    for given in SETTINGS[name]:
        wanted = expected(name, "mergekit", sources, base, **given)
        np.testing.assert_allclose(run(name, "mergekit", sources, base, **given), wanted, atol=4e-6, rtol=4e-6)


def test_slerp_backwards():
    (a, b), _ = inputs("slerp", SHAPE, 0.3)
    there, back = run("slerp", "mergekit", [a, b], None, t=0.3), run("slerp", "mergekit", [b, a], None, t=0.7)
    np.testing.assert_allclose(there, back, atol=1e-6)


def test_opposite_models():
    """Where there is no direction to go: the mean for slerp, nuslerp and multislerp, the base for model_stock."""
    (a,), base = inputs("passthrough", SHAPE, 1.0)[0], np.float32(0.5) * np.ones(SHAPE, np.float32)
    opposite = [a, -a]
    np.testing.assert_allclose(run("slerp", "mergekit", opposite, None, t=0.25), a / 2, atol=1e-6)
    np.testing.assert_allclose(run("nuslerp", "mergekit", opposite, None, weight=[3, 1]), a / 2, atol=1e-6)
    np.testing.assert_allclose(run("multislerp", "mergekit", opposite, None, weight=[3, 1]), a, atol=1e-5)
    np.testing.assert_allclose(run("multislerp", "mergekit", opposite, None, weight=[1, 1]), 0 * a, atol=1e-6)
    np.testing.assert_allclose(run("karcher", "mergekit", opposite, None), a, atol=1e-5)
    for filter_wise in (0, 1):
        found = run("model_stock", "mergekit", [base + a, base - a], base, filter_wise=filter_wise)
        np.testing.assert_allclose(found, base, atol=1e-6)
