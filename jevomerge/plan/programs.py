"""The programs that one generation of a run executes, traced from shapes: nothing is read or put on a device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.fitness import judge as judging
from jevomerge.fitness.candidates import Candidates
from jevomerge.fitness.data import Layout, make_batches
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.rollout import DECODE, Batch
from jevomerge.merge import Merge, merge_tensor
from jevomerge.mesh import by_member, everywhere, make_mesh
from jevomerge.models.decoder import HOPS
from jevomerge.recipe import Sources

if TYPE_CHECKING:
    from jevomerge.evolve.setup import Setup

Shape = jax.ShapeDtypeStruct


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments, traced."""

    name: str
    traced: Any  # what `jax.jit(f).trace` returns
    mesh: Mesh
    runs: int  # in one generation
    trips: dict[str, float]  # of its loops of dynamic length, by their names
    cache: tuple[int, ...] | None = None  # shape of its keys, and of its values
    dtype: str = "float32"  # of the cache
    made: bool = False  # whether merged members are among its arguments


def first_generation(setup: Setup) -> np.ndarray:
    """(P, n) genomes like those that the search begins with."""
    key = jax.random.key(setup.config.seed)
    population, _ = setup.strategy.ask(key, setup.strategy.init(key))
    return population


def programs(
    setup: Setup, judge: Judge, candidates: Candidates, compiled: Callable[[Program], Any]
) -> Iterator[tuple[Program, Any]]:
    """Everything that a generation runs on the mesh of `judge`, each with what `compiled` returns for it.

    One after another, because what the first program makes lies where its compiler put it.
    """
    mesh, population = judge.mesh, first_generation(setup)
    groups = math.ceil(len(population) / judge.group)
    genomes = Shape((judge.group, population.shape[1]), np.float32, sharding=by_member(mesh))
    made = None
    if any(task.score == "generation" for task in judge.tasks) or not candidates.lazy:
        traced = judging.make_members.trace(candidates, genomes, mesh=mesh)
        program = Program("merge", traced, mesh, groups, {})
        made = traced.out_info
        if jax.tree.leaves(made):  # a path alone has nothing to make
            yield program, (executable := compiled(program))
            made = jax.tree.map(lambda x, s: Shape(x.shape, x.dtype, sharding=s), made, executable.output_shardings)
    found = candidates.hops(population)
    hops = 0.0 if found is None else float(np.mean(found))
    for task in judge.tasks:
        for layout, batches in layouts(judge, task, setup).items():
            batch = Batch(*(_copy(x, mesh) for x in _batch(layout)))  # type: ignore[arg-type]
            static = {"mesh": mesh, "config": judge.config, "layout": layout, "dtype": judge.dtype}
            where = f"{task.name}, {layout.rows} x {layout.length} tokens"
            if task.score == "generation":
                slots = candidates.slots(population)
                limits = (_copy(Shape((), np.int32), mesh), _copy(Shape((1,), np.int32), mesh))
                arguments = (candidates, made, genomes, batch, *limits)
                traced = judging.generate_members.trace(*arguments, slots=slots, **static)
                trips = {DECODE: float(task.max_new_tokens - 1), HOPS: hops}
                name = f"generate {where} + {layout.answer_slots}"
                name += "" if slots is None else f", {slots} hops"  # the longest path of the first generation
                depth = judge.config.num_hidden_layers if slots is None else slots
                heads = (judge.config.num_key_value_heads, judge.config.head_dim)
                cache = (depth, layout.rows, layout.length + layout.answer_slots, *heads)
                program = Program(name, traced, mesh, groups * batches, trips, cache, judge.dtype, made is not None)
            else:
                given = None if candidates.lazy else made
                traced = judging.score_members.trace(candidates, given, genomes, batch, **static)
                trips = {HOPS: hops}
                program = Program(f"score {where}", traced, mesh, groups * batches, trips, made=given is not None)
            yield program, compiled(program)


def layouts(judge: Judge, task: Any, setup: Setup) -> Mapping[Layout, int]:
    """How many batches of each layout a candidate is scored on."""
    search = setup.config.search
    size = search.examples_per_generation if search.anchors is None else search.anchors.examples
    subset = None if size is None else judge.sample("search", size, jax.random.key(setup.config.seed))
    examples = judge.chosen(task, "search", subset)
    return Counter(layout for layout, *_ in make_batches(task, examples, judge.layouts[task.name], judge.pad))


def export_program(sources: Sources, device: jax.Device) -> Program:
    """The merge of the largest tensor, as an export makes it: on one device, tensor by tensor."""
    tensor = max(sources.tensors, key=lambda t: math.prod(t.spec.shape))
    method, part, spec = sources.method, tensor.part, tensor.spec
    mesh = make_mesh(devices=[device])
    where = everywhere(mesh)

    def shape(dims: tuple[int, ...], dtype: Any) -> Any:
        return Shape(dims, jax.dtypes.canonicalize_dtype(dtype), sharding=where)

    arrays = [shape(spec.shape, c.tensors[tensor.input_name(i)].dtype) for i, c in enumerate(part.checkpoints)]
    base = None if part.base is None else shape(spec.shape, part.base.tensors[tensor.base_name].dtype)
    count = len(arrays)
    coefficients = {p.name: shape((count,) if p.per_model else (), np.float32) for p in method.parameters}
    prepared = jax.eval_shape(method.prepare, arrays, base)
    prepared = jax.tree.map(lambda x: shape(x.shape, x.dtype), prepared)

    def kernel(arrays: Any, base: Any, coefficients: Any, prepared: Any, keys: Any) -> Any:
        return merge_tensor(Merge(method, sources.dtype), arrays, base, coefficients, prepared, keys)

    traced = jax.jit(kernel).trace(arrays, base, coefficients, prepared, shape((count, 2), np.uint32))
    return Program(f"export {spec.path}", traced, mesh, 0, {})


def _batch(layout: Layout) -> Iterator[Shape]:
    yield Shape((layout.rows, layout.length), np.int32)
    yield Shape((layout.rows, layout.length), np.bool_)
    yield Shape((layout.rows,), np.int32)


def _copy(x: Shape, mesh: Mesh) -> Shape:
    return Shape(x.shape, x.dtype, sharding=everywhere(mesh))
