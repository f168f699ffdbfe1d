"""The jitted programs that run members of a population over a mesh, and one model on its own."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.devices.mesh import WHOLE, by_member, put, spread
from jevomerge.devices.signals import safe_point
from jevomerge.fitness.batches import Example, Layout
from jevomerge.fitness.outcome import Tokens, count_tokens, of_this_process
from jevomerge.fitness.rollouts.rollout import Rollout, make_batches, nowhere
from jevomerge.fitness.slices import Placing
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.problems.problem import Candidates, Whole

T = TypeVar("T")


@functools.partial(jax.jit, static_argnames=("mesh",))
def make_members(candidates: Candidates, genomes: Array, *, mesh: Mesh) -> Any:
    """(M, n) genomes -> what is made of each before it is scored, over the mesh."""
    make = spread(mesh, lambda shared, local: _each(shared.make, local), candidates.over_pop())
    return make(candidates, genomes)


@functools.partial(jax.jit, static_argnames=("mesh", "slots", "model", "rollout", "layout", "dtype"))
def run_members(
    candidates: Candidates,
    made: Any,
    genomes: Array,
    batch: Any,
    *,
    mesh: Mesh,
    slots: int | None,
    model: Language,
    rollout: Rollout,
    layout: Layout,
    dtype: str,
) -> Any:
    """What each member makes of a batch, as `rollout.run` returns it, on a leading axis over members.

    Each result is where its member is.

    Args:
        candidates: what genomes stand for.
        made: what `make_members` has made of them, or None where one pass needs nothing made.
        genomes: (M, n).
        batch: of `rollout`; where `pop` has several slices, with an axis over them in front.
        mesh: M fills its axis `pop`.
        slots: room for the hops of a path, where there is one and the rollout takes many passes.
        model: what is run.
        rollout: what is asked for.
        layout: of the batch.
        dtype: of the activations.
    """

    several = mesh.shape["pop"] > 1

    def local(shared: Any, here: Any) -> Any:
        (candidates, whole), (part, *members) = shared, here
        batch = jax.tree.map(lambda x: x[0], part) if several else whole

        def member(x: Any) -> Any:
            return rollout.run(model, candidates.model(*x, slots), batch, layout, dtype=dtype)

        batched = candidates.together or (candidates.batched and not rollout.many_passes)
        return _each(member, tuple(members), batched)

    whole, part = (None, batch) if several else (batch, None)
    results = spread(mesh, local, (candidates.over_pop(), WHOLE))((candidates, whole), (part, made, genomes))
    # Every device has all that became of its members; the compiler might split it over `model`.
    return jax.lax.with_sharding_constraint(results, by_member(mesh))


def _each(f: Callable[[Any], Any], members: Any, batched: bool = False) -> Any:
    """`f` of every member: at once if that can be, else one after another."""
    if jax.tree.leaves(members)[0].shape[0] == 1:  # simplest for the compiler
        return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], members)))
    return jax.vmap(f)(members) if batched else jax.lax.map(f, members)


def no_genes(mesh: Mesh) -> np.ndarray:
    """(M, 0) the genomes of one model, that fill a mesh."""
    return np.zeros((mesh.shape["pop"], 0), np.float32)


def ask(
    rollout: Rollout,
    examples: Sequence[Example],
    params: Params,
    model: Language,
    *,
    tokens_per_batch: int,
    mesh: Mesh,
    dtype: str = "float32",
) -> tuple[list[Any], Tokens]:
    """What one model makes of examples, one item of `rollout.read` for each, and what that took."""
    layouts = rollout.layouts(examples, [], tokens_per_batch)
    members, place = put(no_genes(mesh), by_member(mesh)), Placing(mesh)
    found: list[Any] = [None] * len(examples)
    tokens = np.zeros(len(Tokens._fields), int)

    def start(layout: Layout, batch: Any) -> Any:
        static = {"mesh": mesh, "slots": None, "model": model, "rollout": rollout, "layout": layout, "dtype": dtype}
        return run_members(Whole(params), None, members, place([batch]), **static)

    batches = make_batches(rollout, model, examples, layouts)
    for index, batch, output in one_ahead((index, batch, start(layout, batch)) for layout, index, batch in batches):
        safe_point()
        rows = index[index >= 0]
        own = next(iter(of_this_process(output, index >= 0).values()))  # all are the same
        tokens += count_tokens(rollout, [examples[i] for i in rows], batch, own)
        for row, item in zip(rows, rollout.read(own, nowhere), strict=True):
            found[row] = item
    return found, Tokens(*tokens.tolist())


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each asked for before the one in front of it is given away: texts are read meanwhile."""
    held = deque[T]()
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield held.popleft()
    yield from held
