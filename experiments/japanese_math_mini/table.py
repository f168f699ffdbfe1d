"""The tables of results.json in Markdown, and plot.png.

python experiments/japanese_math_mini/table.py
"""

import json
from pathlib import Path

import numpy as np
from arguments import known, make_parser
from tables import Cells, differences, interval, plot, solved

HERE = Path(__file__).parent
SEEDS = 5  # of a panel of the plot
TITLES = {"japanese_math": "Japanese problems, new sums", "two_skills": "two skills at once"}
FITS = ("addition", "mathematics", *(f"{name}, other sums" for name in ("addition", "mathematics", "average", "base")))
GROUPS = {  # {group: {row of results.json: what the tables call it}}
    "models": {name: name for name in ("base", "japanese", "mathematics", "addition")},
    "usual settings": {
        name: name
        for name in (
            "average",
            "SLERP",
            "TIES (density 0.2)",
            "TIES (density 0.5)",
            "DARE-TIES (weight 1/3, density 0.5)",
            "task arithmetic (weight 0.4)",
            "task arithmetic (weight 1)",
        )
    },
    "at random": {
        f"{name}, random": f"{name}, best of 50 at random"
        for name in ("weighted average", "SLERP", "TIES", "DARE-TIES", "task arithmetic")
    }
    | {"42 genes, random": "42 genes, best of 300 at random"},
    "evolved": {
        "evolved, 3 genes, first 50": "evolved, 3 genes, first 50 evaluations",
        "evolved, 42 genes, first 50": "evolved, 42 genes, first 50 evaluations",
        "evolved, 3 genes": "**evolved, 3 genes**",
        "evolved, 42 genes": "**evolved, 42 genes**",
        "evolved, DARE-TIES": "evolved, DARE-TIES (6 genes)",
    },
    "fine-tuned": {f"fine-tuned {name}": f"fine-tuned {name}" for name in FITS},
}
DIFFERENCES = (
    ("evolved, 3 genes", "task arithmetic, random"),
    ("evolved, 3 genes, first 50", "task arithmetic, random"),
    ("evolved, 42 genes, first 50", "task arithmetic, random"),
    ("evolved, 42 genes", "evolved, 3 genes"),
    ("evolved, 42 genes", "42 genes, random"),
    ("evolved, 42 genes", "TIES, random"),
    ("evolved, DARE-TIES", "evolved, 3 genes"),
    *(("evolved, 42 genes", f"fine-tuned {name}") for name in FITS),
    *((f"{a} genes{end}", f"{b} genes{start}") for a, b, end, start in (
        ("3 + 1", "evolved, 3", "", ""), ("3 + 3", "evolved, 3", "", ""), ("42 + 42", "evolved, 42", "", ""),
        ("3 + 3", "3 + 3", ", without them", ""), ("42 + 42", "42 + 42", ", without them", ""),
    )),
)  # fmt: skip


def main_table(task: str, rows: dict[str, Cells]) -> None:
    language = [json.loads(r)["language"] for r in (HERE / "data" / f"{task}_heldout.jsonl").read_text().splitlines()]
    japanese = np.array(language) == "ja"
    split = not japanese.all()
    more = (" Japanese / English |", "---:|") if split else ("", "")
    print(f"\n| {TITLES[task]} | seeds | search | held-out | 95 % |{more[0]} evaluations | seconds |")
    print(f"|---|---:|---:|---:|---|{more[1]}---:|---:|")
    for group in GROUPS.values():
        for name, label in group.items():
            if name not in rows:
                continue
            bits, cells = solved(rows[name]), list(rows[name].values())
            mean, low, high = interval(bits)
            parts = f" {100 * bits[:, japanese].mean():.1f} / {100 * bits[:, ~japanese].mean():.1f} |" if split else ""
            spent = [[c[k] for c in cells if k in c] for k in ("evaluations", "seconds")]
            shown = " | ".join(f"{np.median(s):.0f}" if s else "" for s in spent)
            search = np.mean([c["search"] for c in cells])
            print(f"| {label} | {len(cells)} | {search:.1f} | {mean:.1f} | {low:.1f} to {high:.1f} |{parts} {shown} |")


def distractors(rows: dict[str, Cells]) -> None:
    """Mean weight of every source over its genes: mean over the seeds, lowest, highest."""
    names = [f"{k} genes" for k in ("evolved, 3", "evolved, 42", "3 + 1", "3 + 3", "42 + 42")]
    sources = ("japanese", "mathematics", "addition", "sorter", "mistaken", "noise")
    print(f"\n| weights | {' | '.join(sources)} |\n|---|{'---|' * len(sources)}")
    for name in (n for n in names if n in rows):
        found = [[c["weights"].get(f"{s} weight", np.nan) for s in sources] for c in rows[name].values()]
        shown = [
            "" if np.isnan(v).any() else f"{np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in np.transpose(found)
        ]
        print(f"| {name} | {' | '.join(shown)} |")


def abilities(rows: dict[str, Cells], target: dict[str, Cells]) -> None:
    """What was not optimised, by model; an interval is about plus or minus 8 points for one model at 50 %."""
    names = [n for n in rows if n in target]
    kinds = list(next(iter(rows["base"].values())))
    print(f"\n| ability | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    shown = [f"{100 * solved(target[n]).mean():.0f}" for n in names]
    print(f"| *{TITLES['japanese_math']}* | {' | '.join(shown)} |")
    for kind in kinds:
        print(f"| {kind} | {' | '.join(f'{100 * solved(rows[n], kind).mean():.0f}' for n in names)} |")


def main() -> None:
    results = known(make_parser(__doc__, __file__).parse_args().output)
    for task in TITLES:
        main_table(task, results[task])
        print(f"\n| {TITLES[task]}: difference | held-out | 95 % |\n|---|---:|---|")
        for one, other, seeds, (mean, low, high) in differences(results[task], DIFFERENCES):
            print(f"| {one} - {other} ({seeds} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    distractors(results["japanese_math"])
    abilities(results.get("abilities", {}), results["japanese_math"])
    done = {title: results[task] for task, title in TITLES.items() if len(results[task]["evolved, 42 genes"]) >= SEEDS}
    plot(done, GROUPS, HERE / "plot.png", "held-out problems solved, %")


if __name__ == "__main__":
    main()
