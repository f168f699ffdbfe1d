"""Matrices that nobody has merged, against float64 sums, and loops that members of a group leave together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.models.members import LowRank, Unmerged, highest, look_up, product

OUT, IN, RANK, MEMBERS = 24, 40, 3, 5
RNG = np.random.default_rng(0)


def matrix(whole, low):
    """One with the axis of members in what differs between them, and (MEMBERS, OUT, IN) float64 sums."""
    sources = [RNG.normal(size=(OUT, IN)).astype(np.float32) for _ in range(whole)]
    factors, scale = (RNG.normal(size=(MEMBERS, n)).astype(np.float32) for n in (whole, RANK))
    down, up = (RNG.normal(size=s).astype(np.float32) for s in ((RANK, IN), (OUT, RANK)))
    sums = np.einsum("ms,soi->moi", factors.astype(np.float64), np.stack(sources))
    if low:
        sums += np.einsum("or,mr,ri->moi", *(x.astype(np.float64) for x in (up, scale, down)))
    own = (jnp.asarray(factors), jnp.asarray(scale))
    return tuple(map(jnp.asarray, sources)), jnp.asarray(down), jnp.asarray(up), own, sums


@pytest.mark.parametrize("rows", [1, 6, 400])  # with many the sum is made
@pytest.mark.parametrize(("whole", "low"), [(3, False), (1, True), (2, True)])
def test_a_product_and_rows_are_those_of_the_sum(whole, low, rows):
    sources, down, up, own, sums = matrix(whole, low)
    x = RNG.normal(size=(MEMBERS, rows, IN)).astype(np.float32)
    numbers = RNG.integers(0, OUT, (MEMBERS, rows))

    @jax.jit
    @jax.vmap
    def both(own, x, numbers):
        weight = Unmerged(sources, own[0], LowRank(down, up, own[1]) if low else None)
        return product(x, weight), look_up(weight, numbers)

    found, taken = both(own, jnp.asarray(x), jnp.asarray(numbers))
    expected = np.einsum("mri,moi->mro", x.astype(np.float64), sums)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(taken, sums[np.arange(MEMBERS)[:, None], numbers], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_product_in_few_bits_is_rounded_once(dtype):
    x, weight = (jnp.asarray(RNG.normal(size=shape), dtype) for shape in ((6, 4096), (OUT, 4096)))
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    found = jax.jit(product)(x, weight)
    assert found.dtype == dtype
    step = float(jnp.finfo(dtype).eps) * np.abs(exact)
    assert (np.abs(np.asarray(found, np.float64) - exact) <= 0.51 * step + 1e-4).all()


def test_members_leave_a_loop_together_and_none_of_its_state_is_chosen_by_member():
    """The cache of a text is written in place; a choice for each member would copy it in every step."""

    def count(limit):
        def more(state):
            return highest(state[1] < limit)

        def step(state):
            done, n = state
            return done.at[n].set(n < limit), n + 1

        return jax.lax.while_loop(more, step, (jnp.zeros(8, bool), jnp.int32(0)))

    limits = jnp.asarray([2, 5, 3])
    done, steps = jax.vmap(count)(limits)
    assert done.sum(axis=1).tolist() == [2, 5, 3]
    assert steps.tolist() == [5, 5, 5]
    [loop] = [e for e in jax.make_jaxpr(jax.vmap(count))(limits).eqns if e.primitive.name == "while"]
    selected = [e.outvars[0].aval.shape for e in loop.params["body_jaxpr"].eqns if e.primitive.name == "select_n"]
    assert done.shape not in selected
    assert count(jnp.int32(4))[1] == 4  # and one alone when it is done
