"""The tables of results.json in Markdown, and plot.png.

python experiments/japanese_vqa_mini/table.py
"""

from pathlib import Path

import generate
import numpy as np
import pyarrow.parquet as pq
from arguments import known, make_parser
from tables import Cells, differences, interval, plot, solved

HERE = Path(__file__).parent
MAIN = "Japanese"
FITS = ("llava", "graft")
GROUPS = {  # {group: {row of results.json: what the tables call it}}
    "models": {
        "llava": "llava",
        "base with eyes": "base with llava's eyes",
        "graft": "graft: japanese with llava's eyes",
    },
    "usual settings": {
        name: name
        for name in (
            "average",
            "SLERP",
            "TIES (density 0.2)",
            "TIES (density 0.5)",
            "DARE-TIES (weight 0.5, density 0.5)",
            "task arithmetic (weight 0.7)",
            "task arithmetic (weight 1)",
        )
    },
    "at random": {
        f"{name}, random": f"{name}, best of 50 at random"
        for name in ("weighted average", "SLERP", "TIES", "DARE-TIES", "task arithmetic")
    }
    | {
        "task arithmetic up to 2, random": "task arithmetic, weights up to 2, best of 50 at random",
        "22 genes, random": "22 genes, best of 300 at random",
        "22 genes up to 2, random": "22 genes, weights up to 2, best of 300 at random",
    },
    "evolved": {
        "evolved, 2 genes": "**evolved, 2 genes**",
        "evolved, 2 genes up to 2": "evolved, 2 genes, weights up to 2",
        "evolved, DARE-TIES": "**evolved, DARE-TIES (4 genes)**",
        "evolved, 22 genes": "**evolved, per layer and component (22 genes)**",
        "evolved, 22 genes up to 2": "evolved, 22 genes, weights up to 2",
    },
    "fine-tuned": {f"fine-tuned {name}": f"fine-tuned {name}" for name in FITS},
}
FINE, WIDE, PAPER = "evolved, 22 genes", "evolved, 22 genes up to 2", "evolved, DARE-TIES"
DIFFERENCES = (
    *((WIDE, name) for name in ("graft", "llava", *GROUPS["usual settings"])),
    *((WIDE, f"{name}, random") for name in ("TIES", "DARE-TIES", "task arithmetic", "task arithmetic up to 2")),
    (WIDE, "22 genes up to 2, random"),
    (WIDE, "evolved, 2 genes up to 2"),
    (WIDE, PAPER),
    (WIDE, FINE),
    *((WIDE, f"fine-tuned {name}") for name in FITS),
    (PAPER, "graft"),
    (PAPER, "evolved, 2 genes"),
    (PAPER, "DARE-TIES, random"),
    (FINE, "graft"),
    (FINE, "evolved, 2 genes"),
    (FINE, "22 genes, random"),
    ("evolved, 2 genes", "task arithmetic, random"),
)


def main_table(rows: dict[str, Cells]) -> None:
    print("\n| pictures, asked in Japanese | search | held-out | 95 % | by seed | evaluations | seconds |")
    print("|---|---:|---:|---|---|---:|---:|")
    for group in GROUPS.values():
        for name, label in group.items():
            if name not in rows:
                continue
            bits, cells = solved(rows[name]), list(rows[name].values())
            mean, low, high = interval(bits)
            spent = [[c[k] for c in cells if k in c] for k in ("evaluations", "seconds")]
            shown = " | ".join(f"{np.median(s):.0f}" if s else "" for s in spent)
            search, each = np.mean([c["search"] for c in cells]), ", ".join(f"{100 * b.mean():.0f}" for b in bits)
            print(f"| {label} | {search:.1f} | {mean:.1f} | {low:.1f} to {high:.1f} | {each} | {shown} |")


def by_kind(results: dict[str, dict[str, Cells]]) -> None:
    """What models make of what they are shown and asked, by kind of question."""
    kinds = np.array([row["kind"] for row in pq.read_table(generate.DATA / "heldout.parquet").to_pylist()])
    names = list(dict.fromkeys(kinds))
    relations = " | ".join(name.split()[0] for name in names)
    print(f"\n| model | shown and asked | all | 95 % | {relations} |\n|---|---|---:|---|{'---:|' * len(names)}")
    main = {name: results[MAIN][name] for name in ("llava", "base with eyes", "graft", "average", PAPER, WIDE)}
    for view, rows in {**results, MAIN: main}.items():
        for name, cells in rows.items():
            if view == "choices":
                continue
            bits = solved(cells)
            mean, low, high = interval(bits)
            each = " | ".join(f"{100 * bits[:, kinds == kind].mean():.0f}" for kind in names)
            print(f"| {name} | {view} | {mean:.1f} | {low:.1f} to {high:.1f} | {each} |")


def genes(rows: dict[str, Cells]) -> None:
    """Means over the seeds of what was found for each source."""
    found = {name: [cell["genome"] for cell in rows[name].values()] for name in ("evolved, 2 genes", PAPER, WIDE)}
    print("\n| genes | of | llava | japanese |\n|---|---|---:|---:|")
    for name, genomes in found.items():
        for group, what in dict.fromkeys((k.split("/")[0], k.split("/")[2]) for k in genomes[0]):
            means = (np.mean([g[f"{group}/{source}/{what}"] for g in genomes]) for source in ("llava", "japanese"))
            print(f"| {name} | {what}, {group} | {' | '.join(f'{m:.2f}' for m in means)} |")


def main() -> None:
    results = known(make_parser(__doc__, __file__).parse_args().output)
    main_table(results[MAIN])
    print("\n| difference, held out | points | 95 % |\n|---|---:|---|")
    for one, other, _, (mean, low, high) in differences(results[MAIN], DIFFERENCES):
        print(f"| {one} - {other} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    by_kind(results)
    genes(results[MAIN])
    plot({"": results[MAIN]}, GROUPS, HERE / "plot.png", "answered in Japanese, held out, %", 3.6)


if __name__ == "__main__":
    main()
