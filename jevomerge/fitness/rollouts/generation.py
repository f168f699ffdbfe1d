"""The texts that a model writes: greedy decoding in one loop on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.devices.mesh import platform
from jevomerge.fitness.batches import Example, Layout, left_padded, plan_layouts, shortest, shown
from jevomerge.fitness.rollouts.likelihood import check_lengths, check_tokens
from jevomerge.models.layers import Params
from jevomerge.models.model import Language, Shown, apply, unembed
from jevomerge.problems.problem import Instance
from jevomerge.tokenizers.load import ends_of_text, padding
from jevomerge.tokenizers.stops import ENDED, START, ended_by, stop_table

DECODE = "decode"  # name of the loop over new tokens, by which a plan knows it
APART = 1 << 18  # numbers of a block from which taking a model apart pays on a CPU


# --- on the device ------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Prompts:
    """Prompts, padded on the left, and what ends the texts that follow them; all of it dynamic."""

    tokens: Array  # (B, T) int32
    valid: Array  # (B, T) bool
    max_new_tokens: Array  # () int32, at most the room that there is
    eos: Array  # (E,) int32: the tokens that end a text
    stops: Array | None = None  # (S, V) what follows each state on each token, by `stop_table`; None: no strings do
    penalty: Array | None = None  # () float32, of repetition; None: there is none
    pictures: Shown | None = None


@flax.struct.dataclass
class Decoding:
    """The state of the loop over new tokens; A is the room for them."""

    step: Array  # () int32: how many there are
    token: Array  # (B,) int32: the last ones
    seen: Array  # (B,) int32: the states of the stop strings' automaton after them
    done: Array  # (B,) bool: which texts have ended
    said: Array | None  # (B, V) bool: the tokens of prompts and texts; None: there is no penalty
    written: Array  # (B, A) int32: all of them; the first of `eos` where a text has ended, and beyond `step`
    cache: Any  # keys and values of prompts and new tokens but the last


def generate(instance: Instance, model: Language, batch: Prompts, new_slots: int, *, dtype: Any = jnp.float32) -> Array:
    """Continue every prompt greedily until it ends itself, writes a stop string, or has `max_new_tokens`.

    Args:
        instance: parameters, already merged.
        model: what they are parameters of.
        batch: prompts and what ends texts.
        new_slots: static room for new tokens.
        dtype: of activations and cache.

    Returns:
        (B, new_slots) int32: the new tokens, from the end on the first id of `eos`.
    """
    rows, length = batch.tokens.shape
    eos, stops = batch.eos, batch.stops
    params, model = for_many_passes(instance, model)
    _, _, path, scale = instance
    run = functools.partial(apply, params, model, route=path, scale=scale, dtype=dtype)

    def pick(hidden: Array, said: Array | None) -> Array:
        logits = penalised(unembed(params, model, hidden[:, -1]), said, batch.penalty)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)  # the smaller of equals

    def remember(said: Array | None, token: Array) -> Array | None:
        return None if said is None else said.at[jnp.arange(rows), token].set(True)

    def follow(seen: Array, token: Array) -> Array:
        return seen if stops is None else stops[seen, token].astype(jnp.int32)

    def ends(token: Array, seen: Array) -> Array:
        return jnp.any(token[:, None] == eos[None, :], axis=1) | (seen == ENDED)

    cache = model.cache(rows, length + new_slots, dtype, path)
    hidden, filled = run(batch.tokens, batch.valid, cache, pictures=batch.pictures)
    assert filled is not None
    said = said_by(batch, model.vocab_size)
    token = pick(hidden, said)
    seen = follow(jnp.full((rows,), START, jnp.int32), token)
    written = jnp.full((rows, new_slots), eos[0], jnp.int32).at[:, 0].set(token)

    def unfinished(state: Decoding) -> Array:
        return (state.step < batch.max_new_tokens) & ~jnp.all(state.done)

    def body(state: Decoding) -> Decoding:
        hidden, cache = run(state.token[:, None], ~state.done[:, None], state.cache)
        assert cache is not None
        token = jnp.where(state.done, eos[0], pick(hidden, state.said))
        seen = follow(state.seen, token)
        at = (jnp.zeros_like(state.step), state.step)
        written = jax.lax.dynamic_update_slice(state.written, token[:, None], at)
        done, said = state.done | ends(token, seen), remember(state.said, token)
        return Decoding(state.step + 1, token, seen, done, said, written, cache)

    step, done = jnp.ones((), jnp.int32), ends(token, seen)
    start = Decoding(step, token, seen, done, remember(said, token), written, filled)
    with jax.named_scope(DECODE):
        return jax.lax.while_loop(unfinished, body, start).written


def for_many_passes(instance: Instance, model: Language) -> tuple[Params, Language]:
    """Parameters and model as many passes read them fastest (experiments/bench_engine).

    XLA copies each block out of its stack before it multiplies by it, on a CPU at every token.
    """
    blocks = [s for s in model.specs if s.block]
    size = sum(math.prod(s.leaf_shape) for s in blocks) / max(1, len(model.kinds))
    if platform() != "cpu" or instance.route is not None or size < APART:
        return instance.params, model
    model, params = model.taken_apart(instance.params)
    return params, model


def said_by(batch: Prompts, vocab_size: int) -> Array | None:
    """(B, V) which tokens prompts have, those that stand for pictures too, but not their padding; None: no penalty."""
    if batch.penalty is None:
        return None
    rows = jnp.arange(batch.tokens.shape[0])[:, None]
    tokens = jnp.where(batch.valid, batch.tokens, vocab_size)
    return jnp.zeros((len(rows), vocab_size), bool).at[rows, tokens].set(True, mode="drop")


def penalised(scores: Array, said: Array | None, penalty: Array | None) -> Array:
    """(..., V) scores, lower where a token is `said` already if the penalty is above 1: arXiv:1909.05858, sec. 4.1.

    As in transformers the scores are logits in greedy decoding, log-probabilities, which are never positive, in beam
    search; so the same penalty does more there.
    """
    if said is None or penalty is None:
        return scores
    return jnp.where(said, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


# --- on the host --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """Asks for the texts that follow the prompts."""

    tokenizer: Any = field(compare=False)
    max_new_tokens: int = field(compare=False)
    stop: tuple[str, ...] = field(default=(), compare=False)  # what ends a text, in the order in which it is cut
    penalty: float = field(default=1.0, compare=False)  # of repetition
    eyes: Any = field(default=None, compare=False)  # as of `Likelihood`

    many_passes = True
    writes = True
    draws = False

    def __post_init__(self) -> None:
        """Raise InputError if no token ends a text."""
        ends_of_text(self.tokenizer)

    def check(self, model: Language, examples: Sequence[Example]) -> None:
        """Raise InputError for tokens that the model does not have, and texts longer than it takes."""
        check_tokens(model, examples)
        check_lengths(model, examples, room=self.max_new_tokens)

    def layouts(
        self,
        search: Sequence[Example],
        others: Sequence[Example],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """Of prompts, with room for the texts that follow."""
        examples, new = [*search, *others], self.max_new_tokens
        return plan_layouts(
            _lengths(examples), [new] * len(examples), len(search), tokens_per_batch, at_once, pieces,
            written=new, pictures=[e.pictures for e in examples],
        )  # fmt: skip

    def strata(self, examples: Sequence[Example], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) the index of the shortest layout that holds each prompt."""
        return shortest(_lengths(examples), layouts)

    def batch(self, model: Language, examples: Sequence[Example], layout: Layout) -> Prompts:
        """Prompts alone."""
        tokens, valid = left_padded([e.prompt_tokens for e in examples], layout, padding(self.tokenizer))
        eos = np.asarray(ends_of_text(self.tokenizer), np.int32)
        # NumPy's, for any mesh.
        ends = (np.int32(self.max_new_tokens), eos, self._table(model.vocab_size))
        penalty = None if self.penalty == 1.0 else np.float32(self.penalty)
        arrays: tuple[Any, ...] = (tokens, valid, *ends, penalty, shown(examples, layout, self.eyes, model))
        return Prompts(*arrays)

    @functools.cached_property
    def _table(self) -> Any:
        """From the size of a vocabulary to the table of the stop strings."""
        return functools.cache(functools.partial(stop_table, self.tokenizer, self.stop))

    def run(self, model: Language, instance: Instance, batch: Prompts, layout: Layout, *, dtype: str) -> Array:
        """(B, A) new tokens."""
        return generate(instance, model, batch, layout.answer_slots, dtype=dtype)

    def read(self, outputs: Sequence[np.ndarray], folder: Any = None) -> list[str]:
        """Texts, with what ended them: it may be a token that is not special."""
        tokens = outputs[0][:, : self.max_new_tokens]
        lengths = count_written(tokens, np.asarray(ends_of_text(self.tokenizer)))
        written = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts

    def spent(self, examples: Sequence[Example], batch: Prompts, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """The tokens of prompts, and those written."""
        eos, stops = (None if x is None else np.asarray(x) for x in (batch.eos, batch.stops))
        assert eos is not None
        return {"prompt": sum(_lengths(examples)), "answer": int(count_written(outputs[0], eos, stops).sum())}

    def label(self, task: str, layout: Layout) -> str:
        """Such as "generate gsm8k, 16 x 128 tokens + 256"."""
        return f"generate {task}, {layout.rows} x {layout.length} tokens + {layout.answer_slots}"

    def loops(self) -> Mapping[str, float]:
        """The loop over new tokens; the first one comes before it."""
        return {DECODE: float(self.max_new_tokens - 1)}

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """Twice (L, B, K, S, H), or what else blocks remember."""
        slots = layout.length + layout.answer_slots
        found = jax.tree.leaves(jax.eval_shape(lambda: model.cache(layout.rows, slots, jnp.float32)).memory)
        return tuple((x.shape[0] if hops is None else hops, *x.shape[1:]) for x in found)


def count_written(tokens: np.ndarray, eos: np.ndarray, stops: np.ndarray | None = None) -> np.ndarray:
    """(..., new) generated tokens -> (...) how many were written: up to the end-of-text token or the last of a stop."""
    ends = np.isin(tokens, eos)
    if stops is not None:
        ends |= ended_by(stops, tokens)
    return np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, tokens.shape[-1])


def _lengths(examples: Sequence[Example]) -> list[int]:
    return [len(e.prompt_tokens) for e in examples]
