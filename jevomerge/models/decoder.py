"""One decoder for the Llama-like world: Llama, Mistral, Qwen2, Qwen3, SmolLM2, Gemma 3 (text).

Parameters are plain nested dicts of arrays, named and laid out exactly as in Hugging Face checkpoints (a
linear map is `(out, in)`), except that the blocks are stacked on a leading layer axis:

    {"embed_tokens": {"weight": (V, D)},
     "layers": {"self_attn": {"q_proj": {"weight": (L, N*H, D)}, ...}, "mlp": {...}, "input_layernorm": ...},
     "norm": {"weight": (D,)},
     "lm_head": {"weight": (V, D)}}            # absent when the embeddings are tied

Flax (Linen) modules give shape, initialisation, names and logical axes of one block; `apply` is a plain
`jax.lax.scan` over the stack, or follows a `Path` through it.  Nothing here holds state: the key/value cache is
an argument.

Dimensions in comments: B batch, T new tokens, S key/value slots, L layers, D hidden, N query heads,
K key/value heads, H head size, V vocabulary, P slots of a path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.rope import Rope

Params = dict[str, Any]
Scaling = Literal["stream", "delta"]  # what a path's scales multiply, see `Path`

HOPS = "hops"  # name of the loop along a path, by which a plan knows it
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": lambda x: nn.gelu(x, approximate=True)}


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What may differ from layer to layer: how far back a token sees, and how positions turn."""

    rope: Rope
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the function a checkpoint computes; hashable, a static jit argument."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    kinds: tuple[AttentionKind, ...]
    layer_kinds: tuple[int, ...]  # one index into `kinds` per layer
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # an RMS norm over each head of q and k (Qwen3, Gemma 3)
    query_scale: float | None = None  # None: head_dim ** -0.5
    norm_plus_one: bool = False  # norms multiply by (1 + weight) (Gemma)
    sandwich_norms: bool = False  # a norm before and after both halves of a block (Gemma 3)
    embed_scale: float = 1.0

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        return len(self.layer_kinds)


@flax.struct.dataclass
class Path:
    """A token's way through the stack: hop t runs block `layers[t]`, for t < `length` (Akiba et al., 2024).

    Blocks may repeat, be left out and come in any order.  The input of hop t is multiplied by `scales[t]`: all of
    it ("stream", the paper's text), or only what the MLP of the hop before added, at hop 0 the embedding ("delta",
    the inference code of the released EvoLLM-JP-10B).  Slots from `length` on are never run.
    """

    layers: Array  # (P,) int32
    scales: Array  # (P,) float32
    length: Array  # () int32, at most P

    @classmethod
    def of(cls, layers: Sequence[int], scales: Sequence[float] | None = None, slots: int | None = None) -> Path:
        """The path along `layers`, with scales of 1 unless given, in `slots` slots, as many as hops unless given."""
        spare = 0 if slots is None else slots - len(layers)
        scales = [1.0] * len(layers) if scales is None else scales
        return cls(
            layers=jnp.asarray([*layers, *[0] * spare], jnp.int32),
            scales=jnp.asarray([*scales, *[1.0] * spare], jnp.float32),
            length=jnp.asarray(len(layers), jnp.int32),
        )


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far; slot s of every row was written at the same step.

    With left padding and two rows (`.` is padding, `_` not written yet), after a prefill of 4 and one step:

        row 0  valid 0 0 1 1 1 _ _      tokens . . a b c
        row 1  valid 1 1 1 1 1 _ _      tokens d e f g h        length = 5

    A slot's position is the number of valid slots before it, so padding shifts nothing.
    """

    keys: Array  # (L, B, S, K, H), with a path (P, B, S, K, H): a block has other keys at every visit
    values: Array  # like keys
    valid: Array  # (B, S) bool
    length: Array  # () int32: slots written

    @classmethod
    def empty(
        cls, config: DecoderConfig, batch: int, slots: int, dtype: Any = jnp.float32, path: Path | None = None
    ) -> Cache:
        """A cache with room for `slots` tokens per row, for `apply` with this path or none."""
        depth = config.num_hidden_layers if path is None else path.layers.shape[0]
        shape = (depth, batch, slots, config.num_key_value_heads, config.head_dim)
        return cls(
            keys=jnp.zeros(shape, dtype),
            values=jnp.zeros(shape, dtype),
            valid=jnp.zeros((batch, slots), bool),
            length=jnp.zeros((), jnp.int32),
        )


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


class Norm(nn.Module):
    """The decoder's RMS norm with its weight."""

    config: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        c = self.config
        init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        weight = declare(self, "weight", init, (x.shape[-1],), (self.axis,))
        return rms_norm(x, weight, c.rms_norm_eps, c.norm_plus_one)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Array, rope: tuple[Array, Array], mask: Array, remember: Callable[..., Any]
    ) -> tuple[Array, Any]:
        """(B, T, D) -> (B, T, D), and whatever `remember` keeps of the new keys and values."""
        c = self.config
        batch, length, _ = x.shape

        def project(name: str, heads: int, axis: str) -> Array:
            y = Linear(heads * c.head_dim, (axis, "embed"), c.qkv_bias, name=f"{name}_proj")(x)
            return y.reshape(batch, length, heads, c.head_dim)

        q = project("q", c.num_attention_heads, "heads")
        k = project("k", c.num_key_value_heads, "kv_heads")
        v = project("v", c.num_key_value_heads, "kv_heads")
        if c.qk_norm:
            q = Norm(c, "head_dim", name="q_norm")(q)
            k = Norm(c, "head_dim", name="k_norm")(k)
        k, v, kept = remember(rotate(k, rope), v)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        y = attend(rotate(q, rope) * jnp.asarray(scale, x.dtype), k, v, mask)
        y = y.reshape(batch, length, c.num_attention_heads * c.head_dim)
        return Linear(c.hidden_size, ("embed", "heads"), c.o_bias, name="o_proj")(y), kept


class Mlp(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        c = self.config
        gate = Linear(c.intermediate_size, ("ff", "embed"), c.mlp_bias, name="gate_proj")(x)
        up = Linear(c.intermediate_size, ("ff", "embed"), c.mlp_bias, name="up_proj")(x)
        y = ACTIVATIONS[c.hidden_act](gate) * up
        return Linear(c.hidden_size, ("embed", "ff"), c.mlp_bias, name="down_proj")(y)


class Block(nn.Module):
    """One decoder layer; its attribute names are the checkpoint's."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Array, rope: tuple[Array, Array], mask: Array, remember: Callable[..., Any]
    ) -> tuple[Array, Array, Any]:
        """(B, T, D) -> two (B, T, D) whose sum is the output, the second from the MLP; and new cache entries."""
        c = self.config
        y, kept = Attention(c, name="self_attn")(Norm(c, name="input_layernorm")(x), rope, mask, remember)
        if c.sandwich_norms:
            x = x + Norm(c, name="post_attention_layernorm")(y)
            y = Mlp(c, name="mlp")(Norm(c, name="pre_feedforward_layernorm")(x))
            return x, Norm(c, name="post_feedforward_layernorm")(y), kept
        x = x + y
        return x, Mlp(c, name="mlp")(Norm(c, name="post_attention_layernorm")(x)), kept


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


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """Turn (B, T, heads, H) by the angles of (B, T, H/2) tables, halves paired as in Hugging Face."""
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in rope)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def init(key: Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters whose leaves are boxed with their logical axes (`flax.linen.Partitioned`).

    Under `jax.eval_shape` this is the model's table of names, shapes and axes without any weights;
    `flax.linen.unbox` gives the plain arrays that `apply` takes.
    """
    c = config
    keys = jax.random.split(key, c.num_hidden_layers + 2)

    def block(k: Array) -> Params:
        x = jnp.zeros((1, 1, c.hidden_size))
        table = jnp.zeros((1, 1, c.head_dim // 2))
        mask = jnp.ones((1, 1, 1), bool)
        return Block(c).init(k, x, (table, table), mask, lambda k, v: (k, v, None))["params"]

    def matrix(k: Array) -> Params:
        weight = nn.initializers.normal(0.02)(k, (c.vocab_size, c.hidden_size))
        return {"weight": nn.Partitioned(weight, names=("vocab", "embed"))}

    params = {
        "embed_tokens": matrix(keys[0]),
        "layers": jax.vmap(block)(keys[2:]),
        "norm": Norm(c).init(key, jnp.zeros((1, c.hidden_size)))["params"],
    }
    if not c.tie_word_embeddings:
        params["lm_head"] = matrix(keys[1])
    return jax.tree.map(lambda x: x.astype(dtype), params)


def apply(
    params: Params,
    config: DecoderConfig,
    tokens: Array,
    valid: Array,
    cache: Cache | None = None,
    *,
    layer: Callable[[Any], Params] = lambda p: p,
    path: Path | None = None,
    scale: Scaling = "stream",
    dtype: Any = jnp.float32,
) -> tuple[Array, Cache | None]:
    """Run the decoder over new tokens.

    Args:
        params: the parameters; `params["layers"]` may be any pytree with a leading layer axis that `layer`
            turns, one layer at a time, into a block's parameters: that is how a merge happens in the scan.
        config: the architecture.
        tokens: (B, T) int32.
        valid: (B, T) bool, False for padding (on either side).
        cache: what came before, or None for a forward pass that nothing follows.
        layer: see `params`.
        path: which blocks to run, by default all in order.  Its length is dynamic: another one compiles nothing,
            and a hop that is not made costs nothing (under `vmap` all members would make as many hops as the
            longest: use `lax.map`).  No gradient through it.
        scale: static, what the path's scales multiply.
        dtype: of the activations.

    Returns:
        (B, T, D) final hidden states after the last norm (`unembed` turns them into logits), and the cache.
    """
    c = config
    if cache is None:
        key_valid, start = valid, jnp.zeros((), jnp.int32)
    else:
        start = cache.length
        key_valid = jax.lax.dynamic_update_slice(cache.valid, valid, (jnp.zeros((), jnp.int32), start))
    key_positions = jnp.cumsum(key_valid, axis=1, dtype=jnp.int32) - 1  # (B, S)
    positions = jax.lax.dynamic_slice_in_dim(key_positions, start, tokens.shape[1], axis=1)  # (B, T)
    distance = positions[:, :, None] - key_positions[:, None, :]  # (B, T, S)
    visible = key_valid[:, None, :] & (distance >= 0)
    # One mask and one pair of rotary tables per kind of layer; the scan picks by index.
    masks = jnp.stack([visible if k.window is None else visible & (distance < k.window) for k in c.kinds])
    tables = [k.rope.tables(positions, c.head_dim) for k in c.kinds]
    ropes = tuple(jnp.stack(t) for t in zip(*tables, strict=True))

    embedding = params["embed_tokens"]["weight"]
    x = jnp.take(embedding, tokens, axis=0).astype(dtype) * jnp.asarray(c.embed_scale, dtype)
    block = Block(c)
    kinds = jnp.asarray(c.layer_kinds, jnp.int32)

    def run(x: Array, kv: Any, slot: Array, layer_params: Any, kind: Array) -> tuple[Array, Array, Any]:
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
        result: Any = block.apply({"params": layer(layer_params)}, x, rope, masks[kind], remember)
        return result

    def body(carry: tuple[Array, Any], xs: tuple[Any, Array, Array]) -> tuple[tuple[Array, Any], None]:
        x, kv = carry
        layer_params, slot, kind = xs
        x, y, kv = run(x, kv, slot, layer_params, kind)
        return (x + y, kv), None

    kv = None if cache is None else (cache.keys, cache.values)
    if path is None:
        slots = jnp.arange(c.num_hidden_layers, dtype=jnp.int32)
        (x, kv), _ = jax.lax.scan(body, (x, kv), (params["layers"], slots, kinds))
    else:

        def hop(t: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
            rest, scaled, kv = carry  # the stream is their sum; the next scale multiplies the second
            # In float32 whatever the activations: folding divides by this very number, not by its bfloat16.
            x = rest.astype(jnp.float32) + scaled.astype(jnp.float32) * path.scales[t]
            at = path.layers[t]
            layer_params = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, at, keepdims=False), params["layers"])
            x, y, kv = run(x.astype(dtype), kv, t, layer_params, kinds[at])
            return (jnp.zeros_like(x), x + y, kv) if scale == "stream" else (x, y, kv)

        with jax.named_scope(HOPS):
            rest, x, kv = jax.lax.fori_loop(jnp.zeros_like(path.length), path.length, hop, (jnp.zeros_like(x), x, kv))
        x = rest + x
    x = rms_norm(x, params["norm"]["weight"], c.rms_norm_eps, c.norm_plus_one)
    if kv is None:
        return x, None
    return x, Cache(keys=kv[0], values=kv[1], valid=key_valid, length=start + tokens.shape[1])


def unembed(params: Params, config: DecoderConfig, hidden: Array) -> Array:
    """(..., D) hidden states -> (..., V) logits in float32."""
    head = params["embed_tokens"] if config.tie_word_embeddings else params["lm_head"]
    logits = jnp.einsum("...d,vd->...v", hidden, head["weight"].astype(hidden.dtype))
    return logits.astype(jnp.float32)
