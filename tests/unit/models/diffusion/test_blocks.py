"""What U-Net and autoencoder are made of, as XLA compiles it."""

import re

import jax
import jax.numpy as jnp

from jevomerge.models.diffusion.blocks import Conv


def test_convolutions_in_loops_are_those_that_cpus_run_fast():
    """XLA hands a CPU's convolutions to Eigen only in this layout, which it does not choose itself within a loop."""
    conv, x = Conv(8), jnp.ones((2, 8, 8, 8))
    looped = jax.jit(lambda params, x: jax.lax.fori_loop(0, 4, lambda _, x: conv.apply(params, x), x))
    text = looped.lower(conv.init(jax.random.key(0), x), x).compile().as_text()
    assert {*re.findall(r"dim_labels=([\w>-]+)", text)} == {"b01f_01io->b01f"}
