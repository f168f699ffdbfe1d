"""CLIP's modules in Flax (Linen), which give shape, initialisation, names and logical axes.

Names and layouts are the checkpoints', blocks stacked on a leading layer axis.

Dimensions in comments: V views, P tokens of a view, D hidden, N heads, S pixels along a side.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import ACTIVATIONS, Linear, Params, attend, declare, layer_norm
from jevomerge.models.vision.config import EncoderConfig, VisionConfig

NORMAL = nn.initializers.normal(0.02)


class LayerNorm(nn.Module):
    """Layer norm with its weight and bias."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        weight = declare(self, "weight", nn.initializers.ones, (x.shape[-1],), ("embed",))
        bias = declare(self, "bias", nn.initializers.zeros, (x.shape[-1],), ("embed",))
        return layer_norm(x, weight, bias, self.eps)


class Attention(nn.Module):
    """Multi-head attention, all maps with a bias."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """(V, P, D) -> (V, P, D)."""
        c = self.config
        heads = (*x.shape[:2], c.num_attention_heads, c.hidden_size // c.num_attention_heads)
        q, k, v = (Linear(c.hidden_size, ("heads", "embed"), True, name=f"{n}_proj")(x).reshape(heads) for n in "qkv")
        y = attend(q * jnp.asarray(heads[-1] ** -0.5, x.dtype), k, v, mask).reshape(x.shape)
        return Linear(c.hidden_size, ("embed", "heads"), True, name="out_proj")(y)


class Mlp(nn.Module):
    """Feed-forward layer."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(V, P, D) -> (V, P, D)."""
        c = self.config
        y = Linear(c.intermediate_size, ("ff", "embed"), True, name="fc1")(x)
        return Linear(c.hidden_size, ("embed", "ff"), True, name="fc2")(ACTIVATIONS[c.hidden_act](y))


class Block(nn.Module):
    """One pre-norm block: of towers with a mask that hides nothing, of CLIP's text encoders with a causal one."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """(V, P, D), mask of (V, P, P) or what broadcasts to it -> (V, P, D)."""
        c = self.config
        x = x + Attention(c, name="self_attn")(LayerNorm(c.layer_norm_eps, name="layer_norm1")(x), mask)
        return x + Mlp(c, name="mlp")(LayerNorm(c.layer_norm_eps, name="layer_norm2")(x))


class Patches(nn.Module):
    """The convolution whose stride is its width, as one matrix product."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """(V, 3, S, S) -> (V, patches, D), row by row."""
        c, n, p = self.config, self.config.side, self.config.patch_size
        shape = (c.hidden_size, 3, p, p)
        weight = declare(self, "weight", NORMAL, shape, ("embed", "channels", "height", "width"))
        x = pixels[:, :, : n * p, : n * p].reshape(-1, 3, n, p, n, p).transpose(0, 2, 4, 1, 3, 5)
        x = jnp.einsum(
            "vpi,oi->vpo", x.reshape(-1, n * n, 3 * p * p), weight.reshape(c.hidden_size, -1).astype(x.dtype)
        )
        if not c.clip:
            bias = declare(self, "bias", nn.initializers.zeros, (c.hidden_size,), ("embed",))
            x = x + bias.astype(x.dtype)[None, None]
        return x


class Positions(nn.Module):
    """A row for every token of a view."""

    config: VisionConfig

    @nn.compact
    def __call__(self) -> Array:
        """(P, D)."""
        return declare(self, "weight", NORMAL, (self.config.positions, self.config.hidden_size), ("positions", "embed"))


class Embeddings(nn.Module):
    """What the blocks see of a view."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """(V, 3, S, S) -> (V, P, D)."""
        c = self.config
        x = Patches(c, name="patch_embedding")(pixels)
        if c.clip:
            first = declare(self, "class_embedding", NORMAL, (c.hidden_size,), ("embed",))
            x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, c.hidden_size)), x], axis=1)
        return x + Positions(c, name="position_embedding")().astype(x.dtype)[None]


def init(key: Array, config: VisionConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters of a tower, leaves boxed with their logical axes; see `models.decoder.blocks.init`."""
    c = config
    x, mask = jnp.zeros((1, c.positions, c.hidden_size)), jnp.ones((1, 1, 1), bool)
    keys = jax.random.split(key, c.num_hidden_layers + 1)
    norm = LayerNorm(c.layer_norm_eps).init(key, x)["params"]
    params = {
        "embeddings": Embeddings(c).init(keys[0], jnp.zeros((1, 3, c.image_size, c.image_size)))["params"],
        "encoder": {"layers": jax.vmap(lambda k: Block(c).init(k, x, mask)["params"])(keys[1:])},
        "post_layernorm": norm,
    }
    if c.clip:
        params["pre_layrnorm"] = norm  # so the checkpoints spell it
    return jax.tree.map(lambda x: x.astype(dtype), params)
