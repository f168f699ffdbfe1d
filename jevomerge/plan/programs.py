"""The programs that a run executes, and how often, traced from shapes: nothing is read or put on a device."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.specs import param_specs, unflatten
from jevomerge.evolve.anchored import laid_out
from jevomerge.evolve.pareto import Nsga2
from jevomerge.evolve.problem import JointProblem, PathProblem
from jevomerge.evolve.refine import Refiner
from jevomerge.fitness import judge as judging
from jevomerge.fitness.candidates import Candidates
from jevomerge.fitness.candidates import Whole as WholeModel
from jevomerge.fitness.data import Layout, make_batches
from jevomerge.fitness.judge import SPLITS, Judge
from jevomerge.fitness.rollout import DECODE, Batch
from jevomerge.merge import Merge, merge_tensor
from jevomerge.mesh import by_member, everywhere, make_mesh, shardings
from jevomerge.models import DecoderConfig
from jevomerge.models.decoder import HOPS
from jevomerge.recipe import Sources

if TYPE_CHECKING:
    from jevomerge.evolve.setup import Setup

Shape = jax.ShapeDtypeStruct
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
REFINE = "refine"  # what the name of the gradient step begins with


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments, traced."""

    name: str
    traced: Any  # what `jax.jit(f).trace` returns
    mesh: Mesh
    runs: int  # in one generation
    once: Mapping[str, int]  # beside the generations, in the whole run: how often, and for what
    trips: dict[str, float]  # of its loops of dynamic length, by their names
    cache: tuple[int, ...] | None = None  # shape of its keys, and of its values
    dtype: str = "float32"  # of the cache
    made: bool = False  # whether merged members are among its arguments
    model: int = 0  # bytes per device of a whole model among its arguments that is no source


def first_generation(setup: Setup) -> np.ndarray:
    """(P, n) genomes like those that the search begins with."""
    key = jax.random.key(setup.config.seed)
    population, _ = setup.strategy.ask(key, setup.strategy.init(key))
    return population


def programs(
    setup: Setup, judge: Judge, candidates: Candidates, compiled: Callable[[Program], Any]
) -> Iterator[tuple[Program, Any]]:
    """Everything that a run runs on the mesh of `judge`, but for the export, each with what `compiled` returns for it.

    One after another, because what the first program makes lies where its compiler put it.
    """
    yield from scoring(setup, judge, candidates, compiled)
    yield from refining(setup, judge, candidates, compiled)


def refining(
    setup: Setup, judge: Judge, candidates: Candidates, compiled: Callable[[Program], Any]
) -> Iterator[tuple[Program, Any]]:
    """The step along the gradient."""
    if setup.config.refine is None:
        return
    refiner, search = Refiner(setup, candidates, judge), setup.config.search
    steps = setup.config.refine.steps * refiner.genomes(search.evaluations // setup.strategy.population_size)
    layouts = zip(refiner.tasks, refiner.layouts, strict=True)
    name = f"{REFINE} {' and '.join(f'{t.name}, {n.rows} x {n.length} tokens' for t, n in layouts)}"
    program = Program(name, refiner.traced(), judge.mesh, 0, {"gradients": steps}, {})
    yield program, compiled(program)


def scoring(
    setup: Setup, judge: Judge, candidates: Candidates, compiled: Callable[[Program], Any]
) -> Iterator[tuple[Program, Any]]:
    """Merging and scoring, of candidates and of whole models."""
    mesh, population = judge.mesh, first_generation(setup)
    groups = groups_of(setup, judge)
    genomes = Shape((judge.group, population.shape[1]), np.float32, sharding=by_member(mesh))
    made = None
    if any(task.score == "generation" for task in judge.tasks) or not candidates.lazy:
        traced = judging.make_members.trace(candidates, genomes, mesh=mesh)
        once = {k: n for k, n in (("search", groups.refined), ("finalists", groups.finalists)) if n}
        program = Program("merge", traced, mesh, groups.generation, once, {})
        made = traced.out_info
        if jax.tree.leaves(made):  # a path alone has nothing to make
            yield program, (executable := compiled(program))
            made = jax.tree.map(lambda x, s: Shape(x.shape, x.dtype, sharding=s), made, executable.output_shardings)
    found = candidates.hops(population)
    whole = whole_models(setup, judge, found)
    yield from ((p, compiled(p)) for p in likelihoods(setup, whole))
    for task in judge.tasks:
        for layout, (runs, once, models) in uses_of(setup, judge, task, groups, whole).items():
            slots, trips = candidates.slots(population), {HOPS: 0.0 if found is None else float(np.mean(found))}
            alike = task.score == "generation" and jax.tree.leaves(made) and found is None
            if alike and models:  # a whole model costs what a merged one does
                once |= {k: math.ceil(n * mesh.shape["pop"] / judge.group) for k, n in models.items()}
            given = None if candidates.lazy and task.score != "generation" else made
            if runs or once:
                program = scores_of(task, layout, judge, (candidates, given, genomes), slots, trips)
                program = program._replace(runs=runs, once=once, made=given is not None)
                yield program, compiled(program)
            if models and not alike:
                program = scores_of(task, layout, whole.judge, whole.arguments, None, {HOPS: 0.0})
                program = program._replace(name=f"{program.name}, whole", once=models, model=whole.bytes)
                yield program, compiled(program)


def scores_of(
    task: Any, layout: Layout, judge: Judge, arguments: tuple[Any, ...], slots: int | None, trips: dict[str, float]
) -> Program:
    """The scoring of a batch; `arguments`: candidates, what is made of them, genomes."""
    mesh = judge.mesh
    batch = Batch(*(_copy(x, mesh) for x in _batch(layout)))  # type: ignore[arg-type]
    static = {"mesh": mesh, "config": judge.config, "layout": layout, "dtype": judge.dtype}
    where = f"{task.name}, {layout.rows} x {layout.length} tokens"
    if task.score != "generation":
        traced = judging.score_members.trace(*arguments, batch, **static)
        return Program(f"score {where}", traced, mesh, 0, {}, trips)
    limits = (_copy(Shape((), np.int32), mesh), _copy(Shape((1,), np.int32), mesh))
    table = judge.stop_table(task.stop, judge.config.vocab_size)
    stops = () if table is None else (_copy(Shape(table.shape, table.dtype), mesh),)
    traced = judging.generate_members.trace(*arguments, batch, *limits, *stops, slots=slots, **static)
    name = f"generate {where} + {layout.answer_slots}"
    name += "" if slots is None else f", {slots} hops"  # the longest path of the first generation
    depth = judge.config.num_hidden_layers if slots is None else slots
    heads = (judge.config.num_key_value_heads, judge.config.head_dim)
    cache = (depth, layout.rows, layout.length + layout.answer_slots, *heads)
    trips = trips | {DECODE: float(task.max_new_tokens - 1)}
    return Program(name, traced, mesh, 0, {}, trips, cache, judge.dtype)


# --- how often ----------------------------------------------------------------------------------------------


class Groups(NamedTuple):
    """How many groups of members are scored."""

    generation: int  # in each
    refined: int  # after the search
    finalists: int  # on the whole search split


def groups_of(setup: Setup, judge: Judge) -> Groups:
    """Of a run, at most: candidates that are known already and racing are not in it."""
    search, refine, population = setup.config.search, setup.config.refine, setup.strategy.population_size
    generations = search.evaluations // population
    last = 0 if refine is None else refine.best if generations else 2  # the start, and what is made of it
    finalists = 0
    if search.examples_per_generation is not None or search.anchors is not None:
        finalists = min(search.finalists, generations * population + last)
    return Groups(*(math.ceil(n / judge.group) for n in (population, last, finalists)))


Often = tuple[int, dict[str, int], dict[str, int]]  # in a generation; once, for candidates and for whole models


def uses_of(setup: Setup, judge: Judge, task: Any, groups: Groups, whole: Whole) -> dict[Layout, Often]:
    """How often each layout of a task's batches is scored."""
    search = setup.config.search
    size = search.examples_per_generation if search.anchors is None else search.anchors.examples
    subset = None if size is None else judge.sample("search", size, jax.random.key(setup.config.seed))
    # Which examples the anchors are is not known yet: as many others stand in for them.
    some = judge if search.anchors is None else laid_out(judge, setup.config.tokens_per_batch, subset=subset)
    seen = batches_of(some, task, "search", subset)
    everything, heldout = (batches_of(judge, task, split) for split in SPLITS)
    found: dict[Layout, Often] = {}
    for layout in {**seen, **everything, **heldout}:
        once = {"search": groups.refined * seen[layout], "finalists": groups.finalists * everything[layout]}
        models = {name: n * (everything[layout] + heldout[layout]) for name, n in whole.counts.items()}
        kept = ({k: n for k, n in counts.items() if n} for counts in (once, models))
        found[layout] = (groups.generation * seen[layout], *kept)  # type: ignore[assignment]
    return found


def batches_of(judge: Judge, task: Any, split: str, subset: Mapping[str, np.ndarray] | None = None) -> Counter[Layout]:
    """How many batches of each layout a candidate is scored on."""
    examples = judge.chosen(task, split, subset)
    return Counter(layout for layout, *_ in make_batches(task, examples, judge.layouts[task.name], judge.pad))


class Whole(NamedTuple):
    """The models that are scored on both splits: sources, their average, the result."""

    counts: dict[str, int]  # how many, and which
    judge: Judge
    arguments: tuple[Any, ...]  # candidates, nothing made, genomes without genes
    bytes: int  # per device


def whole_models(setup: Setup, judge: Judge, hops: np.ndarray | None) -> Whole:
    """All taken for the largest one; `hops`: of the paths of the first generation."""
    problem, mesh = setup.problem, judge.mesh
    configs: list[DecoderConfig] = []
    if isinstance(problem, PathProblem):
        first, dtype = problem.checkpoints[0].config, DTYPES[problem.checkpoints[0].dtype()]
        configs = [c.config for c in problem.checkpoints]
    else:
        weights = problem.weights if isinstance(problem, JointProblem) else problem
        first, dtype = weights.config, weights.merge.dtype
        configs = [first] * (len(weights.sources.names) + 1) if weights.sources.plain else []
        configs += [c.config for c in problem.others] if isinstance(problem, JointProblem) else []
    result = first
    if hops is not None:
        assert setup.config.path is not None
        # Scales that are folded into the weights are kept in float32.
        dtype = setup.config.path.dtype or (dtype if setup.config.path.scaling == "none" else "float32")
        kinds = itertools.cycle(first.layer_kinds)
        result = dataclasses.replace(first, layer_kinds=tuple(itertools.islice(kinds, int(np.max(hops)))))
    largest = max([result, *configs], key=lambda c: c.num_hidden_layers)
    own, specs = copy.copy(judge), param_specs(largest)
    own.config = largest
    where = shardings(mesh, largest, specs)
    params = unflatten({s.path: Shape(s.leaf_shape, dtype, sharding=where[s.path]) for s in specs})
    genomes = Shape((mesh.shape["pop"], 0), np.float32, sharding=by_member(mesh))
    results = setup.config.search.finalists if isinstance(setup.strategy, Nsga2) else 1
    size = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(params))
    counts = {"sources": len(configs), "result": results}
    return Whole(counts, own, (WholeModel(params), None, genomes), size)


def likelihoods(setup: Setup, whole: Whole) -> Iterator[Program]:
    """Of the reference answers by the sources, for the choice of anchors, where no score gives them."""
    judge, sources = whole.judge, whole.counts["sources"]
    if setup.config.search.anchors is None or all(task.score != "generation" for task in judge.tasks):
        return
    judge = laid_out(judge, setup.config.tokens_per_batch, likelihood=True)
    for task in judge.tasks:
        for layout, count in batches_of(judge, task, "search").items():
            program = scores_of(task, layout, judge, whole.arguments, None, {HOPS: 0.0})
            often = {"sources": sources * count}
            yield program._replace(name=f"{program.name}, whole", once=often, model=whole.bytes)


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
    return Program(f"export {spec.path}", traced, mesh, 0, {}, {})


def _batch(layout: Layout) -> Iterator[Shape]:
    yield Shape((layout.rows, layout.length), np.int32)
    yield Shape((layout.rows, layout.length), np.bool_)
    yield Shape((layout.rows,), np.int32)


def _copy(x: Shape, mesh: Mesh) -> Shape:
    return Shape(x.shape, x.dtype, sharding=everywhere(mesh))
