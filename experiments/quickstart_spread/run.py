"""The quickstart on several kinds of arithmetic, seed by seed: how far apart do its results lie?

    nice python experiments/quickstart_spread/run.py                    # all kinds in turn; goes on where it stopped
    nice python experiments/quickstart_spread/run.py as_it_is           # one of them
    nice python experiments/quickstart_spread/run.py --again --seeds 1  # the first runs once more: the same bits?
    python experiments/quickstart_spread/run.py --table                 # the tables of results.json

Each run is a process of its own, with its folder below --work.  Seeds are 0, 1, 2, ...: none is chosen.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from arguments import known, make_parser, record

from jevomerge.search.archive import read_archive

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
RUN = """
import json, sys
import jevomerge as jm
config, folder, settings, resume = sys.argv[1:]
jm.evolve(jm.read_run(config), output=folder, resume=resume == "True", **json.loads(settings))
"""


class Kind(NamedTuple):
    """A kind of arithmetic."""

    about: str
    flags: str = ""  # of XLA
    environment: dict[str, str] = {}  # noqa: RUF012
    settings: dict[str, str] = {}  # noqa: RUF012 - that replace the config's


KINDS = {
    "as_it_is": Kind("as it is: two threads, AVX-512, float32"),
    "one_thread": Kind(
        "one thread", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", {"NPROC": "1"}
    ),
    "avx2": Kind("another instruction set, AVX2: sums in another order", "--xla_cpu_max_isa=AVX2"),
    "bfloat16": Kind("activations in bfloat16", settings={"compute_dtype": "bfloat16"}),
}


def run(kind: Kind, seed: int, folder: Path, compiled: Path) -> dict[str, Any]:
    """What came out of a run; minutes of the processor are those of this process, None if it was begun by another."""
    begun, before = (folder / "config.yaml").exists(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if not (folder / "result.json").exists():
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        # Seeds share what XLA compiled: a program is the same whether it was compiled or read.
        own = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [str(QUICKSTART), str(folder), json.dumps({**kind.settings, "seed": seed}), str(begun)]
        subprocess.run(
            [sys.executable, "-c", RUN, *command],
            env=kept | own | kind.environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": kind.flags},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    best, records = known(folder / "result.json", "best"), read_archive(folder / "evaluations.jsonl")
    return {
        "search": best["search"],
        "heldout": best["heldout"],
        "genome": digest([[*best["genome"].values()]]),
        "all genomes": digest([r["genome"] for r in records]),
        "all fitnesses": digest([[r["fitness"] for r in records]]),
        "minutes": None if begun else round(seconds / 60, 2),
    }


def digest(numbers: list[list[float]]) -> str:
    """Of all bits of float64 numbers."""
    return hashlib.sha256(np.asarray(numbers, np.float64).tobytes()).hexdigest()[:12]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def row(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    """A kind, over the seeds that were run."""
    of = {key: [r[key] for r in runs.values()] for key in ("search", "heldout")}
    minutes = [r["minutes"] for r in runs.values() if r["minutes"] is not None]
    found = {key: spread(values) for key, values in of.items()}
    took = float(np.median(minutes)) if minutes else None
    return {"name": name, "seeds": [int(s) for s in runs], **found, "minutes": took}


def table(results: dict[str, Any]) -> None:
    print("| arithmetic | seeds | search: median (lowest to highest) | held out | minutes of the processor |")
    print("|---|---:|---|---|---:|")
    for found in results["rows"]:
        shown = [
            f"{100 * s['median']:.1f} ({100 * s['lowest']:.1f} to {100 * s['highest']:.1f})"
            for s in (found["search"], found["heldout"])
        ]
        about = KINDS[found["name"]].about if found["name"] in KINDS else found["name"]
        print(f"| {about} | {len(found['seeds'])} | {' | '.join(shown)} | {found['minutes'] or 0:.1f} |")
    runs = results["runs"]
    print(f"\n| seed | {' | '.join(runs)} |\n|---:|{'---|' * len(runs)}")
    for seed in sorted({s for kind in runs.values() for s in kind}, key=int):
        cells = [kind.get(seed) for kind in runs.values()]
        shown = [f"{c['search']:.4f} / {c['heldout']:.4f} ({c['genome'][:6]})" if c else "" for c in cells]
        print(f"| {seed} | {' | '.join(shown)} |")


def main() -> None:
    parser = make_parser(__doc__, __file__, work=True, seeds=10, parts=KINDS, table=True)
    parser.add_argument("--again", action="store_true", help="once more, beside the first time")
    args = parser.parse_args()
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.parts]
    for name, seed in [] if args.table else jobs:
        row_name = f"{name}, again" if args.again else name
        if known(args.output, "runs", row_name, str(seed)) is None:
            folder = args.work.resolve() / row_name / str(seed)
            found = run(KINDS[name], seed, folder, args.work.resolve() / "compiled" / name)
            record(args.output, found, "runs", row_name, str(seed))
            record(args.output, [row(n, r) for n, r in known(args.output, "runs").items()], "rows")
            print(row_name, seed, found, flush=True)
    table(known(args.output))


if __name__ == "__main__":
    main()
