"""Every method against float64 NumPy, and the ways to run one against each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.methods.registry import MERGEKIT, get_method
from tests.unit.methods.cases import (
    KEYS,
    METHODS,
    SETTINGS,
    SHAPES,
    W,
    coefficients_of,
    expected,
    inputs,
    prepared_for,
    run,
)


@pytest.mark.parametrize("distance", [0.01, 3.0], ids=["close", "far"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_equals_the_formula_in_float64(name, semantics, shape, distance):
    sources, base = inputs(name, shape, distance)
    for given in SETTINGS[name]:
        found = run(name, semantics, sources, base, **given)
        # Relative too: dividing by weights that nearly cancel magnifies the rounding of float32.
        wanted = expected(name, semantics, sources, base, **given)
        np.testing.assert_allclose(found, wanted, atol=4e-6, rtol=4e-6, err_msg=str(given))


def test_a_base_that_lends_its_configuration_does_not_take_part():
    for name in ("linear", "karcher"):
        assert MERGEKIT[name].base == "none"
        sources, _ = inputs(name, SHAPES["matrix"], 1.0)
        method, xs = MERGEKIT[name], [jnp.asarray(s) for s in sources]
        coefficients = coefficients_of(method, 3, weight=W)
        with_base, without = (
            method.merge(xs, base, coefficients, method.prepare(xs, base), KEYS) for base in (xs[0] + 1, None)
        )
        np.testing.assert_array_equal(np.asarray(with_base), np.asarray(without))


@pytest.mark.parametrize(("name", "semantics"), METHODS)
def test_jit_vmap_and_a_loop_agree(name, semantics):
    """A population through vmap, each member by itself in jit, and without jit; coefficients trace once."""
    method = get_method(name, semantics)
    arrays, origin = inputs(name, SHAPES["matrix"], 0.3)
    sources, base = [jnp.asarray(s) for s in arrays], None if origin is None else jnp.asarray(origin)
    prepared, keys = prepared_for(method, sources, base), KEYS[: len(sources)]
    members = [coefficients_of(method, len(sources), **given) for given in SETTINGS[name]]
    chex.clear_trace_counter()  # it counts by name
    traced = jax.jit(chex.assert_max_traces(lambda c: method.merge(sources, base, c, prepared, keys), n=1))
    loop = np.stack([np.asarray(traced(c)) for c in members])
    eager = np.stack([np.asarray(method.merge(sources, base, c, prepared, keys)) for c in members])
    np.testing.assert_allclose(eager, loop, atol=2e-6, rtol=2e-6)
    if method.parameters:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
        mapped = jax.jit(jax.vmap(lambda c: method.merge(sources, base, c, prepared, keys)))(stacked)
        np.testing.assert_allclose(np.asarray(mapped), loop, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("per", [(1, 16), (24, 1)], ids=["column", "row"])
@pytest.mark.parametrize(
    "name", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "della"]
)
def test_coefficients_per_column_and_per_row(name, per):
    sources, base = inputs(name, SHAPES["matrix"], 0.3)
    rng = np.random.default_rng(2)
    given = {"weight": rng.uniform(0.1, 1, (3, *per)).astype(np.float32), "normalize": 1}
    wanted = expected(name, "mergekit", sources, base, **given)
    np.testing.assert_allclose(run(name, "mergekit", sources, base, **given), wanted, atol=4e-6)
    if name in ("dare_linear", "dare_ties"):
        given |= {"density": rng.uniform(0.2, 1, (3, *per)).astype(np.float32)}
        wanted = expected(name, "mergekit", sources, base, **given)
        np.testing.assert_allclose(run(name, "mergekit", sources, base, **given), wanted, atol=4e-6)
    elif name not in ("linear", "task_arithmetic"):  # the same density everywhere is that density
        whole = run(name, "mergekit", sources, base, **given, density=0.4)
        given |= {"density": np.full((3, *per), 0.4, np.float32)}
        np.testing.assert_allclose(run(name, "mergekit", sources, base, **given), whole, atol=1e-6)


def test_bfloat16_sources_are_merged_in_float32():
    for name in MERGEKIT:
        sources, base = inputs(name, SHAPES["matrix"], 0.3)
        halves = [jnp.asarray(s, jnp.bfloat16) for s in sources]
        base = None if base is None else jnp.asarray(base, jnp.bfloat16)
        floats = [np.asarray(h, np.float32) for h in halves]
        wanted = run(
            name, "mergekit", floats, None if base is None else np.asarray(base, np.float32), **SETTINGS[name][0]
        )
        found = run(name, "mergekit", halves, base, **SETTINGS[name][0])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)
