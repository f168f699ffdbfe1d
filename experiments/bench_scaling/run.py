"""What a mesh, a checkpoint and another source cost; README.md says what came out.

    python experiments/bench_scaling/run.py --smollm2 FOLDER     # results.json, five minutes on two quiet cores

Each measurement is a process of its own, one after another.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ROUNDS = 3


def devices(count: int) -> dict[str, Any]:
    """Three generations of the quickstart on `count` virtual devices of these cores, and what they compiled."""
    import jax
    import numpy as np

    import jevomerge as jm
    from jevomerge.fitness.members import make_members, run_members
    from jevomerge.search.setup import set_up

    setup = set_up(jm.read_run(QUICKSTART))
    candidates, judge = setup.problem.load(setup.mesh), setup.judge
    rng = np.random.default_rng(0)
    population = np.clip(rng.normal(0.5, 1 / 6, (16, len(setup.problem.names))), 0, 1)
    functions = (make_members, run_members)
    seconds, programs = [], []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        for _ in judge.members(candidates, population):
            pass
        seconds.append(time.perf_counter() - began)
        programs.append(sum(f._cache_size() for f in functions))
    return {
        "devices": jax.device_count(),
        "evaluations_per_second": round(len(population) / min(seconds[1:]), 2),
        "first_generation_seconds": round(seconds[0], 1),
        "compiled_after_the_first_generation": programs[-1] - programs[0],
    }


def sources(count: int, folder: str) -> dict[str, Any]:
    """The most memory while `count` models are read, beyond that of their weights."""
    import jax

    import jevomerge as jm

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    loaded = [jm.Checkpoint(folder).load() for _ in range(count)]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"sources": count, "weights_gb": round(held / 1e9, 3), "beyond_gb": round((peak - before - held) / 1e9, 3)}


def checkpoint(genes: int) -> dict[str, Any]:
    """Seconds of saving the state of CMA-ES over so many genes."""
    import jax

    from jevomerge.search.snapshots import Snapshots
    from jevomerge.strategies.registry import make_strategy

    strategy = make_strategy("cma_es", genes)
    state, seconds = strategy.init(jax.random.key(0)), []
    with tempfile.TemporaryDirectory() as folder:
        saved = Snapshots(Path(folder), print)
        for step in range(1, 7):
            began = time.perf_counter()
            saved.save(step, state)
            seconds.append(time.perf_counter() - began)
    return {"genes": genes, "seconds": round(sorted(seconds[1:])[2], 3)}


def child(name: str, *arguments: Any, count: int = 1) -> Any:
    """The result of one measurement, in a process of its own with so many virtual devices."""
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--smollm2", metavar="FOLDER", help="folder of SmolLM2-135M; without it sources are left out")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, *given = args.child
        calls = {"devices": devices, "sources": sources, "checkpoint": checkpoint}
        print(json.dumps(calls[name](int(given[0]), *given[1:])))  # type: ignore[operator]
        return
    if known(args.output, "devices") is None:
        rounds = [[child("devices", n, count=n) for n in (1, 2, 4, 8)] for _ in range(2)]  # the first one again: drift
        best = [max(pair, key=lambda r: r["evaluations_per_second"]) for pair in zip(*rounds, strict=True)]
        for row in best:
            row["rate_against_one_device"] = round(row["evaluations_per_second"] / best[0]["evaluations_per_second"], 3)
        record(args.output, best, "devices")
    if args.smollm2 and known(args.output, "sources") is None:
        record(args.output, [child("sources", n, args.smollm2) for n in (2, 4, 6, 8)], "sources")
    if known(args.output, "checkpoints") is None:
        generation = 15 / known(args.output, "devices")[0]["evaluations_per_second"]  # of the quickstart
        rows = [child("checkpoint", genes) for genes in (6, 42, 200)]
        for row in rows:
            row["share_of_a_quickstart_generation"] = round(row["seconds"] / 10 / generation, 4)  # every tenth is saved
        record(args.output, rows, "checkpoints")
    print(json.dumps(known(args.output), indent=1))


if __name__ == "__main__":
    main()
