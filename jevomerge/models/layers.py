"""Layers that all families share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.members import Unmerged, product

Params = dict[str, Any]

REACH = "reach"  # the choice of how many slots of a cache are read, by whose name a plan knows it
STRIDE, REACHES = 128, 16  # slots from one to the next, or a multiple; how many there are at most

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(nn.relu(x)),
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
        weight: Any = self.get_variable("params", "weight")
        if not isinstance(weight, Unmerged):
            weight = declare(self, "weight", nn.initializers.normal(0.02), (self.features, x.shape[-1]), self.axes)
        y = product(x, weight)
        if self.use_bias:
            bias = declare(self, "bias", nn.initializers.zeros, (self.features,), self.axes[:1])
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))
        return y


def declare(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    """A parameter of a module, boxed with its logical axes when it is initialised."""
    found: Any = module.get_variable("params", name)
    if isinstance(found, Unmerged):
        return found.merged()
    return nn.unbox(module.param(name, nn.with_partitioning(init, axes), shape))


def rms_norm(x: Array, weight: Array, eps: float, plus_one: bool) -> Array:
    """RMS norm over the last axis, in float32 (Zhang & Sennrich, 2019); Gemma's weight is an offset from 1."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    scale = weight.astype(jnp.float32) + (1.0 if plus_one else 0.0)
    return (y * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float, plus_one: bool = False) -> Array:
    """Layer norm over the last axis, in float32 (Ba et al., 2016); Nemotron's weight is an offset from 1."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * jnp.expand_dims(weight.astype(jnp.float32) + (1.0 if plus_one else 0.0), range(x.ndim - 1))
    if bias is not None:
        y = y + jnp.expand_dims(bias.astype(jnp.float32), range(x.ndim - 1))
    return y.astype(x.dtype)


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    softcap: float | None = None,
    sinks: Array | None = None,
    before: tuple[Array, Array] | None = None,
) -> Array:
    """Softmax attention, softmax in float32: q (B, T, N, H), k and v (B, S, K, H), mask (B, T, S) -> (B, T, N, H).

    With a `softcap` c, scores s become c tanh(s / c). `sinks` (N,) are scores that take their share and give nothing.
    `before` (1, K, P, H) are keys and values before those of all rows, which one matrix product reads for all; the
    mask is then (B, T, P + S).

    The query heads that share a key head are folded into one matrix product, and the division comes last, on the
    smaller array: on a CPU `jax.nn.dot_product_attention` takes 1.6 times as long (experiments/bench_kernels).
    """
    batch, length, heads, size = q.shape
    groups = (batch, k.shape[2], heads // k.shape[2], length)
    q = q.reshape(batch, length, *groups[1:3], size).transpose(0, 2, 3, 1, 4).reshape(*groups[:2], -1, size)
    scores = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32)
    if before is not None:
        common, shown = (x[0].astype(v.dtype) for x in before)
        first = jnp.einsum("bkqh,kph->bkqp", q, common, preferred_element_type=jnp.float32)
        scores = jnp.concatenate([first, scores], axis=-1)
    scores = scores.reshape(*groups, -1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores + jnp.where(mask, 0.0, -1e30)[:, None, None]  # finite: a padding row sees nothing, and no NaN
    most = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        of_head = sinks.astype(jnp.float32).reshape(1, *groups[1:3], 1, 1)
        most = jnp.maximum(most, of_head)
    weights = jnp.exp(scores - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(of_head - most)
    weights = weights.reshape(*groups[:2], -1, weights.shape[-1]).astype(v.dtype)
    own = weights[..., -v.shape[1] :]
    y = jnp.einsum("bkqs,bskh->bkqh", own, v, preferred_element_type=jnp.float32)
    if before is not None:
        first = weights[..., : -v.shape[1]]
        y = y + jnp.einsum("bkqp,kph->bkqh", first, shown, preferred_element_type=jnp.float32)
    y = (y.reshape(*groups, size) / total).astype(v.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


def reaches_of(slots: int) -> list[int]:
    """So many of the first slots of a cache are read, the fewest that hold what is filled.

    >>> reaches_of(100), reaches_of(300), reaches_of(4096)[:2]
    ([100], [128, 256, 300], [256, 512])
    """
    stride = STRIDE * -(-slots // (STRIDE * REACHES))
    return [*range(stride, slots, stride), slots]
