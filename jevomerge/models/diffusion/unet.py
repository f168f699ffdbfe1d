"""The U-Net of Stable Diffusion XL, 1.5 and 2 (Podell et al., 2023): what of noisy latents is noise.

Parameters are named and laid out as in diffusers' checkpoints, except that the blocks of each transformer are stacked:

    {"conv_in": {"weight": (C, 4, 3, 3), "bias": (C,)}, "time_embedding": {"linear_1": ..., "linear_2": ...},
     "add_embedding": ...,                                                                  # SDXL
     "down_blocks": {"1": {"resnets": {"0": ...}, "attentions": {"0": {"transformer_blocks": {"attn1": ...}}}}, ...},
     "mid_block": ..., "up_blocks": ..., "conv_norm_out": ..., "conv_out": ...}

Dimensions in comments: B batch, H and W rows and columns of latents, S the text's tokens, D its width.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import Array

from jevomerge.models.diffusion.blocks import AXES, Conv, GroupNorm, enlarged, resnet, transformer
from jevomerge.models.diffusion.config import UNetConfig
from jevomerge.models.layers import Linear
from jevomerge.models.tree import Tree


@flax.struct.dataclass
class Condition:
    """What a U-Net is told of a picture besides its latents."""

    context: Array  # (B, S, D), of which padding is a part
    pooled: Array | None = None  # (B, P), SDXL
    time_ids: Array | None = None  # (B, 6) of SDXL: height and width of the original, top and left of the cut, target

    def zeros(self) -> Condition:
        """Of no text: what SDXL takes for the empty negative prompt (`force_zeros_for_empty_prompt`)."""
        pooled = None if self.pooled is None else jnp.zeros_like(self.pooled)
        return Condition(jnp.zeros_like(self.context), pooled, self.time_ids)


def denoise(tree: Tree, c: UNetConfig, x: Array, t: Array, condition: Condition) -> Array:
    """One look at noisy latents.

    Args:
        tree: the parameters.
        c: the architecture.
        x: (B, H, W, in_channels) in the dtype of the activations; H and W multiples of 2 ** (blocks - 1).
        t: () or (B,) time steps of training, 0 to 999.
        condition: of the pictures.

    Returns:
        (B, H, W, out_channels), of which the scheduler knows what it means.
    """
    norm, last = GroupNorm(c.norm_num_groups, c.norm_eps), len(c.block_out_channels) - 1
    context, time = condition.context.astype(x.dtype), _time(tree, c, x, t, condition)

    def layer(tree: Tree, j: int, x: Array, i: int, attends: bool) -> Array:
        """The j-th layer of a block that is as wide as the i-th one down."""
        x = resnet(tree.at(f"resnets.{j}"), x, c.block_out_channels[i], norm, time)
        return attended(tree, j, x, i) if attends else x

    def attended(tree: Tree, j: int, x: Array, i: int) -> Array:
        heads, depth = c.attention_head_dim[i], c.transformer_layers_per_block[i]
        place = tree.at(f"attentions.{j}")
        return transformer(place, x, context, heads, depth, c.norm_num_groups, c.use_linear_projection)

    x = tree("conv_in", Conv(c.block_out_channels[0]), x)
    skipped = [x]
    for i, kind in enumerate(c.down_block_types):
        block = tree.at(f"down_blocks.{i}")
        for j in range(c.layers_per_block[i]):
            x = layer(block, j, x, i, kind.startswith("CrossAttn"))
            skipped.append(x)
        if i < last:
            x = block("downsamplers.0.conv", Conv(x.shape[-1], stride=2), x)
            skipped.append(x)
    middle = tree.at("mid_block")
    x = layer(middle, 0, x, last, True)
    x = layer(middle, 1, x, last, False)
    for i, kind in enumerate(c.up_block_types):
        block = tree.at(f"up_blocks.{i}")
        for j in range(c.layers_per_block[last - i] + 1):
            x = jnp.concatenate([x, skipped.pop()], axis=-1)
            x = layer(block, j, x, last - i, kind.startswith("CrossAttn"))
        if i < last:
            x = enlarged(block.at("upsamplers.0"), x)
    return tree("conv_out", Conv(c.out_channels), nn.silu(tree("conv_norm_out", norm, x)))


def sinusoid(numbers: Array, width: int, flip: bool, shift: int) -> Array:
    """(...) -> (..., width) float32: sines, then cosines, or flipped, of slower and slower waves."""
    half = width // 2
    waves = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = jnp.einsum("...,w->...w", numbers.astype(jnp.float32), waves)
    both = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(both[::-1] if flip else both, axis=-1)


def _time(tree: Tree, c: UNetConfig, x: Array, t: Array, condition: Condition) -> Array:
    """(B, E): the time step, and what SDXL is told of sizes and of the text as a whole."""

    def mlp(path: str, x: Array) -> Array:
        y = nn.silu(tree(f"{path}.linear_1", Linear(c.time_embedding_dim, AXES, True), x))
        return tree(f"{path}.linear_2", Linear(c.time_embedding_dim, AXES, True), y)

    t = jnp.broadcast_to(t, x.shape[:1])
    waves = sinusoid(t, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
    time = mlp("time_embedding", waves.astype(x.dtype))
    if c.addition_time_embed_dim is None:
        return time
    assert condition.time_ids is not None
    assert condition.pooled is not None
    ids = sinusoid(condition.time_ids, c.addition_time_embed_dim, c.flip_sin_to_cos, c.freq_shift)
    told = jnp.concatenate([condition.pooled.astype(x.dtype), ids.reshape(len(ids), -1).astype(x.dtype)], axis=-1)
    return time + mlp("add_embedding", told)
