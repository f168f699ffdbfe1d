"""Layers that all families share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

Params = dict[str, Any]


ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight `(out, in)` as in checkpoints; computed in the dtype of `x`."""

    features: int
    axes: tuple[str, str]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., in) -> (..., out)."""
        weight = declare(self, "weight", nn.initializers.normal(0.02), (self.features, x.shape[-1]), self.axes)
        y = jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype))
        if self.use_bias:
            bias = declare(self, "bias", nn.initializers.zeros, (self.features,), self.axes[:1])
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))
        return y


def declare(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    """A parameter of a module, boxed with its logical axes when it is initialised."""
    return nn.unbox(module.param(name, nn.with_partitioning(init, axes), shape))


def rms_norm(x: Array, weight: Array, eps: float, plus_one: bool) -> Array:
    """RMS norm over the last axis, in float32 (Zhang & Sennrich, 2019); Gemma's weight is an offset from 1."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    scale = weight.astype(jnp.float32) + (1.0 if plus_one else 0.0)
    return (y * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Layer norm over the last axis, in float32 (Ba et al., 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    weight, bias = (jnp.expand_dims(p.astype(jnp.float32), range(x.ndim - 1)) for p in (weight, bias))
    return (y * weight + bias).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention, softmax in float32: q (B, T, N, H), k and v (B, S, K, H), mask (B, T, S) -> (B, T, N, H).

    The query heads that share a key head are folded into one matrix product, and the division comes last, on the
    smaller array: on a CPU `jax.nn.dot_product_attention` takes 1.6 times as long (experiments/bench_kernels).
    """
    batch, length, heads, size = q.shape
    groups = (batch, k.shape[2], heads // k.shape[2], length)
    q = q.reshape(batch, length, *groups[1:3], size).transpose(0, 2, 3, 1, 4).reshape(*groups[:2], -1, size)
    scores = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32).reshape(*groups, -1)
    scores = scores + jnp.where(mask, 0.0, -1e30)[:, None, None]  # finite: a padding row sees nothing, and no NaN
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.reshape(*groups[:2], -1, weights.shape[-1]).astype(v.dtype)
    y = jnp.einsum("bkqs,bskh->bkqh", weights, v, preferred_element_type=jnp.float32)
    y = (y.reshape(*groups, size) / total).astype(v.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)
