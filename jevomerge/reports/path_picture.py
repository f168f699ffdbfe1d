"""The picture of a path: which layer of which model every hop goes through, and how its input is scaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from jevomerge.genome.route import Hop
from jevomerge.reports.look import BLUE, DIVERGING, FAINT, INK, MUTED, WIDTH, blank, styled

GAP = 1.5  # layers between two lanes


@styled
def path_figure(
    models: Sequence[str], depths: Sequence[int], hops: Sequence[Hop], passes: np.ndarray | None = None
) -> Figure:
    """Hops from left to right, at the height of their layer in the lane of their model; the first is at the bottom.

    Args:
        models: the lanes' names.
        depths: how many layers each model has.
        hops: the path, H of them.
        passes: (H,) in which repetition of all the layers a hop is; where that changes is marked.
    """
    floor = floors(depths)
    x = np.arange(1, len(hops) + 1)
    y = np.array([floor[models.index(hop.model)] + hop.layer for hop in hops])
    top = floor[-1] + depths[-1]
    figure = blank(float(np.clip(2 + 0.054 * len(hops), WIDTH, 12)), 1.1 + min(0.24 * top, 5.4))
    axes = figure.add_subplot()
    _draw_lanes(axes, models, depths, floor, len(hops))
    if passes is not None:
        for hop in np.flatnonzero(np.diff(passes)):
            axes.axvline(hop + 1.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.text(hop + 1.7, top - 0.2, f"pass {passes[hop + 1] + 1}", color=MUTED, fontsize=7, va="bottom")
    axes.plot(x, y, color=MUTED, linewidth=0.9, zorder=2, gid="walk")

    scales = np.array([hop.scale for hop in hops])
    again = np.array([(hop.model, hop.layer) in {(h.model, h.layer) for h in hops[:i]} for i, hop in enumerate(hops)])
    size = float(np.clip(3200 / len(hops), 12, 60))
    scaled = bool((scales != 1).any())
    reach = max(0.02, float(np.abs(scales - 1).max()))
    points = None
    for visit, marker, name in ((~again, "o", "first visit"), (again, "D", "visited before")):
        if visit.any():
            points = axes.scatter(
                x[visit],
                y[visit],
                c=scales[visit],
                s=size if marker == "o" else 0.8 * size,
                marker=marker,
                cmap=DIVERGING if scaled else ListedColormap([BLUE]),
                norm=CenteredNorm(1, reach),
                edgecolors=INK,
                linewidths=0.6,
                zorder=3,
                label=name,
            )
    if again.any():
        legend = figure.legend(loc="outside lower right", ncols=2, fontsize=8, handletextpad=0.2, columnspacing=1)
        for handle in filter(None, legend.legend_handles):
            handle.set(facecolor="none", array=None)  # colours mean scales
    if scaled and points is not None:
        bar = figure.colorbar(points, ax=axes, pad=0.01, aspect=30, shrink=0.9)
        bar.set_label("scale of the hop's input", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return figure


def floors(depths: Sequence[int]) -> list[float]:
    """At which height layer 0 of each model is; lanes lie on one another as the models in a path space's row."""
    return [sum(depths[:i]) + GAP * i for i in range(len(depths))]


def _draw_lanes(axes: Axes, models: Sequence[str], depths: Sequence[int], floor: Sequence[float], hops: int) -> None:
    ticks: dict[float, str] = {}
    for model, depth, bottom in zip(models, depths, floor, strict=True):
        lane = Rectangle((0, bottom - 0.6), hops + 1, depth + 0.2, facecolor=FAINT, edgecolor="none", zorder=0)
        lane.set_gid(f"lane {model}")
        axes.add_patch(lane)
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if depth / s <= 10)
        ticks |= {bottom + layer: str(layer) for layer in range(0, depth, step)}
        place = (0, bottom + (depth - 1) / 2)
        axes.annotate(model, place, (-22, 0), textcoords="offset points", ha="right", va="center")
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7.5)
    axes.set_xlim(0, hops + 1)
    axes.set_ylim(-0.8, floor[-1] + depths[-1] + 0.1)
    axes.set_xticks([x for x in MaxNLocator(integer=True, nbins=8).tick_values(1, hops) if 1 <= x <= hops])
    axes.set_xlabel("hop")
    axes.tick_params(length=2)
    axes.spines["left"].set_visible(False)
