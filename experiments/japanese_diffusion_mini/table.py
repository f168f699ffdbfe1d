"""The tables of results.json in Markdown, plot.png and, where the folders of `run.py` are, pictures.png.

python experiments/japanese_diffusion_mini/table.py
"""

from pathlib import Path
from typing import Any

import clothes
import matplotlib.pyplot as plt
import numpy as np
import run
import train
from arguments import known, make_parser
from tables import Cells, differences, interval, plot, solved

HERE = Path(__file__).parent
EVALUATIONS = run.tuning.EVALUATIONS
GROUPS = {  # {group: {row of results.json: what the tables call it}}
    "models": {"ja": "`ja`"} | {name: f"`{name}` with `ja`'s text encoders" for name in run.GRAFTS},
    "usual settings": {name: name for name in run.USUAL},
    "at random": {
        "3 genes, random": "3 genes, best of 50 at random",
        "blocks, random": f"genes of blocks, best of {EVALUATIONS} at random",
    },
    "evolved": {
        "evolved, 3 genes": "**evolved, 3 genes**",
        "evolved, 6 genes": "evolved, attn and conv (6 genes)",
        "evolved, blocks": "**evolved, blocks**",
    },
    "trained": {name: name for name in run.tuning.WAYS},
}
FINE = "evolved, blocks"
DIFFERENCES = (
    *((FINE, name) for names in list(GROUPS.values())[:3] for name in names),
    *((FINE, name) for name in ("evolved, 3 genes", "evolved, 6 genes", *run.tuning.WAYS)),
    ("evolved, 3 genes", "task vectors added, no style"),
    ("evolved, 3 genes", "3 genes, random"),
)
SHEET = ("ja", "fast", "average", "task vectors added (1, 1, 1)", "task vectors added, no style", FINE)


def main_table(rows: dict[str, Cells]) -> None:
    print("\n| Japanese, four steps | search | held-out | recognised, % | 95 % | Frechet | evaluations | seconds |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for group in GROUPS.values():
        for name, label in group.items():
            if name in rows:
                print(line(label, rows[name]))


def line(label: str, cells: Cells) -> str:
    """A row: means over its seeds."""
    mean, low, high = interval(solved(cells))
    found = {key: [c[key] for c in cells.values() if key in c] for key in ("evaluations", "seconds")}
    spent = " | ".join(f"{np.median(values):.0f}" if values else "" for values in found.values())
    means = ([c[key] for c in cells.values() if key in c] for key in ("search", "heldout"))
    fitness = " | ".join(f"{np.mean(values):.2f}" if values else "" for values in means)
    frechet = np.mean([c["frechet"] for c in cells.values()])
    return f"| {label} | {fitness} | {mean:.1f} | {low:.1f} to {high:.1f} | {frechet:.1f} | {spent} |"


def nats(cells: Cells) -> np.ndarray:
    """(seeds, pictures) the fitness of each, in hundreds: what `interval` calls per cent are nats."""
    return np.array([cell["nats"].split() for cell in cells.values()], float) / 100


def compare(rows: dict[str, Cells]) -> None:
    """Paired by seed and picture."""
    print("\n| difference, held out | recognised, points | 95 % | fitness, nats | 95 % |\n|---|---:|---|---:|---|")
    found = (differences(rows, DIFFERENCES, scores) for scores in (solved, nats))
    for (one, other, _, right), (_, _, _, fitness) in zip(*found, strict=True):
        shown = (f"{m:+.{d}f} | {low:+.{d}f} to {high:+.{d}f}" for (m, low, high), d in ((right, 1), (fitness, 2)))
        print(f"| {one} - {other} | {' | '.join(shown)} |")


def genes(rows: dict[str, Cells]) -> None:
    """Means over the seeds of what was found for each source."""
    print("\n| weights | of | ja | fast | style |\n|---|---|---:|---:|---:|")
    for name in (n for n in run.SEARCHED if n.startswith("evolved") and n in rows):
        genomes = [cell["genome"] for cell in rows[name].values()]
        for group in dict.fromkeys(key.split("/")[0] for key in genomes[0]):
            means = (np.mean([g[f"{group}/{source}/weight"] for g in genomes]) for source in ("ja", "fast", "style"))
            print(f"| {name} | {group} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


def sheet(bench: run.Bench) -> None:
    """The same prompts from the same noise, held out, by several models, above real pictures."""
    _, classes, _ = run.asked("heldout")
    per = len(classes) // clothes.CLASSES
    chosen = [per * c + i for c in range(clothes.CLASSES) for i in (0, per // 2)]
    made = {name: run.pictures(bench.folder(name), "heldout")[chosen] for name in SHEET}
    made["ja, 32 steps"] = run.pictures(train.MODELS / "ja", "heldout", 32)[chosen]
    real, labels = clothes.pictures("t10k")
    some = [np.flatnonzero(labels == c)[i] for c in range(clothes.CLASSES) for i in (0, 1)]
    made["real"] = np.round((real[some] + 1) * 127.5).astype(np.uint8)
    figure, axes = plt.subplots(len(made), 1, figsize=(7.6, 0.38 * len(made) + 0.1))
    for axis, (name, drawn) in zip(axes, made.items(), strict=True):
        gaps = np.pad(drawn[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=128)
        axis.imshow(np.concatenate(gaps, axis=1), cmap="gray", vmin=0, vmax=255)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", size=7)
        axis.set(xticks=[], yticks=[])
    figure.subplots_adjust(left=0.24, right=1, top=1, bottom=0, hspace=0.02)
    figure.savefig(HERE / "pictures.png", dpi=105)
    plt.close(figure)


def tell(results: dict[str, Any]) -> None:
    """Print all tables."""
    rows = results[run.ROOM]
    main_table(rows)
    print("\n| for comparison | search | held-out | recognised, % | 95 % | Frechet | | |")
    print("|---|---:|---:|---:|---|---:|---|---|")
    for name, cells in results["references"].items():
        print(line(name, cells))
    compare(widened(rows))
    genes(rows)


def widened(rows: dict[str, Cells]) -> dict[str, Cells]:
    """Rows without anything random stand beside each seed of the others."""
    seeds = rows[FINE].keys()
    return {name: cells if len(cells) > 1 else dict.fromkeys(seeds, cells["0"]) for name, cells in rows.items()}


def main() -> None:
    args = make_parser(__doc__, __file__, work=True).parse_args()
    results = known(args.output)
    tell(results)
    plot({"": results[run.ROOM]}, GROUPS, HERE / "plot.png", "Japanese prompts recognised, held out, %", 3.6)
    if args.work.exists():
        sheet(run.Bench(args.work.resolve()))


if __name__ == "__main__":
    main()
