"""What a merge of three Qwen3.5-27B and one of three Qwen3-30B-A3B need on TPU slices, planned without one."""

import tempfile
import time
from pathlib import Path
from typing import Any

from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.planning.chips import slice_devices
from jevomerge.planning.measure import Plan, best_plan
from jevomerge.planning.report import lines_of
from jevomerge.planning.standins import shapes_beside, stand_in
from jevomerge.search.setup import set_up

CONFIGS = Path(__file__).parents[2] / "configs"
SLICES = {"v5p-8": "v5p:2x2x1", "v5e-64": "v5e:8x8"}
PARTS = {f"{model}@{name}": (model, name) for name in SLICES for model in ("qwen3_30b_a3b", "qwen3_5_27b")}


def kept(plan: Plan, name: str) -> dict[str, Any]:
    """What is kept of a plan."""
    return {
        "fits": plan.fits,
        "mesh": dict(plan.mesh.shape),
        "peak_gib": plan.peak / 2**30,
        "limit_gib": None if plan.limit is None else plan.limit / 2**30,
        "sources_gib": plan.sources / 2**30,
        "seconds_per_generation": plan.generation,
        "generations": plan.generations,
        "utilisation": plan.utilisation,
        "useful": plan.useful,
        "programs": [use._asdict() | {"seconds": use.seconds} for use in plan.uses],
        "text": list(lines_of(plan, name)),
    }


def table(results: dict[str, Any]) -> None:
    """README.md's table."""
    print("| models | slice | fits | mesh (pop x model) | GiB per chip | of it sources | per generation | utilised |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for part, (model, name) in PARTS.items():
        if (found := (results or {}).get(part)) is not None:
            mesh, seconds = found["mesh"], found["seconds_per_generation"]
            time = "" if seconds is None else f"{seconds / 60:.1f} min"
            used = "" if found["utilisation"] is None else f"{found['utilisation']:.1%}"
            room = f"{found['peak_gib']:.2f} of {found['limit_gib']:.2f}"
            fits = "yes" if found["fits"] else "no"
            shape = f"{mesh['pop']} x {mesh['model']}"
            print(f"| {model} | {name} | {fits} | {shape} | {room} | {found['sources_gib']:.2f} | {time} | {used} |")


def main() -> None:
    args = make_parser(__doc__, __file__, parts=PARTS, table=True).parse_args()
    for part in [] if args.table else args.parts:
        model, name = PARTS[part]
        if known(args.output, part) is not None:
            continue
        config, devices, began = CONFIGS / f"{model}.yaml", slice_devices(SLICES[name]), time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            setup = set_up(stand_in(jm.read_config(config), shapes_beside(config), Path(work)), devices)
            plan = best_plan(setup, devices)
        took = {"planning_seconds": round(time.monotonic() - began, 1)}
        record(args.output, kept(plan, SLICES[name]) | took, part)
        print(*lines_of(plan, part), sep="\n", flush=True)
    table(known(args.output))


if __name__ == "__main__":
    main()
