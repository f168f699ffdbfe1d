"""Does search pay where averaging fails: specialists whose task vectors have no weight in common.

    nice python experiments/sparse_experts/run.py                    # everything; goes on where it was stopped
    nice python experiments/sparse_experts/run.py train_mathematics  # one of the parts
    python experiments/sparse_experts/run.py --table                 # the tables of results.json

Models, merges and searches are made and scored as those of japanese_math_mini, whose code this is.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import specialists
from arguments import known, make_parser, record
from specialists import miniature
from tables import differences, interval, solved

from jevomerge.strategies.schema import Refine

TASK, EXAMPLES, ROWS, FINALISTS = "japanese_math", 128, 16, 5  # 128 to search on, 16 of them a generation
RANGE = [0, 2]  # of weights: a search begins in the middle, at the sum of all task vectors
WEIGHTS, FINE = {"weight": RANGE}, {"weight": {"range": RANGE, "layers_per_group": 1, "by": "component"}}
STEPS = Refine(steps=50, examples_per_step=ROWS)  # everything else as `refine` has it by default
GRADIENT = miniature.Arm("task_arithmetic", {}, FINE, miniature.CMA)  # from there, without a search
LIKELIHOOD = {"score": "likelihood", "extract": None, "language": None}  # of reference answers: what searches are told
USUAL = ("average", "SLERP", "TIES (density 0.2)", "TIES (density 0.5)", "DARE-TIES (weight 1/3, density 0.5)",
         "task arithmetic (weight 0.4)", "task arithmetic (weight 1)")  # fmt: skip
SEARCHED = {
    "task arithmetic, random": miniature.Arm("task_arithmetic", {}, WEIGHTS, miniature.RANDOM),
    "evolved, 3 genes": miniature.Arm("task_arithmetic", {}, WEIGHTS, {"strategy": "cma_es", "evaluations": 100}),
    "evolved, 42 genes": miniature.Arm("task_arithmetic", {}, FINE, miniature.CMA),
    "gradient, 42 genes": GRADIENT,
}
DIFFERENCES = [(name, "task arithmetic (weight 1)") for name in ("average", *SEARCHED)]
DIFFERENCES += [("evolved, 42 genes", other) for other in ("evolved, 3 genes", "task arithmetic, random")]


class Bench(miniature.Bench):
    """Makes models of the sparse specialists and scores them."""

    def folder(self, model: str) -> Path:
        return specialists.BASE if model == "base" else self.work / "specialists" / model

    def config(self, task: str, arm: Any, seed: int) -> Any:
        """Of a search, whose fitness is the likelihood of answers: of a few each generation, of finalists all."""
        config = super().config(task, arm, seed)
        changed = {"evaluations": 0} if arm is GRADIENT else {"examples_per_generation": ROWS, "finalists": FINALISTS}
        search = config.search.model_copy(update=changed)
        tasks = tuple(t.model_copy(update=LIKELIHOOD) for t in config.tasks)
        refine = STEPS if arm is GRADIENT else None
        return config.model_copy(update={"search": search, "tasks": tasks, "refine": refine})

    def found(self, name: str, seed: int) -> dict[str, Any]:
        """Of a search; passes of one example through one candidate, of which the gradient of one counts three."""
        cell = self.searched(TASK, name, SEARCHED[name], seed)
        if SEARCHED[name] is GRADIENT:
            return {**cell, "passes": cell["evaluations"] * EXAMPLES + 3 * STEPS.steps * ROWS}
        return {**cell, "passes": cell["evaluations"] * ROWS + FINALISTS * EXAMPLES}


def plan(bench: Bench) -> dict[str, Iterator[tuple[tuple[str, ...], Callable[[], Any]]]]:
    """What is measured, part by part: (where it goes in the results, how it is made)."""
    sources = {name: bench.folder(name) for name in specialists.RUNS}
    parts: dict[str, Any] = {
        f"train_{name}": [(("specialists", name), partial(specialists.make, name, folder))]
        for name, folder in sources.items()
    }
    dense = {f"{name}, dense": specialists.train.MODELS / name for name in specialists.RUNS}
    merges: list[Any] = [
        (("task vectors", "sparse"), partial(specialists.geometry, sources)),
        (("task vectors", "dense"), partial(specialists.geometry, dense)),
    ]
    for name in ("base", *specialists.RUNS):
        merges.append((("runs", name, "0"), partial(bench.score, TASK, bench.folder(name))))
    for name in USUAL:
        for seed in bench.seeds if miniature.USUAL[name].method == "dare_ties" else bench.seeds[:1]:
            merges.append((("runs", name, str(seed)), partial(bench.usual, TASK, name, seed)))
    parts["usual"] = merges
    for key, names in {"gradient": ("gradient, 42 genes",), "few": ("task arithmetic, random", "evolved, 3 genes"),
                       "many": ("evolved, 42 genes",)}.items():  # fmt: skip
        parts[key] = [
            (("runs", name, str(seed)), partial(bench.found, name, seed)) for seed in bench.seeds for name in names
        ]
    return parts


PARTS = (*(f"train_{name}" for name in specialists.RUNS), "usual", "gradient", "few", "many")


def rows(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each row of the table; minutes are of the processor, compiling included."""
    found = []
    for name, cells in runs.items():
        mean, low, high = interval(solved(cells))
        spent = {k: [c[k] for c in cells.values() if k in c] for k in ("passes", "minutes")}
        means = {k: round(sum(v) / len(v), 2) if v else None for k, v in spent.items()}
        scores = {"heldout": round(mean, 2), "low": round(low, 2), "high": round(high, 2)}
        found.append({"name": name, **scores, "seeds": len(cells), **means})
    return found


def table(results: dict[str, Any]) -> None:
    runs = results.get("runs", {})
    print("| | seeds | search | held out | 95 % | passes | minutes |\n|---|---:|---:|---:|---|---:|---:|")
    for row in rows(runs):
        cells = runs[row["name"]].values()
        search = sum(c["search"] for c in cells) / len(cells)
        passes, minutes = (row["passes"], f"{row['minutes']:.1f}") if row["passes"] else ("", "")
        span = f"{row['low']:.1f} to {row['high']:.1f}"
        print(
            f"| {row['name']} | {row['seeds']} | {search:.1f} | {row['heldout']:.1f} | {span} | {passes} | {minutes} |"
        )
    print("\n| difference | held out | 95 % |\n|---|---:|---|")
    for one, other, seeds, (mean, low, high) in differences(runs, DIFFERENCES):
        print(f"| {one} - {other} ({seeds} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    for name, found in results.get("task vectors", {}).items():
        print(name, found)


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=3, parts=PARTS, table=True).parse_args()
    if not args.table:
        parts = plan(Bench(args.work.resolve(), args.output, args.seeds))
        for where, measure in (job for part in args.parts for job in parts[part]):
            if known(args.output, *where) is None:
                began = time.process_time()
                cell = {**measure(), "minutes": round((time.process_time() - began) / 60, 2)}
                record(args.output, cell, *where)
                record(args.output, rows(known(args.output, "runs") or {}), "rows")
                print(time.strftime("%H:%M:%S"), *where, {k: v for k, v in cell.items() if k != "bits"}, flush=True)
    table(known(args.output))


if __name__ == "__main__":
    main()
