"""What do pictures cost a search: features kept, computed each time, text of that length, and a PyTorch loop?"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import known, make_parser, record
from models import ROWS, make

HERE = Path(__file__).parent
KEPT, EACH, TEXT, TORCH = "features kept", "features computed each time", "text of that length", "PyTorch, kept"
Way = Callable[[np.ndarray], np.ndarray]


# --- candidates ---------------------------------------------------------------------------------------------


def configuration(work: Path, data: str) -> dict[str, Any]:
    """A run's YAML: a weight for the model that sees, and one for the other."""
    file = str(work / f"{data}.jsonl")
    task = {
        "name": "look", "prompt": "{question}", "answer": "{answer}",
        "image": "{image}" if data == "pictures" else None,
        "search": {"path": file, "rows": [0, ROWS]}, "heldout": {"path": file, "rows": [ROWS, ROWS + 1]},
    }  # fmt: skip
    models = [{"model": str(work / name)} for name in ("llava", "text")]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float32"}
    search = {"population": 4, "evaluations": 8}
    return {"name": "bench", "recipe": recipe, "genome": {"weight": [0, 1]}, "tasks": [task], "search": search}


def scorers(work: Path) -> dict[str, Way]:
    """From a genome (1, n) to the likelihoods of all answers, by each way."""
    from rivals import TorchLoop

    from jevomerge.config import read_run
    from jevomerge.fitness.rollouts.rollout import make_batches
    from jevomerge.search.setup import set_up

    def ours(data: str) -> tuple[Any, Way]:
        setup = set_up(read_run(configuration(work, data)))
        candidates = setup.problem.load(setup.mesh)

        def members(genome: np.ndarray) -> np.ndarray:
            ((scores,),) = setup.judge.members(candidates, genome)
            return scores.fitness["look"]

        return setup, members

    setup, kept = ours("pictures")
    forgetful, each = ours("pictures")
    forget(forgetful.judge.tasks[0].rollout.eyes)
    (task,), model = setup.judge.tasks, setup.problem.model
    examples, layouts = setup.judge.chosen(task, "search"), setup.judge.layouts["look"]
    batches, loop = list(make_batches(task.rollout, model, examples, layouts)), TorchLoop(work / "llava", work / "text")

    def torch(genome: np.ndarray) -> np.ndarray:
        loop.merge(genome[0].tolist())
        return loop.score(batches)

    return {KEPT: kept, EACH: each, TEXT: ours("texts")[1], TORCH: torch}


def forget(eyes: Any) -> None:
    """Make eyes look at a picture whenever it is asked for; pixels are kept."""
    import jax.numpy as jnp

    from jevomerge.models.vision.pictures import open_picture
    from jevomerge.models.vision.seeing import features

    pixels: dict[str, Any] = {}

    def look(picture: Any) -> np.ndarray:
        if picture.digest not in pixels:
            views = eyes.model.views(open_picture(picture.content, picture.name), eyes.processor)
            pixels[picture.digest] = jnp.asarray(views.pixels)
        seen = features(eyes._params, eyes.model, pixels[picture.digest], picture.layout, dtype=eyes.dtype)
        return np.asarray(seen)

    eyes.look = look


def candidates(ways: dict[str, Way], seed: int) -> dict[str, Any]:
    """Seconds of the clock and of the processor that one candidate takes each way, and how far answers lie apart."""
    genome = np.random.default_rng(seed).uniform(0.2, 0.8, (1, 2))
    seconds, found = {}, {}
    for name in ways if seed % 2 else reversed(ways):
        began = time.perf_counter(), time.process_time()
        found[name] = ways[name](genome)
        taken = time.perf_counter() - began[0], time.process_time() - began[1]
        seconds[name] = [round(t, 4) for t in taken]
    apart = {name: float(np.abs(found[name] - found[KEPT]).max()) for name in (EACH, TORCH)}
    return {"seconds": seconds, "apart": apart, "load": round(os.getloadavg()[0], 1)}


# --- merges to disk -----------------------------------------------------------------------------------------


def merges(work: Path) -> dict[str, Any]:
    """Seconds that a merge of the model that sees with the other takes, and a floor that computes nothing."""
    recipe = configuration(work, "pictures")["recipe"]
    for entry, weight in zip(recipe["models"], (0.6, 0.4), strict=True):
        entry["parameters"] = {"weight": weight}
    with tempfile.TemporaryDirectory(prefix="outputs-", dir=work) as outputs:
        file = Path(outputs) / "recipe.yaml"
        file.write_text(json.dumps(recipe))
        commands = {
            "floor": [HERE / "rivals.py", Path(outputs) / "floor", work / "llava", work / "text"],
            "merge": [HERE.parent / "bench_merge" / "ours.py", file, Path(outputs) / "merge"],
        }
        found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
        for name, command in commands.items():
            os.sync()  # nobody writes back what the one before wrote
            printed = subprocess.check_output([sys.executable, *map(str, command)], text=True)
            found[name] = {k: round(v, 4) for k, v in json.loads(printed.strip().rsplit("\n", 1)[-1]).items()}
    return found


# --- tables -------------------------------------------------------------------------------------------------


def spread(values: Any) -> str:
    """A median, lowest to highest."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(results: dict[str, Any]) -> None:
    """README.md's tables."""
    if rounds := list(results.get("candidates", {}).values()):
        times = {name: np.array([r["seconds"][name] for r in rounds]) for name in rounds[0]["seconds"]}
        print("| a candidate takes, of the processor | times as long as with features kept |\n|---|---:|")
        for name, own in times.items():
            if name != KEPT:
                print(f"| {name} | {spread((own / times[KEPT])[:, 1])} |")
        apart = {name: max(r["apart"][name] for r in rounds) for name in rounds[0]["apart"]}
        print(f"\n{len(rounds)} rounds; median load {np.median([r['load'] for r in rounds]):.1f}; apart: {apart}\n")
    if rounds := list(results.get("merges", {}).values()):
        ours, floor = ([r[name] for r in rounds] for name in ("merge", "floor"))
        both = list(zip(ours, floor, strict=True))
        alone = [(o["merge_seconds"] - o["fsync"] - o["compile"]) / (f["loop_seconds"] - f["fsync"]) for o, f in both]
        print("| merge to disk | times the floor |\n|---|---:|")
        print(f"| all of it | {spread([o['merge_seconds'] / f['loop_seconds'] for o, f in both])} |")
        print(f"| processor time | {spread([o['merge_cpu_seconds'] / f['loop_cpu_seconds'] for o, f in both])} |")
        print(f"| without compilation and fsync | {spread(alone)} |")
        print(f"\n{len(rounds)} rounds; median load {np.median([r['load'] for r in rounds]):.1f}")


def main() -> None:
    parser = make_parser(__doc__, __file__, work=True, seeds=5, parts=("candidates", "merges"), table=True)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before XLA and PyTorch count cores
    missing = {p: [s for s in range(args.seeds) if known(args.output, p, str(s)) is None] for p in args.parts}
    if not args.table and any(missing.values()):
        make(args.work)
    if not args.table and missing.get("candidates"):
        ways = scorers(args.work)
        candidates(ways, args.seeds)  # compiles
        for seed in missing["candidates"]:
            record(args.output, candidates(ways, seed), "candidates", str(seed))
    for seed in [] if args.table else missing.get("merges", []):
        record(args.output, merges(args.work), "merges", str(seed))
    table(known(args.output))


if __name__ == "__main__":
    main()
