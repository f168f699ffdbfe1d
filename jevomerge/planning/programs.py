"""The programs that a run executes, and how often, traced from shapes: nothing is read or put on a device."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.devices.mesh import by_member, everywhere, make_mesh
from jevomerge.fitness.batches import Layout
from jevomerge.fitness.judge import SPLITS, Judge
from jevomerge.fitness.members import make_members, run_members
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.task import Ready
from jevomerge.methods.bank import Merge, merge_tensor
from jevomerge.models.route import HOPS
from jevomerge.models.specs import shardings, unflatten, waiting
from jevomerge.planning.lengths import Expected, loops_of
from jevomerge.problems.problem import Candidates, Whole
from jevomerge.recipe.sources import Sources
from jevomerge.search.anchored import laid_out
from jevomerge.search.setup import Setup, refiner_of

Shape = jax.ShapeDtypeStruct
Kind = Literal["merge", "score", "refine", "export"]


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments, traced."""

    kind: Kind
    name: str  # for people; begins with the kind
    traced: Any  # what `jax.jit(f).trace` returns
    mesh: Mesh
    runs: int  # in one generation
    once: Mapping[str, int]  # beside the generations, in the whole run: how often, and for what
    trips: dict[str, float]  # of its loops of dynamic length, by their names
    cache: tuple[tuple[int, ...], ...] = ()  # shapes of what it remembers of a member
    members: int = 1  # of which it remembers that at a time, on each device
    dtype: str = "float32"  # of the cache
    made: bool = False  # whether merged members are among its arguments
    model: Any = ()  # the shapes of a whole model among its arguments that is no source
    pictures: int = 0  # bytes per device of what it is given of pictures, in this batch and the next
    drawn: int = 0  # pictures that it draws for all members
    needed: float = 0.0  # of `runs`, if no slice of the mesh scored copies


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
    refiner = refiner_of(dataclasses.replace(setup, judge=judge), candidates)
    if refiner is None:
        return
    generations = setup.config.search.evaluations // setup.strategy.population_size
    steps = refiner.refine.steps * refiner.genomes(generations)
    layouts = zip(refiner.tasks, refiner.layouts, strict=True)
    name = f"refine {' and '.join(f'{t.name}, {n.rows} x {n.length} tokens' for t, n in layouts)}"
    program = Program("refine", name, refiner.traced(), judge.mesh, 0, {"gradients": steps}, {})
    yield program, compiled(program)


def scoring(
    setup: Setup, judge: Judge, candidates: Candidates, compiled: Callable[[Program], Any]
) -> Iterator[tuple[Program, Any]]:
    """Merging and scoring, of candidates and of whole models."""
    mesh, population = judge.mesh, first_generation(setup)
    groups = groups_of(setup, judge)
    genomes = Shape((judge.group, population.shape[1]), np.float32, sharding=by_member(mesh))
    made = None
    if any(task.rollout.many_passes for task in judge.tasks) or not candidates.lazy:
        traced = make_members.trace(candidates, genomes, mesh=mesh)
        merges = [math.ceil(n / judge.group) for n in groups]
        once = {k: n for k, n in zip(("search", "finalists"), merges[1:], strict=True) if n}
        program = Program("merge", "merge", traced, mesh, merges[0], once, {})
        made = traced.out_info
        if jax.tree.leaves(made):  # a path alone has nothing to make
            yield program, (executable := compiled(program))
            made = jax.tree.map(lambda x, s: Shape(x.shape, x.dtype, sharding=s), made, executable.output_shardings)
    found = candidates.hops(population)
    whole = whole_models(setup, judge, candidates, found)
    yield from ((p, compiled(p)) for p in likelihoods(setup, whole))
    for task in judge.tasks:
        expected = setup.new_tokens.get(task.name)
        for layout, (runs, needed, once, models) in uses_of(setup, judge, task, groups, whole).items():
            slots, trips = candidates.slots(population), {HOPS: 0.0 if found is None else float(np.mean(found))}
            alike = task.rollout.many_passes and jax.tree.leaves(made) and found is None and not candidates.together
            task_of = (task.name, task.rollout, layout)
            if alike and models:  # a whole model costs what a merged one does
                once |= {k: math.ceil(n * mesh.shape["pop"] / judge.group) for k, n in models.items()}
            given = made if task.rollout.many_passes or not candidates.lazy else None
            if runs or once:
                arguments = (candidates, given, genomes)
                program = scores_of(*task_of, judge, arguments, slots, trips, expected)
                program = program._replace(runs=runs, needed=needed, once=once, made=given is not None)
                yield program, compiled(program)
            if models and not alike:
                program = scores_of(*task_of, whole.judge, whole.arguments, None, {HOPS: 0.0}, expected)
                program = program._replace(name=f"{program.name}, whole", once=models, model=whole.params)
                yield program, compiled(program)


def scores_of(
    name: str,
    rollout: Rollout,
    layout: Layout,
    judge: Judge,
    arguments: tuple[Any, ...],
    slots: int | None,
    trips: dict[str, float],
    expected: Expected | None = None,
) -> Program:
    """The scoring of a batch of the task `name`; `arguments`: candidates, what is made of them, genomes.

    `expected`: how long its texts are taken to be, as for `loops_of`.
    """
    mesh = judge.mesh
    where, over = (by_member(mesh), (mesh.shape["pop"],)) if mesh.shape["pop"] > 1 else (everywhere(mesh), ())
    slots, batch = slots if rollout.many_passes else None, rollout.batch(judge.subject, [], layout)
    batch = jax.tree.map(lambda x: Shape((*over, *np.shape(x)), x.dtype, sharding=where), batch)
    static = {"mesh": mesh, "slots": slots, "rollout": rollout, "layout": layout}
    traced = run_members.trace(*arguments, batch, model=judge.subject, dtype=judge.dtype, **static)
    name = rollout.label(name, layout)
    name += "" if slots is None else f", {slots} hops"  # the longest path of the first generation
    cache, trips = rollout.cache(judge.subject, layout, slots), trips | dict(loops_of(rollout, layout, expected))
    members = judge.members_per_device if arguments[0].together else 1
    program = Program("score", name, traced, mesh, 0, {}, trips, cache, members, judge.dtype)
    shown = jax.tree.leaves(getattr(batch, "pictures", None))
    pictures = 2 * sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in shown)
    drawn = layout.rows * judge.group if rollout.draws else 0
    return program._replace(pictures=pictures, drawn=drawn)


# --- how often ----------------------------------------------------------------------------------------------


class Groups(NamedTuple):
    """How many members are scored."""

    generation: int  # in each
    refined: int  # after the search
    finalists: int  # on the whole search split


def groups_of(setup: Setup, judge: Judge) -> Groups:
    """Of a run, at most: candidates that are known already and racing are not in it."""
    search, refine, population = setup.config.search, setup.config.refine, setup.strategy.population_size
    generations = search.evaluations // population
    last = 0 if refine is None else refine.best if generations else 2  # the start, and what is made of it
    finalists = 0
    if search.examples_per_generation is not None or search.anchors is not None or not setup.exact:
        finalists = min(search.finalists, generations * population + last)
    return Groups(population, last, finalists)


def turns(judge: Judge, split: str, members: int, batches: int) -> int:
    """How often the program runs that scores so many members on so many batches of one layout."""
    full, rest = divmod(members, judge.group)
    ways = judge.slices(rest, split).ways if rest else 1
    return full * batches + (math.ceil(batches / ways) if rest else 0)


# In a generation, and if no slice scored copies; once, for candidates and for whole models.
Often = tuple[int, float, dict[str, int], dict[str, int]]


def uses_of(setup: Setup, judge: Judge, task: Ready, groups: Groups, whole: WholeModels) -> dict[Layout, Often]:
    """How often each layout of a task's batches is scored."""
    search = setup.config.search
    size = search.examples_per_generation if search.anchors is None else search.anchors.examples
    subset = None if size is None else judge.sample("search", size, jax.random.key(setup.config.seed))
    # Which examples the anchors are is not known yet: as many others stand in for them.
    some = judge if subset is None or search.anchors is None else laid_out(judge, subset)
    seen = batches_of(some, task, "search", subset)
    everything, heldout = (batches_of(judge, task, split) for split in SPLITS)
    found: dict[Layout, Often] = {}
    for layout in {**seen, **everything, **heldout}:
        once = {
            "search": turns(judge, "search", groups.refined, seen[layout]),
            "finalists": turns(judge, "search", groups.finalists, everything[layout]),
        }
        both = [
            turns(judge, split, 1, counts[layout]) for split, counts in zip(SPLITS, (everything, heldout), strict=True)
        ]
        models = {name: n * sum(both) for name, n in whole.counts.items()}
        kept = ({k: n for k, n in counts.items() if n} for counts in (once, models))
        runs, needed = turns(judge, "search", groups.generation, seen[layout]), groups.generation * seen[layout]
        found[layout] = (runs, needed / judge.group, *kept)  # type: ignore[assignment]
    return found


def batches_of(
    judge: Judge, task: Ready, split: str, subset: Mapping[str, np.ndarray] | None = None
) -> Counter[Layout]:
    """How many batches of each layout a candidate is scored on."""
    return count_batches(task.rollout, judge.chosen(task, split, subset), judge.layouts[task.name])


def count_batches(rollout: Rollout, examples: Sequence[Any], layouts: Sequence[Layout]) -> Counter[Layout]:
    """How many batches of each layout `make_batches` would make."""
    inside = np.bincount(rollout.strata(examples, layouts), minlength=len(layouts))
    return Counter({lay: -(-int(n) // lay.rows) for lay, n in zip(layouts, inside, strict=True) if n})


class WholeModels(NamedTuple):
    """The models that are scored on both splits: sources, their average, the result."""

    counts: dict[str, int]  # how many, and which
    judge: Judge
    arguments: tuple[Any, ...]  # candidates, nothing made, genomes without genes
    params: Any


def whole_models(setup: Setup, judge: Judge, candidates: Candidates, hops: np.ndarray | None) -> WholeModels:
    """All taken for the largest one; `hops`: of the paths of the first generation."""
    problem, mesh = setup.problem, judge.mesh
    models = [baseline.model for baseline in problem.baselines(candidates)]
    result, dtype = problem.exported(None if hops is None else int(np.max(hops)))
    largest = max([result, *models], key=lambda m: len(m.kinds))
    own, specs = dataclasses.replace(judge, subject=largest), largest.specs
    where = shardings(mesh, specs)
    where |= {s.path: waiting(where[s.path], s, setup.memory_of_whole) for s in specs if s.block}
    params = unflatten({s.path: Shape(s.leaf_shape, dtype, sharding=where[s.path]) for s in specs})
    genomes = Shape((mesh.shape["pop"], 0), np.float32, sharding=by_member(mesh))
    results = setup.config.search.finalists if setup.strategy.several_goals else 1
    counts = {"sources": len(models), "result": results}
    return WholeModels(counts, own, (Whole(params), None, genomes), params)


def likelihoods(setup: Setup, whole: WholeModels) -> Iterator[Program]:
    """Of the reference answers by the sources, for the choice of anchors, where no score gives them."""
    judge, sources = whole.judge, whole.counts["sources"]
    if setup.config.search.anchors is None or all(task.likelihood is not None for task in judge.tasks):
        return
    for task in judge.tasks:
        assert task.answers is not None
        examples = judge.chosen(task, "search")
        layouts = task.answers.layouts(examples, [], judge.tokens_per_batch)
        for layout, count in count_batches(task.answers, examples, layouts).items():
            program = scores_of(task.name, task.answers, layout, judge, whole.arguments, None, {HOPS: 0.0})
            often = {"sources": sources * count}
            yield program._replace(name=f"{program.name}, whole", once=often, model=whole.params)


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
    return Program("export", f"export {spec.path}", traced, mesh, 0, {}, {})
