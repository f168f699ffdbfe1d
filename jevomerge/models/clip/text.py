"""CLIP's text encoder (Radford et al., 2021), made of the same block as its vision tower.

Parameters are named and laid out as in checkpoints, the blocks stacked: {"text_model": {"embeddings": ...,
"encoder": {"layers": ...}, "final_layer_norm": ...}, "text_projection": {"weight": (P, D)}}.

Dimensions in comments: B batch, S tokens, D hidden, P of the projection.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jevomerge.models.clip.config import TextConfig
from jevomerge.models.layers import Linear, declare
from jevomerge.models.tree import Tree
from jevomerge.models.vision.blocks import NORMAL, Block, LayerNorm

LAYERS = "encoder.layers"  # where the stack of blocks hangs in a `text_model`
UNREAD = ("text_model.embeddings.position_ids",)  # a buffer of old files
OLD_EOS = 2  # in files of before transformers' #24773, of whatever tokenizer


class Table(nn.Module):
    """A row for every token, or for every place."""

    rows: int
    width: int
    axis: str

    @nn.compact
    def __call__(self) -> Array:
        """(rows, width)."""
        return declare(self, "weight", NORMAL, (self.rows, self.width), (self.axis, "embed"))


def read(tree: Tree, c: TextConfig, tokens: Array, skip: int, dtype: Any = jnp.float32) -> tuple[Array, Array]:
    """Texts as hidden states.

    Args:
        tree: the parameters.
        c: the architecture.
        tokens: (B, S) int32, S at most `max_position_embeddings`; padding is read like any other token.
        skip: how many blocks at the end the first result has not seen.
        dtype: of the activations.

    Returns:
        (B, S, D) after all blocks but `skip`, and after all of them; neither after the norm that follows the last.
    """
    place, length = tree.at("text_model"), tokens.shape[1]
    words = place("embeddings.token_embedding", Table(c.vocab_size, c.hidden_size, "vocab"))
    places = place("embeddings.position_embedding", Table(c.max_position_embeddings, c.hidden_size, "positions"))
    x = (words[tokens].astype(jnp.float32) + places[None, :length].astype(jnp.float32)).astype(dtype)
    causal = jnp.tril(jnp.ones((1, length, length), bool))

    def block(tree: Tree, x: Array) -> Array:
        y: Array = tree.run(Block(c), x, causal)
        return y

    depth = c.num_hidden_layers
    hidden = place.stack(LAYERS, depth, block, x, range(depth - skip))
    return hidden, place.stack(LAYERS, depth, block, hidden, range(depth - skip, depth)) if skip else hidden


def normed(tree: Tree, c: TextConfig, hidden: Array) -> Array:
    """(B, S, D) -> (B, S, D): the norm that follows the last block."""
    y: Array = tree("text_model.final_layer_norm", LayerNorm(c.layer_norm_eps), hidden)
    return y


def pooled(tree: Tree, c: TextConfig, tokens: Array, last: Array) -> Array:
    """(B, P): what the first end of text in (B, S) `tokens` is, of (B, S, D) after all blocks."""
    old = c.eos_token_id == OLD_EOS  # there the largest id is the end
    end = jnp.argmax(tokens if old else tokens == c.eos_token_id, axis=1)
    found = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
    y: Array = tree("text_projection", Linear(c.projection_dim, ("projection", "embed")), normed(tree, c, found))
    return y
