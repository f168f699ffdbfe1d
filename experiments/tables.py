"""What the tables of the miniatures share: scores with their intervals, paired differences, and a plot of them.

    mean, low, high = interval(solved(rows["average"]))
    for one, other, seeds, found in differences(rows, [("evolved", "average")]): ...
    plot({"Japanese": rows}, GROUPS, HERE / "plot.png", "solved, %")

Rows are {name: {seed: what `run.py` measured}}, groups {group: {name: what the tables call it}}. The folder of each
miniature has a link to this file, so that its `table.py` can import it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

Cells = dict[str, dict[str, Any]]  # by seed
Groups = Mapping[str, Mapping[str, str]]
Interval = tuple[float, float, float]  # mean, and what 95 % of it lie between
COLOURS = ("#777777", "#b08b4f", "#3f7fb5", "#c0392b", "#3b8f5a")  # of groups, in their order


def interval(scores: np.ndarray, draws: int = 4000) -> Interval:
    """(seeds, examples) from 0 to 1 -> mean in per cent and a 95 % bootstrap interval over seeds and examples."""
    seeds, examples = _resampled(*scores.shape, draws)
    means = np.einsum("de,de->d", scores[seeds].mean(axis=1), examples) / scores.shape[1]
    low, high = np.quantile(100 * means, [0.025, 0.975])
    return 100 * float(scores.mean()), float(low), float(high)


@cache
def _resampled(seeds: int, examples: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(draws, seeds) which seeds, and (draws, examples) how often each example."""
    rng = np.random.default_rng(0)
    which = rng.integers(seeds, size=(draws, seeds))
    return which, rng.multinomial(examples, np.full(examples, 1 / examples), size=draws)


def solved(cells: Cells, key: str = "bits") -> np.ndarray:
    """(seeds, examples) of 0 and 1."""
    return np.array([[int(b) for b in cell[key]] for cell in cells.values()], float)


def differences(
    rows: Mapping[str, Cells], pairs: Iterable[tuple[str, str]], scores: Callable[[Cells], np.ndarray] = solved
) -> Iterator[tuple[str, str, int, Interval]]:
    """Of pairs of rows that are there, paired by seed and example: both names, how many seeds, and the interval."""
    for one, other in pairs:
        if one in rows and other in rows:
            seeds = [s for s in rows[one] if s in rows[other]]
            pair = [scores({s: rows[name][s] for s in seeds}) for name in (one, other)]
            yield one, other, len(seeds), interval(pair[0] - pair[1])


def for_every_seed(rows: Mapping[str, Cells], names: Iterable[str]) -> dict[str, Cells]:
    """The rows, of which those named, that have no seeds, are repeated for each: so `differences` can pair them."""
    every = sorted({seed for by_seed in rows.values() for seed in by_seed})
    return {**rows, **{name: dict.fromkeys(every, rows[name]["0"]) for name in names}}


def schedule(genome: dict[str, float]) -> list[float]:
    """Weights of checkpoints -> the share of each in their sum, by order; the mean over groups of tensors."""
    weights: dict[str, list[float]] = {}
    for gene, value in genome.items():
        weights.setdefault(gene.split("/", 1)[1], []).append(value)
    means = np.array([np.mean(values) for values in weights.values()])
    return [round(float(x), 3) for x in means / means.sum()]


def plot(panels: Mapping[str, Mapping[str, Cells]], groups: Groups, file: Path, label: str, width: float = 3.2) -> None:
    """Held-out scores with their intervals, a panel, so many inches wide, for each title."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    shown = [(g, n) for g, names in groups.items() for n in names if any(n in rows for rows in panels.values())]
    colours, heights, at = dict(zip(groups, COLOURS, strict=True)), {}, 0.0
    for i, (group, name) in enumerate(shown):
        at += 1.6 if i and shown[i - 1][0] != group else 1.0
        heights[name] = at
    size = (2.6 + width * len(panels), 0.2 * at + 0.7)
    figure, [axes] = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        for group, name in shown:
            if name not in rows:
                continue
            mean, low, high = interval(solved(rows[name]))
            axis.plot([low, high], [heights[name]] * 2, color=colours[group], lw=1.4, solid_capstyle="round")
            axis.plot(mean, heights[name], "o", color=colours[group], ms=5)
            where = (high, heights[name])
            axis.annotate(f"{mean:.0f}", where, (4, 0), textcoords="offset points", va="center", size=7.5)
        axis.set(title=title, xlim=(-2, 105), xlabel=label)
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_axisbelow(True)
    plain = [groups[group][name].replace("*", "").replace("`", "") for group, name in shown]
    axes[0].set_yticks([heights[name] for _, name in shown], plain)
    for (group, _), tick in zip(shown, axes[0].get_yticklabels(), strict=True):
        tick.set_color(colours[group])
    axes[0].set_ylim(at + 0.8, 0.2)
    figure.tight_layout()
    figure.savefig(file, dpi=105)
    plt.close(figure)
