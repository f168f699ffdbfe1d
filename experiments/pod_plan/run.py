"""What the paper's two searches need on TPU slices, planned on a machine without one.

python experiments/pod_plan/hollow.py --data FOLDER      # first
python experiments/pod_plan/run.py [SLICE ...]           # results.json; goes on where it was stopped
"""

import math
import os
import time
from typing import Any

from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.planning.chips import slice_devices
from jevomerge.planning.measure import Plan, best_plan
from jevomerge.planning.report import lines_of
from jevomerge.search.setup import set_up_stages

SLICES = {"v5e-16": "v5e:4x4", "v5e-64": "v5e:8x8", "v5e-256": "v5e:16x16", "v5p-8": "v5p:2x2x1", "v4-32": "v4:2x2x4"}


def table(plan: Plan, name: str, seconds: float) -> dict[str, Any]:
    """What is kept of a plan."""
    return {
        "fits": plan.fits,
        "mesh": dict(plan.mesh.shape),
        "members_per_device": plan.members_per_device,
        "population": plan.population,
        "generations": plan.generations,
        "peak_gib": plan.peak / 2**30,
        "limit_gib": None if plan.limit is None else plan.limit / 2**30,
        "sources_gib": plan.sources / 2**30,
        "seconds_per_generation": plan.generation,
        "utilisation": plan.utilisation,
        "useful": plan.useful,
        "groups": math.ceil(plan.population / (plan.mesh.shape["pop"] * plan.members_per_device)),
        "programs": [u._asdict() | {"seconds": u.seconds} for u in plan.uses],
        "text": list(lines_of(plan, name)),
        "planning_seconds": seconds,
    }


def weak_scaling(results: dict[str, Any]) -> dict[str, Any]:
    """{search: {slice of v5e: efficiency}} at fixed work per chip: a population that grows with the slice.

    A group fills the mesh, so that a population that grows with the slice takes the same number of groups; their
    programs are compiled for each slice, with whatever they exchange there.  Relative to the smallest slice with the
    same devices per candidate.
    """
    found: dict[str, Any] = {}
    for name in ("v5e-16", "v5e-64", "v5e-256"):
        for stage, plan in results.get(name, {}).items():
            seconds = sum(u["seconds"] * u["runs"] for u in plan["programs"]) / plan["groups"]
            first = found.setdefault(stage, {"model": plan["mesh"]["model"], "seconds_per_group": {}, "efficiency": {}})
            if first["model"] == plan["mesh"]["model"]:
                first["seconds_per_group"][name] = seconds
                first["efficiency"][name] = next(iter(first["seconds_per_group"].values())) / seconds
    return found


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, parts=SLICES).parse_args()
    output = args.output.resolve()
    os.chdir(args.work)  # where the config's hub names are folders
    config = jm.read_config("evollm_jp.yaml")
    for name in args.parts:
        devices = slice_devices(SLICES[name])
        for setup in set_up_stages(config, devices):
            stage = setup.config.name
            if known(output, name, stage) is not None:
                continue
            began = time.monotonic()
            plan = best_plan(setup, devices)
            record(output, table(plan, SLICES[name], round(time.monotonic() - began, 1)), name, stage)
            record(output, weak_scaling(known(output)), "weak_scaling")
            print(*lines_of(plan, f"{name} {stage}"), sep="\n", flush=True)


if __name__ == "__main__":
    main()
