"""Evolution, gradients, and both, at equal cost; README.md says what came out.

    nice python experiments/cheap_fitness/run.py      # first: its full runs are the evolution here
    nice python experiments/refine/run.py             # an hour or so; goes on where it was stopped
    python experiments/refine/run.py --table          # the table of results.json

The models and task of configs/quickstart.yaml.  The cost is in forward passes of one example: 1 to score one, 3 for its
gradient (a backward pass counts two).  Gradients: Adam, 16 examples a step, everything else as `refine` has it by
default.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.search.archive import Archive, read_archive
from jevomerge.search.loop import search
from jevomerge.search.setup import refiner_of, set_up
from jevomerge.strategies.schema import Refine

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TASK, SIZE, ROWS = "japanese_math", 128, 16
STEPS = (25, 50, 100)  # after which a run might have ended
GENERATIONS = (2, 5, 10, 15, 20)  # likewise, of evolution
EVOLVED = 5  # generations before the gradient, in "evolution + ..."
EVERY, BETWEEN = 2, 10  # generations from one gradient to the next, and its steps, in "evolution, between"


class Bench:
    """The quickstart's models, loaded once."""

    def __init__(self, evolution: Path) -> None:
        self.config, self.evolution = jm.read_run(QUICKSTART), evolution
        self.setup = set_up(self.config)
        self.candidates = self.setup.problem.load(self.setup.mesh)

    def scores(self, genome: np.ndarray) -> dict[str, float]:
        """Of a genome, as it would be exported, on both splits."""
        found = {}
        for split in ("search", "heldout"):
            [scores] = self.setup.judge.score(self.candidates, genome[None], split)
            found[split] = round(float(scores.fitness[TASK].mean()), 4)
        return found

    def best(self, seed: int, generations: int) -> dict[str, Any]:
        """The best candidate after some generations, and what finding it took."""
        log = self.evolution / str(seed) / "evaluations.jsonl"
        return self.best_of([r for r in read_archive(log) if r["generation"] < generations])

    def best_of(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The best of an archive's records, and what finding it took."""
        best = max(records, key=lambda r: (r["fitness"], r["tie_break"], -r["generation"], -r["member"]))
        refined = sum("refined" in r for r in records)
        passes = len(records) * SIZE + refined * 3 * ROWS * BETWEEN
        spent = {"passes": passes, "seconds": round(sum(r["seconds"] for r in records), 1)}
        return {"genome": np.array(best["genome"]), **spent}

    def generations(self, seed: int) -> int:
        """How many generations of evolution there are."""
        log = self.evolution / str(seed) / "evaluations.jsonl"
        return len(read_archive(log)) // self.setup.strategy.population_size if log.exists() else 0

    def evolved(self, seed: int) -> dict[str, Any]:
        """What evolution alone gives."""
        ends = {}
        for generations in GENERATIONS:
            best = self.best(seed, generations)
            ends[str(generations)] = {k: best[k] for k in ("passes", "seconds")} | self.scores(best["genome"])
        return ends

    def between(self, seed: int) -> dict[str, Any]:
        """What evolution gives that learns from its best, refined by the likelihood, every few generations."""
        refine = Refine(steps=BETWEEN, examples_per_step=ROWS, every=EVERY)
        setup = set_up(self.config.model_copy(update={"refine": refine, "seed": seed}))
        with tempfile.TemporaryDirectory() as folder, Archive(Path(folder) / "evaluations.jsonl") as archive:
            search(setup, self.candidates, archive, Path(folder) / "checkpoints", GENERATIONS[-1], jm.Terminal())
            records = archive.records
        ends = {}
        for generations in (*GENERATIONS, GENERATIONS[-1] + 1):  # the last is that of `refine` after the search
            best = self.best_of([r for r in records if r["generation"] < generations])
            ends[str(generations)] = {k: best[k] for k in ("passes", "seconds")} | self.scores(best["genome"])
        return ends

    def refined(self, start: str, objective: str, seed: int) -> dict[str, Any]:
        """What the gradient makes of a start; the start and the end are scored on the search split."""
        spent, genome = {"passes": 2 * SIZE, "seconds": 0.0}, np.full(len(self.setup.problem.names), 0.5)
        if start == "average":
            genome = np.full(len(genome), 1 / 3)  # of each task vector
        elif start == "evolution":
            best = self.best(seed, EVOLVED)
            genome, spent = best["genome"], {"passes": best["passes"] + SIZE, "seconds": best["seconds"]}
        refine = Refine(objective=objective, steps=STEPS[-1], examples_per_step=ROWS)
        setup = set_up(self.config.model_copy(update={"refine": refine, "seed": seed}))
        refiner, ends = refiner_of(setup, self.candidates), {"0": {**spent, **self.scores(genome)}}
        next(refiner.walk(genome, refiner.key(0, 0)))  # compiles
        began, seconds = time.perf_counter(), spent["seconds"]
        for number, (loss, end) in enumerate(refiner.walk(genome, refiner.key(0, 0)), 1):
            if number in STEPS:
                now = round(seconds + time.perf_counter() - began, 1)
                passes = spent["passes"] + 3 * ROWS * number
                ends[str(number)] = {"passes": passes, "seconds": now, "loss": round(loss, 4), **self.scores(end)}
                seconds, began = now, time.perf_counter()
        return ends


def table(results: dict[str, Any]) -> None:
    print("| arm | ended after | seeds | passes | seconds | search | held out |\n|---|---:|---:|---:|---:|---:|---:|")
    for arm, runs in results.items():
        for end in next(iter(runs.values())):
            rows = [run[end] for run in runs.values()]
            mean = {k: np.mean([row[k] for row in rows]) for k in ("passes", "seconds", "search", "heldout")}
            heldout = 100 * np.array([row["heldout"] for row in rows])
            error = f" ± {1.96 * heldout.std(ddof=1) / len(rows) ** 0.5:.1f}" if len(rows) > 1 else ""
            print(
                f"| {arm} | {end} | {len(rows)} | {mean['passes']:.0f} | {mean['seconds']:.0f} | "
                f"{100 * mean['search']:.1f} | {heldout.mean():.1f}{error} |"
            )


def main() -> None:
    parser = make_parser(__doc__, __file__, seeds=5, table=True)
    full = Path("runs/cheap_fitness/full")
    about = f"DIR/full of the --work of cheap_fitness (default: {full})"
    parser.add_argument("--evolution", type=Path, metavar="DIR", default=full, help=about)
    args = parser.parse_args()
    if not args.table:
        measure(args.output, args.evolution, args.seeds)
    table(known(args.output))


def measure(output: Path, evolution: Path, seeds: int) -> None:
    bench = Bench(evolution)
    arms = [
        f"{start}, {objective}" for objective in ("likelihood", "entropy") for start in ("evolution", "0.5", "average")
    ]
    jobs = [(seed, arm) for seed in range(seeds) for arm in ("evolution alone", *arms, "evolution, between")]
    for seed, arm in jobs:
        start, _, objective = arm.partition(", ")
        needed = {"evolution alone": GENERATIONS[-1], "evolution": EVOLVED}.get(start, 0)
        if known(output, arm, str(seed)) is not None or bench.generations(seed) < needed:
            continue
        if objective == "between":
            found = bench.between(seed)
        else:
            found = bench.refined(start, objective, seed) if objective else bench.evolved(seed)
        record(output, found, arm, str(seed))
        print(arm, seed, found, flush=True)


if __name__ == "__main__":
    main()
