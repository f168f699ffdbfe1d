"""The benchmark of README.md: `python run.py --help`.

Pinned to one core by default: on a shared machine a library whose threads wait for each other by spinning
(PyTorch's OpenMP) would be slowed down many times by its neighbours, which says nothing about the library.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

PARTS = ("candidates", "traces", "peak", "merge_in_scan", "generation", "startup")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct; without it: only the miniature")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml 0.1.5; without it mergekit is left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench_search")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("parts", nargs="*", metavar="PART", default=PARTS, help=f"default: {' '.join(PARTS)}")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    every_core = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every_core)[-args.cores :])  # before XLA and PyTorch count cores
    args.work.mkdir(parents=True, exist_ok=True)
    import jax
    import torch
    import transformers

    torch.set_num_threads(args.cores)
    import parts
    from common import miniature, record, smollm2

    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"cores": args.cores, "cores_of_machine": os.cpu_count(), "load_before": os.getloadavg()[0]}
    record("machine", {**versions, **machine, "python": platform.python_version()}, args.results)
    problems = [miniature()] + ([smollm2(args.smollm2, args.work)] if args.smollm2 else [])
    for part in args.parts:
        if part == "startup":
            runs = [parts.startup(problems[0], args.work, every_core) for _ in range(2)]
            record(part, runs, args.results)
        elif part in ("candidates", "traces"):
            for problem in problems:
                values = getattr(parts, part)(problem, args.mergekit, args.work)
                record(f"{part}: {problem.name}", values, args.results)
        elif args.smollm2:
            record(part, getattr(parts, part)(problems[1]), args.results)


if __name__ == "__main__":
    main()
