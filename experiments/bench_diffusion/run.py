"""How fast are candidates drawn, merged to disk and compiled, beside PyTorch, mergekit and NumPy?"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arguments import known, make_parser, record
from models import LENGTH, NAMES, PROMPTS, UNET, UNETS, make
from rivals import TorchLoop, header_of

HERE = Path(__file__).parent
GROUPS = ("attn", "conv")
STEPS = 4
AT_ONCE = {"mini": 6, "31M": 1}  # candidates of a round
MERGED = "360M"
WEIGHTS = ((0.5, 0.3, 0.2), (0.2, 0.2, 0.6))  # of a merge to disk, by group and source
FILTERS = ("to_q", "to_k", "to_v", "to_out.0")  # which tensors are `attn`
DEPTH, WIDTH = 10, 256  # of a stack that is compiled
STACKS = ("scanned", "unrolled")
KERNELS = {"convolution, as stored": "OIHW", "convolution, turned": "HWIO"}  # in a loop
OURS, TORCH = "jevomerge", "PyTorch"
LIMIT = 0.02  # of all values of pictures, how many may differ at all
seen: dict[str, np.ndarray] = {}  # what has been drawn


def score(pictures: np.ndarray, rows: Sequence[Any]) -> np.ndarray:
    """A judge that costs nothing."""
    seen[OURS] = pictures
    means: np.ndarray = pictures.mean(axis=(1, 2, 3)) / 255
    return means


# --- candidates ---------------------------------------------------------------------------------------------


@functools.cache
def prepared(work: Path, name: str) -> Any:
    """The run of a U-Net, as `jevomerge evolve` sets it up."""
    from jevomerge.config import read_run
    from jevomerge.search.setup import set_up

    folders, count = make(work, name), PROMPTS[name]
    file = str(folders[0].parent / "prompts.jsonl")
    task = {
        "name": "draw", "search": {"path": file, "rows": [0, count]},
        "heldout": {"path": file, "rows": [count, count + 1]},
        "prompts": "{prompt}", "steps": STEPS, "guidance": 0, "score": {"function": score},
    }  # fmt: skip
    models = [{"model": str(folder)} for folder in folders]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float32"}
    genome = {"weight": {"range": [0, 1], "by": "sakana"}}
    search = {"population": 4, "evaluations": 8}
    return set_up(read_run({"name": "b", "recipe": recipe, "genome": genome, "tasks": [task], "search": search}))


def batch_of(setup: Any) -> tuple[Any, Any]:
    """The layout and the only batch of a candidate."""
    from jevomerge.fitness.rollouts.rollout import make_batches

    (task,) = setup.judge.tasks
    examples, layouts = setup.judge.chosen(task, "search"), setup.judge.layouts["draw"]
    ((layout, _, order),) = make_batches(task.rollout, setup.problem.model, examples, layouts)
    return layout, order


def ways(work: Path, name: str) -> tuple[dict[str, Callable[[np.ndarray], None]], Any]:
    """From weights (2, sources) to pictures in `seen`, and only to what is merged."""
    import jax
    import torch

    from jevomerge.fitness.members import make_members
    from jevomerge.models.diffusion.pipeline import draw

    setup = prepared(work, name)
    candidates, (_, order) = setup.problem.load(setup.mesh), batch_of(setup)
    loop, rollout = TorchLoop(make(work, name), STEPS), setup.judge.tasks[0].rollout
    keys = jax.random.wrap_key_data(order.keys, impl="threefry2x32")
    noise = np.asarray(draw(keys, rollout.pipeline.latents(*rollout.size)))[0].transpose(0, 3, 1, 2)
    given = [torch.tensor(np.array(x)) for x in (noise, order.told.context, order.told.pooled, order.told.time_ids)]

    def genome(weights: np.ndarray) -> np.ndarray:
        places = {f"{group}/{source}/weight": w for group, row in zip(GROUPS, weights, strict=True)
                  for source, w in zip(NAMES, row, strict=True)}  # fmt: skip
        return np.array([[places[gene] for gene in setup.problem.names]])

    def ours(weights: np.ndarray) -> None:
        list(setup.judge.members(candidates, genome(weights)))

    def theirs(weights: np.ndarray) -> None:
        loop.merge(weights)
        seen[TORCH] = loop.pictures(loop.latents(*given))
        seen[TORCH].mean(axis=(1, 2, 3))

    def merge(weights: np.ndarray) -> None:
        jax.block_until_ready(make_members(candidates, genome(weights).astype(np.float32), mesh=setup.mesh))

    return {OURS: ours, TORCH: theirs}, {OURS: merge, TORCH: loop.merge}


def timed(work: Callable[[np.ndarray], None], given: Sequence[np.ndarray]) -> list[float]:
    """Seconds of the clock and of the processor for each."""
    began = time.perf_counter(), time.process_time()
    for one in given:
        work(one)
    taken = time.perf_counter() - began[0], time.process_time() - began[1]
    return [round(t / len(given), 5) for t in taken]


def candidates(whole: Any, merges: Any, count: int, seed: int) -> dict[str, Any]:
    """What a candidate takes both ways, one way after the other, and how many values of its pictures differ."""
    genomes = [*np.random.default_rng(seed).uniform(0.1, 0.6, (count, len(GROUPS), len(NAMES)))]
    order = list(whole) if seed % 2 else list(reversed(whole))
    taken = {name: timed(whole[name], genomes) for name in order}
    merging = {name: timed(merges[name], genomes) for name in order}
    differing = float((seen[OURS] != seen[TORCH]).mean())
    assert differing < LIMIT, f"{differing} of the pictures' values differ"
    between = float(((seen[TORCH] > 0) & (seen[TORCH] < 255)).mean())
    load = round(os.getloadavg()[0], 1)
    return {"seconds": taken, "merging": merging, "differing": differing, "between": between, "load": load}


# --- merges to disk -----------------------------------------------------------------------------------------


def recipe(folders: Sequence[Path], file: str = "") -> dict[str, Any]:
    """What mergekit and jevomerge both read (JSON is YAML); mergekit wants the file."""

    def weights(i: int) -> list[dict[str, Any]]:
        return [*({"filter": part, "value": WEIGHTS[0][i]} for part in FILTERS), {"value": WEIGHTS[1][i]}]

    models = [{"model": str(f / file), "parameters": {"weight": weights(i)}} for i, f in enumerate(folders)]
    return {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float16"}


# A process of its own starts each contender: the peak of one's memory counts that of the process it is a child of.
START = """
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
used = usage.ru_utime + usage.ru_stime
print(json.dumps({"seconds": time.perf_counter() - began, "cpu": used, "peak_mb": usage.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(command: Sequence[Any]) -> dict[str, float]:
    """A process' seconds of the clock and of the processor, and the peak of its memory in MB."""
    os.sync()  # nobody writes back what the one before wrote
    done = subprocess.run([sys.executable, "-c", START, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return {key: round(value, 2) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def values(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of what was written."""
    path = next(p for p in (folder / UNET, folder / "model.safetensors") if p.exists())
    (head, header), data = header_of(path), path.read_bytes()

    def tensor(start: int, stop: int) -> np.ndarray:
        return np.frombuffer(data, np.float16, (stop - start) // 2, len(head) + start).astype(np.float32)

    return {name: tensor(*entry["data_offsets"]) for name, entry in header.items()}


def merges(work: Path, mergekit: Path | None, seed: int) -> dict[str, Any]:
    """Each contender once, forwards or backwards, and how far what it wrote lies from NumPy's sums in float32."""
    folders = [(work / MERGED / name).resolve() for name in NAMES]
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="outputs-", dir=work) as scratch:
        outputs = Path(scratch)
        for name, file in (("ours", ""), ("theirs", UNET)):
            (outputs / f"{name}.yaml").write_text(json.dumps(recipe(folders, file)))
        rival = [sys.executable, HERE / "rivals.py"]
        rest = [json.dumps(WEIGHTS), *folders]
        commands: dict[str, list[Any]] = {
            "jevomerge": [sys.executable, "-m", "jevomerge", "merge", outputs / "ours.yaml", outputs / "jevomerge"],
            "numpy": [*rival, "numpy", outputs / "numpy", *rest],
            "torch": [*rival, "torch", outputs / "torch", *rest],
        }
        if mergekit:
            commands["mergekit"] = [mergekit, outputs / "theirs.yaml", outputs / "mergekit"]
        for name in commands if seed % 2 else reversed(commands):
            found[name] = run(commands[name])
        exact = values(outputs / "numpy")
        for name in commands:
            own = values(outputs / name)
            assert own.keys() == exact.keys()
            found[name]["apart"] = max(float(np.abs(own[n] - x).max()) for n, x in exact.items())
    return found


# --- compilation --------------------------------------------------------------------------------------------


def compiled(name: str, work: Path) -> dict[str, float]:
    """Seconds until a program is ready: XLA's, and with tracing."""
    import jax

    taken = {"xla": 0.0}

    def on_event(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            taken["xla"] += seconds

    jax.config.update("jax_enable_compilation_cache", False)
    lower, check = program(name, work)
    jax.monitoring.register_event_duration_secs_listener(on_event)
    began = time.perf_counter(), time.process_time()
    ready = lower().compile()
    found = {"seconds": time.perf_counter() - began[0], "cpu": time.process_time() - began[1], **taken}
    return {key: round(t, 3) for key, t in (found | check(ready)).items()}


def program(name: str, work: Path) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]:
    """What lowers it, and what measures one run of it."""
    import jax
    import jax.numpy as jnp

    from jevomerge.fitness.members import make_members, run_members
    from jevomerge.models.diffusion.blocks import transformer_block
    from jevomerge.models.specs import flatten, unflatten
    from jevomerge.models.tree import Tree, sketched

    def ran(*given: Any) -> Callable[[Any], dict[str, float]]:
        def often(ready: Any) -> dict[str, float]:
            times = []
            for _ in range(5):
                began = time.perf_counter()
                jax.block_until_ready(ready(*given))
                times.append(time.perf_counter() - began)
            return {"runs": min(times)}

        return often

    if name in UNETS:
        setup = prepared(work, name)
        layout, order = batch_of(setup)
        found, genome = setup.problem.load(setup.mesh), np.full((1, len(setup.problem.names)), 0.3, np.float32)
        made = make_members(found, genome, mesh=setup.mesh)
        static = {"mesh": setup.mesh, "slots": None, "model": setup.problem.model, "dtype": "float32"}
        static |= {"rollout": setup.judge.tasks[0].rollout, "layout": layout}
        return lambda: run_members.lower(found, made, genome, order, **static), ran(found, made, genome, order)

    if name in KERNELS:
        order, x, weight = KERNELS[name], jnp.ones((60, 8, 8, 16)), jnp.ones((16, 16, 3, 3))

        def convolved(weight: Any, x: Any) -> Any:
            kernel = weight if order == "OIHW" else weight.transpose(2, 3, 1, 0)
            layouts = ("NHWC", order, "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layouts)

        looped = jax.jit(lambda weight, x: jax.lax.fori_loop(0, STEPS, lambda _, x: convolved(weight, x), x))
        return lambda: looped.lower(weight, x), ran(weight, x)

    block = functools.partial(transformer_block, context=jnp.ones((4, LENGTH, 64)), heads=4)
    x = jnp.ones((4, 64, WIDTH))
    wanted = sketched(lambda sketch: sketch.stack("blocks", DEPTH, block, x))
    leaves = {w.path: 0.02 * jnp.ones((DEPTH, *w.shape)) for w in wanted}
    stored = unflatten(leaves)

    def scanned(params: Any, x: Any) -> Any:
        return Tree(params).stack("blocks", DEPTH, block, x)

    def unrolled(params: Any, x: Any) -> Any:
        flat = flatten(params["blocks"])
        for i in range(DEPTH):
            x = block(Tree(unflatten({path: leaf[i] for path, leaf in flat.items()})), x)
        return x

    way = {"scanned": scanned, "unrolled": unrolled}[name]
    stepped = jax.jit(lambda params, x: jax.lax.fori_loop(0, STEPS, lambda _, x: way(params, x), x))
    return lambda: stepped.lower(stored, x), ran(stored, x)


# --- tables -------------------------------------------------------------------------------------------------


def spread(numbers: Any) -> str:
    """A median, lowest to highest."""
    return f"{np.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def table(results: dict[str, Any]) -> None:
    """README.md's tables."""
    if found := results.get("candidates"):
        print("| U-Net | ms of the processor | PyTorch takes times as long | of the processor | merging, of all |")
        print("|---|---:|---:|---:|---:|")
        for name, rounds in found.items():
            own, other = (np.array([r["seconds"][way] for r in rounds.values()]) for way in (OURS, TORCH))
            parts = {
                way: [r["merging"][way][1] / r["seconds"][way][1] for r in rounds.values()] for way in (OURS, TORCH)
            }
            shares = [np.median(part) for part in parts.values()]
            cells = [f"{1000 * np.median(own[:, 1]):.0f}", *(spread((other / own)[:, i]) for i in range(2))]
            print(f"| {name} | {' | '.join(cells)} | {', '.join(f'{100 * s:.1f} %' for s in shares)} |")
        for name, rounds in found.items():
            most = {key: max(r[key] for r in rounds.values()) for key in ("differing", "between")}
            print(f"\n{name}: {len(rounds)} rounds, load {np.median([r['load'] for r in rounds.values()])}, {most}")
    if rounds := list(results.get("merges", {}).values()):
        print("\n| merge to disk | seconds | takes times as long | of the processor | MB | times the memory | apart |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name in [name for name in rounds[0] if name != "load"]:
            pairs = [(r[name], r[OURS]) for r in rounds]
            ratios = {key: spread([a[key] / b[key] for a, b in pairs]) for key in ("seconds", "cpu", "peak_mb")}
            middle = {key: np.median([r[name][key] for r in rounds]) for key in ("seconds", "peak_mb")}
            apart = max(r[name]["apart"] for r in rounds)
            cells = [f"{middle['seconds']:.1f}", ratios["seconds"], ratios["cpu"], f"{middle['peak_mb']:.0f}"]
            print(f"| {name} | {' | '.join(cells)} | {ratios['peak_mb']} | {apart:.1g} |")
        print(f"\n{len(rounds)} rounds, load {np.median([r['load'] for r in rounds])}")
    if found := results.get("compile"):
        print("\n| program | seconds to compile | of the processor | XLA | a run, ms |\n|---|---:|---:|---:|---:|")
        for name, rounds in found.items():
            cells = [spread([r[key] for r in rounds.values()]) for key in ("seconds", "cpu", "xla")]
            print(f"| {name} | {' | '.join(cells)} | {1000 * min(r['runs'] for r in rounds.values()):.1f} |")


def main() -> None:
    parser = make_parser(__doc__, __file__, work=True, seeds=5, parts=("candidates", "merges", "compile"), table=True)
    parser.add_argument("--mergekit", type=Path, metavar="FILE", help="mergekit-pytorch 0.1.5, else it is left out")
    parser.add_argument("--cores", type=int, default=1, help="for candidates and programs (default: 1)")
    parser.add_argument("--program", help="only compile this one, and print how long it took")
    args = parser.parse_args()
    if {*args.parts} & {"candidates", "compile"}:  # before XLA and PyTorch count cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
    if args.program:
        print(json.dumps(compiled(args.program, args.work)))
        return

    def missing(*place: str) -> list[int]:
        return [s for s in range(args.seeds) if known(args.output, *place, str(s)) is None]

    for name in [] if args.table or "candidates" not in args.parts else AT_ONCE:
        if seeds := missing("candidates", name):
            whole, merging = ways(args.work, name)
            candidates(whole, merging, 2, args.seeds)  # compiles, also PyTorch's kernels
        for seed in seeds:
            record(args.output, candidates(whole, merging, AT_ONCE[name], seed), "candidates", name, str(seed))
    if not args.table and "merges" in args.parts and (seeds := missing("merges")):
        make(args.work, MERGED)
        for seed in seeds:
            record(args.output, merges(args.work, args.mergekit, seed), "merges", str(seed))
    for name in [] if args.table or "compile" not in args.parts else (*AT_ONCE, *STACKS, *KERNELS):
        for seed in missing("compile", name):
            command = [sys.executable, __file__, "--program", name, "--work", str(args.work)]
            printed = subprocess.check_output(command, text=True).strip().rsplit("\n", 1)[-1]
            record(args.output, json.loads(printed), "compile", name, str(seed))
    table(known(args.output))


if __name__ == "__main__":
    main()
