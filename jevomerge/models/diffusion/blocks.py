"""What U-Net and autoencoder are made of. Pictures lie as (B, H, W, C), which TPUs, CPUs and cuDNN run fastest.

Weights stay as they are stored, convolutions (out, in, height, width): so a merge, a gene and a file see the same
tensor. They are turned around where they are used: XLA does that for CPUs by itself, but not within loops, such as that
over steps, and there falls back to a convolution of many times the time (experiments/bench_diffusion).

Dimensions in comments: B batch, H and W rows and columns, C channels, T tokens (all H * W places), S the text's tokens.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import ACTIVATIONS, Linear, attend, declare
from jevomerge.models.tree import Tree
from jevomerge.models.vision.blocks import NORMAL, LayerNorm

AXES = ("channels", "channels")
TRANSFORMER_EPS = 1e-6  # of the group norm before a transformer, whatever the U-Net's is
LAYER_EPS = 1e-5
STACK = "transformer_blocks"  # where in a transformer its blocks hang


class Conv(nn.Module):
    """Convolution with a bias; `pads` are (before, after) along both sides, unless given as many as keep the size."""

    features: int
    kernel: int = 3
    stride: int = 1
    pads: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        shape = (self.features, x.shape[-1], self.kernel, self.kernel)
        weight = declare(self, "weight", NORMAL, shape, (*AXES, "height", "width"))
        bias = declare(self, "bias", nn.initializers.zeros, (self.features,), AXES[:1])
        pads = self.pads or (self.kernel // 2,) * 2
        turned, layouts = weight.astype(x.dtype).transpose(2, 3, 1, 0), ("NHWC", "HWIO", "NHWC")
        if self.kernel == self.stride == 1:
            x = x @ turned[0, 0]  # faster than a convolution on CPUs
        else:
            x = jax.lax.conv_general_dilated(x, turned, (self.stride,) * 2, [pads] * 2, dimension_numbers=layouts)
        return x + bias.astype(x.dtype)[None, None, None]


class GroupNorm(nn.Module):
    """Group norm (Wu & He, 2018) over all places and the channels of a group, in float32."""

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        width = x.shape[-1]
        weight = declare(self, "weight", nn.initializers.ones, (width,), AXES[:1]).astype(jnp.float32)
        bias = declare(self, "bias", nn.initializers.zeros, (width,), AXES[:1]).astype(jnp.float32)

        def means(y: Array) -> Array:
            """Over each group, (B, 1, 1, C): first over places, where channels lie side by side."""
            of_groups = jnp.mean(y, axis=(1, 2)).reshape(len(y), self.groups, -1).mean(axis=-1)
            return jnp.repeat(of_groups, width // self.groups, axis=-1)[:, None, None]

        y = x.astype(jnp.float32)
        y = y - means(y)
        y = y * (jax.lax.rsqrt(means(y * y) + self.eps) * weight[None, None, None]) + bias[None, None, None]
        return y.astype(x.dtype)


def resnet(tree: Tree, x: Array, channels: int, norm: GroupNorm, time: Array | None = None) -> Array:
    """(B, H, W, any) -> (B, H, W, channels); `time` (B, E) is added between its convolutions."""
    y = tree("conv1", Conv(channels), nn.silu(tree("norm1", norm, x)))
    if time is not None:
        y = y + tree("time_emb_proj", Linear(channels, AXES, True), nn.silu(time))[:, None, None]
    y = tree("conv2", Conv(channels), nn.silu(tree("norm2", norm, y)))
    return (tree("conv_shortcut", Conv(channels, 1), x) if x.shape[-1] != channels else x) + y


def attention(tree: Tree, x: Array, context: Array, heads: int, bias: bool = False) -> Array:
    """(B, T, C) that look at a context (B, S, any), nothing of it hidden -> (B, T, C)."""
    batch, length, width = x.shape
    q, k, v = (
        tree(name, Linear(width, AXES, bias), given).reshape(batch, -1, heads, width // heads)
        for name, given in (("to_q", x), ("to_k", context), ("to_v", context))
    )
    y = attend(q * jnp.asarray((width // heads) ** -0.5, x.dtype), k, v, jnp.ones((1, 1, 1), bool))
    return tree("to_out.0", Linear(width, AXES, True), y.reshape(batch, length, width))


def transformer_block(tree: Tree, x: Array, *, context: Array, heads: int) -> Array:
    """(B, T, C) -> (B, T, C): tokens look at each other, then at the text, then each is on its own."""
    norm, width = LayerNorm(LAYER_EPS), x.shape[-1]
    y = tree("norm1", norm, x)
    x = x + attention(tree.at("attn1"), y, y, heads)
    x = x + attention(tree.at("attn2"), tree("norm2", norm, x), context, heads)
    y, gate = jnp.split(tree("ff.net.0.proj", Linear(8 * width, AXES, True), tree("norm3", norm, x)), 2, axis=-1)
    return x + tree("ff.net.2", Linear(width, AXES, True), y * ACTIVATIONS["gelu"](gate))


def transformer(tree: Tree, x: Array, context: Array, heads: int, depth: int, groups: int, linear: bool) -> Array:
    """(B, H, W, C) -> (B, H, W, C), its places being the tokens of `depth` blocks, which are scanned."""
    width = x.shape[-1]
    project: nn.Module = Linear(width, AXES, True) if linear else Conv(width, 1)
    y = tree("proj_in", project, tree("norm", GroupNorm(groups, TRANSFORMER_EPS), x))
    block = functools.partial(transformer_block, context=context, heads=heads)
    y = tree.stack(STACK, depth, block, y.reshape(x.shape[0], -1, width))
    return x + tree("proj_out", project, y.reshape(x.shape))


def enlarged(tree: Tree, x: Array) -> Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C): every place four times, and a convolution."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return tree("conv", Conv(channels), x.reshape(batch, 2 * height, 2 * width, channels))
