"""One decoder for the Llama-like world: Llama, Mistral, Qwen2, Qwen3, SmolLM2, Gemma 3 (text).

Parameters are plain nested dicts of arrays, named and laid out exactly as in Hugging Face checkpoints (a
linear map is `(out, in)`), except that the blocks are stacked on a leading layer axis:

    {"embed_tokens": {"weight": (V, D)},
     "layers": {"self_attn": {"q_proj": {"weight": (L, N*H, D)}, ...}, "mlp": {...}, "input_layernorm": ...},
     "norm": {"weight": (D,)},
     "lm_head": {"weight": (V, D)}}            # absent when the embeddings are tied

`Decoder.hidden` is a plain `jax.lax.scan` over the stack, or follows a `Route` through it. Nothing here holds state:
the key/value cache is an argument.

Dimensions in comments: B batch, T new tokens, S key/value slots, L layers, D hidden, N query heads,
K key/value heads, H head size, V vocabulary, P slots of a route.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.blocks import Block
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.decoder.fold import Folding, fold
from jevomerge.models.decoder.hf_config import DEFAULTS, with_config
from jevomerge.models.decoder.specs import BLOCKS, param_specs
from jevomerge.models.layers import Params, rms_norm
from jevomerge.models.model import Layer, as_stored
from jevomerge.models.route import HOPS, Route, Scaling
from jevomerge.models.specs import ParamSpec

PARTS = ("layer_kinds", "vocab_size", "tie_word_embeddings")  # which tensors there are, not what a block does with them
TOLERATED = ("kinds", "rms_norm_eps")  # models that differ in rope, window or eps may be merged, with a note


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far; slot s of every row was written at the same step.

    With left padding and two rows (`.` is padding, `_` not written yet), after a prefill of 4 and one step:

        row 0  valid 0 0 1 1 1 _ _      tokens . . a b c
        row 1  valid 1 1 1 1 1 _ _      tokens d e f g h        length = 5

    A slot's position is the number of valid slots before it, so padding shifts nothing; pictures may.
    """

    keys: Array  # (L, B, S, K, H), with a route (P, B, S, K, H): a block has other keys at every visit
    values: Array  # like keys
    valid: Array  # (B, S) bool
    length: Array  # () int32: slots written
    shift: Array  # (B,) int32: how much further than by its valid slots a row has come, see `Decoder.hidden`

    def of_rows(self, rows: Array, common: int = 0) -> Cache:
        """The same of other rows, one for each of (R,) numbers.

        `common`: static; so many of the first slots stay as they are, where each row takes the place of one that has
        the same there.
        """

        def moved(x: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, x[:, rows, common:], common, 2) if common else x[:, rows]

        return Cache(moved(self.keys), moved(self.values), self.valid[rows], self.length, self.shift[rows])


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder as a `models.model.Language`."""

    config: DecoderConfig
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # its config.json

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table."""
        return param_specs(self.config)

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json."""
        return {"config.json": self.json}

    @property
    def tied(self) -> Mapping[str, str]:
        """The head, where it is the embedding."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.tie_word_embeddings else {}

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kind of attention of each layer."""
        return self.config.layer_kinds

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int | None:
        """By its config.json, or by the class that transformers has for it."""
        key = "max_position_embeddings"
        return self.json.get(key) or DEFAULTS.get(self.json.get("model_type", ""), {}).get(key)

    def unlike(self, other: Any) -> dict[str, bool]:
        """Fields of config.json in which they differ; see `models.model.Model`."""
        if not isinstance(other, Decoder):
            return {"model_type": False}
        its = vars(other.config)
        differing = [name for name, value in vars(self.config).items() if its[name] != value and name not in PARTS]
        return {name: name in TOLERATED for name in differing}

    def resized(self, kinds: Sequence[Any] | None = None, vocab: int | None = None) -> Decoder:
        """The same model with layers of these kinds, with a vocabulary of this size."""
        kinds = self.kinds if kinds is None else tuple(kinds)
        vocab = self.vocab_size if vocab is None else vocab
        config = dataclasses.replace(self.config, layer_kinds=kinds, vocab_size=vocab)
        return Decoder(config, with_config(self.json, config))

    def untied(self) -> Decoder:
        """The same with an lm_head."""
        config = dataclasses.replace(self.config, tie_word_embeddings=False)
        return Decoder(config, with_config(self.json, config))

    def as_given(self, params: Params) -> Params:
        """The same."""
        return params

    def as_dict(self, tree: Params) -> Params:
        """The same."""
        return tree

    def embed(self, params: Params, tokens: Array, dtype: Any) -> Array:
        """(B, T) int32 -> (B, T, D) in `dtype`."""
        embedding = params["embed_tokens"]["weight"]
        return jnp.take(embedding, tokens, axis=0).astype(dtype) * jnp.asarray(self.config.embed_scale, dtype)

    def hidden(
        self,
        params: Params,
        x: Array,
        valid: Array,
        cache: Cache | None = None,
        *,
        shift: Array | None = None,
        layer: Layer = as_stored,
        route: Route | None = None,
        scale: Scaling = "stream",
    ) -> tuple[Array, Cache | None]:
        """Run the decoder over new tokens.

        Args:
            params: the parameters; `params["layers"]` may be any pytree with a leading layer axis that `layer`
                turns, one layer at a time, into a block's parameters: that is how a merge happens in the scan.
            x: (B, T, D) embeddings in the dtype of the activations.
            valid: (B, T) bool, False for padding (on either side).
            cache: what came before, or None for a forward pass that nothing follows.
            shift: (B, T, H/2) int32, how much further than a text's each token is turned, each pair of a head by
                itself, as `models.model.Pictures` has it; what follows the last token goes on from its largest.
            layer: see `params`.
            route: which blocks to run, by default all in order. Its length is dynamic: another one compiles nothing,
                and a hop that is not made costs nothing (under `vmap` all members would make as many hops as the
                longest: use `lax.map`). No gradient through it.
            scale: static, what the route's scales multiply.

        Returns:
            (B, T, D) final hidden states after the last norm (`logits` turns them into logits), and the cache.
        """
        c, dtype = self.config, x.dtype
        if cache is None:
            key_valid, start, before = valid, jnp.zeros((), jnp.int32), jnp.zeros(len(x), jnp.int32)
        else:
            start, before = cache.length, cache.shift
            key_valid = jax.lax.dynamic_update_slice(cache.valid, valid, (jnp.zeros((), jnp.int32), start))
        key_positions = jnp.cumsum(key_valid, axis=1, dtype=jnp.int32) - 1  # (B, S)
        positions = jax.lax.dynamic_slice_in_dim(key_positions, start, x.shape[1], axis=1)  # (B, T)
        distance = positions[:, :, None] - key_positions[:, None, :]  # (B, T, S)
        visible = key_valid[:, None, :] & (distance >= 0)
        # One mask and one pair of rotary tables per kind of layer; the scan picks by index.
        masks = jnp.stack([visible if k.window is None else visible & (distance < k.window) for k in c.kinds])
        moved = before[:, None, None] if shift is None else before[:, None, None] + shift  # (B, T or 1, H/2 or 1)
        tables = [k.rope.tables(positions[..., None] + moved, c.head_dim) for k in c.kinds]
        ropes = tuple(jnp.stack(t) for t in zip(*tables, strict=True))
        block, blocks = Block(c), params[BLOCKS]
        kinds = jnp.asarray(c.layer_kinds, jnp.int32)

        def run(x: Array, kv: Any, slot: Array, stored: Any, kind: Array) -> tuple[Array, Array, Any]:
            def remember(k: Array, v: Array) -> tuple[Array, Array, Any]:
                if kv is None:
                    return k, v, None
                at = (slot, jnp.zeros_like(slot), start, jnp.zeros_like(slot), jnp.zeros_like(slot))
                keys, values = (
                    jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), at)
                    for old, new in zip(kv, (k, v), strict=True)
                )
                return keys[slot].astype(k.dtype), values[slot].astype(v.dtype), (keys, values)

            rope = (ropes[0][kind], ropes[1][kind])
            result: Any = block.apply({"params": layer(BLOCKS, stored)}, x, rope, masks[kind], remember)
            return result

        def body(carry: tuple[Array, Any], xs: tuple[Any, Array, Array]) -> tuple[tuple[Array, Any], None]:
            x, kv = carry
            stored, slot, kind = xs
            x, y, kv = run(x, kv, slot, stored, kind)
            return (x + y, kv), None

        kv = None if cache is None else (cache.keys, cache.values)
        if route is None:
            slots = jnp.arange(len(c.layer_kinds), dtype=jnp.int32)
            (x, kv), _ = jax.lax.scan(body, (x, kv), (blocks, slots, kinds))
        else:

            def hop(t: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
                rest, scaled, kv = carry  # the stream is their sum; the next scale multiplies the second
                # In float32 whatever the activations: folding divides by this very number, not by its bfloat16.
                x = rest.astype(jnp.float32) + scaled.astype(jnp.float32) * route.scales[t]
                at = route.layers[t]
                stored = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, at, keepdims=False), blocks)
                x, y, kv = run(x.astype(dtype), kv, t, stored, kinds[at])
                return (jnp.zeros_like(x), x + y, kv) if scale == "stream" else (x, y, kv)

            with jax.named_scope(HOPS):
                begun = (jnp.zeros_like(x), x, kv)
                rest, x, kv = jax.lax.fori_loop(jnp.zeros_like(route.length), route.length, hop, begun)
            x = rest + x
        x = rms_norm(x, params["norm"]["weight"], c.rms_norm_eps, c.norm_plus_one)
        if kv is None:
            return x, None
        length, after = start + positions.shape[1], jnp.max(moved[:, -1], axis=-1)
        return x, Cache(keys=kv[0], values=kv[1], valid=key_valid, length=length, shift=after)

    def logits(self, params: Params, hidden: Array) -> Array:
        """(..., D) hidden states -> (..., V) logits in float32."""
        head = params["embed_tokens"] if self.config.tie_word_embeddings else params["lm_head"]
        logits = jnp.einsum("...d,vd->...v", hidden, head["weight"].astype(hidden.dtype))
        return logits.astype(jnp.float32)

    def cache(self, rows: int, slots: int, dtype: Any, route: Route | None = None) -> Cache:
        """An empty cache with room for `slots` tokens per row, for `hidden` with this route or none."""
        c = self.config
        depth = len(c.layer_kinds) if route is None else route.layers.shape[0]
        shape = (depth, rows, slots, c.num_key_value_heads, c.head_dim)
        return Cache(
            keys=jnp.zeros(shape, dtype),
            values=jnp.zeros(shape, dtype),
            valid=jnp.zeros((rows, slots), bool),
            length=jnp.zeros((), jnp.int32),
            shift=jnp.zeros((rows,), jnp.int32),
        )

    def fold(self, route: Route, scale: Scaling = "stream") -> Folding:
        """What makes an ordinary model of a concrete route; see `models.decoder.fold`."""
        return fold(self.config, route, scale)
