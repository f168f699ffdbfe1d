"""The autoencoder (Kingma & Welling, 2013; Rombach et al., 2022) that turns latents into pictures, and pictures back.

Parameters are named and laid out as in diffusers' checkpoints: {"decoder": ..., "encoder": ..., "post_quant_conv": ...,
"quant_conv": ...}. Dimensions in comments: B batch, h and w rows and columns of latents, H and W of pixels.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jevomerge.models.diffusion.blocks import Conv, GroupNorm, attention, enlarged, resnet
from jevomerge.models.diffusion.config import VaeConfig
from jevomerge.models.tree import Tree

EPS = 1e-6  # of all its norms


def decode(tree: Tree, c: VaeConfig, z: Array) -> Array:
    """(B, h, w, latent_channels) as a U-Net has them -> (B, H, W, 3), a picture's colours from -1 to 1."""
    norm, widths = GroupNorm(c.norm_num_groups, EPS), c.block_out_channels[::-1]
    z = z / c.scaling_factor
    if c.latents_mean is not None and c.latents_std is not None:
        mean, std = (jnp.asarray(n, z.dtype)[None, None, None] for n in (c.latents_mean, c.latents_std))
        z = z * std + mean
    x = tree("post_quant_conv", Conv(c.latent_channels, 1), z)
    tree = tree.at("decoder")
    x = _middle(tree.at("mid_block"), tree("conv_in", Conv(widths[0]), x), norm)
    for i, width in enumerate(widths):
        block = tree.at(f"up_blocks.{i}")
        for j in range(c.layers_per_block + 1):
            x = resnet(block.at(f"resnets.{j}"), x, width, norm)
        if i < len(widths) - 1:
            x = enlarged(block.at("upsamplers.0"), x)
    return tree("conv_out", Conv(c.out_channels), nn.silu(tree("conv_norm_out", norm, x)))


def encode(tree: Tree, c: VaeConfig, pixels: Array) -> Array:
    """(B, H, W, 3), colours from -1 to 1 -> (B, h, w, 2 * latent_channels): means and logarithms of variances."""
    norm, whole = GroupNorm(c.norm_num_groups, EPS), tree
    tree = tree.at("encoder")
    x = tree("conv_in", Conv(c.block_out_channels[0]), pixels)
    for i, width in enumerate(c.block_out_channels):
        block = tree.at(f"down_blocks.{i}")
        for j in range(c.layers_per_block):
            x = resnet(block.at(f"resnets.{j}"), x, width, norm)
        if i < len(c.block_out_channels) - 1:  # unlike a U-Net's, it pads below and to the right alone
            x = block("downsamplers.0.conv", Conv(width, stride=2, pads=(0, 1)), x)
    x = tree("conv_norm_out", norm, _middle(tree.at("mid_block"), x, norm))
    x = tree("conv_out", Conv(2 * c.latent_channels), nn.silu(x))
    return whole("quant_conv", Conv(2 * c.latent_channels, 1), x)


def _middle(tree: Tree, x: Array, norm: GroupNorm) -> Array:
    """(B, h, w, C) -> (B, h, w, C), every place seeing all others."""
    width = x.shape[-1]
    x = resnet(tree.at("resnets.0"), x, width, norm)
    place = tree.at("attentions.0")
    y = place("group_norm", norm, x).reshape(x.shape[0], -1, width)
    x = x + attention(place, y, y, 1, bias=True).reshape(x.shape)
    return resnet(tree.at("resnets.1"), x, width, norm)
