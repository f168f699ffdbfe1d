"""Preparations on the host and on a device, in blocks, and what memory they take."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.methods.prepare import BLOCK
from jevomerge.methods.registry import MERGEKIT
from tests.unit.methods.cases import KEYS, SETTINGS, SHAPES, coefficients_of, expected, inputs, run


@pytest.mark.parametrize("name", MERGEKIT)
@pytest.mark.parametrize("shape", [SHAPES["matrix"], ()], ids=["matrix", "number"])
def test_preparing_on_a_device_gives_the_same_merge(name, shape, monkeypatch):
    sources, base = inputs(name, shape, 0.3)
    on_host = run(name, "mergekit", sources, base, **SETTINGS[name][-1])
    for module in ("fusion", "prepare", "sce", "sparsify", "spherical"):
        monkeypatch.setattr(f"jevomerge.methods.{module}.on_host", lambda *_: False)
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


@pytest.mark.parametrize("name", MERGEKIT)
def test_preparing_copies_one_tensor_at_a_time_and_merging_at_most_one(name):
    """In units of a float32 tensor of eight blocks; only DELLA's ranks are kept, two bytes an element."""
    shape = (8192, 1024)
    sources, base = inputs(name, shape, 0.3)
    method, leaf = MERGEKIT[name], 4 * np.prod(shape)
    xs, origin = [jnp.asarray(s) for s in sources], None if base is None else jnp.asarray(base)
    jax.block_until_ready((xs, origin))
    tracemalloc.start()
    prepared = method.prepare(xs, origin)
    peak = tracemalloc.get_traced_memory()[1] / leaf
    tracemalloc.stop()
    kept = sum(x.nbytes for x in jax.tree.leaves(prepared)) / leaf
    assert kept <= (0.5 * len(xs) if name.startswith("della") else 0.1)
    assert peak <= kept + 1.3
    coefficients = coefficients_of(method, len(xs), weight=0.5, density=0.5, t=0.5)
    lowered = jax.jit(method.merge).lower(xs, origin, coefficients, prepared, KEYS[: len(xs)])
    assert lowered.compile().memory_analysis().temp_size_in_bytes / leaf <= 1.1
