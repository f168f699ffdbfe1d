"""One block of the decoder as Flax (Linen) modules, which give shape, initialisation, names and logical axes.

Dimensions in comments: B batch, T new tokens, S key/value slots, D hidden, H head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.layers import ACTIVATIONS, Linear, Params, attend, declare, rms_norm


class Norm(nn.Module):
    """The decoder's RMS norm with its weight."""

    config: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        c = self.config
        init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        weight = declare(self, "weight", init, (x.shape[-1],), (self.axis,))
        return rms_norm(x, weight, c.rms_norm_eps, c.norm_plus_one)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Array, rope: tuple[Array, Array], mask: Array, remember: Callable[..., Any]
    ) -> tuple[Array, Any]:
        """(B, T, D) -> (B, T, D), and whatever `remember` keeps of the new keys and values."""
        c = self.config
        batch, length, _ = x.shape

        def project(name: str, heads: int, axis: str) -> Array:
            y = Linear(heads * c.head_dim, (axis, "embed"), c.qkv_bias, name=f"{name}_proj")(x)
            return y.reshape(batch, length, heads, c.head_dim)

        q = project("q", c.num_attention_heads, "heads")
        k = project("k", c.num_key_value_heads, "kv_heads")
        v = project("v", c.num_key_value_heads, "kv_heads")
        if c.qk_norm:
            q = Norm(c, "head_dim", name="q_norm")(q)
            k = Norm(c, "head_dim", name="k_norm")(k)
        k, v, kept = remember(rotate(k, rope), v)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        y = attend(rotate(q, rope) * jnp.asarray(scale, x.dtype), k, v, mask)
        y = y.reshape(batch, length, c.num_attention_heads * c.head_dim)
        return Linear(c.hidden_size, ("embed", "heads"), c.o_bias, name="o_proj")(y), kept


class Mlp(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        c = self.config
        gate = Linear(c.intermediate_size, ("ff", "embed"), c.mlp_bias, name="gate_proj")(x)
        up = Linear(c.intermediate_size, ("ff", "embed"), c.mlp_bias, name="up_proj")(x)
        y = ACTIVATIONS[c.hidden_act](gate) * up
        return Linear(c.hidden_size, ("embed", "ff"), c.mlp_bias, name="down_proj")(y)


class Block(nn.Module):
    """One decoder layer; its attribute names are the checkpoint's."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Array, rope: tuple[Array, Array], mask: Array, remember: Callable[..., Any]
    ) -> tuple[Array, Array, Any]:
        """(B, T, D) -> two (B, T, D) whose sum is the output, the second from the MLP; and new cache entries."""
        c = self.config
        y, kept = Attention(c, name="self_attn")(Norm(c, name="input_layernorm")(x), rope, mask, remember)
        if c.sandwich_norms:
            x = x + Norm(c, name="post_attention_layernorm")(y)
            y = Mlp(c, name="mlp")(Norm(c, name="pre_feedforward_layernorm")(x))
            return x, Norm(c, name="post_feedforward_layernorm")(y), kept
        x = x + y
        return x, Mlp(c, name="mlp")(Norm(c, name="post_attention_layernorm")(x)), kept


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """Turn (B, T, heads, H) by the angles of (B, T, H/2) tables, halves paired as in Hugging Face."""
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in rope)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def init(key: Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters whose leaves are boxed with their logical axes (`flax.linen.Partitioned`).

    Under `jax.eval_shape` this is the model's table of names, shapes and axes without any weights;
    `flax.linen.unbox` gives the plain arrays that `apply` takes.
    """
    c = config
    keys = jax.random.split(key, c.num_hidden_layers + 2)

    def block(k: Array) -> Params:
        x = jnp.zeros((1, 1, c.hidden_size))
        table = jnp.zeros((1, 1, c.head_dim // 2))
        mask = jnp.ones((1, 1, 1), bool)
        return Block(c).init(k, x, (table, table), mask, lambda k, v: (k, v, None))["params"]

    def matrix(k: Array) -> Params:
        weight = nn.initializers.normal(0.02)(k, (c.vocab_size, c.hidden_size))
        return {"weight": nn.Partitioned(weight, names=("vocab", "embed"))}

    params = {
        "embed_tokens": matrix(keys[0]),
        "layers": jax.vmap(block)(keys[2:]),
        "norm": Norm(c).init(key, jnp.zeros((1, c.hidden_size)))["params"],
    }
    if not c.tie_word_embeddings:
        params["lm_head"] = matrix(keys[1])
    return jax.tree.map(lambda x: x.astype(dtype), params)
