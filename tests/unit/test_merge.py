"""Every method against float64 NumPy, and the ways to run one against each other.

Laws: test_merge_laws.py; gradients: test_merge_gradients.py; what sparsifies: test_merge_sparsify.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.merge import get_method
from jevomerge.merge.field import merge_keys, uniform_field
from jevomerge.merge.prepare import BLOCK
from jevomerge.merge.registry import MERGEKIT, PAPER
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


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_about_an_optional_base(name):
    sources, _ = inputs(name, SHAPES["matrix"], 0.3)
    base = np.random.default_rng(1).normal(size=SHAPES["matrix"]).astype(np.float32)
    for given in SETTINGS[name]:
        wanted = expected(name, "mergekit", sources, base, **given)
        np.testing.assert_allclose(run(name, "mergekit", sources, base, **given), wanted, atol=4e-6, rtol=4e-6)


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


@pytest.mark.parametrize("axis", [None, -1, 0])
@pytest.mark.parametrize("shape", [(24, 16), (40,), (4, 6, 5)])
@pytest.mark.parametrize("distance", [1e-3, 0.1, 10.0])
def test_lengths_and_angles_on_host_and_device(shape, axis, distance):
    """Gaps of 1e-6 to four digits, where cosines in float32 have none."""
    from jevomerge.merge import spherical

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


@pytest.mark.parametrize("name", MERGEKIT)
def test_preparing_on_a_device_gives_the_same_merge(name, monkeypatch):
    sources, base = inputs(name, SHAPES["matrix"], 0.3)
    on_host = run(name, "mergekit", sources, base, **SETTINGS[name][-1])
    for module in ("fusion", "prepare", "sce", "sparsify", "spherical"):
        monkeypatch.setattr(f"jevomerge.merge.{module}.on_host", lambda *_: False)
    on_device = run(name, "mergekit", sources, base, **SETTINGS[name][-1])
    np.testing.assert_allclose(on_device, on_host, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("name", ["sce", "ramplus_tl", "slerp", "model_stock", "arcee_fusion", "della"])
def test_tensors_of_many_blocks(name):
    """Larger than what is worked on at a time, and not a multiple of it."""
    shape = (1031, 700)
    assert 2 * BLOCK < np.prod(shape) < 3 * BLOCK
    sources, base = inputs(name, shape, 0.3)
    given = SETTINGS[name][1 if name != "arcee_fusion" else 0] | {"select_topk": 1.0}
    wanted = expected(name, "mergekit", sources, base, **given)
    different = np.abs(run(name, "mergekit", sources, base, **given) - wanted) > 1e-5
    assert different.mean() <= (2e-6 if name == "arcee_fusion" else 0)  # one element at the threshold


# --- ways to run --------------------------------------------------------------------------------------------


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
