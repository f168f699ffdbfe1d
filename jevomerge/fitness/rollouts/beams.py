"""The texts that a model writes by beam search, as `generate` of transformers 5 searches.

Of each prompt K texts run on. A running text is worth its summed log-probability, one that has ended the mean over its
tokens (`length_penalty: 1.0`), and the K best of these are kept apart. A prompt is done when there are K and its best
running text, were it to end here, would be worth no more than the last of them (`early_stopping: False`).

B prompts, K beams of each, V vocabulary, A room for new tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.fitness.batches import Example, Layout
from jevomerge.fitness.rollouts.generation import (
    DECODE,
    Generation,
    Prompts,
    bound,
    for_many_passes,
    penalised,
    said_by,
)
from jevomerge.fitness.schema import Task
from jevomerge.models.members import highest
from jevomerge.models.model import Language, unembed
from jevomerge.problems.problem import Instance

# --- on the device ------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Beams:
    """N texts of each prompt."""

    tokens: Array  # (B, N, A) int32; the first of `eos` where nothing is written
    worth: Array  # (B, N) float32; -inf: there is none

    def take(self, which: Array) -> Beams:
        """Those of (B, M) numbers."""
        tokens = jnp.take_along_axis(self.tokens, which[:, :, None], axis=1)
        return Beams(tokens, jnp.take_along_axis(self.worth, which, axis=1))

    def best(self, count: int) -> tuple[Beams, Array]:
        """So many of them, the best first, and (B, count) their numbers.

        Among equals the earlier one is better, as `jax.lax.top_k` promises; torch's `topk` promises nothing.
        """
        _, which = jax.lax.top_k(self.worth, count)
        return self.take(which), which


@flax.struct.dataclass
class Search:
    """The state of the loop over new tokens."""

    step: Array  # () int32: how many there are
    running: Beams  # N = K
    parents: Array  # (B, K) int32: the running texts of the step before that they go on from
    ended: Beams  # N = K
    hopeful: Array  # (B,) bool: whether a running text may yet be better than the ended ones
    said: Array | None  # (B * K, V) bool: the tokens of the parents and of their prompts; None: there is no penalty
    cache: Any  # keys and values of the parents but for their last tokens; the K of a prompt are adjacent rows


def beam_search(
    instance: Instance, model: Language, batch: Prompts, new_slots: int, beams: int, *, dtype: Any = jnp.float32
) -> Array:
    """Continue every prompt by beam search until it is done, or `max_new_tokens` end all texts.

    Args:
        instance: parameters, already merged.
        model: what they are parameters of.
        batch: prompts and the tokens that end texts; strings do not.
        new_slots: static room for new tokens.
        beams: K, static.
        dtype: of activations and cache.

    Returns:
        (B, new_slots) int32: the new tokens of the best texts, from the end on the first id of `eos`.
    """
    batch = batch if model.follows else batch.whole()
    rows, prompt = batch.tokens.shape
    params, model = for_many_passes(instance, model)
    run, empty = bound(instance._replace(params=params), model, batch.beginning, dtype)
    candidates = (1 + batch.eos.shape[0]) * beams  # as many as must be looked at for K among them that go on

    def follow(state: Search, hidden: Array) -> Search:
        """One token more, after the (B * K, D) hidden states of the running texts."""
        logprobs = jax.nn.log_softmax(unembed(params, model, hidden), axis=-1)
        logprobs = penalised(logprobs, state.said, batch.penalty)
        worth = state.running.worth[:, :, None] + logprobs.reshape(rows, beams, -1)
        # The lower index wins a tie: the better beam, then the smaller token.
        worth, at = jax.lax.top_k(worth.reshape(rows, -1), candidates)
        parents, token = jnp.divmod(at, logprobs.shape[-1])
        tokens = state.running.take(parents).tokens.at[:, :, state.step].set(token)
        step = state.step + 1
        ends = jnp.isin(token, batch.eos) | (step >= batch.max_new_tokens)
        running, kept = Beams(tokens, jnp.where(ends, -jnp.inf, worth)).best(beams)
        # What ends beyond the first K is lost, and so is all that ends once there is no hope.
        counts = ends & (jnp.arange(candidates) < beams)[None, :] & state.hopeful[:, None]
        length = step.astype(worth.dtype)
        new = Beams(tokens, jnp.where(counts, worth / length, -jnp.inf))
        ended, _ = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.ended, new).best(beams)
        hopeful = state.hopeful & (running.worth[:, 0] / length > jnp.min(ended.worth, axis=1))
        parents = jnp.take_along_axis(parents, kept, axis=1)
        return Search(step, running, parents, ended, hopeful, state.said, state.cache)

    def unfinished(state: Search) -> Array:
        return (state.step < batch.max_new_tokens) & highest(jnp.any(state.hopeful))

    def body(state: Search) -> Search:
        parents = (beams * jnp.arange(rows, dtype=jnp.int32)[:, None] + state.parents).reshape(-1)
        token = jax.lax.dynamic_index_in_dim(state.running.tokens, state.step - 1, 2).reshape(-1, 1)
        said = None if state.said is None else state.said[parents].at[jnp.arange(len(token)), token[:, 0]].set(True)
        cache = state.cache.of_rows(parents, common=prompt)
        hidden, cache = run(token, jnp.ones(token.shape, bool), cache)
        return follow(dataclasses.replace(state, said=said, cache=cache), hidden[:, -1])

    hidden, cache = run(batch.tokens, batch.valid, empty(rows, prompt + new_slots), pictures=batch.pictures)
    each = jnp.repeat(jnp.arange(rows, dtype=jnp.int32), beams)
    said = said_by(batch, model.vocab_size)
    nothing = jnp.full((rows, beams, new_slots), batch.eos[0], jnp.int32)
    none = jnp.full((rows, beams), -jnp.inf, jnp.float32)
    start = Search(
        step=jnp.zeros((), jnp.int32),
        running=Beams(nothing, none.at[:, 0].set(0.0)),  # one: K that are the same would stay so
        parents=jnp.zeros((rows, beams), jnp.int32),
        ended=Beams(nothing, none),
        hopeful=jnp.ones(rows, bool),
        said=None if said is None else said[each],
        cache=cache.of_rows(each),
    )
    first = follow(start, hidden[each, -1])
    with jax.named_scope(DECODE):
        return jax.lax.while_loop(unfinished, body, first).ended.tokens[:, 0]


# --- on the host --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BeamSearch(Generation):
    """Asks for the texts that a search with several beams finds; stop strings, which end none, are the host's."""

    beams: int = dataclasses.field(kw_only=True)

    refills = False

    def layouts(
        self,
        search: Sequence[Example],
        others: Sequence[Example],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """Of prompts, with room for the texts that follow; a beam takes what a row does."""
        return super().layouts(search, others, max(1, tokens_per_batch // self.beams), at_once, pieces)

    def run(self, model: Language, instance: Instance, batch: Prompts, layout: Layout, *, dtype: str) -> Array:
        """(B, A) new tokens."""
        return beam_search(instance, model, batch, layout.answer_slots, self.beams, dtype=dtype)

    def label(self, task: str, layout: Layout) -> str:
        """Such as "generate gsm8k by 5 beams, 16 x 128 tokens + 256"."""
        return super().label(f"{task} by {self.beams} beams", layout)

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """(L, B * K, ...)."""
        shapes = super().cache(model, layout, hops)
        return tuple((depth, rows * self.beams, *rest) for depth, rows, *rest in shapes)


def writing(task: Task, tokenizer: Any, eyes: Any = None) -> Generation:
    """What asks for the texts of a task as its `decode` says; `eyes` as of `Likelihood`."""
    beams, penalty = task.decode.beams, task.decode.repetition_penalty
    if beams > 1:
        return BeamSearch(tokenizer, task.max_new_tokens, penalty=penalty, eyes=eyes, beams=beams)
    return Generation(tokenizer, task.max_new_tokens, task.stop, penalty, eyes)
