"""The gated delta net (Yang et al., 2024): linear attention whose state forgets, and is corrected by what it misses.

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - (exp(g_t) S_{t-1})' k_t))'        y_t = S_t' q_t

Dimensions in comments: B batch, T new tokens, D hidden, N value heads, G key heads, K and V their sizes, C chunk.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.decoder.memory import Seen
from jevomerge.models.layers import Linear, declare, rms_norm

CHUNK = 64  # tokens that are computed at once


class GatedDeltaNet(nn.Module):
    """A mixer that remembers a state of fixed size: the last inputs of its convolution, and S."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, seen: Seen) -> tuple[Array, Any]:
        """(B, T, D) -> (B, T, D), and what is remembered."""
        c, d = self.config, self.config.delta
        assert d is not None
        batch, length, _ = x.shape
        keys, values = d.key_heads * d.key_dim, d.value_heads * d.value_dim
        mixed, z, b, a = self._projected(jnp.where(seen.valid[:, :, None], x, 0))
        kernel = Weight((2 * keys + values, 1, d.kernel), ("delta_qkv", "", ""), name="conv1d")()
        past, state = seen.memory.states() or (
            jnp.zeros((batch, d.kernel - 1, mixed.shape[-1]), x.dtype),
            jnp.zeros((batch, d.value_heads, d.key_dim, d.value_dim), jnp.float32),
        )
        inputs = jnp.concatenate([past.astype(x.dtype), mixed], axis=1)
        convolved = sum(
            inputs[:, i : i + length] * kernel[None, None, :, 0, i].astype(x.dtype) for i in range(d.kernel)
        )
        q, k, v = jnp.split(nn.silu(jnp.asarray(convolved)), [keys, 2 * keys], axis=-1)
        q, k = (
            jnp.repeat(t.reshape(batch, length, d.key_heads, d.key_dim), d.value_heads // d.key_heads, axis=2)
            for t in (q, k)
        )
        slope = declare(self, "A_log", nn.initializers.zeros, (d.value_heads,), ("delta_v",))
        shift = declare(self, "dt_bias", nn.initializers.ones, (d.value_heads,), ("delta_v",))
        slope, shift = (p.astype(jnp.float32)[None, None] for p in (slope, shift))
        decay = -jnp.exp(slope) * jax.nn.softplus(a.astype(jnp.float32) + shift)
        y, state = delta_rule(
            _unit(q) * d.key_dim**-0.5, _unit(k), v.reshape(batch, length, d.value_heads, d.value_dim), decay,
            jax.nn.sigmoid(b.astype(jnp.float32)), state,
        )  # fmt: skip
        kept = seen.memory.replaced(inputs[:, length:], state)
        weight = Weight((d.value_dim,), ("",), name="norm")()
        y = rms_norm(y, weight, c.rms_norm_eps, False) * nn.silu(z.reshape(y.shape).astype(jnp.float32))
        y = y.astype(x.dtype).reshape(batch, length, values)
        return Linear(c.hidden_size, ("embed", "delta_v"), name="out_proj")(y), kept

    def _projected(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """(B, T, D) -> q, k and v (B, T, 2 G K + N V), gates z (B, T, N V), b and a (B, T, N)."""
        d = self.config.delta
        assert d is not None
        keys, values = d.key_heads * d.key_dim, d.value_heads * d.value_dim
        if not d.packed:
            return (
                Linear(2 * keys + values, ("delta_qkv", "embed"), name="in_proj_qkv")(x),
                Linear(values, ("delta_v", "embed"), name="in_proj_z")(x),
                Linear(d.value_heads, ("delta_v", "embed"), name="in_proj_b")(x),
                Linear(d.value_heads, ("delta_v", "embed"), name="in_proj_a")(x),
            )
        # Each key head with its value heads.
        own = d.value_heads // d.key_heads
        y = Linear(2 * (keys + values), ("delta_k", "embed"), name="in_proj_qkvz")(x)
        y = y.reshape(*x.shape[:2], d.key_heads, -1)
        parts = jnp.split(y, [d.key_dim, 2 * d.key_dim, 2 * d.key_dim + own * d.value_dim], axis=-1)
        q, k, v, z = (part.reshape(*x.shape[:2], -1) for part in parts)
        ba = Linear(2 * d.value_heads, ("delta_k", "embed"), name="in_proj_ba")(x)
        b, a = jnp.split(ba.reshape(*x.shape[:2], d.key_heads, -1), 2, axis=-1)
        return jnp.concatenate([q, k, v], axis=-1), z, b.reshape(*x.shape[:2], -1), a.reshape(*x.shape[:2], -1)


class Weight(nn.Module):
    """A weight alone."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self) -> Array:
        """The weight."""
        return declare(self, "weight", nn.initializers.ones, self.shape, self.axes)


def _unit(x: Array) -> Array:
    """Of length 1 along the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array) -> tuple[Array, Array]:
    """The rule above, chunk by chunk; inside a chunk by one triangular system (Yang et al., 2024, section 3.3).

    Args:
        q: (B, T, N, K) float32, scaled.
        k: (B, T, N, K) float32, of length 1.
        v: (B, T, N, V).
        decay: (B, T, N) g, at most 0.
        beta: (B, T, N) how much is corrected.
        state: (B, N, K, V) float32.

    Returns:
        y (B, T, N, V) float32, and the state after the last token.
    """
    length = q.shape[1]
    size = min(CHUNK, length)
    pad = -length % size

    def chunks(x: Array) -> Array:
        """(B, T, N, ...) -> (T / C, B, N, C, ...); tokens of zeros at the end leave the state as it is."""
        x = jnp.pad(x.astype(jnp.float32), [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 3, 2)

    lower = jnp.tril(jnp.ones((size, size), bool))[None, None]
    strict = jnp.tril(jnp.ones((size, size), bool), -1)[None, None]

    def chunk(state: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, beta = xs
        total = jnp.cumsum(g, axis=-1)  # (B, N, C)
        between = jnp.where(lower, jnp.exp(jnp.where(lower, total[..., :, None] - total[..., None, :], 0.0)), 0.0)
        grown = jnp.exp(total)[..., None]
        kk = jnp.einsum("bnik,bnjk->bnij", k * beta[..., None], k)
        system = jnp.where(strict, kk * between, 0.0) + jnp.eye(size)[None, None]
        wanted = v * beta[..., None] - (k * beta[..., None] * grown) @ state
        new = jax.scipy.linalg.solve_triangular(system, wanted, lower=True, unit_diagonal=True)
        y = (q * grown) @ state + (jnp.einsum("bnik,bnjk->bnij", q, k) * between) @ new
        left = jnp.exp(total[..., -1:] - total)[..., None]
        state = state * jnp.exp(total[..., -1])[..., None, None] + jnp.einsum("bnck,bncv->bnkv", k * left, new)
        return state, y

    state, y = jax.lax.scan(chunk, state.astype(jnp.float32), tuple(map(chunks, (q, k, v, decay, beta))))
    y = jnp.moveaxis(jnp.moveaxis(y, 2, 3), 0, 1)  # (B, T / C, C, N, V)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length], state
