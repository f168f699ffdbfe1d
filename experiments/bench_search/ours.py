"""jevomerge's side of a problem: what `jevomerge evolve` sets up before its first generation."""

import json
from typing import Any

import jax
import numpy as np
from common import Problem, genomes, recipe

import jevomerge as jm
from jevomerge.fitness.members import run_members
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.search.setup import set_up


def configuration(problem: Problem, method: str) -> dict[str, Any]:
    """A run's YAML."""
    dare = method == "dare_ties"
    genome = {"weight": {"range": [0, 1]}} | ({"density": {"range": [0, 1]}} if dare else {})
    last = len(problem.data.read_text().splitlines()) - 1  # a run needs held-out data: here one example
    task = {
        "name": "two_skills",
        "search": {"path": str(problem.data), "rows": [0, last]},
        "heldout": {"path": str(problem.data), "rows": [last, last + 1]},
        "prompt": "{prompt}",
        "answer": "{answer}",
    }
    merge = recipe(problem, method) | ({"semantics": "paper"} if dare else {})
    search = {"population": problem.population, "evaluations": 2 * problem.population}
    return {"name": "bench", "recipe": merge, "genome": genome, "tasks": [task], "search": search}


class Ours:
    """A problem set up: bank, space, judge and batches."""

    def __init__(self, problem: Problem, method: str):
        """Read models and data."""
        self.setup = set_up(jm.read_run(configuration(problem, method)))
        self.candidates = self.setup.problem.load(self.setup.mesh)
        self.judge, self.model = self.setup.judge, self.setup.problem.model
        (self.task,) = self.judge.tasks
        self.tokenizer = self.setup.problem.tokenizer()
        self.batches = make_batches(
            self.task.rollout, self.model, self.judge.chosen(self.task, "search"), self.judge.layouts["two_skills"]
        )
        self.population = genomes(method, problem.population)

    def members(self, population: np.ndarray) -> np.ndarray:
        """(P, n) likelihoods: one generation, or a part of one."""
        groups = self.judge.members(self.candidates, population)
        return np.stack([scores.fitness["two_skills"] for (scores,) in groups])

    def traces(self) -> dict[str, Any]:
        """Compiled programs of the scoring function after one generation, and after a second one."""
        jax.clear_caches()
        counts = []
        for generation in range(2):
            self.members((self.population + 0.01 * generation)[:2])
            counts.append(run_members._cache_size())
        return {"batch_shapes": len(self.batches), "first_generation": counts[0], "second_generation": counts[1]}


def describe(ours: Ours) -> dict[str, Any]:
    """The work in one candidate."""
    shapes = [layout._asdict() for layout, *_ in ours.batches]
    parameters = sum(int(np.prod(spec.leaf_shape)) for spec in ours.setup.problem.sources.specs)
    real = sum(int(batch.valid.sum()) for *_, batch in ours.batches)
    return {"parameters": parameters, "batches": json.loads(json.dumps(shapes)), "tokens_without_padding": real}
