"""A search whose fitness is an estimate from a few examples, chosen by what the sources do on all of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jevomerge.errors import InputError
from jevomerge.evolve.archive import write_atomically
from jevomerge.evolve.observer import Observer
from jevomerge.evolve.strategies import PARETO
from jevomerge.fitness.anchors import Items, choose_anchors, expected_mean, fit_items, weighted_mean
from jevomerge.fitness.data import plan_layouts
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Scores, over_tasks
from jevomerge.fitness.schema import Task
from jevomerge.hosts import on_first

if TYPE_CHECKING:
    from jevomerge.evolve.scoring import Scored
    from jevomerge.evolve.setup import Setup

FILE = "anchors.json"


class Anchored:
    """The anchors of every task, and the judge of what is scored on them."""

    def __init__(self, setup: Setup, tasks: Mapping[str, Mapping[str, Any]]):
        """`tasks`: what `find_anchors` returns."""
        self.tasks = tasks
        self.subset = {name: np.asarray(task["examples"]) for name, task in tasks.items()}
        self.judge = laid_out(setup.judge, setup.config.tokens_per_batch, subset=self.subset)
        anchors = setup.config.search.anchors
        assert anchors is not None
        self.note = {"estimate": anchors.estimator}  # goes into each record: its fitness is none on all examples

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """As that of a judge, estimated for the whole search split."""
        first = {name: estimate(task, scores.primary[name]) for name, task in self.tasks.items()}
        second = {name: by_cluster(task, scores.secondary[name]) for name, task in self.tasks.items()}
        return over_tasks(self.judge.weights, first), over_tasks(self.judge.weights, second)


def estimate(task: Mapping[str, Any], scores: np.ndarray) -> float:
    """The mean score on all examples of a task by those (N,) on its anchors."""
    if "difficulty" not in task:
        return by_cluster(task, scores)
    items = Items(np.asarray(task["discrimination"]), np.asarray(task["difficulty"]))
    return expected_mean(scores, np.asarray(task["examples"]), items)


def by_cluster(task: Mapping[str, Any], scores: np.ndarray) -> float:
    """The same without items: each anchor stands for its cluster."""
    return weighted_mean(scores, np.asarray(task["weights"]))


def find_anchors(
    responses: Mapping[str, np.ndarray], profiles: Mapping[str, np.ndarray], count: int, estimator: str, seed: int
) -> dict[str, dict[str, Any]]:
    """{task: its anchors, their weights and, for irt, a and b of all its examples}, as JSON holds them.

    Args:
        responses: {task: (m, n)}, from 0 to 1, to which the items of irt are fitted.
        profiles: {task: (n, d)}, by which examples are alike.
        count: anchors per task.
        estimator: mean or irt.
        seed: for the clusters.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, profile in profiles.items():
        chosen, weights = choose_anchors(profile, count, np.random.default_rng(seed))
        found[name] = {"examples": chosen.tolist(), "weights": weights.tolist()}
        if estimator == "irt":
            items, _ = fit_items(responses[name])
            found[name] |= {"discrimination": items.discrimination.tolist(), "difficulty": items.difficulty.tolist()}
    return found


def what_is_known(task: Task, models: Iterable[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """What a task's anchors are found by: responses (m, n) and profiles (n, d).

    Right or wrong says little when a few models solve few examples: so there is also the likelihood that each gives to
    the reference answers.  For irt its exponential, the probability per token, is the response of one more model.
    """
    likely = np.stack([scored.likelihood[task.name] for scored in models])
    likely = np.maximum(np.nan_to_num(likely, nan=-100.0, posinf=-100.0, neginf=-100.0), -100.0)
    if task.score == "likelihood":
        return np.exp(likely), likely.T
    right = np.nan_to_num(np.stack([scored.search.primary[task.name] for scored in models]))
    return np.concatenate([right, np.exp(likely)]), np.concatenate([right, likely]).T


def anchored(setup: Setup, folder: Path, models: Iterable[Scored], observer: Observer) -> Anchored | None:
    """The anchors of a run, from what its sources and their average score; None without `search.anchors`.

    They are written to its folder and read from there when it goes on: another mesh rounds the sources' scores
    differently, which may move an anchor.
    """
    anchors, seed, models = setup.config.search.anchors, setup.config.seed, list(models)
    if anchors is None:
        return None
    known = {task.name: what_is_known(task, models) for task in own_tasks(setup.judge)}
    responses, profiles = ({name: pair[i] for name, pair in known.items()} for i in (0, 1))

    def settle() -> dict[str, dict[str, Any]]:
        tasks = find_anchors(responses, profiles, anchors.examples, anchors.estimator, seed)
        if (earlier := read_anchors(folder)) is None:
            write_atomically(folder / FILE, json.dumps(tasks) + "\n")
            return tasks
        if not agree(earlier, tasks):
            observer.note(f"{FILE}: other anchors would be chosen now; those that the run began with are kept")
        return earlier

    return Anchored(setup, on_first(settle))


def read_anchors(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The anchors of a run, None if it has none."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{folder / FILE} is damaged ({error}); remove it, and the anchors are chosen again") from None
    return found


def agree(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether anchors are the same but for rounding."""
    return some.keys() == others.keys() and all(
        task.keys() == others[name].keys()
        and task["examples"] == others[name]["examples"]
        and all(np.allclose(task[key], others[name][key], rtol=1e-3, atol=1e-3) for key in task)
        for name, task in some.items()
    )


def refuse_anchors(setup: Setup) -> None:
    """Raise InputError where sources are not scored, or a score is no probability."""
    anchors, harness = setup.config.search.anchors, [t.name for t in setup.config.tasks if not isinstance(t, Task)]
    if anchors is None:
        return
    if setup.strategy.name == PARETO:
        raise InputError(f"search.anchors: not with {PARETO}, which compares the scores of every task; choose cma_es")
    if harness:
        raise InputError(
            f"search.anchors: not with tasks of lm-evaluation-harness such as {harness[0]}; use "
            "examples_per_generation, or leave anchors out"
        )
    if not setup.problem.scores_sources:
        raise InputError(
            "search.anchors: they are chosen by the scores of the sources, which are not known of slices; merge whole "
            "models or leave anchors out"
        )
    unbounded = [t.name for t in setup.config.tasks if t.score == "likelihood"]  # ROUGE-L is from 0 to 1, too
    if anchors.estimator == "irt" and unbounded:
        raise InputError(
            f"search.anchors: `irt` is for scores from 0 to 1, and {unbounded[0]} is scored by likelihood; use "
            "estimator: mean"
        )


def own_tasks(judge: Judge) -> tuple[Task, ...]:
    """Its tasks, all of which are of our own kind, one example for each document."""
    assert all(isinstance(task, Task) for task in judge.tasks)
    return tuple(task for task in judge.tasks if isinstance(task, Task))


def laid_out(
    judge: Judge, tokens_per_batch: int, *, subset: Mapping[str, np.ndarray] | None = None, likelihood: bool = False
) -> Judge:
    """A judge of the search split alone, with batches of the size for all of it or for `subset`.

    `likelihood`: of the reference answers, whatever the tasks are scored by.
    """
    other = copy.copy(judge)
    other.racing, material = None, judge.material["search"]
    tasks = own_tasks(judge)
    if likelihood:
        told = {
            "score": "likelihood",
            "extract": None,
            "pattern": None,
            "language": None,
            "also": (),
            "compare": "equal",
        }
        tasks = tuple(task.model_copy(update=told) for task in tasks)
        material = {name: m._replace(read=lambda _, outputs: outputs[0]) for name, m in material.items()}
    other.tasks, other.material = tasks, {"search": material}  # held-out examples may not fit the batches
    chosen = {t.name: judge.chosen(t, "search", subset) for t in tasks}
    other.layouts = {t.name: plan_layouts(t, chosen[t.name], [], tokens_per_batch) for t in tasks}
    return other
