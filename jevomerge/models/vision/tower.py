"""A vision tower: pictures cut into patches, through a stack of blocks that see all of them (Radford et al., 2021).

Parameters are named and laid out as in checkpoints, except that the blocks are stacked on a leading layer axis:

    {"embeddings": {"class_embedding": (D,), "patch_embedding": {"weight": (D, 3, p, p)}, "position_embedding": ...},
     "pre_layrnorm": {"weight": (D,), "bias": (D,)},
     "encoder": {"layers": {"self_attn": {"q_proj": {"weight": (L, D, D), "bias": (L, D)}, ...}, ...}},
     "post_layernorm": ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import Params, layer_norm
from jevomerge.models.vision.blocks import Block, Embeddings
from jevomerge.models.vision.config import VisionConfig


def look(params: Params, config: VisionConfig, pixels: Array, layers: Sequence[int]) -> tuple[Array, ...]:
    """Hidden states of views.

    Args:
        params: of the tower.
        config: of the tower.
        pixels: (V, 3, S, S) in the dtype of the activations.
        layers: after how many blocks, 0 being the embeddings; blocks after the last of these are not run.

    Returns:
        For each of `layers` (V, P, D), without the norm that follows the last block.
    """
    x: Any = Embeddings(config).apply({"params": params["embeddings"]}, pixels)
    if config.clip:
        x = norm(params["pre_layrnorm"], config, x)
    block, blocks, mask = Block(config), params["encoder"]["layers"], jnp.ones((1, 1, 1), bool)
    depth, several = max(layers), len(set(layers)) > 1

    def body(x: Any, i: Array) -> tuple[Any, Any]:
        stored = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, keepdims=False), blocks)
        y = block.apply({"params": stored}, x, mask)
        return y, y if several else None

    last: Any
    last, each = jax.lax.scan(body, x, jnp.arange(depth, dtype=jnp.int32))
    return tuple(last if i == depth else x if i == 0 else each[i - 1] for i in layers)


def norm(params: Params, config: VisionConfig, x: Array) -> Array:
    """One of the norms around the stack."""
    return layer_norm(x, params["weight"], params["bias"], config.layer_norm_eps)
