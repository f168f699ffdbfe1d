"""How fast is the search, beside a PyTorch loop and mergekit, and how far is it from what the machine can do?

Pinned to one core by default: on a shared machine a library whose threads wait for each other by spinning
(PyTorch's OpenMP) would be slowed down many times by its neighbours, which says nothing about the library.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

PARTS = ("candidates", "traces", "peak", "merge_in_scan", "generation", "startup")


def arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, __file__, work=True, parts=PARTS)
    parser.add_argument(
        "--smollm2", type=Path, metavar="FOLDER", help="folder of SmolLM2-135M-Instruct; without it: only the miniature"
    )
    parser.add_argument(
        "--mergekit", type=Path, metavar="FILE", help="mergekit-yaml 0.1.5; without it mergekit is left out"
    )
    parser.add_argument("--cores", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    every_core = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every_core)[-args.cores :])  # before XLA and PyTorch count cores
    args.work.mkdir(parents=True, exist_ok=True)
    import jax
    import torch  # late, for --help is also for those who do not have it
    import transformers

    torch.set_num_threads(args.cores)
    import parts
    from common import miniature, smollm2

    def measure(name: str, work: Callable[[], Any]) -> None:
        if known(args.output, name) is None:
            record(args.output, work(), name)
            print(name, json.dumps(known(args.output, name), indent=1), flush=True)

    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"cores": args.cores, "cores_of_machine": os.cpu_count(), "load_before": os.getloadavg()[0]}
    measure("machine", lambda: {**versions, **machine, "python": platform.python_version()})
    problems = [miniature()] + ([smollm2(args.smollm2, args.work)] if args.smollm2 else [])
    for part in args.parts:
        if part == "startup":
            measure(part, lambda: [parts.startup(problems[0], args.work, every_core) for _ in range(2)])
        elif part in ("candidates", "traces"):
            for problem in problems:
                contest = partial(getattr(parts, part), problem, args.mergekit, args.work)
                measure(f"{part}: {problem.name}", contest)
        elif args.smollm2:
            measure(part, partial(getattr(parts, part), problems[1]))


if __name__ == "__main__":
    main()
