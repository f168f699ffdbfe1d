"""The front of a run with several goals, as a figure and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jevomerge.reports.figures import cycle
from jevomerge.reports.look import MUTED, RED, SEQUENTIAL, WIDTH, blank, styled
from jevomerge.reports.record import Run
from jevomerge.strategies.pareto import front_of, front_points, objectives_of

# Neither the lightest colours, lost on a light page, nor the darkest.
MIDDLE = ListedColormap(matplotlib.colormaps[SEQUENTIAL](np.linspace(0.25, 0.85, 256)))


def front_table(record: Run) -> list[dict[str, Any]]:
    """The points of the front as in result.json; of an unfinished run those of the front so far."""
    if record.result is not None:
        return record.result["front"]
    tasks = [task.name for task in record.config.tasks]
    front = front_of(record.evaluations, tasks)
    return front_points(record.evaluations, tasks, front[0], 0) if front else []


def scores_of_parents(record: Run) -> dict[str, dict[str, float]]:
    """{source or "plain average": {task: its score on the search split}}, as far as they are known."""
    heldout = record.heldout or {"sources": {}, "average": None}
    models = heldout["sources"] | ({} if heldout["average"] is None else {"plain average": heldout["average"]})
    return {name: model["tasks"]["search"] for name, model in models.items()}


def front_of_run(record: Run) -> Figure:
    """The figure of a run, for its first two tasks."""
    names = [task.name for task in record.config.tasks][:2]
    objectives = objectives_of(record.evaluations, names)
    generations = np.array([e["generation"] for e in record.evaluations])
    parents = {name: (scores[names[0]], scores[names[1]]) for name, scores in scores_of_parents(record).items()}
    return front_figure(objectives, generations, front_table(record), parents, names)


@styled
def front_figure(
    objectives: np.ndarray,
    generations: np.ndarray,
    front: Sequence[Mapping[str, Any]],
    parents: Mapping[str, tuple[float, float]],
    names: Sequence[str],
) -> Figure:
    """All candidates by two objectives (E, 2), coloured by generation (E,); the front; what was exported; parents."""
    figure = blank(WIDTH, 4.0)
    axes = figure.add_subplot()
    x, y = objectives.T
    dots = axes.scatter(x, y, c=generations + 1, cmap=MIDDLE, s=14, linewidths=0, alpha=0.75, zorder=2)
    points = np.array([point["evaluation"] for point in front], int)
    rising = points[np.argsort(x[points])]
    if (
        np.diff(y[rising]) <= 0
    ).all():  # not so with a third objective, else a point dominates what is below the stairs
        axes.step(x[rising], y[rising], where="pre", color=RED, linewidth=1, alpha=0.7, zorder=3)
    axes.scatter(x[points], y[points], s=34, facecolors="none", edgecolors=RED, zorder=4, label="the front")
    if exported := [point["evaluation"] for point in front if "export" in point]:
        axes.scatter(x[exported], y[exported], s=34, color=RED, linewidths=0, zorder=5, label="exported")
    known = {name: place for name, place in parents.items() if np.isfinite(place).all()}
    for (name, place), colour in zip(known.items(), cycle(len(known)), strict=True):
        colour = MUTED if name == "plain average" else colour
        axes.scatter(*place, marker="X", s=42, color=colour, linewidths=0, zorder=4, label=name)
    axes.set_xlabel(f"{names[0]}, search split")
    axes.set_ylabel(f"{names[1]}, search split")
    axes.margins(0.08)
    bar = figure.colorbar(dots, ax=axes, pad=0.02, aspect=30, ticks=MaxNLocator(integer=True, nbins=5))
    bar.set_label("generation", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, fontsize=8, handlelength=1.2)
    return figure
