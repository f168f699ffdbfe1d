"""The tables of both tasks' results in Markdown, their plots and, where the folders of `run.py` are, their pictures.

python experiments/japanese_diffusion_mini/table.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clothes
import matplotlib.pyplot as plt
import numpy as np
import run
from arguments import known, make_parser
from tables import Cells, differences, interval, plot, solved

HERE = Path(__file__).parent
EVALUATIONS = run.tuning.EVALUATIONS
GROUPS = {  # {whether drawings are wanted: {group: {row of results: what the tables call it}}}
    drawn: {
        "models": {"ja": "`ja`"} | {name: f"`{name}` with `ja`'s text encoders" for name in run.GRAFTS},
        "usual settings": {name: name for name in run.USUAL[drawn]},
        "at random": {
            "3 genes, random": "3 genes, best of 50 at random",
            "blocks, random": f"genes of blocks, best of {EVALUATIONS} at random",
        },
        "evolved": {
            "evolved, 3 genes": "**evolved, 3 genes**",
            "evolved, 6 genes": "evolved, attn and conv (6 genes)",
            "evolved, blocks": "**evolved, blocks**",
        },
        "trained": {name: name for name in run.tuning.WAYS[drawn]},
    }
    for drawn in run.PARTS.values()
}
FINE = "evolved, blocks"
ADDED = {False: "task vectors added, no style", True: "task vectors added (1, 1, 1)"}  # the best of the usual merges
SHEET = ("ja", "fast", "style", "average", "task vectors added (1, 1, 1)")


def pairs(drawn: bool) -> Iterator[tuple[str, str]]:
    """Of rows to compare."""
    groups = GROUPS[drawn]
    for group in ("models", "usual settings", "at random"):
        yield from ((FINE, name) for name in groups[group])
    yield from ((FINE, name) for name in ("evolved, 3 genes", "evolved, 6 genes", *groups["trained"]))
    yield from (("evolved, 3 genes", name) for name in (ADDED[drawn], "3 genes, random"))


def main_table(rows: dict[str, Cells], drawn: bool) -> None:
    print("\n| Japanese, four steps | search | held-out | recognised, % | 95 % | Frechet | evaluations | seconds |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for group in GROUPS[drawn].values():
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


def compare(rows: dict[str, Cells], drawn: bool) -> None:
    """Paired by seed and picture."""
    print("\n| difference, held out | recognised, points | 95 % | fitness, nats | 95 % |\n|---|---:|---|---:|---|")
    found = (differences(rows, pairs(drawn), scores) for scores in (solved, nats))
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


def sheet(bench: run.Bench, file: Path) -> None:
    """The same prompts from the same noise, held out, by several models, above real pictures."""
    _, classes, _ = run.asked("heldout")
    per = len(classes) // clothes.CLASSES
    chosen = [per * c + i for c in range(clothes.CLASSES) for i in (0, per // 2)]
    names = dict.fromkeys([*SHEET, ADDED[bench.drawn], FINE])
    made = {name: run.pictures(bench.folder(name), "heldout")[chosen] for name in names}
    made[f"{bench.many}, 32 steps"] = run.pictures(bench.folder(bench.many), "heldout", 32)[chosen]
    real, labels = clothes.pictures("t10k", bench.drawn)
    some = [np.flatnonzero(labels == c)[i] for c in range(clothes.CLASSES) for i in (0, 1)]
    made["real"] = np.round((real[some] + 1) * 127.5).astype(np.uint8)
    figure, axes = plt.subplots(len(made), 1, figsize=(7.6, 0.38 * len(made) + 0.1))
    for axis, (name, drawn) in zip(axes, made.items(), strict=True):
        gaps = np.pad(drawn[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=128)
        axis.imshow(np.concatenate(gaps, axis=1), cmap="gray", vmin=0, vmax=255)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", size=7)
        axis.set(xticks=[], yticks=[])
    figure.subplots_adjust(left=0.24, right=1, top=1, bottom=0, hspace=0.02)
    figure.savefig(file, dpi=105)
    plt.close(figure)


def tell(results: dict[str, Any], drawn: bool) -> None:
    """Print all tables of a task."""
    rows = results[run.ROOM]
    main_table(rows, drawn)
    print("\n| for comparison | search | held-out | recognised, % | 95 % | Frechet | | |")
    print("|---|---:|---:|---:|---|---:|---|---|")
    for name, cells in results["references"].items():
        print(line(name, cells))
    compare(widened(rows), drawn)
    genes(rows)


def widened(rows: dict[str, Cells]) -> dict[str, Cells]:
    """Rows without anything random stand beside each seed of the others."""
    seeds = rows[FINE].keys()
    return {name: cells if len(cells) > 1 else dict.fromkeys(seeds, cells["0"]) for name, cells in rows.items()}


def main() -> None:
    args = make_parser(__doc__, __file__, work=True).parse_args()
    for part, drawn in run.PARTS.items():
        results, file = known(run.of_part(args.output, part)), run.of_part(HERE / "plot.png", part)
        tell(results, drawn)
        plot({"": results[run.ROOM]}, GROUPS[drawn], file, "Japanese prompts recognised, held out, %", 3.6)
        if args.work.exists():
            sheet(run.Bench(args.work.resolve(), drawn), run.of_part(HERE / "pictures.png", part))


if __name__ == "__main__":
    main()
