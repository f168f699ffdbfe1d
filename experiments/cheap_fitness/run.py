"""Fitness from few examples against fitness from all; README.md says what came out.

    nice python experiments/cheap_fitness/run.py                   # an hour or so; goes on where it was stopped
    python experiments/cheap_fitness/run.py --table                # the tables of results.json

The search of configs/quickstart.yaml (42 genes, CMA-ES, 15 candidates a generation).  A pass is one example scored for
one model; the sources and their average on the search split, the likelihoods that anchors are found by, and finalists
count.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from arguments import known, make_parser, record
from scipy.stats import kendalltau, spearmanr

import jevomerge as jm
from jevomerge.search.anchored import Anchored, estimate, find_anchors, what_is_known
from jevomerge.search.archive import Archive
from jevomerge.search.baselines import Scored, score_baselines
from jevomerge.search.loop import choose, search
from jevomerge.search.setup import Setup, set_up
from jevomerge.strategies.schema import Anchors

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TASK, SIZE, HELDOUT = "japanese_math", 128, 256
COUNTS = (4, 8, 16, 24, 32)
ENDS = (2, 5, 10, 15, 20)  # generations after which a run might have ended
# name: (kind, examples per candidate)
ARMS = {
    "full": ("full", SIZE),
    "anchors, mean, 16": ("mean", 16),
    "minibatches, 16": ("minibatch", 16),
    "anchors, mean, 8": ("mean", 8),
    "anchors, irt, 16": ("irt", 16),
    "random subset, 16": ("random", 16),
    "anchors, mean, 32": ("mean", 32),
    "minibatches, 32": ("minibatch", 32),
    "likelihood, 128": ("likelihood", SIZE),
    "likelihood, minibatches, 16": ("likelihood", 16),
    "likelihood, minibatches, 8": ("likelihood", 8),
    "likelihood, minibatches, 4": ("likelihood", 4),
}


class Bench:
    """The quickstart's models, loaded once, and what its sources score."""

    def __init__(self) -> None:
        self.config = jm.read_run(QUICKSTART)
        self.setup = set_up(self.config)
        self.candidates = self.setup.problem.load(self.setup.mesh)
        judge, problem = self.setup.judge, self.setup.problem
        average, sources = score_baselines(problem, judge, self.candidates, print, likelihood=True)
        assert average is not None
        self.models: list[Scored] = [*sources.values(), average]
        self.known: dict[bytes, float] = {}

    def setup_of(self, kind: str, count: int, seed: int) -> Setup:
        search = self.config.search.model_copy(update={"evaluations": 300})
        tasks = self.config.tasks
        if kind in ("minibatch", "likelihood") and count < SIZE:
            search = search.model_copy(update={"examples_per_generation": count})
        elif kind in ("mean", "irt", "random"):
            search = search.model_copy(update={"anchors": Anchors(examples=count, estimator="mean")})
        if kind == "likelihood":  # of the reference answers, in place of whether what is written is right
            judged = {"score": "likelihood", "extract": None, "language": None}
            tasks = tuple(task.model_copy(update=judged) for task in tasks)
        setup = set_up(self.config.model_copy(update={"search": search, "seed": seed, "tasks": tasks}))
        if kind in ("mean", "irt", "random"):
            chosen = self.anchors(kind, count, seed)
            anchors = Anchored(chosen, search.anchors.estimator, setup.judge)
            setup = dataclasses.replace(setup, anchors=anchors)
        return setup

    def anchors(self, kind: str, count: int, seed: int, columns: slice | None = None) -> dict[str, dict[str, Any]]:
        if kind == "random":
            chosen = np.sort(np.random.default_rng(seed).permutation(SIZE)[:count])
            return {TASK: {"examples": chosen.tolist(), "weights": [1 / count] * count}}
        responses, profile = what_is_known(self.setup.judge.tasks[0], self.models)
        profile = profile if columns is None else profile[:, columns]
        return find_anchors({TASK: responses}, {TASK: profile}, count, kind, seed)

    def heldout_score(self, genome: list[float]) -> float:
        key = np.asarray(genome).tobytes()
        if key not in self.known:
            [scores] = self.setup.judge.score(self.candidates, np.array([genome]), "heldout")
            self.known[key] = float(scores.fitness[TASK].mean())
        return self.known[key]


def one_run(bench: Bench, work: Path, arm: str, seed: int) -> dict[str, Any]:
    """What the run would have given, had it ended after each of ENDS."""
    kind, count = ARMS[arm]
    setup, folder = bench.setup_of(kind, count, seed), work / arm.replace(", ", "-") / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with Archive(folder / "evaluations.jsonl") as archive:
        search(setup, bench.candidates, archive, folder / "checkpoints", ENDS[-1], jm.Terminal())
        records = archive.records
    found: dict[str, Any] = {"seconds": round(sum(r["seconds"] for r in records), 1), "ends": {}}
    before = len(bench.models) * SIZE * (2 if kind in ("mean", "irt") else 1)
    for end in ENDS:
        prefix = Archive(None)  # as it was then
        prefix.learn([r for r in records if r["generation"] < end], 0)
        best = choose(setup, bench.candidates, prefix).record
        scored = sum("copy_of" not in r for r in prefix.records) * count
        finalists = 0 if count == SIZE else setup.config.search.finalists * SIZE
        found["ends"][str(end)] = {
            "passes": before + scored + finalists,
            "fitness": best["fitness"],
            "heldout": round(bench.heldout_score(best["genome"]), 4),
        }
        if setup.config.search.examples_per_generation is not None:  # what if the finalists were the best of all?
            best = best_of(setup, bench, prefix.ranked()[: setup.config.search.finalists])
            found["ends"][str(end)]["heldout, best of all"] = round(bench.heldout_score(best["genome"]), 4)
    return found


def best_of(setup: Setup, bench: Bench, finalists: list[dict[str, Any]]) -> dict[str, Any]:
    """By the whole search split."""
    genomes = np.array([r["genome"] for r in finalists])
    scores = [s for group in setup.judge.members(bench.candidates, genomes) for s in group]
    return finalists[max(range(len(finalists)), key=lambda i: setup.judge.fitness(scores[i]))]


def correlations(bench: Bench, work: Path, seeds: range) -> dict[str, Any]:
    """Of estimates with the score on all, and with held-out scores, over candidates of the full runs."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        with Archive(work / "full" / str(seed) / "evaluations.jsonl") as archive:
            records = archive.records
        scores = np.array([r["scores"][TASK] for r in records], np.float64)
        some = np.arange(0, len(records), 12)
        heldout = np.array([bench.heldout_score(records[i]["genome"]) for i in some])
        whole, late = scores.mean(axis=1), np.arange(len(records)) >= len(records) // 2

        def add(name: str, estimates: np.ndarray, whole=whole, late=late, some=some, heldout=heldout) -> None:
            row = found.setdefault(name, {})
            values = {
                "spearman": spearmanr(estimates, whole).statistic,
                "kendall": kendalltau(estimates, whole).statistic,
                "spearman, later half": spearmanr(estimates[late], whole[late]).statistic,
                "spearman, held-out": spearmanr(estimates[some], heldout).statistic,
                "kendall, held-out": kendalltau(estimates[some], heldout).statistic,
                "mean absolute error": np.abs(estimates - whole).mean(),
            }
            for key, value in values.items():
                row.setdefault(key, []).append(float(value))

        add("all 128", whole)
        models = len(bench.models)
        ways: dict[str, tuple[str, slice | None]] = {
            "mean": ("mean", None),
            "irt": ("irt", None),
            "mean, by right or wrong only": ("mean", slice(0, models)),
            "mean, by likelihood only": ("mean", slice(models, 2 * models)),
        }
        for count in COUNTS:
            for draw in range(4):  # clusters and subsets of several seeds
                for name, (kind, columns) in ways.items():
                    task = bench.anchors(kind, count, 10 * seed + draw, columns)[TASK]
                    add(f"{name}, {count}", np.array([estimate(task, row[task["examples"]]) for row in scores]))
            for draw in range(20):
                task = bench.anchors("random", count, 100 * seed + draw)[TASK]
                add(f"random subset, {count}", scores[:, task["examples"]].mean(axis=1))
    return {  # without draws that find all of the 25 equal, which have no correlation
        name: {key: [round(float(np.nanmean(v)), 4), round(float(np.nanstd(v)), 4)] for key, v in row.items()}
        for name, row in found.items()
    }


def table(results: dict[str, Any]) -> None:
    keys = ("spearman", "kendall", "spearman, later half", "spearman, held-out", "kendall, held-out")
    keys = (*keys, "mean absolute error")
    print("| estimate | " + " | ".join(keys) + " |\n|---|" + "---:|" * len(keys))
    for name, row in results["correlations"].items():
        print(f"| {name} | " + " | ".join(f"{row[k][0]:.2f} ({row[k][1]:.2f})" for k in keys) + " |")
    curves, seeds = {}, {}
    for arm, runs in results["runs"].items():
        rows = [run["ends"] for run in runs.values()]
        for kind in ("heldout", "heldout, best of all"):
            if kind in rows[0][str(ENDS[0])]:
                name = arm + kind.removeprefix("heldout")
                seeds[name] = len(rows)
                curves[name] = {e: [np.array([r[str(e)][k] for r in rows]) for k in ("passes", kind)] for e in ENDS}
    passes, heldout = curves["full"][ENDS[-1]]
    print(f"\nThe full search: {100 * heldout.mean():.1f} held out for {passes.mean():.0f} passes.\n")
    print("| arm | seeds | passes: held out, % | passes for 100, 95, 90 % of the full search's result |")
    print("|---|---:|---|---|")
    for arm, curve in curves.items():
        cells = ", ".join(f"{p.mean():.0f}: {mean_of(100 * h)}" for p, h in curve.values())
        reach = []
        for share in (1, 0.95, 0.9):
            passed = [p.mean() for p, h in curve.values() if h.mean() >= share * heldout.mean()]
            reach.append(f"{passes.mean() / min(passed):.1f} x fewer" if passed else "never")
        print(f"| {arm} | {seeds[arm]} | {cells} | {', '.join(reach)} |")


def mean_of(values: np.ndarray) -> str:
    """With 1.96 standard errors over the seeds."""
    error = f" ± {1.96 * values.std(ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{error}"


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=5, table=True).parse_args()
    if not args.table:
        measure(args.output, args.work, range(args.seeds))
    table(known(args.output))


def measure(output: Path, work: Path, seeds: range) -> None:
    bench = Bench()
    for seed in seeds:
        for arm in ARMS:
            keys = "runs", arm, str(seed)
            if known(output, *keys) is None:
                record(output, one_run(bench, work, arm, seed), *keys)
                print(arm, seed, known(output, *keys), flush=True)
    if known(output, "correlations") is None:
        record(output, correlations(bench, work, seeds), "correlations")


if __name__ == "__main__":
    main()
