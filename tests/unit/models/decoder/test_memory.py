"""Caches that are read as far as they are filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jevomerge as jm
from jevomerge.models.layers import reaches_of

SLOTS, ENDS = 300, (120, 127, 130, 150)  # behind the tokens of each pass; 128 slots are read first


@pytest.mark.parametrize("apart", [False, True])
def test_a_pass_across_a_reach_is_the_full_forward_pass(stories260k, apart):
    checkpoint = jm.Checkpoint(stories260k)
    model, params = checkpoint.model, checkpoint.load()
    tokens = np.random.default_rng(0).integers(3, model.vocab_size, (2, ENDS[-1]), dtype=np.int32)
    valid = np.arange(ENDS[-1]) >= np.array([[0], [100]])
    full, _ = jm.apply(params, model, tokens, valid)
    assert reaches_of(SLOTS)[0] in range(ENDS[1], ENDS[2])
    if apart:
        model, params = model.taken_apart(params)
    cache, found = model.cache(2, SLOTS, jnp.float32), []
    run = jax.jit(jm.apply, static_argnums=1)
    for start, stop in zip((0, *ENDS), ENDS, strict=False):
        hidden, cache = run(params, model, tokens[:, start:stop], valid[:, start:stop], cache)
        found.append(np.asarray(hidden))
    np.testing.assert_allclose(np.concatenate(found, axis=1)[valid], full[valid], atol=5e-5)


def test_slots_behind_what_is_read_change_nothing(stories260k):
    """They may hold anything, even what is no number."""
    checkpoint = jm.Checkpoint(stories260k)
    model, params = checkpoint.model, checkpoint.load()
    tokens, valid = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    empty = model.cache(1, SLOTS, jnp.float32)
    filled = jax.tree.map(lambda x: x.at[..., 128:, :].set(jnp.nan) if x.ndim == 5 else x, empty)
    run = jax.jit(jm.apply, static_argnums=1)
    hidden, _ = run(params, model, tokens, valid, filled)
    np.testing.assert_array_equal(hidden, run(params, model, tokens, valid, empty)[0])
