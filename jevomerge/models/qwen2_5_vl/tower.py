"""Qwen2.5-VL's tower: a picture cut into windows, beyond which most of its blocks see nothing (Bai et al., 2025).

Parameters are named and laid out as in checkpoints, except that the blocks are stacked on a leading layer axis:

    {"patch_embed": {"proj": {"weight": (D, 3, frames, p, p)}},
     "blocks": {"norm1": {"weight": (L, D)}, "attn": {"qkv": {"weight": (L, 3D, D), "bias": (L, 3D)}, "proj": ...},
                "norm2": ..., "mlp": {"gate_proj": ..., "up_proj": ..., "down_proj": ...}},
     "merger": {"ln_q": {"weight": (D,)}, "mlp": {"0": ..., "2": ...}}}

Dimensions in comments: V windows, P patches of a window, D hidden, N heads, H head size, S pixels along a side.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.models.decoder.attention import rotate
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.layers import ACTIVATIONS, Linear, Params, attend, declare, rms_norm
from jevomerge.models.qwen2_5_vl.config import TowerConfig

Grid = tuple[int, int]  # rows and columns of patches
BLOCKS = "blocks"  # where the stack of blocks hangs in the tower
EPS = 1e-6  # of all norms


class Norm(nn.Module):
    """RMS norm with its weight."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        return rms_norm(x, declare(self, "weight", nn.initializers.ones, (x.shape[-1],), ("embed",)), EPS, False)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one map."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Array, rope: tuple[Array, Array], shown: Array, full: Array) -> Array:
        """(V, P, D) -> (V, P, D)."""
        c = self.config
        qkv = Linear(3 * c.hidden_size, ("heads", "embed"), True, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, c.num_attention_heads, c.head_dim), 2, 0)
        q, k = (rotate(t.astype(jnp.float32), rope).astype(x.dtype) for t in (q * c.head_dim**-0.5, k))
        y = jax.lax.cond(full, across, within, q, k, v, shown)
        return Linear(c.hidden_size, ("embed", "heads"), True, name="proj")(y.reshape(x.shape))


def within(q: Array, k: Array, v: Array, shown: Array) -> Array:
    """(V, P, N, H) each, (V, P) which patches are the picture's -> (V, P, N, H): each sees its window."""
    return attend(q, k, v, shown[:, None])


def across(q: Array, k: Array, v: Array, shown: Array) -> Array:
    """The same, each sees the whole picture; window by window, for all patches by all are much at once."""
    k, v, shown = (x.reshape(1, -1, *x.shape[2:]) for x in (k, v, shown))
    return jax.lax.map(lambda one: attend(one[None], k, v, shown[:, None])[0], q)


class Mlp(nn.Module):
    """Gated feed-forward layer, all maps with a bias."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(V, P, D) -> (V, P, D)."""
        c = self.config
        gate, up = (Linear(c.intermediate_size, ("ff", "embed"), True, name=f"{n}_proj")(x) for n in ("gate", "up"))
        return Linear(c.hidden_size, ("embed", "ff"), True, name="down_proj")(ACTIVATIONS[c.hidden_act](gate) * up)


class Block(nn.Module):
    """One pre-norm block."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Array, rope: tuple[Array, Array], shown: Array, full: Array) -> Array:
        """(V, P, D), (V, P, H/2) tables, (V, P) which patches are the picture's, () whether all see all."""
        x = x + Attention(self.config, name="attn")(Norm(name="norm1")(x), rope, shown, full)
        return x + Mlp(self.config, name="mlp")(Norm(name="norm2")(x))


class Projection(nn.Module):
    """The convolution whose stride is its width, over frames that are all the same picture."""

    config: TowerConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """(V, 3, S, S) -> (V, P, D), row by row."""
        c, n, p = self.config, self.config.window, self.config.patch_size
        axes = ("embed", "channels", "frames", "height", "width")
        weight = declare(self, "weight", nn.initializers.normal(0.02), (c.hidden_size, 3, c.frames, p, p), axes)
        x = pixels.reshape(-1, 3, n, p, n, p).transpose(0, 2, 4, 1, 3, 5).reshape(-1, n * n, 3 * p * p)
        return jnp.einsum("vpi,oi->vpo", x, weight.sum(2).reshape(c.hidden_size, -1).astype(x.dtype))


class Patches(nn.Module):
    """Patches of windows -> hidden states."""

    config: TowerConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """(V, 3, S, S) -> (V, P, D)."""
        projected: Array = Projection(self.config, name="proj")(pixels)
        return projected


class Maps(nn.Module):
    """Two linear maps with a GELU between, called as torch calls the parts of a sequence."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(N, features) -> (N, features)."""
        x = ACTIVATIONS["gelu"](Linear(x.shape[-1], ("features", "features"), True, name="0")(x))
        return Linear(self.config.width, ("embed", "features"), True, name="2")(x)


class Merger(nn.Module):
    """Squares of patches -> features."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(rows, columns, D) -> (N, width), row by row."""
        m, (rows, columns, width) = self.config.merge, x.shape
        x = Norm(name="ln_q")(x).reshape(rows // m, m, columns // m, m, width).transpose(0, 2, 1, 3, 4)
        merged: Array = Maps(self.config, name="mlp")(x.reshape(-1, m * m * width))
        return merged


def windows(pixels: np.ndarray, config: TowerConfig) -> np.ndarray:
    """(3, height, width) of a picture -> (V, 3, S, S), row by row, with zeros where the picture ends in one."""
    side = config.window * config.patch_size
    _, height, width = pixels.shape
    x = np.pad(pixels, ((0, 0), (0, -height % side), (0, -width % side)))
    x = x.reshape(3, x.shape[1] // side, side, x.shape[2] // side, side).transpose(1, 3, 0, 2, 4)
    return x.reshape(-1, 3, side, side)


def look(params: Params, config: TowerConfig, pixels: Array, grid: Grid) -> Array:
    """Hidden states of a picture after the last block.

    Args:
        params: of the tower.
        config: of the tower.
        pixels: (V, 3, S, S) `windows`, in the dtype of the activations.
        grid: rows and columns of its patches.

    Returns:
        (rows, columns, D).
    """
    side, (high, wide) = config.window, (-(-n // config.window) for n in grid)
    inside = np.divmod(np.arange(side * side), side)  # row and column in a window
    corners = np.divmod(np.arange(high * wide), wide)
    rows, columns = (side * corner[:, None] + place for corner, place in zip(corners, inside, strict=True))
    shown = jnp.asarray((rows < grid[0]) & (columns < grid[1]))
    inverse = Rope(config.theta).inverse_frequencies(config.head_dim // 2)
    angles = jnp.asarray(np.concatenate([x[..., None].astype(np.float32) * inverse for x in (rows, columns)], -1))
    rope = jnp.cos(angles), jnp.sin(angles)
    block = Block(config)

    def body(x: Array, xs: tuple[Any, Array]) -> tuple[Any, None]:
        stored, full = xs
        return block.apply({"params": stored}, x, rope, shown, full), None

    x: Any = Patches(config).apply({"params": params["patch_embed"]}, pixels)
    full = jnp.asarray([i in config.full for i in range(config.num_hidden_layers)])
    x, _ = jax.lax.scan(body, x, (params[BLOCKS], full))
    x = x.reshape(high, wide, side, side, -1).transpose(0, 2, 1, 3, 4).reshape(high * side, wide * side, -1)
    return x[: grid[0], : grid[1]]


def merged(params: Params, config: TowerConfig, x: Array) -> Array:
    """(rows, columns, D) hidden states -> (N, width) features."""
    found: Any = Merger(config).apply({"params": params["merger"]}, x)
    return found


def init(key: Array, config: TowerConfig) -> Params:
    """Random parameters, leaves boxed with their logical axes; see `models.decoder.blocks.init`."""
    c, side = config, config.window * config.patch_size
    x, shown = jnp.zeros((1, 1, c.hidden_size)), jnp.ones((1, 1), bool)
    table = jnp.zeros((1, 1, c.head_dim // 2))
    keys = jax.random.split(key, c.num_hidden_layers + 2)
    block = jax.vmap(lambda k: Block(c).init(k, x, (table, table), shown, jnp.asarray(True))["params"])
    return {
        "patch_embed": Patches(c).init(keys[0], jnp.zeros((1, 3, side, side)))["params"],
        BLOCKS: block(keys[2:]),
        "merger": Merger(c).init(keys[1], jnp.zeros((c.merge, c.merge, c.hidden_size)))["params"],
    }
