"""What the held-out examples say: how sure the scores are, and which examples were won and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jevomerge.fitness.tasks import AnyTask
from jevomerge.observers.observer import BEST, outcome_name
from jevomerge.problems.problem import AVERAGE

__all__ = ["AVERAGE", "BEST"]
RESAMPLES = 4000
CASES = 10  # examples shown of each kind


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Standing(NamedTuple):
    """How a model stands on both splits."""

    name: str
    search: float
    heldout: Estimate
    difference: Estimate | None  # held-out to the best source, on the same examples; None for that source itself


def models_of(heldout: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """heldout.json's models by name: the sources, the average, other exported points of a front, the result."""
    others = {AVERAGE: heldout["average"], **points_of(heldout), best_name(heldout): heldout["best"]}
    return {**heldout["sources"], **{name: model for name, model in others.items() if model is not None}}


def best_name(heldout: Mapping[str, Any]) -> str:
    """What the result is called among the models."""
    return outcome_name((heldout["best"] or {}).get("source"))


def points_of(heldout: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The exported points of a front but for the best, by folder: what a run with one goal has none of."""
    points: dict[str, dict[str, Any]] = heldout.get("front", {})
    return points


def best_parent(heldout: Mapping[str, Any]) -> str | None:
    """The source with the highest held-out score, None if there are none."""
    scores = {name: model["heldout"] for name, model in heldout["sources"].items()}
    return max(scores, key=lambda name: np.nan_to_num(scores[name], nan=-np.inf)) if scores else None


def bootstrap(scores: Mapping[str, np.ndarray], weights: Mapping[str, float], seed: int = 0) -> np.ndarray:
    """(B, M) fitness of M models on resampled examples, the same ones for all models.

    Args:
        scores: {task: (M, n)} of each example.
        weights: of the tasks; examples are drawn within each task.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    total = sum(weights[task] for task in scores)
    fitness = np.zeros((RESAMPLES, len(next(iter(scores.values())))))
    for task, values in scores.items():
        count = values.shape[1]
        for start in range(0, RESAMPLES, step := max(1, 2_000_000 // count)):  # a few MB at a time
            block = fitness[start : start + step]
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=len(block))  # how often each example
            block += weights[task] / total * (drawn @ values.T) / count
    return fitness


def other_scores(heldout: Mapping[str, Any], tasks: Sequence[AnyTask]) -> list[tuple[str, dict[str, float]]]:
    """What the same texts score by all criteria, [(its name, {model: score})]; [] where there are no others."""
    by_task = scores_by_task(heldout)
    rows: dict[str, dict[str, float]] = {}
    for task in tasks:
        prefix = f"{task.name}: " if len(tasks) > 1 else ""
        others = {
            name: m["also"][task.name] for name, m in models_of(heldout).items() if task.name in m.get("also", {})
        }
        if others:
            rows[f"{prefix}{task.criterion} (counts)"] = by_task[task.name]
        for name, scores in others.items():
            for criterion, score in scores.items():
                rows.setdefault(prefix + criterion, {})[name] = score
    return list(rows.items())


def scores_by_task(heldout: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{task: {model: its held-out score there}}."""
    rows: dict[str, dict[str, float]] = {}
    for name, model in models_of(heldout).items():
        for task, scores in model["scores"].items():
            rows.setdefault(task, {})[name] = float(np.mean(np.array(scores, np.float64)))
    return rows


def standings(heldout: Mapping[str, Any], tasks: Sequence[AnyTask]) -> list[Standing]:
    """Every model with its intervals, and its paired difference to the best source."""
    models, parent = models_of(heldout), best_parent(heldout)
    if not models:
        return []
    scores = {t.name: np.array([m["scores"][t.name] for m in models.values()], np.float64) for t in tasks}
    fitness = dict(zip(models, bootstrap(scores, {t.name: t.weight for t in tasks}).T, strict=True))
    rows = []
    for name, model in models.items():
        difference = None
        if parent is not None and name != parent:
            better = model["heldout"] - models[parent]["heldout"]
            difference = Estimate(better, *interval(fitness[name] - fitness[parent]))
        score = Estimate(model["heldout"], *interval(fitness[name]))
        rows.append(Standing(name, model["search"], score, difference))
    return rows


def gain_over(heldout: Mapping[str, Any], tasks: Sequence[AnyTask], name: str) -> Estimate:
    """How much more the result scores than another model, on the same held-out examples."""
    best, other = heldout["best"], models_of(heldout)[name]
    scores = {t.name: np.array([m["scores"][t.name] for m in (best, other)], np.float64) for t in tasks}
    drawn = bootstrap(scores, {t.name: t.weight for t in tasks})
    return Estimate(best["heldout"] - other["heldout"], *interval(drawn[:, 0] - drawn[:, 1]))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of what a bootstrap drew."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


class Answer(NamedTuple):
    """What one model made of an example."""

    model: str
    score: float
    text: str | None  # what it wrote, if it had to write


class Case(NamedTuple):
    """An example with everybody's answers, the result's last."""

    number: int  # in its split
    prompt: str
    answer: str
    answers: list[Answer]
    pictures: list[str]  # JPEGs in base64, the first of those that it has


class Cases(NamedTuple):
    """The examples of a task that the result won and lost against all its parents together."""

    task: str
    meaning: str  # what a score is
    right_or_wrong: bool  # whether it is 1 or 0 for that
    won: list[Case]
    lost: list[Case]
    num_won: int
    num_lost: int
    num_examples: int


def wins_and_losses(heldout: Mapping[str, Any], task: AnyTask) -> Cases | None:
    """The largest gains over the best parent of each example, and the largest losses; None without parents.

    Where answers are right or wrong, won is what no parent solves and lost what some parent does.
    """
    if heldout["best"] is None or not heldout["sources"]:
        return None
    examples = heldout["examples"][task.name]
    sources = np.array([m["scores"][task.name] for m in heldout["sources"].values()], np.float64)
    best = np.array(heldout["best"]["scores"][task.name], np.float64)
    margin = best - np.fmax.reduce(sources)
    won, lost = (np.argsort(-m, kind="stable")[: np.sum(m > 0)] for m in (margin, -margin))
    models = {**heldout["sources"], **points_of(heldout), best_name(heldout): heldout["best"]}

    def case(i: int) -> Case:
        answers = [
            Answer(name, float("nan" if (s := m["scores"][task.name][i]) is None else s), texts[i] if texts else None)
            for name, m in models.items()
            for texts in (m["texts"].get(task.name),)
        ]
        return Case(int(i), examples[i]["prompt"], examples[i]["answer"], answers, examples[i].get("pictures", []))

    shown = 0 if task.private else CASES
    first_won, first_lost = ([case(i) for i in chosen[:shown]] for chosen in (won, lost))
    counts = len(won), len(lost), len(examples)
    exact = right_or_wrong(task, np.append(sources, best))
    return Cases(task.name, task.meaning, exact, first_won, first_lost, *counts)


def right_or_wrong(task: AnyTask, scores: np.ndarray) -> bool:
    """Whether a score says that an answer is right or wrong; of the harness's metrics only their values tell."""
    if task.right_or_wrong is None:
        return bool(np.isin(scores[~np.isnan(scores)], (0, 1)).all())
    return task.right_or_wrong
