"""The quickstart on several kinds of arithmetic, seed by seed: how far apart do its results lie?

    nice python experiments/quickstart_spread/run.py           # all kinds in turn; goes on where it stopped
    nice python experiments/quickstart_spread/run.py as_it_is  # one of them
    python experiments/quickstart_spread/run.py --table        # the tables of results.json

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
RECORDED = QUICKSTART.parents[1] / "experiments" / "japanese_math_mini" / "results.json"  # has the same search
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


def recorded() -> dict[str, Any]:
    """Outcomes of the same search in japanese_math_mini, by seed."""
    cells = known(RECORDED, "japanese_math", "evolved, 42 genes")
    shares = {seed: c["bits"].count("1") / len(c["bits"]) for seed, c in cells.items()}
    return {seed: {"search": cells[seed]["search"] / 100, "heldout": share} for seed, share in shares.items()}


def compared(work: Path) -> dict[str, dict[str, Any]]:
    """Of every run beside that of its seed as it is, also of those that were stopped: from where on it is another."""
    found: dict[str, dict[str, Any]] = {}
    for log in sorted(work.glob("*/*/evaluations.jsonl")):
        kind, seed = log.parts[-3:-1]
        if kind == "as_it_is" or not (beside := work / "as_it_is" / seed / log.name).exists():
            continue
        records, others = read_archive(log), read_archive(beside)
        pairs = list(zip(records, others, strict=False))
        cell: dict[str, Any] = {"evaluations": len(pairs)}
        for key in ("genome", "scores"):
            cell[f"first other {key}"] = next((i for i, (a, b) in enumerate(pairs) if a[key] != b[key]), None)
        found.setdefault(kind, {})[seed] = cell
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def row(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    """A kind, over the seeds that were run."""
    of = {key: [r[key] for r in runs.values()] for key in ("search", "heldout")}
    minutes = [r["minutes"] for r in runs.values() if r.get("minutes") is not None]
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
        minutes = "" if found["minutes"] is None else f"{found['minutes']:.1f}"
        print(f"| {about} | {len(found['seeds'])} | {' | '.join(shown)} | {minutes} |")
    runs = results["runs"] | {"recorded": recorded()}
    print(f"\n| seed | {' | '.join(runs)} |\n|---:|{'---|' * len(runs)}")
    for seed in sorted({s for kind in runs.values() for s in kind}, key=int):
        cells = [kind.get(seed) for kind in runs.values()]
        shown = [f"{c['search']:.4f} / {c['heldout']:.4f} {c.get('genome', '')[:6]}" if c else "" for c in cells]
        print(f"| {seed} | {' | '.join(shown)} |")


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=10, parts=KINDS, table=True).parse_args()
    work = args.work.resolve()
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.parts]
    for name, seed in [] if args.table else jobs:
        if known(args.output, "runs", name, str(seed)) is None:
            found = run(KINDS[name], seed, work / name / str(seed), work / "compiled" / name)
            record(args.output, found, "runs", name, str(seed))
            print(name, seed, found, flush=True)
    if not args.table:
        runs = known(args.output, "runs") | {"recorded": recorded()}
        record(args.output, [row(n, r) for n, r in runs.items()], "rows")
        record(args.output, compared(work), "compared")
    table(known(args.output))


if __name__ == "__main__":
    main()
