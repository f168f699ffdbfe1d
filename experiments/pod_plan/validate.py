"""Predicted against measured: peak memory and FLOPs of ten configs on this CPU, each in processes of its own.

python experiments/pod_plan/validate.py --smollm2 FOLDER     # about ten minutes on two cores; writes validation.json

Memory.  A process loads the models and scores a group of candidates twice.  The first time everything is compiled; then
all arrays are dropped and the kernel's mark of the highest resident memory is reset.  Measured is by how much the mark
rises the second time; predicted is the plan's peak, but for the export, which is not run here, times the number of
(virtual) devices, which share the process's memory.

FLOPs.  This machine's virtual processors have no counters.  Measured is XLA's own count (`Lowered.cost_analysis`) of a
copy of each program without loops: scans, maps and while loops are unrolled in Python, as often as the plan assumes.
"""

import ctypes
import functools
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

MINI = Path(__file__).parents[1] / "japanese_math_mini"


def configs(models: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """{name: (a run's config, how many devices)}."""
    names = [str(models / n) for n in "abc"]

    def task(score: str, limit: int, new: int = 4) -> dict[str, Any]:
        data = {
            s: {"path": str(MINI / "data" / f"two_skills_{s}.jsonl"), "limit": limit} for s in ("search", "heldout")
        }
        more = {"pattern": r"(\d+)", "max_new_tokens": new} if score == "generation" else {}
        return {"name": score, "prompt": "{prompt}", "answer": "{number}", "score": score, **data, **more}

    def merge(
        method: str, task: dict[str, Any], sources: list[str], base: str | None = None, **more: Any
    ) -> dict[str, Any]:
        gene = "t" if method == "slerp" else "weight"
        recipe = {"merge_method": method, "models": [{"model": m} for m in sources], "dtype": "float32", **more}
        recipe |= {} if base is None else {"base_model": base}
        return {"recipe": recipe, "genome": {gene: [0, 1]}, "tasks": [task]}

    def path(task: dict[str, Any]) -> dict[str, Any]:
        search = {"population": 4, "evaluations": 4}
        return {"path": {"models": names[:2], "repeats": 1, "scaling": "none"}, "tasks": [task], "search": search}

    mini = [str(MINI / "models" / n) for n in ("japanese", "mathematics", "addition")]
    sparse = {"parameters": {"density": 0.5}}
    return {
        "linear, likelihood": (merge("linear", task("likelihood", 32), names), 1),
        "dare_ties, likelihood": (merge("dare_ties", task("likelihood", 32), names[1:], names[0], **sparse), 1),
        "ties, likelihood": (merge("ties", task("likelihood", 32), names[1:], names[0], **sparse), 1),
        "linear, likelihood, two members at once": (
            merge("linear", task("likelihood", 16), names) | {"members_per_device": 2},
            1,
        ),
        "slerp, generation": (merge("slerp", task("generation", 16), names[:2], names[0]), 1),
        "dare_ties, generation": (merge("dare_ties", task("generation", 64), names[1:], names[0], **sparse), 1),
        "path, likelihood": (path(task("likelihood", 16)), 1),
        "path, generation": (path(task("generation", 16)), 1),
        "linear, likelihood, pop 2": (merge("linear", task("likelihood", 16), names[:2]), 2),
        "miniature, task arithmetic, generation, pop 2 x model 2": (
            merge("task_arithmetic", task("generation", 256, 8), mini, str(MINI / "models" / "base"))
            | {"mesh": {"pop": 2, "model": 2}},
            4,
        ),
    }


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def memory(setup: Any) -> dict[str, Any]:
    """What the plan says and what the kernel saw."""
    import jax

    from jevomerge.planning.measure import plan_on
    from jevomerge.planning.programs import first_generation

    population = first_generation(setup)[: setup.judge.group]
    plan = plan_on(setup, setup.mesh, setup.config.members_per_device or 1)

    def once() -> None:
        candidates = setup.problem.load(setup.mesh)
        for scores in setup.judge.members(candidates, population):
            assert scores

    once()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    assert not [x for x in jax.live_arrays() if x.nbytes > 1 << 24]
    most = max(u.merged + u.cache + u.temporaries for u in plan.uses if u.runs)  # nothing is exported here
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is now VmRSS
    once()
    return {
        "predicted": (plan.sources + plan.prepared + most) * setup.mesh.size,
        "measured": resident("VmHWM") - before,
        "by_kind": {
            "sources": plan.sources,
            "prepared": plan.prepared,
            **{u.name: {"merged": u.merged, "cache": u.cache, "temporaries": u.temporaries} for u in plan.uses},
        },
    }


def flops(setup: Any) -> dict[str, Any]:
    """The plan's count, and XLA's of the same programs without loops."""
    import jax

    from jevomerge.devices.mesh import by_member
    from jevomerge.planning.cost import cost_of
    from jevomerge.planning.programs import programs

    kept: list[Any] = []
    found: list[float] = []

    class Shardings:
        """Stands in for a compiled program: where its results lie."""

        def __init__(self, program: Any):
            place = by_member(setup.mesh)
            self.output_shardings = jax.tree.map(lambda _: place, program.traced.out_info)
            kept.append(program)

    def trace(use: Any) -> None:
        for _ in programs(setup, setup.judge, setup.problem.load(setup.mesh, abstract=True), use):
            pass

    trace(Shardings)
    kept = [p._replace(trips={k: float(round(v)) for k, v in p.trips.items()}) for p in kept]
    predicted = [cost_of(p.traced.jaxpr, p.trips).flops for p in kept]
    trips: dict[str, float] = {}

    def scan(f: Any, init: Any, xs: Any, length: int | None = None) -> Any:
        carry, ys = init, []
        for i in range(jax.tree.leaves(xs)[0].shape[0]):
            carry, y = f(carry, jax.tree.map(lambda x, i=i: x[i], xs))
            ys.append(y)
        return carry, jax.tree.map(lambda *y: jax.numpy.stack(y), *ys)

    def mapped(f: Any, xs: Any, *, batch_size: int | None = None) -> Any:
        if batch_size is not None:
            return jax.vmap(f)(xs)
        return scan(lambda _, x: (None, f(x)), None, xs)[1]

    def while_loop(condition: Any, body: Any, state: Any) -> Any:
        return functools.reduce(lambda s, _: body(s), range(int(trips["decode"])), state)

    def fori_loop(lower: Any, upper: Any, body: Any, state: Any) -> Any:
        return functools.reduce(lambda s, t: body(jax.numpy.int32(t), s), range(int(trips["hops"])), state)

    jax.lax.scan, jax.lax.map, jax.lax.while_loop, jax.lax.fori_loop = scan, mapped, while_loop, fori_loop
    trips |= {k: v for p in kept for k, v in p.trips.items()}
    jax.clear_caches()

    def count(program: Any) -> Shardings:
        found.append(program.traced.lower().cost_analysis()["flops"])
        return Shardings(program)

    trace(count)
    return {"predicted": sum(predicted), "measured": sum(found)}


def child(kind: str, config: str) -> None:
    from jevomerge.config import RunConfig
    from jevomerge.search.setup import set_up

    # `read_run` would follow the links of `main` and find one model several times.
    setup = set_up(RunConfig.model_validate({"name": "validation", **json.loads(config)}))
    print(json.dumps({"memory": memory, "flops": flops}[kind](setup)))


def main() -> None:
    parser = make_parser(__doc__, __file__, "validation.json", parts=("memory", "flops"))
    parser.add_argument("--smollm2", type=Path, required=True, metavar="FOLDER", help="folder of SmolLM2-135M")
    parser.add_argument("--only", help="the config of this name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name in "abc":
            (Path(work) / name).symlink_to(args.smollm2.resolve())
        chosen = {n: c for n, c in configs(Path(work)).items() if args.only in (None, n)}
        for kind, (name, (config, devices)) in itertools.product(args.parts, chosen.items()):
            if known(args.output, name, kind) is not None:
                continue
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
            command = [sys.executable, __file__, "--child", kind, json.dumps(config)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{name}: {kind} failed\n{done.stderr}", flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            row["off_by"] = row["predicted"] / row["measured"] - 1
            record(args.output, row, name, kind)
            numbers = f"{row['predicted']:.4g} predicted, {row['measured']:.4g} measured, {100 * row['off_by']:+.1f} %"
            print(f"{name}: {kind} {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
