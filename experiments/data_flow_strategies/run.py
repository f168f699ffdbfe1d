"""Which strategy finds a planted path?

nice python experiments/data_flow_strategies/run.py     # results.json; goes on where it was stopped
"""

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
from ablations import Pbil, Unconditional
from arguments import known, make_parser, record
from landscape import Landscape

from jevomerge.genome.route import PathSpace, encode, hops_of
from jevomerge.strategies.paths import PATH_METHODS, make_path_strategy

STRATEGIES = ("cma_es", "sep_cma_es", "snes", "mixed", "path_program", "random", "mixed_pbil", "mixed_unconditional")
STARTS = {"paper": 1 / 2, "near A": 1 / 6}  # the gene of slots that are not A's first pass: on in 50 % or in 2 %
TARGET = 0.8
GENERATIONS = 100
SPACES = {  # name: space, population size
    "M = 8, r = 2, per hop": (PathSpace(("a", "b"), (4, 4), 2), 16),
    "M = 32, r = 2, per hop": (PathSpace(("a", "b"), (16, 16), 2), 32),
    "M = 64, r = 3, per hop": (PathSpace(("a", "b"), (32, 32), 3), 64),
    "M = 64, r = 3, matrix": (PathSpace(("a", "b"), (32, 32), 3, "matrix"), 64),
    "M = 64, r = 3, network": (PathSpace(("a", "b"), (32, 32), 3, "network"), 64),
}
FIRST_SEED = 10  # the settings of `mixed` and `path_program` were chosen on seeds 0 to 4


PATH_METHODS |= {"mixed_pbil": Pbil, "mixed_unconditional": Unconditional}


def jobs() -> list[tuple[str, str, str]]:
    """(space, start, strategy), the cheapest first."""
    todo = []
    for where, (space, _) in SPACES.items():
        for start in STARTS:
            for name in STRATEGIES:
                extra = name in ("random", "mixed_pbil", "mixed_unconditional")  # from the first start and per hop only
                costly = name == "cma_es" and space.num_genes > 200  # an eigendecomposition in every generation
                if not costly and (start == "paper" or (space.scaling == "per_hop" and not extra)):
                    todo += [] if extra and space.scaling != "per_hop" else [(where, start, name)]
    return sorted(todo, key=lambda job: "mixed" not in job[2] and job[2] != "path_program")


def search(job: tuple[str, str, str], seeds: range) -> dict[str, Any]:
    """One strategy on the landscapes of all seeds."""
    (where, start, name), began = job, time.perf_counter()
    space, size = SPACES[where]
    whole = hops_of([("a", 0, space.depths[0])])
    strategy = make_path_strategy(name, space, size, encode(space, whole, off=STARTS[start]))
    final, reached, model_a = [], [], []
    for seed in seeds:
        landscape, key = Landscape(space, seed), jax.random.key(seed)
        model_a.append(landscape(encode(space, whole)[None]).item())
        state, seen = strategy.init(key), []
        for generation in range(GENERATIONS):
            keys = jax.random.split(jax.random.fold_in(key, generation))
            population, state = strategy.ask(keys[0], state)
            fitness = landscape(population)
            state = strategy.tell(keys[1], state, population, fitness)
            seen.extend(fitness.tolist())
        final.append(round(max(seen), 2))
        reached.append(next((i + 1 for i, f in enumerate(seen) if f >= TARGET), None))
    return {
        "space": where,
        "genes": space.num_genes,
        "population": size,
        "start": start,
        "strategy": name,
        "model_a": np.round(model_a, 2).tolist(),
        "final": final,
        "evaluations_to_target": reached,
        "seconds_per_search": round((time.perf_counter() - began) / len(seeds), 1),
    }


def row(result: dict[str, Any]) -> str:
    """A line of the table: medians, and in how many seeds the target was reached."""
    final, reached = result["final"], [e for e in result["evaluations_to_target"] if e is not None]
    cells = [result["space"], result["start"], result["strategy"]]
    cells += [f"{np.median(final):.2f}", f"{min(final):.2f} to {max(final):.2f}"]
    cells += [f"{len(reached)} of {len(final)}", f"{np.median(reached):.0f}" if reached else ""]
    return f"| {' | '.join(cells)} | {result['seconds_per_search']} |"


def main() -> None:
    parser = make_parser(__doc__, __file__, seeds=5)
    args = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    if known(args.output, "seeds") not in (None, list(seeds)):
        parser.error(f"{args.output} has results of other seeds: give another --output")
    order = {job: k for k, job in enumerate((w, s, n) for w in SPACES for s in STARTS for n in STRATEGIES)}
    for name, value in {"target": TARGET, "generations": GENERATIONS, "seeds": list(seeds)}.items():
        record(args.output, value, name)
    results: list[dict[str, Any]] = known(args.output, "results") or []
    done = {(r["space"], r["start"], r["strategy"]) for r in results}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for found in as_completed([pool.submit(search, job, seeds) for job in jobs() if job not in done]):
            results.append(found.result())
            print(row(results[-1]), flush=True)
            results.sort(key=lambda r: order[r["space"], r["start"], r["strategy"]])
            record(args.output, results, "results")
    print("\n" + "\n".join(row(result) for result in results))


if __name__ == "__main__":
    main()
