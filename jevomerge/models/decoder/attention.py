"""Attention with rotary positions.

Dimensions in comments: B batch, T new tokens, D hidden, N query heads, K key/value heads, H head size, R how much of a
head turns.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.memory import Seen
from jevomerge.models.decoder.norms import Norm
from jevomerge.models.layers import Linear, attend, declare, rms_norm


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions."""

    config: DecoderConfig
    kind: LayerKind

    @nn.compact
    def __call__(self, x: Array, seen: Seen) -> tuple[Array, Any]:
        """(B, T, D) -> (B, T, D), and what is kept of keys and values."""
        c, (heads, _, size) = self.config, self.config.heads(self.kind)
        q, k, v = self._projected(x)
        gate = None
        if c.query_gate:
            q, gate = jnp.split(q, 2, axis=-1)
        if c.qk_norm == "head" and not c.qk_norm_last:
            q, k = self._normed(q, k)
        q, k = (rotate(y, seen.rope, c.rope_interleaved) for y in (q, k))
        if c.qk_norm == "head" and c.qk_norm_last:
            q, k = self._normed(q, k)
        if c.value_norm:
            v = rms_norm(v, jnp.ones(size), c.rms_norm_eps, False)
        scale = size**-0.5 if c.query_scale is None else c.query_scale
        q = q * jnp.asarray(scale, x.dtype)
        if c.query_growth is not None:
            share, period = c.query_growth
            place = jnp.maximum(seen.positions, 0).astype(jnp.float32)  # padding in front is at -1: log 0
            growth = 1.0 + share * jnp.log1p(jnp.floor(place / period))
            q = q * growth[:, :, None, None].astype(x.dtype)
        sinks = declare(self, "sinks", nn.initializers.zeros, (heads,), ("heads",)) if c.sinks else None
        see = functools.partial(attend, q, softcap=c.attention_softcap, sinks=sinks, before=seen.memory.before)
        y, kept = seen.memory.attended(see, k, v, seen.mask)
        if gate is not None:
            y = y * nn.sigmoid(gate)
        y = y.reshape(*x.shape[:2], heads * size)
        return Linear(c.hidden_size, ("embed", "heads"), c.o_bias, name="o_proj")(y), kept

    def _projected(self, x: Array) -> tuple[Array, Array, Array]:
        """(B, T, D) -> q (B, T, N, H), k and v (B, T, K, H)."""
        c, (queries, keys, size) = self.config, self.config.heads(self.kind)
        heads = {"q": queries, "k": keys, "v": keys}
        if c.fused_qkv:
            rows = sum(heads.values()) * size
            y = Linear(rows, ("qkv", "embed"), c.qkv_bias, name="qkv_proj")(x)
            if c.fused_qkv == "heads":
                y = y.reshape(*x.shape[:2], queries, 3, size)
                return y[:, :, :, 0], y[:, :, :, 1], y[:, :, :, 2]
            y = y.reshape(*x.shape[:2], -1, size)
            q, k, v = jnp.split(y, [queries, queries + keys], axis=2)
            return q, k, v

        def project(name: str, axis: str, size: int = size) -> Array:
            y = Linear(heads[name] * size, (axis, "embed"), c.qkv_bias, name=f"{name}_proj")(x)
            if c.qk_norm == "whole" and name != "v":
                y = Norm(c, axis, name=f"{name}_norm")(y)
            return y.reshape(*x.shape[:2], heads[name], size)

        q = project("q", "heads", size * (2 if c.query_gate else 1))
        k = project("k", "kv_heads")
        return q, k, k if self.kind.keys_are_values else project("v", "kv_heads")

    def _normed(self, q: Array, k: Array) -> tuple[Array, Array]:
        c = self.config
        return Norm(c, "head_dim", name="q_norm")(q), Norm(c, "head_dim", name="k_norm")(k)


def rotate(x: Array, rope: tuple[Array, Array], interleaved: bool = False) -> Array:
    """Turn the first R of (B, T, heads, H) by the angles of (B, T, R/2) tables: of pairs one in each half, or two
    neighbours (`interleaved`).
    """
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in rope)
    turned = 2 * cos.shape[-1]
    x, rest = (x, None) if turned == x.shape[-1] else (x[..., :turned], x[..., turned:])
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    else:
        a, b = jnp.split(x, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y if rest is None else jnp.concatenate([y, rest], axis=-1)
