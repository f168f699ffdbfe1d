"""What the paper's first search needs on TPU slices, planned on a machine without one.

python experiments/pod_plan/run.py [SLICE ...]           # results.json; needs the extra `plan`
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.devices.mesh import make_mesh
from jevomerge.planning.chips import slice_devices
from jevomerge.planning.lengths import expected_lengths
from jevomerge.planning.measure import plan_on
from jevomerge.planning.programs import Program, programs
from jevomerge.planning.report import lines_of, numbers_of
from jevomerge.planning.standins import shapes_beside, stand_in
from jevomerge.search.setup import set_up_stages

CONFIG = Path(__file__).parents[2] / "configs" / "evollm_jp.yaml"
SLICES = {"v5e-16": "v5e:4x4", "v5e-64": "v5e:8x8", "v5e-256": "v5e:16x16"}
MODEL = {"v5e-16": 8, "v5e-64": 4, "v5e-256": 4}  # chips for a candidate, given: to choose them is to compile for each
LENGTHS = (300, 1024)  # new tokens


def main() -> None:
    args = make_parser(__doc__, __file__, parts=SLICES).parse_args()
    for name in args.parts:
        if known(args.output, name) is not None:
            continue
        devices, began, executables = slice_devices(SLICES[name]), time.monotonic(), dict[str, Any]()

        def once(*run: Any, kept: dict[str, Any] = executables) -> Iterator[tuple[Program, Any]]:
            """How long texts are taken to be, changes what is counted and not what is compiled."""
            *rest, compiled = run

            def compiled_once(program: Program, compiled: Callable[[Program], Any] = compiled) -> Any:
                if program.name not in kept:
                    kept[program.name] = compiled(program)
                return kept[program.name]

            yield from programs(*rest, compiled_once)

        with tempfile.TemporaryDirectory() as work:
            config = stand_in(jm.read_config(CONFIG), shapes_beside(CONFIG), Path(work))
            setup, mesh = next(set_up_stages(config, devices)).at("mesh"), make_mesh(None, MODEL[name], devices)
            found = {}
            for length in LENGTHS:
                longer = dataclasses.replace(setup, new_tokens=expected_lengths(setup, length, Path(work)))
                plan = plan_on(longer, mesh, 1, once)
                lines = list(lines_of(plan, name))
                found[str(length)] = numbers_of(plan) | {"text": lines}
                print(f"{name}, texts of {length} tokens", *lines, sep="\n", flush=True)
        record(args.output, found | {"planning_seconds": round(time.monotonic() - began, 1)}, name)


if __name__ == "__main__":
    main()
