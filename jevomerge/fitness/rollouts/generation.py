"""The texts that a model writes: greedy decoding in one loop on the device."""

from __future__ import annotations

import dataclasses
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
from jevomerge.models.layers import REACH, Params, reaches_of
from jevomerge.models.members import highest
from jevomerge.models.model import Language, Shown, apply, unembed
from jevomerge.problems.problem import Instance
from jevomerge.tokenizers.load import ends_of_text, padding
from jevomerge.tokenizers.stops import ENDED, START, ended_by, stop_table

# Names of the loops over new tokens and over fillings, by which a plan knows them.
DECODE, REFILL = "decode", "refill"
APART = 1 << 18  # numbers of a block from which a model is taken apart on a CPU: a guess, experiments/bench_engine asks
DEEPEST = (
    32  # blocks up to which it is: each is compiled by itself, a hybrid of 48 for minutes (experiments/bench_families)
)
PART = 8  # rows are filled again when this part of them is free
FILLINGS = 8  # of all rows, in one program: then signals are looked at
BEGINNING = 32  # tokens that all prompts must begin with for these to be read by themselves


# --- on the device ------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Prompts:
    """Prompts, padded on the left, and what ends the texts that follow them; all of it dynamic."""

    tokens: Array  # (N, T) int32
    valid: Array  # (N, T) bool
    max_new_tokens: Array  # () int32, at most the room that there is
    eos: Array  # (E,) int32: the tokens that end a text
    stops: Array | None = None  # (S, V) what follows each state on each token, by `stop_table`; None: no strings do
    penalty: Array | None = None  # () float32, of repetition; None: there is none
    pictures: Shown | None = None
    beginning: Array | None = None  # (P,) int32: what comes before the tokens of each; None: nothing
    count: Array | None = None  # () int32: how many, the first ones, are wanted; None: all

    def of(self, numbers: Array) -> Prompts:
        """Those of (R,) numbers."""
        pictures = jax.tree.map(lambda x: x[numbers] if x.ndim else x, self.pictures)
        return dataclasses.replace(self, tokens=self.tokens[numbers], valid=self.valid[numbers], pictures=pictures)

    def whole(self) -> Prompts:
        """The same, each with its beginning behind its padding."""
        if self.beginning is None:
            return self
        (count, length), first = self.tokens.shape, self.beginning.shape[0]
        shape = (count, first)
        tokens = jnp.concatenate([jnp.broadcast_to(self.beginning, shape), self.tokens], axis=1)
        valid = jnp.concatenate([jnp.ones(shape, bool), self.valid], axis=1)
        at, pad = jnp.arange(first + length)[None], length - jnp.sum(self.valid, axis=1)[:, None]
        at = jnp.where(at < pad, first + at, jnp.where(at < pad + first, at - pad, at))
        tokens, valid = (jnp.take_along_axis(x, at, axis=1) for x in (tokens, valid))
        return dataclasses.replace(self, tokens=tokens, valid=valid, beginning=None)


@flax.struct.dataclass
class Texts:
    """Texts that are being written in R rows."""

    number: Array  # (R,) int32: which of all N; N: none, the row is free
    length: Array  # (R,) int32: how many tokens there are
    token: Array  # (R,) int32: the last ones
    seen: Array  # (R,) int32: the states of the stop strings' automaton after them
    said: Array | None  # (R, V) bool: the tokens of prompts and texts; None: there is no penalty


@flax.struct.dataclass
class Decoding:
    """The state of the loops; A is the room for new tokens."""

    texts: Texts
    waiting: Array  # () int32: the first prompt whose text has not begun
    written: Array  # (N, A) int32: the new tokens; the first of `eos` where nothing is written
    cache: Any  # keys and values of prompts and new tokens but the last


def generate(
    instance: Instance,
    model: Language,
    batch: Prompts,
    new_slots: int,
    rows: int | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Continue every prompt greedily until it ends itself, writes a stop string, or has `max_new_tokens`.

    Where texts have ended, the next prompts take their rows. What all prompts begin with is read once.

    Args:
        instance: parameters, already merged.
        model: what they are parameters of.
        batch: N prompts and what ends texts.
        new_slots: static room for new tokens.
        rows: static, how many texts are written at a time; None: all.
        dtype: of activations and cache.

    Returns:
        (N, new_slots) int32: the new tokens, from the end on the first id of `eos`.
    """
    batch = batch if model.follows else batch.whole()
    (count, length), eos, stops = batch.tokens.shape, batch.eos, batch.stops
    rows, slots = count if rows is None else min(rows, count), length + new_slots
    at_once = rows == count  # nothing waits behind the first filling
    part = rows if at_once else max(1, rows // PART)
    wanted = jnp.int32(count) if batch.count is None else batch.count
    params, model = for_many_passes(instance, model)
    run, empty = bound(instance._replace(params=params), model, batch.beginning, dtype)

    def append(texts: Texts, hidden: Array, written: Array) -> tuple[Texts, Array]:
        """One token more of each, after (R, T, D) hidden states."""
        logits = penalised(unembed(params, model, hidden[:, -1]), texts.said, batch.penalty)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # the smaller of equals
        written = written.at[texts.number, texts.length].set(token, mode="drop")
        said = None if texts.said is None else texts.said.at[jnp.arange(len(token)), token].set(True)
        seen = texts.seen if stops is None else stops[texts.seen, token].astype(jnp.int32)
        more = texts.length + 1
        ended = jnp.any(token[:, None] == eos[None, :], axis=1) | (seen == ENDED) | (more >= batch.max_new_tokens)
        return Texts(jnp.where(ended, count, texts.number), more, token, seen, said), written

    def fill(state: Decoding) -> Decoding:
        """The next prompts in free rows."""
        free = state.texts.number == count
        places = jnp.arange(part, dtype=jnp.int32)
        begins = places < jnp.minimum(jnp.sum(free, dtype=jnp.int32), wanted - state.waiting)
        at = jnp.where(begins, jnp.argsort(~free)[:part].astype(jnp.int32), rows)
        number = jnp.where(begins, state.waiting + places, count)
        prompts = batch.of(jnp.minimum(number, count - 1))
        cache = empty(part, slots if at_once else length)
        hidden, cache = run(prompts.tokens, prompts.valid, cache, pictures=prompts.pictures)
        none = jnp.zeros_like(number)
        new = Texts(number, none, none, none + START, said_by(prompts, model.vocab_size))
        new, written = append(new, hidden, state.written)
        texts = jax.tree.map(lambda old, x: old.at[at].set(x, mode="drop"), state.texts, new)
        waiting = state.waiting + jnp.sum(begins, dtype=jnp.int32)
        return Decoding(texts, waiting, written, cache if at_once else state.cache.joined(cache, at, ~free))

    def step(state: Decoding) -> Decoding:
        busy = state.texts.number < count
        hidden, cache = run(state.texts.token[:, None], busy[:, None], state.cache)
        texts, written = append(state.texts, hidden, state.written)
        return Decoding(texts, state.waiting, written, cache)

    def going(state: Decoding) -> Array:
        """Until there is nothing to write, prompts are due, or rows have to move for room."""
        busy = jnp.sum(state.texts.number < count, dtype=jnp.int32)
        left = wanted - state.waiting
        due = (left > 0) & (rows - busy >= jnp.minimum(part, left))
        return highest(busy > 0) & ~highest(due) & (state.cache.length < slots)

    def decode(state: Decoding) -> Decoding:
        filled = fill(state)
        with jax.named_scope(DECODE):
            return jax.lax.while_loop(going, step, filled)

    def unfinished(state: Decoding) -> Array:
        return highest((state.waiting < wanted) | jnp.any(state.texts.number < count))

    none = jnp.zeros((rows,), jnp.int32)
    said = None if batch.penalty is None else jnp.zeros((rows, model.vocab_size), bool)
    written = jnp.full((count, new_slots), eos[0], jnp.int32)
    free = Texts(none + count, none, none, none, said)
    start = Decoding(free, jnp.zeros((), jnp.int32), written, empty(rows, slots))
    if at_once:
        return decode(start).written
    with jax.named_scope(REFILL):
        return jax.lax.while_loop(unfinished, decode, start).written


def bound(instance: Instance, model: Language, beginning: Array | None, dtype: Any) -> tuple[Any, Any]:
    """`apply` and `Language.cache` of a model, for what comes after a (P,) `beginning`."""
    params, _, path, scale = instance
    run = functools.partial(apply, params, model, route=path, scale=scale, dtype=dtype)

    def empty(rows: int, slots: int) -> Any:
        return model.cache(rows, slots, dtype, path)

    if beginning is None:
        return run, empty
    _, after = run(beginning[None], jnp.ones((1, len(beginning)), bool), empty(1, len(beginning)))
    return functools.partial(run, after=after), empty


def for_many_passes(instance: Instance, model: Language) -> tuple[Params, Language]:
    """Parameters and model as many passes read them.

    XLA copies each block out of its stack before it multiplies by it, on a CPU at every token.
    """
    blocks = [s for s in model.specs if s.block]
    size = sum(math.prod(s.leaf_shape) for s in blocks) / max(1, len(model.kinds))
    if platform() != "cpu" or instance.route is not None or size < APART or len(model.kinds) > DEEPEST:
        return instance.params, model
    model, params = model.taken_apart(instance.params)
    return params, model


def said_by(batch: Prompts, vocab_size: int) -> Array | None:
    """(N, V) which tokens prompts have, those that stand for pictures too, but not their padding; None: no penalty."""
    if batch.penalty is None:
        return None
    rows = jnp.arange(batch.tokens.shape[0])[:, None]
    tokens = jnp.where(batch.valid, batch.tokens, vocab_size)
    said = jnp.zeros((len(rows), vocab_size), bool).at[rows, tokens].set(True, mode="drop")
    return said if batch.beginning is None else said.at[:, batch.beginning].set(True)


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
    unmerged = True
    writes = True
    draws = False
    refills = True  # whether other prompts may take the rows of texts that have ended

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
        shared = beginning_of(examples, self.eyes)
        # All pictures of a batch are on the device.
        fillings = FILLINGS if self.refills and not any(e.pictures for e in examples) else 1
        return plan_layouts(
            _lengths(examples), [new] * len(examples), len(search), tokens_per_batch, at_once, pieces,
            written=new, pictures=[e.pictures for e in examples], fillings=fillings, shared=shared,
        )  # fmt: skip

    def strata(self, examples: Sequence[Example], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) the index of the shortest layout that holds each prompt."""
        return shortest([n - layouts[0].shared for n in _lengths(examples)], layouts)

    def batch(self, model: Language, examples: Sequence[Example], layout: Layout) -> Prompts:
        """Prompts alone."""
        pad, shared = padding(self.tokenizer), layout.shared
        tokens, valid = left_padded([e.prompt_tokens[shared:] for e in examples], layout, pad)
        beginning = np.asarray(examples[0].prompt_tokens[:shared] if examples else [pad] * shared, np.int32)
        eos = np.asarray(ends_of_text(self.tokenizer), np.int32)
        # NumPy's, for any mesh.
        ends = (np.int32(self.max_new_tokens), eos, self._table(model.vocab_size))
        penalty = None if self.penalty == 1.0 else np.float32(self.penalty)
        pictures = shown(examples, layout, self.eyes, model)
        behind = (beginning if shared else None, np.int32(len(examples)))
        arrays: tuple[Any, ...] = (tokens, valid, *ends, penalty, pictures, *behind)
        return Prompts(*arrays)

    @functools.cached_property
    def _table(self) -> Any:
        """From the size of a vocabulary to the table of the stop strings."""
        return functools.cache(functools.partial(stop_table, self.tokenizer, self.stop))

    def run(self, model: Language, instance: Instance, batch: Prompts, layout: Layout, *, dtype: str) -> Array:
        """(N, A) new tokens."""
        return generate(instance, model, batch, layout.answer_slots, layout.running, dtype=dtype)

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
        """Such as "generate gsm8k, 64 x 128 tokens + 256, 16 at a time, behind 400 that all share"."""
        turns = f", {layout.running} at a time" if layout.running < layout.rows else ""
        behind = f", behind {layout.shared} that all share" if layout.shared else ""
        return f"generate {task}, {layout.rows} x {layout.length} tokens + {layout.answer_slots}{turns}{behind}"

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """Over new tokens, the first of which comes before it, and over the fillings of rows."""
        ends = layout.length + self.max_new_tokens
        reaches = np.searchsorted(reaches_of(layout.length + layout.answer_slots), np.arange(layout.length, ends))
        first, turns = float(reaches.mean()), layout.rows / layout.running
        if turns == 1:
            return {DECODE: float(self.max_new_tokens - 1), REACH: first}
        # From the second text of a row on, all lie where the longest does.
        reach = (first + (turns - 1) * float(reaches[-1])) / turns
        fillings = math.ceil(layout.rows / max(1, layout.running // PART))
        steps = math.ceil(turns) * (self.max_new_tokens - 1)
        return {REFILL: float(fillings), DECODE: steps / fillings, REACH: reach}

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """Twice (L, B, K, S, H), or what else blocks remember."""
        slots = layout.length + layout.answer_slots + (0 if model.follows else layout.shared)
        found = jax.tree.leaves(jax.eval_shape(lambda: model.cache(layout.running, slots, jnp.float32)).memory)
        return tuple((x.shape[0] if hops is None else hops, *x.shape[1:]) for x in found)


def beginning_of(examples: Sequence[Example], eyes: Any = None) -> int:
    """How many tokens all prompts begin with, up to pictures and the last one; 0 if these are few."""
    prompts = [e.prompt_tokens for e in examples]
    first, last = min(prompts), max(prompts)  # all others are between them
    most = min(map(len, prompts)) - 1
    same = next((i for i in range(most) if first[i] != last[i]), most)
    if eyes is not None and eyes.model.image_token in first[:same]:
        same = first.index(eyes.model.image_token)
    return same if len(prompts) > 1 and same >= BEGINNING else 0


def count_written(tokens: np.ndarray, eos: np.ndarray, stops: np.ndarray | None = None) -> np.ndarray:
    """(..., new) generated tokens -> (...) how many were written: up to the end-of-text token or the last of a stop."""
    ends = np.isin(tokens, eos)
    if stops is not None:
        ends |= ended_by(stops, tokens)
    return np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, tokens.shape[-1])


def _lengths(examples: Sequence[Example]) -> list[int]:
    return [len(e.prompt_tokens) for e in examples]
