"""What a model does with a batch: the likelihood it gives to reference answers, the text it generates.

Pure functions of parameters and a batch; prompts are padded on the left, so that all rows end together.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.fitness.candidates import Model
from jevomerge.fitness.stops import ENDED, START
from jevomerge.models import Cache, DecoderConfig, apply, unembed

DECODE = "decode"  # name of the loop over new tokens, by which a plan knows it
LOGITS_CHUNK = 512  # positions whose logits exist at a time: 100 MB at a vocabulary of 49,152


@flax.struct.dataclass
class Batch:
    """Rows of tokens, padded on the left (B, T); the last `answer_length` of a row are its reference answer.

    For generation the rows are prompts and there is no answer.
    """

    tokens: Array  # (B, T) int32
    valid: Array  # (B, T) bool
    answer_length: Array  # (B,) int32


def answer_likelihood(
    model: Model,
    config: DecoderConfig,
    batch: Batch,
    answer_slots: int,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Array, Array]:
    """Score the reference answers in one forward pass; only their positions meet the vocabulary.

    Args:
        model: its parameters, and how they are to be read.
        config: the architecture.
        batch: prompts with their answers.
        answer_slots: static A, at least as long as the longest answer.
        dtype: of the activations.

    Returns:
        (B,) mean log-probability per answer token, in nats, and (B,) whether greedy decoding from the prompt
        would give exactly the answer.
    """
    params, layer, path, scale = model
    hidden, _ = apply(
        params, config, batch.tokens[:, :-1], batch.valid[:, :-1], layer=layer, path=path, scale=scale, dtype=dtype
    )
    hidden = hidden[:, -answer_slots:]  # the state before token t predicts token t
    targets = batch.tokens[:, -answer_slots:]
    slots = jnp.arange(answer_slots, dtype=jnp.int32)[None, :]
    counted = slots >= answer_slots - batch.answer_length[:, None]

    def position(h: Array, target: Array) -> tuple[Array, Array]:
        logits = unembed(params, config, h)
        best = jnp.argmax(logits, axis=-1).astype(target.dtype)
        return logits[target] - jax.nn.logsumexp(logits), best == target

    flat = (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
    logprobs, greedy = jax.lax.map(lambda x: position(*x), flat, batch_size=min(LOGITS_CHUNK, targets.size))
    logprobs, greedy = (x.reshape(targets.shape) for x in (logprobs, greedy))
    mean = jnp.sum(jnp.where(counted, logprobs, 0.0), axis=1) / jnp.maximum(batch.answer_length, 1).astype(jnp.float32)
    return mean, jnp.all(greedy | ~counted, axis=1)


def generate(
    model: Model,
    config: DecoderConfig,
    batch: Batch,
    max_new_tokens: Array,
    eos: Array,
    new_slots: int,
    stops: Array | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Continue every prompt greedily until it ends itself, writes a stop string, or has `max_new_tokens`.

    Args:
        model: one model, already merged.
        config: the architecture.
        batch: prompts.
        max_new_tokens: () int32, at most `new_slots`; dynamic, so that changing it compiles nothing.
        eos: (E,) int32 ids that end a text.
        new_slots: static room for new tokens.
        stops: (S, V) what follows each state on each token, by `stop_table`; None: no strings end a text.
        dtype: of activations and cache.

    Returns:
        (B, new_slots) int32: the new tokens, from the end on the first id of `eos`.
    """
    rows, length = batch.tokens.shape
    params, _, path, scale = model
    run = functools.partial(apply, params, config, path=path, scale=scale, dtype=dtype)

    def pick(hidden: Array) -> Array:
        return jnp.argmax(unembed(params, config, hidden[:, -1]), axis=-1).astype(jnp.int32)

    def follow(seen: Array, token: Array) -> Array:
        return seen if stops is None else stops[seen, token].astype(jnp.int32)

    def ends(token: Array, seen: Array) -> Array:
        return jnp.any(token[:, None] == eos[None, :], axis=1) | (seen == ENDED)

    cache = Cache.empty(config, rows, length + new_slots, dtype, path)
    hidden, filled = run(batch.tokens, batch.valid, cache)
    assert filled is not None
    token = pick(hidden)
    seen = follow(jnp.full((rows,), START, jnp.int32), token)
    written = jnp.full((rows, new_slots), eos[0], jnp.int32).at[:, 0].set(token)

    def unfinished(state: Any) -> Array:
        step, _, _, done, *_ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def body(state: Any) -> Any:
        step, token, seen, done, written, cache = state
        hidden, cache = run(token[:, None], ~done[:, None], cache)
        token = jnp.where(done, eos[0], pick(hidden))
        seen = follow(seen, token)
        written = jax.lax.dynamic_update_slice(written, token[:, None], (jnp.zeros_like(step), step))
        return step + 1, token, seen, done | ends(token, seen), written, cache

    start = (jnp.ones((), jnp.int32), token, seen, ends(token, seen), written, filled)
    with jax.named_scope(DECODE):
        return jax.lax.while_loop(unfinished, body, start)[4]
