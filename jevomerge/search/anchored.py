"""A search whose fitness is an estimate from a few examples, chosen by what the sources do on all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.files import read_json, write_atomically
from jevomerge.devices.hosts import on_first
from jevomerge.errors import InputError
from jevomerge.fitness.anchors import Items, choose_anchors, expected_mean, fit_items, weighted_mean
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Scores, over_tasks
from jevomerge.fitness.task import Ready
from jevomerge.fitness.tasks import AnyTask
from jevomerge.problems.problem import Problem
from jevomerge.schema import check
from jevomerge.search.baselines import Scored
from jevomerge.search.records import AnchorsFile
from jevomerge.strategies.schema import Anchors
from jevomerge.strategies.strategy import PARETO, Strategy

ANCHORS_FILE = "anchors.json"


class Anchored:
    """The anchors of every task, and the judge of what is scored on them."""

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]], estimator: str, judge: Judge):
        """`tasks`: what `find_anchors` returns; `judge`: of all examples."""
        self.tasks = tasks
        self.subset = {name: np.asarray(task["examples"]) for name, task in tasks.items()}
        self.judge = laid_out(judge, self.subset)
        self.note = {"estimate": estimator}  # goes into each record: its fitness is none on all examples

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """As that of a judge, estimated for the whole search split."""
        first = {name: estimate(task, scores.fitness[name]) for name, task in self.tasks.items()}
        second = {name: by_cluster(task, scores.tie_break[name]) for name, task in self.tasks.items()}
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


def what_is_known(task: Ready, models: Iterable[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """What a task's anchors are found by: responses (m, n) and profiles (n, d).

    Right or wrong says little when a few models solve few examples: so there is also the likelihood that each gives to
    the reference answers. For irt its exponential, the probability per token, is the response of one more model.
    """
    likely = np.stack([scored.likelihood[task.name] for scored in models])
    likely = np.maximum(np.nan_to_num(likely, nan=-100.0, posinf=-100.0, neginf=-100.0), -100.0)
    if task.likelihood == "fitness":
        return np.exp(likely), likely.T
    right = np.nan_to_num(np.stack([scored.search.fitness[task.name] for scored in models]))
    return np.concatenate([right, np.exp(likely)]), np.concatenate([right, likely]).T


def settled(
    anchors: Anchors, judge: Judge, models: Sequence[Scored], seed: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """The anchors of a run, as `find_anchors` returns them, from what its sources and their average score.

    They are written to its folder and read from there when it goes on: another mesh rounds the sources' scores
    differently, which may move an anchor.
    """

    def settle() -> dict[str, dict[str, Any]]:
        if (earlier := read_anchors(folder)) is not None:
            return earlier
        known = {task.name: what_is_known(task, models) for task in judge.tasks}
        responses, profiles = ({name: pair[i] for name, pair in known.items()} for i in (0, 1))
        tasks = find_anchors(responses, profiles, anchors.examples, anchors.estimator, seed)
        write_atomically(folder / ANCHORS_FILE, json.dumps(tasks) + "\n")
        return tasks

    found: dict[str, dict[str, Any]] = on_first(settle)
    return found


def read_anchors(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The anchors of a run, None if it has none."""
    if not (path := folder / ANCHORS_FILE).exists():
        return None
    try:
        found: dict[str, dict[str, Any]] = check(AnchorsFile, read_json(path), path, "it is damaged")
        return found
    except InputError as error:
        raise InputError(f"{error}; remove it, and the anchors are chosen again") from None


def refuse_anchors(anchors: Anchors, tasks: Sequence[AnyTask], strategy: Strategy, problem: Problem) -> None:
    """Raise InputError where sources are not scored, or a score is no probability."""
    if strategy.several_goals:
        raise InputError(f"search.anchors: not with {PARETO}, which compares the scores of every task; choose cma_es")
    if others := [t for t in tasks if not t.answered]:
        raise InputError(
            f"search.anchors: not with {others[0].kind} such as {others[0].name}; use examples_per_generation, or "
            "leave anchors out"
        )
    if not problem.scores_sources:
        raise InputError(
            "search.anchors: they are chosen by the scores of the sources, which are not known of slices; merge whole "
            "models or leave anchors out"
        )
    unbounded = [t.name for t in tasks if t.bounds != (0, 1)]  # ROUGE-L is from 0 to 1, too
    if anchors.estimator == "irt" and unbounded:
        raise InputError(
            f"search.anchors: `irt` is for scores from 0 to 1, which those of {unbounded[0]} are not; use "
            "estimator: mean"
        )


def laid_out(judge: Judge, subset: Mapping[str, np.ndarray]) -> Judge:
    """A judge of the search split alone, with batches of the size for `subset`."""
    size = judge.tokens_per_batch
    layouts = {t.name: t.rollout.layouts(judge.chosen(t, "search", subset), [], size) for t in judge.tasks}
    # Held-out examples may not fit the batches.
    material = {"search": judge.material["search"]}
    return dataclasses.replace(judge, material=material, layouts=layouts, racing=None, lay_out=None)
