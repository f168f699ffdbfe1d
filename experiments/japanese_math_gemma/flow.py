"""Data flow at 18 layers: paths alone and after weights were mixed, and layers dropped and stacked by hand.

    python experiments/japanese_math_gemma/flow.py             # after run.py; flow.json, goes on where it was stopped
    python experiments/japanese_math_gemma/flow.py --table     # its tables

What is scored is always an exported folder; everything is chosen by how many search questions are answered right.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import run
from arguments import known, make_parser, record
from tables import differences, for_every_seed, interval, solved

import jevomerge as jm
from jevomerge.genome.route import Hop, PathSpace, encode, hops_of
from jevomerge.genome.schema import PathSearch
from jevomerge.observers.observer import SILENT
from jevomerge.problems.path import PathProblem
from jevomerge.search.archive import read_archive

ALONE, OTHER = "japanese", "maths"  # the better source of the two, and whose layers may be taken
WEIGHTS = "evolved, by thirds"  # of run.py
FIRST, THEN = run.FINE_EVALUATIONS, run.EVALUATIONS  # of a path: as many as of weights, and after them
POPULATION = 8  # of paths
NEAR = {"repeats": 2, "others_on": 0.02, "scale_range": (0.8, 1.2)}  # a first path has a layer more or less
DIFFERENCES = (
    ("path", ALONE),
    ("path", "path, scales of 1"),
    ("weights and path", WEIGHTS),
    ("weights and path", f"{WEIGHTS}, longer"),
    ("weights and path", "weights and path, scales of 1"),
)
KINDS = ("one layer dropped", "layers of the other stacked")


def by_hand(space: PathSpace) -> dict[str, list[list[Hop]]]:
    """What one tries without a search. A token starts in A's first layer and leaves by its last: these stay."""
    (a, b), depth = space.models, space.depths[0]
    whole = hops_of([(a, 0, depth)])
    places = itertools.product((6, 9, 12), (-3, 0), (3, 6), (0, 3))
    stacks = [hops_of([(a, 0, i), (b, i + j, i + j + n), (a, i + skipped, depth)]) for i, j, n, skipped in places]
    return dict(zip(KINDS, ([whole[:i] + whole[i + 1 :] for i in range(1, depth - 1)], stacks), strict=True))


class Flow:
    """Makes paths through models of run.py and scores them."""

    def __init__(self, work: Path):
        self.work, self.bench = work / "flow", run.Bench(work)
        self.sources = [work / ALONE, work / OTHER]
        self.work.mkdir(exist_ok=True)

    def path(self, models: list[Path], **values: Any) -> PathSearch:
        return PathSearch(models=tuple(map(str, models)), **NEAR, **values)

    def exported(self, problem: PathProblem, genome: np.ndarray) -> run.Cell:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            problem.export(genome, Path(folder) / "m")
            return self.bench.score(Path(folder) / "m")

    def hand(self, kind: str, models: list[Path]) -> run.Cell:
        """Of the paths of a kind the one that the search questions prefer."""
        problem = PathProblem(self.path(models, scaling="none"))
        hops = by_hand(problem.space)[kind]
        genomes = np.stack([encode(problem.space, h) for h in hops])
        judge = jm.make_judge(jm.make_ready([self.bench.task], self.bench.tokenizer, problem.model), problem.model)
        scores = [judge.fitness(s)[0] for [s] in judge.members(problem.load(), genomes)]
        best = int(np.argmax(scores))
        return {**self.exported(problem, genomes[best]), "path": written(hops[best]), "candidates": len(hops)}

    def evolved(self, name: str, seed: int, search: dict[str, Any], values: dict[str, Any]) -> run.Cell:
        """The winner of a search."""
        folder = self.folder(name, seed)
        if not (folder / "result.json").exists():
            task = self.bench.task
            few = {"path": task.heldout.path, "limit": 4}  # held-out questions are asked of the folder
            tasks = [task.model_dump() | {"heldout": few}]
            config = {"name": "run", "seed": seed, "tasks": tasks, "search": search | run.FEW, **run.FAST, **values}
            jm.evolve(jm.read_run(config), output=folder, resume=(folder / "config.yaml").exists(), observer=SILENT)
        minutes = round(known(folder / "result.json", "seconds") / 60, 1)
        cell = {
            **self.bench.score(folder / "best"),
            "minutes": minutes,
            "evaluations": len(read_archive(folder / "evaluations.jsonl")),
        }
        source = known(folder / "result.json", "best", "source")  # none of the candidates was better
        return cell if source is None else cell | {"source": source}

    def folder(self, name: str, seed: int) -> Path:
        return self.work / f"{name} {seed}"

    def weights(self, name: str, seed: int) -> run.Cell:
        """Those of run.py with the evaluations of weights and path."""
        arm = run.SEARCHED[WEIGHTS]
        values = {"recipe": self.bench.recipe(arm.method, {}, seed), "genome": arm.genome}
        return self.evolved(name, seed, {"evaluations": FIRST + THEN}, values)

    def searched(self, name: str, seed: int, evaluations: int, models: list[Path]) -> run.Cell:
        """A path through these models, which begins as the first of them."""
        search = {"evaluations": evaluations, "population": POPULATION}
        cell = self.evolved(name, seed, search, {"path": self.path(models).model_dump(exclude_defaults=True)})
        hops = hops_in(self.folder(name, seed) / "best")
        return {**cell, "path": written(hops) or f"none was better than {cell['source']}"}

    def unscaled(self, name: str, seed: int, models: list[Path]) -> run.Cell:
        """The path of a finished run with all scales 1."""
        best = self.folder(name, seed) / "best"
        if not (hops := hops_in(best)):
            return self.bench.score(best)
        problem = PathProblem(self.path(models))
        return self.exported(problem, encode(problem.space, [hop._replace(scale=1.0) for hop in hops]))

    def plan(self, seeds: range) -> Iterator[tuple[str, str, Callable[[], run.Cell]]]:
        """(row, seed, how it is measured), in the order of importance."""
        yield ALONE, "0", partial(self.bench.score, self.sources[0])
        for kind in KINDS:
            yield f"{ALONE}, {kind}", "0", partial(self.hand, kind, self.sources)
        for seed in seeds:
            mixed = run.folder_of(self.bench.work, WEIGHTS, str(seed))
            yield WEIGHTS, str(seed), partial(self.bench.searched, WEIGHTS, seed)
            stages = {"path": (self.sources, FIRST), "weights and path": ([mixed, self.sources[0]], THEN)}
            for name, (models, evaluations) in stages.items():
                yield name, str(seed), partial(self.searched, name, seed, evaluations, models)
                yield f"{name}, scales of 1", str(seed), partial(self.unscaled, name, seed, models)
            yield f"{WEIGHTS}, longer", str(seed), partial(self.weights, f"{WEIGHTS}, longer", seed)


def hops_in(folder: Path) -> list[Hop]:
    """Those of a winner; none where no path was better than its first model."""
    file, found = folder / "path.txt", list[Hop]()
    for line in file.read_text().splitlines() if file.exists() else ():
        layer, scale = line.rsplit(" ", 1)
        model, number = layer.rsplit(":", 1)
        found.append(Hop(model, int(number), float(scale)))
    return found


def written(hops: Iterable[Hop]) -> str:
    return " ".join(f"{h.model}:{h.layer}" + ("" if h.scale == 1 else f"*{h.scale:.2f}") for h in hops)


def print_tables(cells: dict[str, dict[str, run.Cell]]) -> None:
    print("| model | seeds | search | held out | 95 % | minutes |\n|---|---:|---:|---:|---|---:|")
    for name, by_seed in cells.items():
        mean, low, high = interval(solved(by_seed))
        search, spent = (np.mean([c.get(k, np.nan) for c in by_seed.values()]) for k in ("search", "minutes"))
        minutes = "" if np.isnan(spent) else f"{spent:.0f}"
        print(f"| {name} | {len(by_seed)} | {search:.1f} | {mean:.1f} | {low:.1f} to {high:.1f} | {minutes} |")
    print("\n| difference, held out | points | 95 % |\n|---|---:|---|")
    for one, other, seeds, (mean, low, high) in differences(for_every_seed(cells, [ALONE]), DIFFERENCES):
        print(f"| {one} - {other} ({seeds} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    print()
    for name, by_seed in cells.items():
        for seed, cell in by_seed.items():
            if "path" in cell:
                print(f"- {name}, seed {seed}: {cell['path']}")


def main() -> None:
    args = make_parser(__doc__, __file__, output="flow.json", work=True, seeds=3, table=True).parse_args()
    if not args.table:
        flow = Flow(args.work.resolve())
        for name, seed, measure in flow.plan(range(args.seeds)):
            if known(args.output, name, seed) is None:
                record(args.output, cell := measure(), name, seed)
                print(name, seed, {k: v for k, v in cell.items() if isinstance(v, (int, float))}, flush=True)
    print_tables(known(args.output))


if __name__ == "__main__":
    main()
