"""The random field is uniform, uncorrelated, and the same wherever it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.methods.field import merge_keys, uniform_field
from tests.unit.methods.cases import KEYS, SHAPES

SHAPE = SHAPES["matrix"]


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


def test_field_does_not_depend_on_jit_or_on_vmap():
    plain = np.stack([np.asarray(uniform_field(key, SHAPE)) for key in KEYS])
    mapped = jax.jit(jax.vmap(functools.partial(uniform_field, shape=SHAPE)))(KEYS)
    np.testing.assert_array_equal(np.asarray(mapped), plain)
