"""Gradients with respect to coefficients: right where a parameter says differentiable, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.merge import get_method
from jevomerge.merge.registry import MERGEKIT
from tests.unit.test_merge import KEYS, METHODS, SETTINGS, SHAPES, coefficients_of, expected, inputs, prepared_for

SHAPE = SHAPES["matrix"]
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
