"""How fast is a merge to disk, and how much memory does it take, beside mergekit and a floor?

Every contender is a process of its own, measured from outside by `os.wait4`.  This parent imports nothing large:
on Linux a child's peak of resident memory starts at its parent's.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

HERE = Path(__file__).parent
METHODS = ("linear", "slerp", "ties", "dare_ties", "model_stock", "karcher")
WITH_BASE = ("ties", "dare_ties", "model_stock")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, __file__, work=True, parts=METHODS)
    parser.add_argument(
        "--smollm2", type=Path, required=True, metavar="FOLDER", help="folder of SmolLM2-135M in float32"
    )
    parser.add_argument(
        "--mergekit", type=Path, metavar="FILE", help="mergekit-yaml 0.1.5; without it mergekit is left out"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 5], help="numbers of sources (slerp: always two)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    return parser.parse_args()


def recipe(method: str, models: Sequence[Path], base: Path, dtype: str) -> dict[str, Any]:
    """What mergekit and jevomerge both read (JSON is YAML)."""
    entries: list[dict[str, Any]] = [{"model": str(m)} for m in models]
    if method in ("linear", "ties", "dare_ties"):
        for i, entry in enumerate(entries):
            entry["parameters"] = {"weight": 0.2 + 0.1 * i} | ({} if method == "linear" else {"density": 0.5})
    out: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": dtype}
    if method in WITH_BASE:
        out["base_model"] = str(base)
    if method == "slerp":
        out |= {"base_model": str(models[0]), "parameters": {"t": 0.4}}
    return out


def run(command: Sequence[Any], out: Path) -> dict[str, Any]:
    """Run a process that writes the folder `out`; its times and peak, and what it printed as JSON, if it did."""
    os.sync()  # nobody writes back what the one before wrote
    with tempfile.TemporaryFile() as printed:
        start = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=printed, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{text[-2000:]}")
    last = text.strip().rsplit("\n", 1)[-1]
    said = json.loads(last) if last.startswith("{") else {}
    written = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    assert written > 1e8, f"{out} has no model"
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": usage.ru_maxrss / 1024} | said


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Key by key; a part that only some runs had (a compilation) counts as zero in the others."""
    keys = dict.fromkeys(k for run in runs for k in run)
    return {k: round(statistics.median(run.get(k, 0.0) for run in runs), 3) for k in keys}


def contest(contenders: dict[str, Callable[[Path], Sequence[Any]]], work: Path, rounds: int) -> dict[str, Any]:
    """Medians of each, taken in turns, and how far the outputs of mergekit and jevomerge lie apart."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    values: dict[str, Any] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="outputs-", dir=work) as outputs:
            for name, command in contenders.items():
                out = Path(outputs) / name
                taken[name].append(run(command(out), out))
            if number == 0 and "mergekit" in contenders:
                pair = [Path(outputs) / name / "model.safetensors" for name in ("mergekit", "jevomerge")]
                found = subprocess.check_output([sys.executable, HERE / "tools.py", "compare", *pair])
                values["apart"] = json.loads(found)
    return values | {"rounds": rounds} | {name: median(runs) for name, runs in taken.items()}


def summary(values: dict[str, Any], inputs: int, leaf_mb: float) -> dict[str, float]:
    """The ratios that have goals, and the constant of the memory bound."""
    ours, merge, floor = values["jevomerge"], values["in_process"], values["floor"]
    found = {
        # Without the time in fsync, which is the disk's.
        "floor_ratio": (merge["merge_seconds"] - merge["fsync"]) / (floor["loop_seconds"] - floor["fsync"]),
        "floor_ratio_with_fsync": merge["merge_seconds"] / floor["loop_seconds"],
        "constant_mb": ours["peak_mb"] - (inputs + 1) * leaf_mb,
        "constant_over_imports_mb": merge["peak_mb"] - merge["imported_mb"] - (inputs + 1) * leaf_mb,
    }
    if rival := values.get("mergekit"):
        found |= {f"mergekit_{k}_ratio": rival[k] / ours[k] for k in ("seconds", "cpu_seconds", "peak_mb")}
    return {k: round(v, 3) for k, v in found.items()}


def table(results: dict[str, Any]) -> str:
    """README.md's table."""
    lines = [
        "| | mergekit s | jevomerge s | ratio | (cpu) | mergekit MB | jevomerge MB | ratio | constant MB | x floor |"
    ]
    lines += ["|---" + "|---:" * 9 + "|"]
    for part, values in results.items():
        if rival := values.get("mergekit"):
            ours, found = values["jevomerge"], values["summary"]
            cells = [f"{rival['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{found['mergekit_seconds_ratio']:.1f}"]
            cells += [
                f"({found['mergekit_cpu_seconds_ratio']:.1f})",
                f"{rival['peak_mb']:.0f}",
                f"{ours['peak_mb']:.0f}",
            ]
            cells += [f"{found['mergekit_peak_mb_ratio']:.1f}", f"{found['constant_mb']:.0f}"]
            lines += [f"| {part} | {' | '.join(cells)} | {found['floor_ratio_with_fsync']:.1f} |"]
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])  # before XLA and PyTorch count cores
    args.work.mkdir(parents=True, exist_ok=True)
    if known(args.output, "machine") is None:
        machine = {"cores": args.cores, "load_before": os.getloadavg()[0], "python": platform.python_version()}
        record(args.output, machine, "machine")
    python = Path(sys.executable)
    tools = [python, HERE / "tools.py"]
    for short in args.dtypes:
        dtype, models = DTYPES[short], args.work / short
        free = shutil.disk_usage(args.work).free
        if free < 8e9:
            raise SystemExit(f"{args.work} has {free / 1e9:.1f} GB free, 8 are needed")
        subprocess.run([*tools, "make", args.smollm2, models, dtype, str(max(args.counts))], check=True)
        leaf = json.loads(subprocess.check_output([*tools, "largest", models / "base"]))
        for method in args.parts:
            for count in [2] if method == "slerp" else args.counts:
                part = f"{method}, {count} sources, {short}"
                if known(args.output, part) is not None:
                    continue
                inputs = [models / f"source{i}" for i in range(count)]
                file = args.work / f"{method}-{count}-{short}.yaml"
                file.write_text(json.dumps(recipe(method, inputs, models / "base", dtype)))
                read = inputs + ([models / "base"] if method in WITH_BASE else [])
                contenders: dict[str, Callable[[Path], Sequence[Any]]] = {
                    "floor": lambda out, read=read: [*tools, "floor", out, *read],
                    "jevomerge": lambda out, file=file: [python, "-m", "jevomerge", "merge", file, out],
                    "in_process": lambda out, file=file: [python, HERE / "ours.py", file, out],
                }
                if args.mergekit:
                    contenders["mergekit"] = lambda out, file=file: [args.mergekit, file, out]
                values = contest(contenders, args.work, args.rounds)
                values["summary"] = summary(values, len(read), leaf)
                record(args.output, values, part)
                print(part, json.dumps(values, indent=1), flush=True)
                file.unlink()
    print(table(known(args.output)))


if __name__ == "__main__":
    main()
