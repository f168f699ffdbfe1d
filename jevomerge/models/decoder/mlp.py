"""Feed-forward layers.

Dimensions in comments: B batch, T new tokens, D hidden, F inside.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.layers import ACTIVATIONS, Linear, declare


class Mlp(nn.Module):
    """A feed-forward layer, mostly gated (Shazeer, 2020)."""

    config: DecoderConfig
    size: int | None = None  # F; None: the config's

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        c, size = self.config, self.size or self.config.intermediate_size
        act = XIELU(name="act_fn") if c.hidden_act == "xielu" else ACTIVATIONS[c.hidden_act]

        def inward(name: str) -> Array:
            return Linear(size, ("ff", "embed"), c.mlp_bias, name=name)(x)

        if c.fused_gate_up:
            both = Linear(2 * size, ("ff", "embed"), c.mlp_bias, name="gate_up_proj")(x)
            gate, up = jnp.split(both, 2, axis=-1)
            y = act(gate) * up
        elif c.gated:
            gate = inward("gate_proj")
            up = inward("up_proj")
            y = act(gate) * up
        else:
            y = act(inward("up_proj"))
        return Linear(c.hidden_size, ("embed", "ff"), c.mlp_bias, name="down_proj")(y)


class XIELU(nn.Module):
    """xIELU (Huang & Schlag, 2024) with its learned slopes; its constants are stored with every layer, too."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., F) -> (..., F), in float32 inside."""

        def scalar(name: str, shape: tuple[int, ...], value: float) -> Array:
            number = declare(self, name, nn.initializers.constant(value), shape, ("",) * len(shape))
            return number.astype(jnp.float32).reshape((1,) * x.ndim)

        beta, eps = scalar("beta", (), 0.5), scalar("eps", (), -1e-6)
        rising = jax.nn.softplus(scalar("alpha_p", (1,), 0.0))
        falling = beta + jax.nn.softplus(scalar("alpha_n", (1,), 0.0))
        y = x.astype(jnp.float32)
        below = (jnp.expm1(jnp.minimum(y, eps)) - y) * falling + beta * y
        return jnp.where(y > 0, rising * y * y + beta * y, below).astype(x.dtype)
