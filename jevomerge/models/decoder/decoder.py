"""One decoder for all language models, described by data: `DecoderConfig`.

Parameters are plain nested dicts of arrays, named as Llama's are in Hugging Face checkpoints and laid out exactly as
theirs (a linear map is `(out, in)`), except that the blocks are stacked on a leading layer axis:

    {"embed_tokens": {"weight": (V, D)},
     "layers": {"self_attn": {"q_proj": {"weight": (L, N*H, D)}, ...}, "mlp": {...}, "input_layernorm": ...},
     "norm": {"weight": (D,)},
     "lm_head": {"weight": (V, D)}}            # absent when the embeddings are tied

Blocks of several kinds, whose tensors differ, lie in one such stack each: {"layers": {"linear": ..., "full": ...}}.
`Decoder.hidden` is a plain `jax.lax.scan` over the stack, or over what repeats in the order of the stacks, or follows
a `Route` through them; of blocks that are taken apart it is written out. Nothing here holds state: the cache is an
argument.

Dimensions in comments: B batch, T new tokens, S key/value slots, L layers, D hidden, N query heads,
K key/value heads, H head size, V vocabulary, P slots of a route, or of what comes before all rows.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.decoder.blocks import Block
from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.fold import Folding, fold
from jevomerge.models.decoder.hf_config import DEFAULTS, check_layers, with_config
from jevomerge.models.decoder.memory import Memory, Seen, States, Tokens, joined
from jevomerge.models.decoder.norms import Norm
from jevomerge.models.decoder.specs import BLOCKS, block_of, param_specs
from jevomerge.models.decoder.stacks import one_by_one, through
from jevomerge.models.layers import Params
from jevomerge.models.members import highest, look_up, product
from jevomerge.models.model import Layer, as_stored
from jevomerge.models.route import HOPS, Route, Scaling
from jevomerge.models.specs import ParamSpec

PARTS = ("layer_kinds", "vocab_size", "tie_word_embeddings")  # which tensors there are, not what a block does with them
TOLERATED = ("kinds", "rms_norm_eps")  # models that differ in rope, window or eps may be merged, with a note


@flax.struct.dataclass
class Cache:
    """What is remembered of the tokens seen so far; slot s of every row was written at the same step.

    With left padding and two rows (`.` is padding, `_` not written yet), after a prefill of 4 and one step:

        row 0  valid 0 0 1 1 1 _ _      tokens . . a b c
        row 1  valid 1 1 1 1 1 _ _      tokens d e f g h        length = 5

    A slot's position is the number of valid slots before it, so padding shifts nothing; pictures may.
    """

    # Of each stack of blocks, or of each block of it; with a route a block has another one at every visit.
    memory: dict[str, Any]
    valid: Array  # (B, S) bool
    length: Array  # () int32: slots written
    shift: Array  # (B,) int32: how much further than by its valid slots a row has come, see `Decoder.hidden`

    def of_rows(self, rows: Array, common: int = 0) -> Cache:
        """The same of other rows, one for each of (R,) numbers.

        `common`: static; so many of the first slots stay as they are, where each row takes the place of one that has
        the same there.
        """
        memory = self._each(lambda found: found.of_rows(rows, common))
        return Cache(memory, self.valid[rows], self.length, self.shift[rows])

    def joined(self, new: Cache, rows: Array, kept: Array) -> Cache:
        """The rows that are `kept`, (B,) bool, and those of another cache as (R,) `rows`, of which B stands for none.

        All end together, where the longest of them has to.
        """
        valid, length = self.valid & kept[:, None], new.valid.shape[1]
        end = highest(jnp.maximum(jnp.max(jnp.sum(valid, axis=1, dtype=jnp.int32)), length))
        at = (rows, self.length - end, end)
        memory = self._each(lambda old, other: old.joined(other, *at), new)
        valid = joined(valid[:, None, :, None], new.valid[:, None, :, None], *at)[:, 0, :, 0]
        return Cache(memory, valid, end, self.shift.at[rows].set(new.shift, mode="drop"))

    def _each(self, f: Callable[..., Any], *others: Cache) -> Any:
        """The memory with `f` of all `Tokens` and `States`, and of those of other caches."""
        memories = (other.memory for other in others)
        return jax.tree.map(f, self.memory, *memories, is_leaf=lambda x: isinstance(x, Tokens | States))


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder as a `models.model.Language`."""

    config: DecoderConfig
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # its config.json
    apart: bool = False  # whether each block lies alone, see `taken_apart`

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table."""
        return param_specs(self.config)

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json; raises InputError where none can say which layers these are."""
        check_layers(self.json, self.config)
        return {"config.json": self.json}

    @property
    def tied(self) -> Mapping[str, str]:
        """The head, where it is the embedding."""
        head, embedding = map(self.config.name, ("lm_head.weight", "model.embed_tokens.weight"))
        return {head: embedding} if self.config.tie_word_embeddings else {}

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kind of attention of each layer."""
        return self.config.layer_kinds

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def unmerged(self) -> bool:
        """They may."""
        return True

    @property
    def follows(self) -> bool:
        """All but those whose state is of the tokens between, too."""
        return all(self.config.kinds[kind].mixer == "attention" for kind in self.config.layer_kinds)

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
        return look_up(embedding, tokens).astype(dtype) * jnp.asarray(self.config.embed_scale, dtype)

    def hidden(
        self,
        params: Params,
        x: Array,
        valid: Array,
        cache: Cache | None = None,
        *,
        after: Cache | None = None,
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
            after: of one row without padding, which all rows follow as if it were theirs; it is read once for all.
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
        earlier = jnp.arange(0 if after is None else after.valid.shape[1], dtype=jnp.int32)  # (P,) positions
        key_positions = earlier.size + jnp.cumsum(key_valid, axis=1, dtype=jnp.int32) - 1  # (B, S)
        positions = jax.lax.dynamic_slice_in_dim(key_positions, start, x.shape[1], axis=1)  # (B, T)
        there = jnp.pad(key_valid, ((0, 0), (earlier.size, 0)), constant_values=True)  # (B, P + S)
        places = jnp.concatenate([jnp.broadcast_to(earlier, (len(x), earlier.size)), key_positions], axis=1)
        distance = positions[:, :, None] - places[:, None, :]  # (B, T, P + S)
        visible = there[:, None, :] & (distance >= 0)
        moved = before[:, None, None] if shift is None else before[:, None, None] + shift  # (B, T or 1, H/2 or 1)
        memory = None if cache is None else cache.memory
        of_stack = {stack: dict.fromkeys(c.layer_kinds[i] for i in layers) for stack, layers in c.stacks.items()}
        turned = positions[..., None] + moved
        sights = {stack: _sights(c, list(kinds), turned, distance, visible) for stack, kinds in of_stack.items()}

        def followed(stack: str, slot: Any) -> Tokens | None:
            """What a block remembers of what comes before all rows."""
            if after is None:
                return None
            found = after.memory[stack]
            return found[slot] if self.apart else Tokens(*(p[slot] for p in found))

        def run(stack: str, x: Array, memory: Any, slot: Any, stored: Any, kind: Any) -> tuple[Array, Array, Any]:
            """A block of a stack; `kind` is one of those of the stack."""
            ropes, masks = sights[stack]
            found: Any = None if memory is None else memory[stack]
            alone = self.apart and found is not None
            one = Memory(found[slot] if alone else found, None if alone else slot, start, followed(stack, slot))
            seen = Seen((ropes[0][kind], ropes[1][kind]), masks[kind], positions, valid, one)
            block = Block(c, c.kinds[next(iter(of_stack[stack]))])
            made: Any = block.apply({"params": layer(block_of(stack), stored)}, x, seen)
            x, y, arrays = made
            if alone:
                arrays = (*found[:slot], arrays, *found[slot + 1 :])
            return x, y, memory if memory is None else {**memory, stack: arrays}

        blocks = {stack: _at(params, block_of(stack)) for stack in c.stacks}
        order = [c.kinds[kind].stack for kind in c.layer_kinds]
        rows = [order[:i].count(stack) for i, stack in enumerate(order)]  # among its stack
        kinds = [list(of_stack[stack]).index(kind) for stack, kind in zip(order, c.layer_kinds, strict=True)]
        if route is None and self.apart:
            x, memory = one_by_one(run, order, rows, kinds, blocks, x, memory)
        elif route is None:
            x, memory = through(run, order, rows, kinds, blocks, x, memory)
        else:
            names, where = list(blocks), [list(blocks).index(stack) for stack in order]
            tables = [jnp.asarray(numbers, jnp.int32) for numbers in (where, rows, kinds)]

            def hop(t: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
                rest, scaled, memory = carry  # the stream is their sum; the next scale multiplies the second
                # In float32 whatever the activations: folding divides by this very number, not by its bfloat16.
                x = rest.astype(jnp.float32) + scaled.astype(jnp.float32) * route.scales[t]
                which, row, kind = (table[route.layers[t]] for table in tables)

                def visit(stack: str, x: Array, memory: Any) -> tuple[Array, Array, Any]:
                    stored = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, row, keepdims=False), blocks[stack])
                    return run(stack, x, memory, t, stored, kind)

                visits = [functools.partial(visit, stack) for stack in names]
                if len(visits) == 1:
                    x, y, memory = visits[0](x.astype(dtype), memory)
                else:
                    x, y, memory = jax.lax.switch(which, visits, x.astype(dtype), memory)
                return (jnp.zeros_like(x), x + y, memory) if scale == "stream" else (x, y, memory)

            with jax.named_scope(HOPS):
                begun = (jnp.zeros_like(x), x, memory)
                rest, x, memory = jax.lax.fori_loop(jnp.zeros_like(route.length), route.length, hop, begun)
            x = rest + x
        normed: Any = Norm(c).apply({"params": params.get("norm", {})}, x)
        if memory is None:
            return normed, None
        length, further = start + positions.shape[1], jnp.max(moved[:, -1], axis=-1)
        return normed, Cache(memory=memory, valid=key_valid, length=length, shift=further)

    def logits(self, params: Params, hidden: Array) -> Array:
        """(..., D) hidden states -> (..., V) logits in float32."""
        head = params["embed_tokens"] if self.config.tie_word_embeddings else params["lm_head"]
        logits = product(hidden, head["weight"]).astype(jnp.float32)
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def cache(self, rows: int, slots: int, dtype: Any, route: Route | None = None) -> Cache:
        """An empty cache with room for `slots` tokens per row, for `hidden` with this route or none."""
        c = self.config

        def memory(kind: LayerKind, *depth: int) -> Tokens | States:
            if kind.mixer == "delta":
                d = c.delta
                assert d is not None
                wide = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim
                return States(
                    jnp.zeros((*depth, rows, d.kernel - 1, wide), dtype),
                    jnp.zeros((*depth, rows, d.value_heads, d.key_dim, d.value_dim), jnp.float32),
                )
            _, heads, size = c.heads(kind)
            shape = (*depth, rows, heads, slots, size)
            return Tokens(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        def of_stack(layers: Sequence[int]) -> Any:
            kind = c.kinds[c.layer_kinds[layers[0]]]
            if self.apart:
                return tuple(memory(kind) for _ in layers)
            return memory(kind, len(layers) if route is None else route.layers.shape[0])

        return Cache(
            memory={stack: of_stack(layers) for stack, layers in c.stacks.items()},
            valid=jnp.zeros((rows, slots), bool),
            length=jnp.zeros((), jnp.int32),
            shift=jnp.zeros((rows,), jnp.int32),
        )

    def taken_apart(self, params: Params) -> tuple[Decoder, Params]:
        """With each block in arrays of its own, {"layers": (block, block, ...)}: see `models.model.Language`."""
        params = dict(params)
        for stack, layers in self.config.stacks.items():
            blocks = [jax.tree.map(operator.itemgetter(i), _at(params, block_of(stack))) for i in range(len(layers))]
            params[BLOCKS] = tuple(blocks) if not stack else {**params[BLOCKS], stack: tuple(blocks)}
        return dataclasses.replace(self, apart=True), params

    def fold(self, route: Route, scale: Scaling = "stream") -> Folding:
        """What makes an ordinary model of a concrete route; see `models.decoder.fold`."""
        return fold(self.config, route, scale)


def _at(tree: Any, block: str) -> Any:
    """What hangs at a place in a pytree."""
    for key in block.split("."):
        tree = tree[key]
    return tree


def _sights(
    c: DecoderConfig, kinds: Sequence[int], turned: Array, distance: Array, visible: Array
) -> tuple[tuple[Array, Array], Array]:
    """Of each of these kinds of layers, along the first axis: cos and sin (B, T, R/2), and masks (B, T, P + S).

    `turned`: (B, T, 1 or R/2) positions by which pairs are turned.
    """
    own = [c.kinds[kind] for kind in kinds]
    masks = jnp.stack([visible if k.window is None else visible & (distance < k.window) for k in own])
    tables = [None if k.rope is None else k.rope.tables(turned, c.heads(k)[2]) for k in own]
    like = next((t[0] for t in tables if t is not None), jnp.zeros((*turned.shape[:2], 0)))
    still = jnp.ones_like(like), jnp.zeros_like(like)  # where positions do not turn
    cos, sin = zip(*(still if t is None else t for t in tables), strict=True)
    return (jnp.stack(cos), jnp.stack(sin)), masks
