"""What pipelines do with noise, whatever the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.models.diffusion.pipeline import draw, noise_keys, sample, time_ids
from jevomerge.models.diffusion.scheduler import Steps


class Echo:
    """A denoiser that says what it is told, and draws its latents."""

    def denoise(self, params, x, t, told):
        return told + 0 * x

    def decode(self, params, x):
        return x


def run(noise, guidance=0.0, against=None, **changes):
    zeros = jnp.zeros(2)
    steps = Steps(t=zeros, shown=zeros, keep=zeros + 1, add=zeros, fresh=None, start=jnp.ones(()))
    told = jnp.ones((2, 1, 1, 1))
    return sample({}, Echo(), told, noise, steps.replace(**changes), guidance, against)


def test_noise_belongs_to_its_picture():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = draw(keys, (4, 6, 2), 3)
    assert noise.shape == (3, 3, 4, 6, 2)
    np.testing.assert_array_equal(draw(keys[1:2], (4, 6, 2), 3)[:, 0], noise[:, 1])
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_steps_add_up():
    noise = draw(jax.random.split(jax.random.key(0), 2), (1, 1, 1), 3)
    add, fresh = jnp.array([1.0, 0.5]), jnp.array([1.0, 0.0])
    found = run(noise, keep=jnp.array([2.0, 3.0]), add=add, fresh=fresh, start=jnp.array(10.0))
    np.testing.assert_allclose(found, 3 * (2 * 10 * noise[0] + 1 + noise[1]) + 0.5, rtol=1e-5)


def test_noise_that_is_missing_is_not_left_out_in_silence():
    with pytest.raises(ValueError, match="must be drawn 3 times"):
        run(jnp.zeros((1, 2, 1, 1, 1)), fresh=jnp.ones(2))


def test_guidance_leads_away():
    noise = jnp.zeros((1, 2, 1, 1, 1))
    found = run(noise, 5.0, -jnp.ones((2, 1, 1, 1)), add=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(found, np.full((2, 1, 1, 1), -1 + 5 * 2))


def test_sizes_are_told_in_the_order_of_sdxl():
    np.testing.assert_array_equal(time_ids([(768, 1024)]), [[768, 1024, 0, 0, 768, 1024]])


def test_noise_is_of_a_prompt_and_a_seed_alone():
    keys = noise_keys(["柴犬", "a cat", "a cat"], [0, 0, 1])
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 3
    np.testing.assert_array_equal(jax.random.key_data(noise_keys(["a cat"], [0])), jax.random.key_data(keys[1:2]))
    # Pinned: pictures of earlier runs can be drawn again.
    np.testing.assert_array_equal(jax.random.key_data(keys[1]), [3984320863, 1609169143])
