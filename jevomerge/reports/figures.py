"""Numbers of a run -> figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jevomerge.genome.names import GeneName
from jevomerge.reports.look import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, SEQUENTIAL, WIDTH, blank, styled

ROWS_WITH_NAMES = 64  # of a heat map; more of them are named by blocks
COLUMNS = 240  # of a heat map over generations; of more generations so many are shown


# --- fitness ------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """Fitness by generation, each (G,)."""

    best: np.ndarray  # so far
    mean: np.ndarray
    low: np.ndarray  # the 10 % quantile
    high: np.ndarray  # the 90 % quantile


def progress(generations: Sequence[np.ndarray]) -> Progress:
    """The fitness of each generation's members (NaN where there is none) -> how it went."""
    values = [g[~np.isnan(g)] for g in generations]
    values = [v if v.size else np.array([np.nan]) for v in values]
    best = np.fmax.accumulate([v.max() for v in values])
    low, high = np.array([np.quantile(v, (0.1, 0.9)) for v in values]).T
    return Progress(best, np.array([v.mean() for v in values]), low, high)


@styled
def fitness_figure(course: Progress, references: Mapping[str, float]) -> Figure:
    """Best so far, mean and 10 to 90 % band over generations; a line for each of the `references`."""
    figure = blank(WIDTH, 3.0)
    axes = figure.add_subplot()
    x = np.arange(1, len(course.best) + 1)
    marker = "o" if x.size < 3 else None  # a line of one point is invisible
    axes.fill_between(x, course.low, course.high, color=BLUE, alpha=0.18, linewidth=0, label="its 10 to 90 %")
    axes.plot(x, course.mean, color=BLUE, linewidth=1.2, marker=marker, label="mean of a generation")
    axes.plot(x, course.best, color=RED, linewidth=2, marker=marker, label="best so far", drawstyle="steps-mid")
    known = {name: value for name, value in references.items() if np.isfinite(value)}
    for name, colour in zip(known, cycle(len(known)), strict=False):
        axes.axhline(known[name], color=MUTED if name == "plain average" else colour, linewidth=1, linestyle="--")
    # The worst members may be worse by far: they are not what the picture is about.
    shown = np.concatenate([course.best, course.mean, list(known.values())])
    shown = shown[np.isfinite(shown)]
    low, high = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(min(x.size - 0.5, 1), max(x.size, 1.5))
    for name, place in label_heights(known, 0.055 * (high - low + 2 * margin)).items():
        axes.text(1.015, place, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_xlabel("generation")
    axes.set_ylabel("fitness on the search split")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3, fontsize=8, handlelength=1.4)
    return figure


@styled
def curves_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, bool]], references: Mapping[str, float], label: str
) -> Figure:
    """{run: (x, best fitness so far, whether it is finished)} in common axes, `label` being what x is."""
    figure = blank(WIDTH, 2.9 + 0.2 * math.ceil(len(curves) / 3))
    axes = figure.add_subplot()
    colours = (BLUE, RED, GREEN, ORANGE, PURPLE, INK)
    for i, (name, (x, best, finished)) in enumerate(curves.items()):
        colour, style = colours[i % 6], ("-", "--", ":", "-.")[i // 6 % 4]
        width = 3 - 1.5 * (i + 1) / len(curves)  # thinner and thinner, so that none hides one that is alike
        axes.plot(x, best, color=colour, linestyle=style, drawstyle="steps-post", linewidth=width, label=name)
        if finished or len(x) == 1:
            axes.plot(x[-1:], best[-1:], "o", color=colour, markersize=4)
    known = {name: value for name, value in references.items() if np.isfinite(value)}
    for value in known.values():
        axes.axhline(value, color=MUTED, linewidth=0.8, linestyle=(0, (5, 4)), zorder=0)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    for name, place in label_heights(known, 0.055 * (high - low)).items():
        axes.text(1.015, place, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("best fitness so far")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, handlelength=1.6)
    return figure


def cycle(count: int) -> list[str]:
    """Colours for so many lines or marks."""
    return [(ORANGE, GREEN, PURPLE, INK)[i % 4] for i in range(count)]


def label_heights(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights for labels near their values, in the same order and at least `gap` apart."""
    order = sorted(values, key=values.__getitem__)
    places = np.array([values[name] for name in order], float)
    # Each label asks for its height less those of the labels below it; the monotone fit keeps the mean where it was.
    shifted = places - gap * np.arange(len(order))
    blocks: list[list[float]] = []
    for value in shifted:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    fitted = [float(np.mean(block)) for block in blocks for _ in block]
    return {name: place + gap * i for i, (name, place) in enumerate(zip(order, fitted, strict=True))}


# --- coefficients -------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One heat map: sources x layers."""

    title: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray  # NaN where there is no gene
    range: tuple[float, float]  # of the gene


def coefficient_panels(values: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[Panel]:
    """The coefficients of a genome by parameter and component; `ranges` are those of the parameters."""
    genes = {GeneName.parse(name): value for name, value in values.items()}
    panels = []
    for parameter, bounds in ranges.items():
        mine = sorted((g for g in genes if g.parameter == parameter), key=lambda g: g.order)
        split = any(g.part and not isinstance(g.place, str) for g in mine)  # components have panels of their own
        titles = dict.fromkeys(_panel_of(g) if split else "" for g in mine)
        for title in titles:
            inside = [g for g in mine if not split or _panel_of(g) == title]
            columns = list(dict.fromkeys(_column_of(g, split) for g in inside))
            rows = list(dict.fromkeys(g.source for g in inside))
            table = np.full((len(rows), len(columns)), np.nan)
            for gene in inside:
                table[rows.index(gene.source), columns.index(_column_of(gene, split))] = genes[gene]
            heading = f"{parameter}, {title}" if title else parameter
            panels.append(Panel(heading, [r or "all sources" for r in rows], columns, table, bounds))
    return panels


def _panel_of(gene: GeneName) -> str:
    return "embedding and head" if isinstance(gene.place, str) else gene.part


def _column_of(gene: GeneName, split: bool) -> str:
    return str(gene.place) if split and not isinstance(gene.place, str) else gene.group


@styled
def coefficients_figure(panels: Sequence[Panel]) -> Figure:
    """The panels one above the other, all cells of one size."""
    widest = max(len(p.columns) for p in panels)
    heights = [len(p.rows) for p in panels]
    width = float(np.clip(1.9 + 0.42 * widest, WIDTH, 13))
    cell = (width - 1.9) / max(widest, 4)
    figure = blank(width, 0.24 * sum(heights) + 0.6 * len(panels) + 0.1)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        low, high = panel.range
        axes.imshow(panel.values, cmap=SEQUENTIAL, vmin=low, vmax=high, aspect="auto", interpolation="none")
        axes.set_xlim(-0.5, max(widest, 4) - 0.5)
        axes.set_title(panel.title)
        axes.set_yticks(range(len(panel.rows)), panel.rows)
        labels = [_short(column, cell) for column in panel.columns]
        step = max(1, math.ceil(0.06 * max(map(len, labels)) / cell - 0.2))
        axes.set_xticks(range(0, len(labels), step), labels[::step], fontsize=7.5)
        if cell > 0.4:
            for row, column in np.argwhere(~np.isnan(panel.values)):
                value = panel.values[row, column]
                colour = "black" if value > low + 0.44 * (high - low) else "white"  # 4.4 to 1 and more
                text = f"{value:.2f}" if high - low >= 0.5 else f"{value:.2g}"
                axes.text(column, row, text, color=colour, fontsize=7.5, ha="center", va="center")
        _bare(axes)
    for bounds in dict.fromkeys(p.range for p in panels):  # one scale for all panels that share it
        mine = [axes for axes, panel in zip(grid, panels, strict=True) if panel.range == bounds]
        inches = figure.get_figheight() * len(mine) / len(grid)
        _scale(figure, mine, inches, list(bounds))
    return figure


def _scale(figure: Figure, axes: Sequence[Axes], inches: float, ticks: Sequence[float], label: str = "") -> None:
    """The colours' meaning, beside the heat maps that have them; together they are so many inches high."""
    shrink = min(0.9, 1.3 / inches)
    bar = figure.colorbar(axes[0].images[0], ax=axes, pad=0.01, aspect=16, shrink=shrink, anchor=(0, 1), ticks=ticks)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _short(column: str, inches: float) -> str:
    """As much of a column's name as there is room for."""
    if 0.065 * len(column) <= inches:
        return column
    column = re.sub(r"^layers? |^point (?=\d+ of)", "", column)
    return "emb." if column == "embedding" and inches < 0.6 else column


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- over generations ---------------------------------------------------------------------------------------


@styled
def history_figure(panels: Mapping[str, np.ndarray], rows: Sequence[tuple[str, str]], label: str) -> Figure:
    """Heat maps over generations side by side: {title: (R, G) in [0, 1]}, NaN where there is nothing.

    Each of the R rows is (block, name); names are shown as long as there is room for them, then only the blocks.
    """
    named = len(rows) <= ROWS_WITH_NAMES
    count = next(iter(panels.values())).shape[1]
    figure = blank(7.2, float(np.clip(0.9 + 0.13 * len(rows), 2.2, 9)) if named else 6.5)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    shown = np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int))
    blocks = [block for block, _ in rows]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
    for axes, (title, values) in zip(grid, panels.items(), strict=True):
        extent = (0.5, count + 0.5, len(rows) - 0.5, -0.5)
        options = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "none"}
        axes.imshow(values[:, shown], extent=extent, **options)
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="white", linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("generation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelsize=8)
        _bare(axes)
    if named:
        grid[0].set_yticks(range(len(rows)), [name for _, name in rows], fontsize=7)
    else:
        middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
        grid[0].set_yticks(middles, [blocks[start] for start in starts], fontsize=8)
    _scale(figure, list(grid), figure.get_figheight(), [0, 0.5, 1], label)
    return figure
