"""What a run needs that can be made, and checked, without reading a weight."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jevomerge.checkpoint.source import TOKENIZER_FILES
from jevomerge.config import RunConfig, Search
from jevomerge.errors import InputError
from jevomerge.evolve.anchored import Anchored, refuse_anchors
from jevomerge.evolve.observer import Observer
from jevomerge.evolve.pareto import Nsga2, check_goals, make_nsga2
from jevomerge.evolve.paths import PathStrategy, make_path_strategy
from jevomerge.evolve.problem import JointProblem, PathProblem, Problem, WeightProblem, make_problem
from jevomerge.evolve.refine import refuse_refine
from jevomerge.evolve.strategies import PARETO, Strategy, make_strategy
from jevomerge.fitness.judge import Judge
from jevomerge.mesh import make_mesh
from jevomerge.plan.measure import best_plan, memory_limit
from jevomerge.stream import write_beside_weights


class Setup:
    """Everything a run needs that can be made, and checked, without reading a weight."""

    def __init__(self, config: RunConfig, devices: Sequence[jax.Device] | None = None):
        """Open the models, build the search space, read the tasks' data; `devices` other than this machine's."""
        self.config = config
        check_goals(config)
        self.problem: Problem = make_problem(config)
        problem, search = self.problem, config.search
        try:
            self.strategy = make_strategy_for(problem, search, len(config.tasks))
        except ValueError as error:
            raise InputError(f"search: {error}") from None
        if search.strategy in ("de", "pso", PARETO) and search.examples_per_generation is not None:
            raise InputError(
                f"search: {search.strategy} compares candidates across generations, whose scores on different "
                "minibatches mean different things; leave examples_per_generation out or choose cma_es"
            )
        if search.racing is not None and self.strategy.elite is None:
            raise InputError(
                f"search.racing: {self.strategy.name} learns from the rank of every candidate, also the worst; leave "
                "racing out or choose sep_cma_es, snes or random, for paths mixed or path_program"
            )
        refuse_anchors(self)
        refuse_refine(self)
        if 0 < search.evaluations < (size := self.strategy.population_size):
            raise InputError(f"search.evaluations: {search.evaluations} is less than one generation of {size}")
        self.anchors: Anchored | None = None  # known when the sources have been scored
        self.mesh = make_mesh(config.mesh.pop, config.mesh.model, devices)
        self.judge = Judge(
            config.tasks,
            problem_tokenizer(problem),
            problem.config,
            tokens_per_batch=config.tokens_per_batch,
            examples_at_once=search.examples_per_generation,
            dtype=config.compute_dtype,
            mesh=self.mesh,
            members_per_device=config.members_per_device or 1,
            racing=search.racing,
            max_length=problem_max_length(problem),
        )

    def choose_mesh(self, observer: Observer) -> None:
        """Where devices say how much memory they have: as the plan for them says, what the config leaves open."""
        devices = jax.devices()
        given = self.config.mesh.model or self.config.mesh.pop
        if memory_limit(devices[0]) is None or (given and self.config.members_per_device):
            return
        observer.stage("choosing the mesh by what fits")
        plan = best_plan(self, devices)
        self.mesh, self.judge = plan.mesh, self.judge.on(plan.mesh, plan.members_per_device)
        if not plan.fits:
            observer.note("this may not fit in memory; `jevomerge plan` says what to change")


def make_strategy_for(problem: Problem, search: Search, num_tasks: int) -> Strategy | PathStrategy | Nsga2:
    """The strategy of a config: paths have some of their own, and so have several goals."""
    settings = (search.population, problem.mean, search.sigma)
    if search.strategy == PARETO:
        return make_nsga2(len(problem.names), num_tasks, *settings)
    if isinstance(problem, WeightProblem):
        return make_strategy(search.strategy or "cma_es", len(problem.names), *settings)
    before = len(problem.weights.names) if isinstance(problem, JointProblem) else 0
    return make_path_strategy(search.strategy or "mixed", problem.space, *settings, before=before)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def problem_max_length(problem: Problem) -> int | None:
    """How long a text the exported model can take, by its config."""
    if isinstance(problem, PathProblem):
        return problem.checkpoints[0].config_json.get("max_position_embeddings")
    sources = problem.weights.sources if isinstance(problem, JointProblem) else problem.sources
    return sources.config_json.get("max_position_embeddings")


def problem_tokenizer(problem: Problem) -> Any:
    """The tokenizer that the exported model will have."""
    if isinstance(problem, PathProblem):
        return load_tokenizer(problem.checkpoints[0].folder)
    sources = problem.weights.sources if isinstance(problem, JointProblem) else problem.sources
    if sources.alignment is None:
        return load_tokenizer(sources.like.folder)
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as folder:
        write_beside_weights(Path(folder), sources)
        (Path(folder) / "config.json").write_text(json.dumps(sources.config_json))  # names the tokenizer's class
        return load_tokenizer(Path(folder))
