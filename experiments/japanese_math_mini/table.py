"""The tables of results.json in Markdown, and plot.png.

python experiments/japanese_math_mini/table.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from arguments import known, make_parser

HERE = Path(__file__).parent
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
COLOURS = dict(zip(GROUPS, ("#777777", "#b08b4f", "#3f7fb5", "#c0392b", "#3b8f5a"), strict=True))
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
Cells = dict[str, dict[str, Any]]  # by seed


def interval(solved: np.ndarray, draws: int = 4000) -> tuple[float, float, float]:
    """(seeds, problems) -> mean in per cent and a 95 % bootstrap interval over seeds and problems."""
    rng = np.random.default_rng(0)
    count = solved.shape[1]
    seeds = rng.integers(len(solved), size=(draws, len(solved)))
    problems = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    means = np.einsum("dp,dp->d", solved[seeds].mean(axis=1), problems) / count
    low, high = np.quantile(100 * means, [0.025, 0.975])
    return 100 * float(solved.mean()), float(low), float(high)


def solved(cells: Cells, key: str = "bits") -> np.ndarray:
    """(seeds, problems) of 0 and 1."""
    return np.array([[int(b) for b in cell[key]] for cell in cells.values()], float)


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


def differences(task: str, rows: dict[str, Cells]) -> None:
    """Paired by seed and problem."""
    print(f"\n| {TITLES[task]}: difference | held-out | 95 % |\n|---|---:|---|")
    for one, other in DIFFERENCES:
        if one in rows and other in rows:
            seeds = [s for s in rows[one] if s in rows[other]]
            pair = [solved({s: rows[name][s] for s in seeds}) for name in (one, other)]
            mean, low, high = interval(pair[0] - pair[1])
            print(f"| {one} - {other} ({len(seeds)} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")


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


def plot(results: dict[str, Any], seeds: int = 5) -> None:
    """Held-out scores with their intervals, a panel per task."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    done = {t: rows for t, rows in results.items() if t in TITLES and len(rows.get("evolved, 42 genes", ())) >= seeds}
    labels = [(g, n) for g, group in GROUPS.items() for n in group if any(n in rows for rows in done.values())]
    heights, at = {}, 0.0
    for i, (group, name) in enumerate(labels):
        at += 1.6 if i and labels[i - 1][0] != group else 1.0
        heights[name] = at
    figure, axes = plt.subplots(
        1, len(done), figsize=(2.6 + 3.2 * len(done), 0.2 * at + 0.7), sharey=True, squeeze=False
    )
    for axis, (task, rows) in zip(axes[0], done.items(), strict=True):
        for group, name in labels:
            if name not in rows:
                continue
            mean, low, high = interval(solved(rows[name]))
            axis.plot([low, high], [heights[name]] * 2, color=COLOURS[group], lw=1.4, solid_capstyle="round")
            axis.plot(mean, heights[name], "o", color=COLOURS[group], ms=5)
            axis.annotate(
                f"{mean:.0f}", (high, heights[name]), (4, 0), textcoords="offset points", va="center", size=7.5
            )
        axis.set(title=TITLES[task], xlim=(-2, 105), xlabel="held-out problems solved, %")
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_axisbelow(True)
    plain = {n: label.replace("*", "").replace("`", "") for group in GROUPS.values() for n, label in group.items()}
    axes[0][0].set_yticks([heights[n] for _, n in labels], [plain[n] for _, n in labels])
    for (group, _), tick in zip(labels, axes[0][0].get_yticklabels(), strict=True):
        tick.set_color(COLOURS[group])
    axes[0][0].set_ylim(at + 0.8, 0.2)
    figure.tight_layout()
    figure.savefig(HERE / "plot.png", dpi=105)


def main() -> None:
    results = known(make_parser(__doc__, __file__).parse_args().output)
    for task in TITLES:
        main_table(task, results[task])
        differences(task, results[task])
    distractors(results["japanese_math"])
    abilities(results.get("abilities", {}), results["japanese_math"])
    plot(results)


if __name__ == "__main__":
    main()
