"""From a config to what its search runs on: all that can be made, and checked, without reading a weight."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.pipeline import open_model
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.devices.mesh import make_mesh
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.fitness.judge import Judge, make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.models.vision.sighted import Sighted
from jevomerge.problems.kinds import make_problem
from jevomerge.problems.problem import Candidates, Problem
from jevomerge.recipe.opening import Opener
from jevomerge.search.anchored import Anchored, refuse_anchors
from jevomerge.search.people import People, refuse_people
from jevomerge.search.refine import Refiner, refuse_refine
from jevomerge.strategies.pareto import make_nsga2
from jevomerge.strategies.schema import Search
from jevomerge.strategies.strategy import PARETO, Strategy


@dataclass(frozen=True, eq=False)
class Setup:
    """What a search runs on; what becomes known later, `dataclasses.replace` puts into another one."""

    config: RunConfig
    problem: Problem
    strategy: Strategy
    judge: Judge
    starts: np.ndarray  # (k, n) the last members of the first generation
    anchors: Anchored | None = None  # known when the sources have been scored
    people: People | None = None  # who judge, as soon as they may
    together: bool = False  # whether candidates share what they read
    memory: Memory = "device"  # where the models of the recipe lie
    new_tokens: Mapping[str, Any] = field(default_factory=dict)  # of texts, for plans: `planning.lengths`

    @property
    def memory_of_whole(self) -> Memory:
        """In which the blocks of whole models are: where candidates of a path have them, else on the devices."""
        return self.memory if self.config.recipe is None else "device"

    @property
    def exact(self) -> bool:
        """Whether candidates are scored with the weights that are exported, but for their rounding."""
        return self.memory != "int8" and self.config.extract is None

    @property
    def mesh(self) -> Mesh:
        """The devices that candidates are scored on."""
        return self.judge.mesh

    def load(self, mesh: Mesh | None = None, *, abstract: bool = False) -> Candidates:
        """Read the weights, for its own mesh if not for another; see `Problem.load`."""
        return self.problem.load(mesh or self.mesh, self.memory, abstract=abstract, together=self.together)

    def at(self, memory: Memory) -> Setup:
        """The same with the models of the recipe there; where these are not all on a device, nothing is shared."""
        if memory == "device" or not self.together:
            return replace(self, memory=memory)
        alone = self.judge.on(self.mesh, self.config.members_per_device or 1)
        return replace(self, memory=memory, together=False, judge=alone)


def set_up(config: RunConfig, devices: Sequence[jax.Device] | None = None, opener: Opener = open_model) -> Setup:
    """Open the models, build the search space, read the tasks' data.

    Args:
        config: of the run.
        devices: other than this machine's.
        opener: of the recipe's models, some of which may be in memory.

    Raises:
        InputError: for whatever is wrong with the config, its models or data.
    """
    check_goals(config)
    refuse_people(config.tasks, config.search)
    mesh = make_mesh(config.mesh.pop, config.mesh.model, devices)
    problem, search = problem_of(config, opener), config.search
    try:
        strategy = make_strategy_for(problem, search, len(config.tasks), config.seed)
    except ValueError as error:
        raise InputError(f"search: {error}") from None
    size = strategy.population_size
    if strategy.remembers and search.examples_per_generation is not None:
        raise InputError(
            f"search: {strategy.name} compares candidates across generations, whose scores on different "
            "minibatches mean different things; leave examples_per_generation out or choose cma_es (a strategy of "
            "your own that does not says `remembers = False`)"
        )
    if search.racing is not None and strategy.elite is None:
        raise InputError(
            f"search.racing: {strategy.name} learns from the rank of every candidate, also the worst; leave "
            "racing out or choose sep_cma_es, snes or random, for paths mixed or path_program"
        )
    if search.anchors is not None:
        refuse_anchors(search.anchors, config.tasks, strategy, problem)
    if config.refine is not None:
        refuse_refine(config.refine, config.tasks, strategy, problem)
    if search.share is True and isinstance(why := problem.shared, str):
        raise InputError(f"search.share: candidates cannot share what they read: {why}; leave it out")
    if search.share is True and (dtype := problem.exported()[1]) != "float32":
        problem.notes.add(
            f"search.share: candidates are scored without the rounding of their weights to {dtype}; the model that is "
            "exported has it, and its scores are those of its files"
        )
    if 0 < search.evaluations < size:
        raise InputError(f"search.evaluations: {search.evaluations} is less than one generation of {size}")
    starts = problem.starts(search.start) if search.start else np.zeros((0, len(problem.names)))
    drawn = size - len(starts) - (np.ndim(problem.mean) > 0)  # a start that is a model is the first member
    if drawn < 0:
        raise InputError(
            f"search.start: a first generation of {size} has no room for {size - drawn} members that are given; set "
            f"search.population to {size - drawn} or more, or ask for fewer"
        )
    if search.start and not search.evaluations:
        raise InputError("search.start: without evaluations there is no first generation; leave it out")
    whole = None if problem.sources is None else problem.sources.assembly
    models = (problem.tokenizer(), problem.model, problem.seer)
    judge = make_judge(
        make_ready(config.tasks, *models, config.compute_dtype, config.features, whole),
        problem.model,
        tokens_per_batch=config.tokens_per_batch,
        examples_at_once=search.examples_per_generation,
        dtype=config.compute_dtype,
        mesh=mesh,
        members_per_device=config.members_per_device or 1,
        racing=search.racing,
        write=problem.export,
        population=size,
    )
    few = max(len(material.documents) for material in judge.material["search"].values())
    if search.examples_per_generation is not None and search.examples_per_generation > few:
        raise InputError(
            f"search.examples_per_generation: {search.examples_per_generation} are more than the {few} that there are; "
            "leave it out to score all of them in every generation"
        )
    for note in (*budget_notes(config, len(problem.names), size), *(n for task in judge.tasks for n in task.notes)):
        problem.notes.add(note)
    if kept := judge.kept:
        what = "views of all pictures" if isinstance(problem.model, Sighted) else "features of all pictures"
        problem.notes.add(f"{what} are {kept / 1e9:.3g} GB; {config.features.says(kept)}")
    memory = "device" if config.memory == "auto" else config.memory
    if memory != "device" and memory not in memories_of(config):
        raise InputError(
            f"memory: {memory} is for recipes, whose models wait for merges (of a path's blocks `host`), and not with "
            "`refine`, whose gradients may be wrong in XLA through the memory of the host; leave it out"
        )
    return Setup(config, problem, strategy, judge, starts, memory=memory)


def memories_of(config: RunConfig) -> tuple[Memory, ...]:
    """Where the models of a run's recipe may lie, in the order in which `memory: auto` tries it."""
    possible: tuple[Memory, ...] = ("device", "mesh", "host", "int8")
    if config.recipe is None:  # every token needs the blocks of a path
        possible = ("device", "host")
    factors = config.recipe is not None and config.recipe.adapter == "factors"
    if config.refine is not None or config.extract is not None or factors:
        possible = ("device",)
    return possible if config.memory == "auto" else tuple(m for m in possible if m == config.memory)


def budget_notes(config: RunConfig, genes: int, size: int) -> list[str]:
    """Where whole generations of `size` are not what was asked for, and where that is little for so many genes."""
    asked, notes = config.search.evaluations, []
    made = asked // size * size
    if made < asked:
        notes.append(f"search.evaluations: {asked} are {made // size} whole generations of {size}: {made} evaluations")
    if made < FEW * genes and config.path is None and config.refine is None:
        notes.append(
            f"search.evaluations: {made} are few for {genes} genes. 300 found good values for 42 genes, but not for 84 "
            "(experiments/japanese_math_mini: 83.9 and 64.9 % held out). Ask for about "
            f"{ENOUGH * genes}, or search fewer numbers (coarser `layers_per_group`, `smooth`, no `by`)"
        )
    return notes


FEW, ENOUGH = 5, 7  # evaluations for each gene: there 3.6 were too few, 7.1 were not


def check_goals(config: RunConfig) -> None:
    """Refuse what does not go together with a search for a front.

    Raises:
        InputError: with the remedy.
    """
    search = config.search
    if search.strategy != PARETO:
        return
    if len(config.tasks) < 2:
        raise InputError(
            f"search.strategy: with {PARETO} each task is a goal of its own, and there is only one; give two `tasks` "
            "or more, or choose cma_es"
        )
    if search.racing is not None:
        raise InputError(
            f"search.racing: {PARETO} compares the scores of every task, racing stops a candidate by their weighted "
            "mean; leave racing out"
        )


def problem_of(config: RunConfig, opener: Opener = open_model) -> Problem:
    """What a run searches."""
    mean = None if config.start_from else config.search.mean
    extract = None if config.extract is None else config.extract.rank
    return make_problem(config.recipe, config.genome, config.path, mean, config.search.sigma, opener, extract)


def make_strategy_for(problem: Problem, search: Search, num_tasks: int, seed: int) -> Strategy:
    """What searches: for a fitness, which depends on the problem, or for a front of several goals."""
    if search.strategy == PARETO:
        return make_nsga2(len(problem.names), num_tasks, search.population, problem.mean, search.sigma)
    return problem.strategy(search, seed)


def refiner_of(setup: Setup, candidates: Candidates) -> Refiner | None:
    """What moves the best genomes of a run along the gradient; None without `refine`."""
    if setup.config.refine is None:
        return None
    return Refiner(setup.config.refine, candidates, setup.problem.gradient, setup.judge, setup.config.seed)


def set_up_stages(config: RunConfig | StagedConfig, devices: Sequence[jax.Device] | None = None) -> Iterator[Setup]:
    """Every search of a config but those that build on paths; hollow models stand in for the merges of earlier ones."""
    if isinstance(config, RunConfig):
        yield set_up(config, devices)
        return
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as work:
        winners: dict[str, str] = {}
        unknown: set[str] = set()
        for stage in config.stages:
            named = {*(stage.path.models if stage.path else ()), *(stage.recipe.references if stage.recipe else ())}
            if named & unknown:
                unknown.add(stage.name)
                continue
            yield (setup := set_up(config.run_of(stage, winners), devices))
            hollow = Path(work) / stage.name
            if setup.problem.hollow(hollow):
                winners[stage.name] = str(hollow)
            else:
                unknown.add(stage.name)
