"""What the paper's two searches need on TPU slices, planned on a machine without one.

python experiments/pod_plan/hollow.py SCRATCH --data FOLDER
python experiments/pod_plan/run.py SCRATCH [NAME ...]     # about an hour on two cores; results.json grows as it goes
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from jevomerge.config import read_config
from jevomerge.evolve.staged import set_up
from jevomerge.plan.chips import slice_devices
from jevomerge.plan.measure import Plan, best_plan
from jevomerge.plan.report import lines_of

HERE = Path(__file__).parent
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
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=Path)
    parser.add_argument("names", nargs="*", default=list(SLICES))
    args = parser.parse_args()
    out = HERE / "results.json"
    os.chdir(args.scratch)  # where the config's hub names are folders
    config = read_config("evollm_jp.yaml")
    for name in args.names:
        devices = slice_devices(SLICES[name])
        for setup in set_up(config, devices):
            stage = setup.config.name
            began = time.monotonic()
            plan = best_plan(setup, devices)
            results = json.loads(out.read_text()) if out.exists() else {}
            results.setdefault(name, {})[stage] = table(plan, SLICES[name], round(time.monotonic() - began, 1))
            results["weak_scaling"] = weak_scaling(results)
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(*lines_of(plan, f"{name} {stage}"), sep="\n", flush=True)


if __name__ == "__main__":
    main()
