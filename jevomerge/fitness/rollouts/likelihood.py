"""The likelihood that a model gives to reference answers, in one forward pass.

Prompts are padded on the left, so that all rows end together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Batch, Example, Layout, left_padded, plan_layouts, shortest, shown
from jevomerge.models.model import Language, apply, unembed
from jevomerge.problems.problem import Instance

LOGITS_CHUNK = 512  # positions whose logits exist at a time: 100 MB at a vocabulary of 49,152


def answer_likelihood(
    instance: Instance,
    model: Language,
    batch: Batch,
    answer_slots: int,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Array, Array]:
    """Score the reference answers in one forward pass; only their positions meet the vocabulary.

    Args:
        instance: parameters, and how they are to be read.
        model: what they are parameters of.
        batch: prompts with their answers.
        answer_slots: static A, at least as long as the longest answer.
        dtype: of the activations.

    Returns:
        (B,) mean log-probability per answer token, in nats, and (B,) whether greedy decoding from the prompt
        would give exactly the answer.
    """
    params, layer, path, scale = instance
    hidden, _ = apply(
        params, model, batch.tokens[:, :-1], batch.valid[:, :-1], pictures=batch.pictures,
        layer=layer, route=path, scale=scale, dtype=dtype,
    )  # fmt: skip
    hidden = hidden[:, -answer_slots:]  # the state before token t predicts token t
    targets = batch.tokens[:, -answer_slots:]
    slots = jnp.arange(answer_slots, dtype=jnp.int32)[None, :]
    counted = slots >= answer_slots - batch.answer_length[:, None]

    def position(h: Array, target: Array) -> tuple[Array, Array]:
        logits = unembed(params, model, h)
        best = jnp.argmax(logits, axis=-1).astype(target.dtype)
        return logits[target] - jax.nn.logsumexp(logits), best == target

    flat = (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
    logprobs, greedy = jax.lax.map(lambda x: position(*x), flat, batch_size=min(LOGITS_CHUNK, targets.size))
    logprobs, greedy = (x.reshape(targets.shape) for x in (logprobs, greedy))
    mean = jnp.sum(jnp.where(counted, logprobs, 0.0), axis=1) / jnp.maximum(batch.answer_length, 1).astype(jnp.float32)
    return mean, jnp.all(greedy | ~counted, axis=1)


@dataclass(frozen=True)
class Likelihood:
    """Asks how likely the reference answers are: (mean log-probability per token, whether greedy decoding agrees)."""

    pad: int = field(compare=False)  # the token that fills rows
    eyes: Any = field(default=None, compare=False)  # `fitness.pictures.Eyes`, where examples have pictures

    many_passes = False
    unmerged = True
    writes = False
    draws = False

    def check(self, model: Language, examples: Sequence[Example]) -> None:
        """Raise InputError for tokens that the model does not have, and texts longer than it takes."""
        check_tokens(model, examples)
        check_lengths(model, examples)

    def layouts(
        self,
        search: Sequence[Example],
        others: Sequence[Example],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """Of prompts with their answers."""
        examples = [*search, *others]
        answers = [len(e.answer_tokens) for e in examples]
        return plan_layouts(
            _lengths(examples), answers, len(search), tokens_per_batch, at_once, pieces,
            pictures=[e.pictures for e in examples],
        )  # fmt: skip

    def strata(self, examples: Sequence[Example], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) the index of the shortest layout that holds each."""
        return shortest(_lengths(examples), layouts)

    def batch(self, model: Language, examples: Sequence[Example], layout: Layout) -> Batch:
        """Prompts with their answers."""
        tokens, valid = left_padded([e.prompt_tokens + e.answer_tokens for e in examples], layout, self.pad)
        answer_length = np.zeros(layout.rows, np.int32)
        answer_length[: len(examples)] = [len(e.answer_tokens) for e in examples]
        # NumPy's, for any mesh.
        arrays: tuple[Any, ...] = (tokens, valid, answer_length, shown(examples, layout, self.eyes, model))
        return Batch(*arrays)

    def run(
        self, model: Language, instance: Instance, batch: Batch, layout: Layout, *, dtype: str
    ) -> tuple[Array, Array]:
        """(B,) mean log-probabilities and (B,) matches."""
        return answer_likelihood(instance, model, batch, layout.answer_slots, dtype=dtype)

    def read(self, outputs: Sequence[np.ndarray], folder: Any = None) -> list[tuple[float, float]]:
        """Pairs of them."""
        return list(zip(*(np.asarray(x, np.float64).tolist() for x in outputs), strict=True))

    def spent(self, examples: Sequence[Example], batch: Batch, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """The tokens of prompts and answers."""
        return {
            "prompt": sum(len(e.prompt_tokens) for e in examples),
            "answer": sum(len(e.answer_tokens) for e in examples),
        }

    def label(self, task: str, layout: Layout) -> str:
        """Such as "score gsm8k, 16 x 128 tokens"."""
        return f"score {task}, {layout.rows} x {layout.length} tokens"

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """None."""
        return {}

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()


def check_tokens(model: Language, examples: Sequence[Example]) -> None:
    """Raise InputError for a token that the model does not have."""
    top = max(max(e.prompt_tokens + e.answer_tokens) for e in examples)
    if top >= model.vocab_size:
        raise InputError(
            f"token {top} is outside the model's vocabulary of {model.vocab_size}; "
            "tokenizer and weights do not belong together"
        )


def check_lengths(model: Language, examples: Sequence[Example], room: int = 0) -> None:
    """Raise InputError for a text that, with `room` for more tokens, is longer than the model takes."""
    most = model.max_length
    length, prompt = max((len(e.prompt_tokens) + (room or len(e.answer_tokens)), e.prompt) for e in examples)
    if most is not None and length - 1 > most:  # the last token is not read
        less = f" or lower max_new_tokens ({room})" if room else ""
        raise InputError(
            f"a text of up to {length} tokens is longer than the model takes, {most} (max_position_embeddings): "
            f"shorten the prompt, leave it out{less}; it begins with {prompt[:60]!r}"
        )


def _lengths(examples: Sequence[Example]) -> list[int]:
    return [len(e.prompt_tokens) + len(e.answer_tokens) for e in examples]
