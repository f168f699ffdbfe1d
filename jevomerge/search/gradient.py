"""The loss of a genome and a step along its gradient: pure, jitted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jevomerge.devices.mesh import everywhere
from jevomerge.fitness.batches import Batch, Layout
from jevomerge.fitness.rollouts.likelihood import LOGITS_CHUNK, answer_likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.models.model import Language, apply, unembed
from jevomerge.problems.problem import Candidates, Instance


def unlikelihood(
    instance: Instance, model: Language, rollout: Rollout, batch: Batch, layout: Layout, dtype: str
) -> Array:
    """Minus the mean over a batch's rows with an answer of the mean log-probability per token, in nats."""
    del rollout
    likelihood, _ = answer_likelihood(instance, model, batch, layout.answer_slots, dtype=dtype)
    real = batch.answer_length > 0
    return -jnp.sum(jnp.where(real, likelihood, 0.0)) / jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)


def unfitness(instance: Instance, model: Language, rollout: Rollout, batch: Any, layout: Layout, dtype: str) -> Array:
    """Minus the mean of the scores that a function of the user's gives."""
    return -jnp.mean(rollout.run(model, instance, batch, layout, dtype=dtype))


def entropy(instance: Instance, model: Language, rollout: Rollout, batch: Batch, layout: Layout, dtype: str) -> Array:
    """The mean over all valid positions of the entropy of the next token, in nats."""
    del layout, rollout
    params, layer, path, scale = instance
    hidden, _ = apply(params, model, batch.tokens, batch.valid, layer=layer, route=path, scale=scale, dtype=dtype)

    @jax.checkpoint  # the logits are made again for the gradient, not kept
    def position(h: Array) -> Array:
        logs = jax.nn.log_softmax(unembed(params, model, h))
        return -jnp.sum(jnp.exp(logs) * logs)

    flat = hidden.reshape(-1, hidden.shape[-1])
    values = jax.lax.map(position, flat, batch_size=min(LOGITS_CHUNK, len(flat))).reshape(batch.valid.shape)
    return jnp.sum(jnp.where(batch.valid, values, 0.0)) / jnp.sum(batch.valid).astype(jnp.float32)


LOSSES = {"likelihood": unlikelihood, "entropy": entropy, "fitness": unfitness}
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {"adam": optax.adam, "sgd": optax.sgd}


def loss(
    genome: Array,
    candidates: Candidates,
    batches: Sequence[Any],
    shares: Sequence[float],
    *,
    objective: str,
    model: Language,
    rollouts: Sequence[Rollout],
    layouts: Sequence[Layout],
    dtype: str,
) -> Array:
    """The loss of a genome (n,): of one batch of each task, weighted by `shares`."""
    instance = candidates.model(None, genome)
    each = [
        share * LOSSES[objective](instance, model, rollout, batch, layout, dtype)
        for rollout, batch, share, layout in zip(rollouts, batches, shares, layouts, strict=True)
    ]
    return jnp.sum(jnp.stack(each))


STATIC = ("optimizer", "objective", "mesh", "shares", "model", "rollouts", "layouts", "dtype")


@functools.partial(jax.jit, static_argnames=STATIC)
def step(
    candidates: Candidates,
    free: Array,
    learning_rate: Array,
    state: tuple[Array, Any],
    batches: Sequence[Any],
    *,
    optimizer: str,
    objective: str,
    mesh: Mesh,
    shares: tuple[float, ...],
    model: Language,
    rollouts: tuple[Rollout, ...],
    layouts: tuple[Layout, ...],
    dtype: str,
) -> tuple[tuple[Array, Any], Array]:
    """One step of the optimizer: (genome, its state) -> the next ones, and the loss before it."""
    genome, momentum = state
    static = {"objective": objective, "model": model, "rollouts": rollouts, "layouts": layouts, "dtype": dtype}
    value, gradient = jax.value_and_grad(loss)(genome, candidates, batches, shares, **static)
    gradient = jnp.where(free & jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        updates, momentum = OPTIMIZERS[optimizer](learning_rate).update(gradient, momentum, genome)
    genome = jnp.where(free, jnp.clip(genome + updates, 0.0, 1.0), genome)
    return jax.lax.with_sharding_constraint(((genome, momentum), value), everywhere(mesh))
