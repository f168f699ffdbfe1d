"""What a front costs: NSGA-II against pymoo's, and against weighted sums.

    python experiments/bench_pareto/run.py [PART ...]       # results.json; goes on where it was stopped

Needs `pip install pymoo`.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.config import RunConfig
from jevomerge.fitness.schema import DataSource
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import Archive, read_archive
from jevomerge.search.loop import search
from jevomerge.search.setup import set_up
from jevomerge.strategies.pareto import (
    front_of,
    make_nsga2,
    objectives_of,
    polynomial_mutation,
    simulated_binary_crossover,
)
from jevomerge.strategies.registry import make_strategy
from jevomerge.strategies.strategy import on_host

HERE = Path(__file__).parent
PLANTED, SIZE, CHECKPOINTS = ("zdt1", "zdt2", "dtlz2"), 64, (50, 150)  # population; generations
SIZES = (64, 256)
GENERATIONS = 40  # whose speed is measured
GENES, TOTALS = 42, (360, 1000)  # of the spheres: how many genes, evaluations in all
EVALUATIONS = 360  # of a search on the miniature, or of three
WEIGHTS = ((3, 1), (1, 1), (1, 3))  # of Japanese and English
GOALS = ("japanese", "english")


# --- pymoo, imported late: --help is also for those who do not have it ---------------------------------------


def planted_problem(name: str) -> Any:
    from pymoo.problems import get_problem

    return get_problem(name)


def volume_below(point: np.ndarray) -> Callable[[np.ndarray], float]:
    """Points (N, K), minimised -> their hypervolume."""
    from pymoo.indicators.hv import HV

    return HV(ref_point=point)


# --- planted fronts -----------------------------------------------------------------------------------------


def ours(problem: Any, size: int, seed: int) -> Iterator[np.ndarray]:
    """The population's objectives, minimised, after each generation; it starts all over the box."""
    strategy, key = make_nsga2(problem.n_var, problem.n_obj, size, 0.5, sigma=10.0), jax.random.key(seed)
    state = strategy.init(key)
    for generation in range(10**9):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        state = strategy.tell(keys[1], state, population, -problem.evaluate(population))
        yield -state["objectives"]


def pymoos(problem: Any, size: int, seed: int) -> Iterator[np.ndarray]:
    """The same by pymoo with its own settings."""
    from pymoo.algorithms.moo.nsga2 import NSGA2

    algorithm = NSGA2(pop_size=size)
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed)
    while True:
        algorithm.next()
        yield algorithm.pop.get("F")


METHODS = {"jevomerge": ours, "pymoo": pymoos}


def planted(seed: int) -> dict[str, Any]:
    """The hypervolume after so many generations, as a share of that of the true front."""
    found: dict[str, Any] = {}
    for name in PLANTED:
        problem = planted_problem(name)
        volume = volume_below(np.full(problem.n_obj, 1.1))
        whole = volume(problem.pareto_front())
        for method, run in METHODS.items():
            for generation, objectives in enumerate(run(problem, SIZE, seed), 1):
                if generation in CHECKPOINTS:
                    share = round(float(volume(objectives)) / float(whole), 4)
                    found.setdefault(name, {}).setdefault(method, {})[str(generation)] = share
                if generation == CHECKPOINTS[-1]:
                    break
    return found


def speed(seed: int) -> dict[str, Any]:
    """CPU seconds of the first generation, which compiles, and milliseconds of a later one: the median."""
    found: dict[str, Any] = {}
    problem = planted_problem("zdt1")
    for size in SIZES:
        for method, run in METHODS.items():
            steps, spent = run(problem, size, seed), []
            for _ in range(GENERATIONS):
                before = time.process_time()
                next(steps)
                spent.append(time.process_time() - before)
            row = {"first_s": round(spent[0] + spent[1], 2), "later_ms": round(1000 * float(np.median(spent[2:])), 2)}
            found.setdefault(str(size), {})[method] = row
    return found


# --- two spheres --------------------------------------------------------------------------------------------


def near_two_points(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Genomes (P, n) -> (P, 2): how near they are to a random point, and to one on the way from it to another."""
    one, other = np.random.default_rng(seed).uniform(0.1, 0.9, (2, GENES))
    centers = one, (one + other) / 2
    return lambda x: -10 * np.stack([((x - center) ** 2).mean(1) for center in centers], axis=1)


def searched_by(strategy: Any, goals: Any, generations: int, key: Any, told: Any = lambda values: values) -> np.ndarray:
    """The goals of all candidates of a search; `told`: what the strategy learns of them."""
    state, seen = strategy.init(key), []
    for generation in range(generations):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        seen.append(goals(population))
        state = strategy.tell(keys[1], state, population, told(seen[-1]))
    return np.concatenate(seen)


def spheres(seed: int) -> dict[str, Any]:
    """The hypervolume after few evaluations of two goals over 42 genes: to be near one of two random points."""
    goals, volume, found = near_two_points(seed), volume_below(np.ones(2)), dict[str, Any]()
    for total in TOTALS:
        for size in (10, 20, 40):
            seen = searched_by(make_nsga2(GENES, 2, size), goals, total // size, jax.random.key(seed))
            found.setdefault(f"nsga2, {size}", {})[str(total)] = round(float(volume(-seen)), 4)
        parts = []
        for number, weights in enumerate(WEIGHTS):
            strategy, key = make_strategy("cma_es", GENES), jax.random.key(seed * len(WEIGHTS) + number)
            steps = total // len(WEIGHTS) // strategy.population_size
            parts.append(searched_by(strategy, goals, steps, key, lambda values, w=weights: values @ w))
        found.setdefault("cma_es, three weightings", {})[str(total)] = round(float(volume(-np.concatenate(parts))), 4)
    return found


class MapElites:
    """MAP-Elites (arXiv:1504.04909) with NSGA-II's operators; as in CycleQD (arXiv:2410.14735) a grid per goal.

    A cell of a goal's grid is a range of the other goal; in it is the candidate that is best in its own.
    """

    def __init__(self, size: int, bins: int, low: float = -1.0) -> None:
        self.size, self.bins, self.low = size, bins, low  # the goals are from `low` to 0

    def init(self, key: Any) -> dict[str, Any]:
        del key
        return {"turn": 0, "cells": ({}, {})}

    def ask(self, key: Any, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        rng = np.random.default_rng(jax.random.key_data(key).tolist())
        cells = state["cells"][state["turn"] % 2]
        if not cells:
            return np.clip(rng.normal(0.5, 1 / 6, (self.size, GENES)), 0, 1), state
        elites = np.array([genome for _, genome in cells.values()])
        keys, pairs = jax.random.split(key), -(-self.size // 2)
        with on_host(x64=True):
            parents = (elites[rng.integers(len(elites), size=pairs)] for _ in range(2))
            children = np.concatenate(simulated_binary_crossover(keys[0], *parents))[: self.size]
            return np.asarray(polynomial_mutation(keys[1], children)), state

    def tell(self, key: Any, state: dict[str, Any], population: np.ndarray, goals: np.ndarray) -> dict[str, Any]:
        del key
        for goal, cells in enumerate(state["cells"]):
            place = np.clip((1 - goals[:, 1 - goal] / self.low) * self.bins, 0, self.bins - 1).astype(int)
            for cell, quality, genome in zip(place.tolist(), goals[:, goal].tolist(), population, strict=True):
                if cell not in cells or quality > cells[cell][0]:
                    cells[cell] = quality, genome
        return state | {"turn": state["turn"] + 1}


def map_elites(seed: int) -> dict[str, Any]:
    """As `spheres`, by MAP-Elites."""
    goals, volume, found = near_two_points(seed), volume_below(np.ones(2)), dict[str, Any]()
    for size, bins in itertools.product((10, 20), (10, 20, 40)):
        for total in TOTALS:
            seen = searched_by(MapElites(size, bins), goals, total // size, jax.random.key(seed))
            found.setdefault(f"{size}, {bins} bins", {})[str(total)] = round(float(volume(-seen)), 4)
    return found


# --- the miniature ------------------------------------------------------------------------------------------


def two_goals(folder: Path) -> RunConfig:
    """The quickstart with two tasks: Japanese problems over new sums, and English ones."""
    config = jm.read_run(HERE.parents[1] / "configs" / "quickstart.yaml")
    data = HERE.parent / "japanese_math_mini" / "data"
    sources: dict[tuple[str, str], DataSource] = {}
    for split, limit in (("search", 64), ("heldout", 128)):
        for goal, file, language in (("japanese", "japanese_math", "ja"), ("english", "two_skills", "en")):
            rows = [json.loads(line) for line in (data / f"{file}_{split}.jsonl").read_text().splitlines()]
            rows = [row for row in rows if row.get("language", "ja") == language][:limit]
            path = folder / f"{goal}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources[goal, split] = DataSource.model_validate({"path": str(path)})
    japanese = config.tasks[0]
    english = japanese.model_copy(update={"pattern": r"^[ -~]*?(\d+)[ -/:-~]*$"})
    tasks = tuple(
        task.model_copy(update={"name": g, "search": sources[g, "search"], "heldout": sources[g, "heldout"]})
        for g, task in zip(GOALS, (japanese, english), strict=True)
    )
    return config.model_copy(update={"tasks": tasks})


def searched(config: RunConfig, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The records of a search."""
    config = config.model_copy(update={"search": config.search.model_copy(update=settings)})
    setup = set_up(config)
    candidates = setup.problem.load(setup.mesh)
    folder.mkdir()
    with Archive(folder / "evaluations.jsonl") as archive:
        generations = config.search.evaluations // setup.strategy.population_size
        search(setup, candidates, archive, folder / "checkpoints", generations, SILENT)
    return read_archive(folder / "evaluations.jsonl")


def heldout(config: RunConfig, records: list[dict[str, Any]]) -> np.ndarray:
    """(F, 2) what records score on the held-out examples."""
    setup = set_up(config)
    tasks = [t.model_copy(update={"search": t.heldout}) for t in config.tasks]
    ready = jm.make_ready(tasks, setup.problem.tokenizer(), setup.problem.model)
    judge = jm.make_judge(ready, setup.problem.model, splits=["search"], mesh=setup.mesh)
    genomes = np.array([r["genome"] for r in records])
    scored = [s for group in judge.members(setup.problem.load(setup.mesh), genomes) for s in group]
    return np.array([[np.mean(s.fitness[g]) for g in GOALS] for s in scored])


def miniature(seed: int) -> dict[str, Any]:
    """Hypervolumes, of which (0, 0) to (1, 1) is 1, and the best of each weighting, of both ways to search."""
    found: dict[str, Any] = {}
    volume = volume_below(np.zeros(2))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        config = two_goals(folder).model_copy(update={"seed": seed})
        runs: dict[str, list[list[dict[str, Any]]]] = {
            "nsga2": [searched(config, folder / "nsga2", strategy="nsga2", evaluations=EVALUATIONS)],
            "cma_es": [],
        }
        for number, weights in enumerate(WEIGHTS):
            tasks = (t.model_copy(update={"weight": w}) for t, w in zip(config.tasks, weights, strict=True))
            weighted = config.model_copy(update={"tasks": tuple(tasks), "seed": seed * len(WEIGHTS) + number})
            share = EVALUATIONS // len(WEIGHTS)
            runs["cma_es"].append(searched(weighted, folder / f"cma_es_{number}", evaluations=share))
        for name, parts in runs.items():
            records = [r for part in parts for r in part]
            front = front_of(records, GOALS)
            points, objectives = objectives_of(records, GOALS)[front], objectives_of(records, GOALS)
            later = heldout(config, [records[i] for i in front])
            found[name] = {
                "evaluations": len(records),
                "hypervolume": {"search": float(volume(-points)), "heldout": float(volume(-later))},
                "best": {f"{a}:{b}": float((objectives @ [a, b]).max() / (a + b)) for a, b in WEIGHTS},
                "front": {"search": points.tolist(), "heldout": later.tolist()},
            }
            if name == "nsga2":
                shares = range(EVALUATIONS // 3, EVALUATIONS + 1, EVALUATIONS // 3)
                found[name]["course"] = {str(n): float(volume(-objectives[:n])) for n in shares}
    return found


PARTS = {
    "planted": (planted, 5),
    "speed": (speed, 3),
    "spheres": (spheres, 3),
    "map_elites": (map_elites, 3),
    "miniature": (miniature, 3),
}


def main() -> None:
    args = make_parser(__doc__, __file__, seeds="5 of planted, 3 of the others", parts=PARTS).parse_args()
    for part in args.parts:
        run, seeds = PARTS[part]
        for seed in range(args.seeds or seeds):
            if known(args.output, part, str(seed)) is None:
                record(args.output, run(seed), part, str(seed))
                print(part, seed, json.dumps(known(args.output, part, str(seed))), flush=True)


if __name__ == "__main__":
    main()
