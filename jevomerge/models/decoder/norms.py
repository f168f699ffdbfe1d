"""The norms of a decoder."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.layers import declare, layer_norm, rms_norm


class Norm(nn.Module):
    """The decoder's kind of norm with its parameters, if it has any."""

    config: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        c, shape = self.config, (x.shape[-1],)
        weight = bias = None
        if c.norm_weight:
            init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
            weight = declare(self, "weight", init, shape, (self.axis,))
        if c.norm_bias:
            bias = declare(self, "bias", nn.initializers.zeros, shape, (self.axis,))
        if c.norm == "layer":
            return layer_norm(x, weight, bias, c.rms_norm_eps, c.norm_plus_one)
        assert weight is not None
        return rms_norm(x, weight, c.rms_norm_eps, c.norm_plus_one)
