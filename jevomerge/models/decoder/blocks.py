"""One block of the decoder as Flax (Linen) modules, which give shape, initialisation, names and logical axes.

Dimensions in comments: B batch, T new tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.attention import Attention
from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.delta import GatedDeltaNet
from jevomerge.models.decoder.experts import Experts, NormedRouter, SparseMlp
from jevomerge.models.decoder.memory import Memory, Seen
from jevomerge.models.decoder.mlp import Mlp
from jevomerge.models.decoder.norms import Norm
from jevomerge.models.layers import Params, declare


class Block(nn.Module):
    """One decoder layer; its attribute names are the checkpoint's."""

    config: DecoderConfig
    kind: LayerKind

    @nn.compact
    def __call__(self, x: Array, seen: Seen) -> tuple[Array, Array, Any]:
        """(B, T, D) -> two (B, T, D) whose sum is the output, the second from the MLP; and new cache entries."""
        c = self.config
        before, after, before_mlp, after_mlp = c.norms

        def norm(name: str, x: Array) -> Array:
            return Norm(c, name=name)(x) if name else x

        def added(name: str, y: Array) -> Array:
            y = norm(name, y)
            return y if c.residual_scale == 1 else y * jnp.asarray(c.residual_scale, y.dtype)

        read = norm(before, x)
        if self.kind.mixer == "delta":
            y, kept = GatedDeltaNet(c, name="linear_attn")(read, seen)
        else:
            y, kept = Attention(c, self.kind, name="self_attn")(read, seen)
        stream = x + added(after, y)
        if not c.parallel:
            read = norm(before_mlp, stream)
        elif before_mlp != before:
            read = norm(before_mlp, x)
        mlp = SparseMlp(c, name="mlp") if self.kind.sparse else Mlp(c, name="mlp")
        y = mlp(read)
        if c.mixture is not None and c.mixture.beside:
            tokens = stream.reshape(-1, x.shape[-1])
            chosen, shares = NormedRouter(c, name="router")(tokens)
            found = Experts(c, name="experts")(norm("pre_feedforward_layernorm_2", tokens), chosen, shares)
            found = norm("post_feedforward_layernorm_2", found.reshape(x.shape))
            y = norm("post_feedforward_layernorm_1", y) + found
        y = added(after_mlp, y)
        if c.layer_scalar:
            factor = declare(self, "layer_scalar", nn.initializers.ones, (1,), ("",)).astype(x.dtype)[None, None]
            stream, y = stream * factor, y * factor
        return stream, y, kept


def init(key: Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters whose leaves are boxed with their logical axes (`flax.linen.Partitioned`).

    Under `jax.eval_shape` this is the model's table of names, shapes and axes without any weights;
    `flax.linen.unbox` gives the plain arrays that `apply` takes.
    """
    c = config
    keys = jax.random.split(key, c.num_hidden_layers + 2)

    def block(kind: LayerKind, k: Array) -> Params:
        x, table, zero = jnp.zeros((1, 1, c.hidden_size)), jnp.zeros((1, 1, 1)), jnp.zeros((), jnp.int32)
        here = jnp.ones((1, 1), bool)
        seen = Seen((table, table), here[:, :, None], jnp.zeros((1, 1), jnp.int32), here, Memory(None, zero, zero))
        return Block(c, kind).init(k, x, seen)["params"]

    def matrix(k: Array) -> Params:
        weight = nn.initializers.normal(0.02)(k, (c.vocab_size, c.hidden_size))
        return {"weight": nn.Partitioned(weight, names=("vocab", "embed"))}

    blocks = {
        stack: jax.vmap(functools.partial(block, c.kinds[c.layer_kinds[layers[0]]]))(keys[2:][jnp.asarray(layers)])
        for stack, layers in c.stacks.items()
    }
    params = {
        "embed_tokens": matrix(keys[0]),
        "layers": blocks.get("", blocks),
        "norm": Norm(c).init(key, jnp.zeros((1, c.hidden_size))).get("params", {}),
    }
    if not c.tie_word_embeddings:
        params["lm_head"] = matrix(keys[1])
    return jax.tree.map(lambda x: x.astype(dtype), params)
