"""The tables of results.json and keeps.json in Markdown, and plot.png.

python experiments/japanese_math_gemma/table.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import run
from arguments import known, make_parser
from tables import differences, for_every_seed, plot, solved

HERE = Path(__file__).parent
GROUPS = {  # {group: {row of results.json: what the tables call it}}
    "models": {name: name for name in ("base", run.BASE, *run.SOURCES)},
    "usual settings": {name: name for name in run.USUAL},
    "at random": {
        n: f"{n.removesuffix(', random')}, best of {run.DRAWS} at random" for n in run.SEARCHED if "rand" in n
    },
    "evolved": {name: f"**{name}**" for name in run.SEARCHED if "rand" not in name},
    "fine-tuned": {f"fine-tuned {name}": f"fine-tuned {name}" for name in run.TUNED},
}
DIFFERENCES = (
    ("evolved, 2 genes", "task arithmetic, random"),
    ("evolved, 2 genes", "DARE-TIES, random"),
    ("evolved, by thirds", "evolved, 2 genes"),
    ("gradient, by layer", "evolved, by thirds"),
    ("evolution and gradient, by thirds", "evolved, by thirds"),
    ("evolved, 2 genes", "japanese alone, 1 gene"),
    ("evolved, by thirds", "japanese alone, by thirds"),
    ("evolved, 2 genes", "japanese"),
    ("evolved, by thirds", "japanese"),
    ("gradient, by layer", "japanese"),
    ("task arithmetic, random", "japanese"),
    ("fine-tuned japanese", "japanese"),
    ("evolved, by thirds", "fine-tuned japanese"),
    ("gradient, by layer", "fine-tuned japanese"),
)


def in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """By group, whenever they were measured."""
    return {name: rows[name] for names in GROUPS.values() for name in names if name in rows}


def main_table(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    print("| model | seeds | search | held out | 95 % | of one step | of two | passes | minutes |")
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|")
    for group in GROUPS.values():
        for name, label in group.items():
            if name in rows:
                row, search = rows[name], np.mean([c["search"] for c in results["cells"][name].values()])
                spent = f"{row['passes']:.0f} | {row['minutes']:.0f}" if row["passes"] else " | "
                bits = solved(results["cells"][name])  # every other question is of two steps
                parts = " | ".join(f"{100 * bits[:, first::2].mean():.1f}" for first in (0, 1))
                between = f"{row['low']:.1f} to {row['high']:.1f} | {parts}"
                print(f"| {label} | {row['seeds']} | {search:.1f} | {row['heldout']:.1f} | {between} | {spent} |")
    print("\n| difference, held out | points | 95 % |\n|---|---:|---|")
    paired = for_every_seed(results["cells"], run.SOURCES)
    for one, other, seeds, (mean, low, high) in differences(paired, DIFFERENCES):
        print(f"| {one} - {other} ({seeds} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    print("\n| weights | " + " | ".join(run.SOURCES) + " |\n|---|" + "---|" * len(run.SOURCES))
    for name, cells in in_order(results["cells"]).items():
        found = [[c["weights"].get(f"{s} weight") for s in run.SOURCES] for c in cells.values() if "weights" in c]
        if found:
            columns = list(zip(*found, strict=True))
            shown = [f"{np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" if v[0] is not None else "" for v in columns]
            print(f"| {name} | " + " | ".join(shown) + " |")


def kept_table(kept: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(kept.values())))
    print("\n| model | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for model, row in in_order(kept).items():
        print(f"| {model} | " + " | ".join(f"{row[name]:.4g}" for name in names) + " |")


def main() -> None:
    results = known(make_parser(__doc__, __file__).parse_args().output)
    main_table(results)
    if kept := known(HERE / "keeps.json"):
        kept_table(kept)
    shown = {g: {n: label for n, label in names.items() if n in results["cells"]} for g, names in GROUPS.items()}
    plot({"Japanese problems": results["cells"]}, shown, HERE / "plot.png", "held-out problems solved, %", width=4.5)


if __name__ == "__main__":
    main()
