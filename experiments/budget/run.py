"""Which budget for how many genes: what the results of other experiments say, in one figure and one table.

python experiments/budget/run.py     # reads their results.json, writes its own and plot.png
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from arguments import make_parser

HERE = Path(__file__).parent
SUMS, SEEN, DRAWN = "Japanese word problems", "Japanese questions about pictures", "Japanese prompts drawn"
SPARSE, POINTS, GEMMA = "Sources that share no weight", "Checkpoints of one run", "Gemma 3 270M"
KINDS = {
    "random trials": "#b08b4f",
    "evolved": "#c0392b",
    "evolved, few examples": "#8e5aa8",
    "gradient": "#3b8f5a",
    "both in turn": "#3f7fb5",
}


class Row(NamedTuple):
    """Searches that ended after so many passes, one for each seed."""

    problem: str
    kind: str  # one of KINDS
    genes: int
    evaluations: int | None  # None: there are none, or not of candidates alone
    examples: int  # of an evaluation, or of a step along the gradient; those that are drawn for each generation
    passes: float  # one example scored once; the gradient of one counts three
    heldout: list[float]  # %, of each seed


def results(experiment: str, file: str = "results") -> Any:
    """Those of an experiment."""
    return json.loads((HERE.parent / experiment / f"{file}.json").read_text())


def solved(cells: Any) -> list[float]:
    """% of each seed."""
    return [100 * np.mean([int(b) for b in cell["bits"]]) for cell in cells.values()]


def sums() -> Iterator[Row]:
    """japanese_math_mini, cheap_fitness and refine, which have its models and task."""
    found = results("japanese_math_mini")["japanese_math"]
    for name, kind, genes in (
        ("task arithmetic, random", "random trials", 3),
        ("evolved, 3 genes, first 50", "evolved", 3),
        ("evolved, 3 genes", "evolved", 3),
        ("42 genes, random", "random trials", 42),
    ):
        count = found[name]["0"]["evaluations"]
        yield Row(SUMS, kind, genes, count, 128, 128 * count, solved(found[name]))
    for experiment, name, kind, examples in (
        ("refine", "evolution alone", "evolved", 128),
        ("cheap_fitness", "likelihood, minibatches, 16", "evolved, few examples", 16),
        ("cheap_fitness", "likelihood, minibatches, 4", "evolved, few examples", 4),
        ("refine", "0.5, likelihood", "gradient", 16),
        ("refine", "evolution, between", "both in turn", 16),
    ):
        every = results(experiment)
        cells = [cell.get("ends", cell) for cell in (every.get("runs", every))[name].values()]
        for end in cells[0]:
            heldout = [100 * cell[end]["heldout"] for cell in cells]
            alone = 15 * int(end) if kind.startswith("evolved") else None  # generations of 15
            yield Row(SUMS, kind, 42, alone, examples, cells[0][end]["passes"], heldout)


def seen() -> Iterator[Row]:
    """japanese_vqa_mini."""
    found = results("japanese_vqa_mini")["Japanese"]
    for name, kind, genes in (
        ("task arithmetic up to 2, random", "random trials", 2),
        ("evolved, 2 genes up to 2", "evolved", 2),
        ("22 genes up to 2, random", "random trials", 22),
        ("evolved, 22 genes up to 2", "evolved", 22),
    ):
        count = found[name]["0"]["evaluations"]
        yield Row(SEEN, kind, genes, count, 128, 128 * count, solved(found[name]))


def drawn() -> Iterator[Row]:
    """japanese_diffusion_mini."""
    found = results("japanese_diffusion_mini")["Japanese, four steps"]
    for name, kind, genes in (
        ("3 genes, random", "random trials", 3),
        ("evolved, 3 genes", "evolved", 3),
        ("blocks, random", "random trials", 30),
        ("evolved, blocks", "evolved", 30),
    ):
        count = found[name]["0"]["evaluations"]
        yield Row(DRAWN, kind, genes, count, 60, 60 * count, solved(found[name]))


def sparse() -> Iterator[Row]:
    """sparse_experts: as word problems above, but no weight belongs to two sources."""
    found = results("sparse_experts")["runs"]
    for name, kind, genes in (
        ("task arithmetic, random", "random trials", 3),
        ("evolved, 3 genes", "evolved, few examples", 3),
        ("evolved, 42 genes", "evolved, few examples", 42),
        ("gradient, 42 genes", "gradient", 42),
    ):
        yield of_cells(SPARSE, kind, genes, 16, found[name])


def points() -> Iterator[Row]:
    """trajectories, at a constant learning rate."""
    found = results("trajectories")["cells"]["constant"]
    for name, genes in (("checkpoint", 8), ("checkpoint and layer", 40)):
        yield of_cells(POINTS, "evolved", genes, 64, found[f"searched, a weight per {name}"])
        yield of_cells(POINTS, "gradient", genes, 64, found[f"gradient, a weight per {name}"])


def gemma() -> Iterator[Row]:
    """japanese_math_gemma, on the problems that were drawn last."""
    found, fresh = results("japanese_math_gemma")["cells"], results("japanese_math_gemma", "fresh")
    for name, kind, genes, examples in (
        ("task arithmetic, random", "random trials", 2, 24),
        ("evolved, 2 genes", "evolved, few examples", 2, 24),
        ("evolved, by thirds", "evolved, few examples", 10, 24),
        ("gradient, by layer", "gradient", 40, 16),
    ):
        yield of_cells(GEMMA, kind, genes, examples, found[name])._replace(heldout=solved(fresh[name]))


def of_cells(problem: str, kind: str, genes: int, examples: int, cells: Any) -> Row:
    """Of what an experiment has for each seed."""
    first = next(iter(cells.values()))
    alone = None if kind == "gradient" else first.get("evaluations", first["passes"] // examples)
    return Row(problem, kind, genes, alone, examples, first["passes"], solved(cells))


def draw(rows: list[Row], file: Path) -> None:
    """Held-out scores over passes; open marks are few genes."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    layout = [[SUMS, SUMS, SEEN, DRAWN], [SPARSE, POINTS, GEMMA, "legend"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(11, 7))
    for problem in dict.fromkeys(row.problem for row in rows):
        axis = axes[problem]
        series: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            if row.problem == problem:
                series.setdefault((row.kind, row.genes, row.examples), []).append(row)
        for (kind, genes, examples), some in series.items():
            x, y = [row.passes for row in some], [np.mean(row.heldout) for row in some]
            spread = [[m - min(r.heldout), max(r.heldout) - m] for m, r in zip(y, some, strict=True)]
            marks = {"marker": "o", "ms": 5, "mfc": "white" if genes < 10 else KINDS[kind], "lw": 1.2, "capsize": 2}
            axis.errorbar(x, y, np.transpose(spread), color=KINDS[kind], elinewidth=0.8, **marks)
            what = f"{examples} examples" if (problem, kind) == (SUMS, "evolved, few examples") else f"{genes} genes"
            where, side = ((-6, -3), "right") if genes <= 10 else ((6, -3), "left")
            axis.annotate(what, (x[-1], y[-1]), where, textcoords="offset points", ha=side, size=7.5, color=KINDS[kind])
        low, high = axis.get_ylim()
        more = max(1.0, 8 - (high - low) / 2)  # small differences do not look large
        axis.set(title=problem, xscale="log", xlabel="passes of one example", xlim=(150, 3e5))
        axis.set(ylim=(low - more, high + more))
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.grid(axis="y", color="#dddddd", lw=0.6)
    for row in layout:
        axes[row[0]].set_ylabel("held out, %")
    handles = [plt.Line2D([], [], color=c, marker="o", ms=5, label=kind) for kind, c in KINDS.items()]
    axes["legend"].legend(handles=handles, frameon=False, loc="center", fontsize=9)
    axes["legend"].set_axis_off()
    figure.tight_layout()
    figure.savefig(file, dpi=105)
    plt.close(figure)


def main() -> None:
    args = make_parser(__doc__, __file__).parse_args()
    rows = [*sums(), *seen(), *drawn(), *sparse(), *points(), *gemma()]
    args.output.write_text(json.dumps({"rows": [row._asdict() for row in rows]}, indent=1) + "\n")
    draw(rows, args.output.with_name("plot.png"))
    print("| problem | | genes | evaluations | examples | passes | seeds | held out, % |")
    print("|---|---|---:|---:|---:|---:|---:|---|")
    for row in rows:
        shown = f"{np.mean(row.heldout):.1f} ({min(row.heldout):.1f} to {max(row.heldout):.1f})"
        cells = [row.problem, row.kind, row.genes, row.evaluations or "", row.examples, f"{row.passes:.0f}"]
        print("|", " | ".join(map(str, [*cells, len(row.heldout), shown])), "|")


if __name__ == "__main__":
    main()
