"""What merges of Qwen3.5-27B, of Qwen3-30B-A3B and of SDXLs need on TPU slices and GPUs, planned without one."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.planning.chips import assumed_chip, slice_devices
from jevomerge.planning.measure import Plan, best_plan
from jevomerge.planning.report import lines_of
from jevomerge.planning.standins import shapes_beside, stand_in
from jevomerge.search.setup import set_up

CONFIGS = Path(__file__).parents[2] / "configs"
SLICES = {"v5p-8": "v5p:2x2x1", "v5e-64": "v5e:8x8", "v5e-4": "v5e:2x2", "v4-8": "v4:2x2x1"}
TEXTS, PICTURES = ("qwen3_30b_a3b", "qwen3_5_27b"), ("evosdxl_jp_search", "evosdxl_jp_lightning")
WHERE = {TEXTS: ("v5p-8", "v5e-64"), PICTURES: ("24GiB", "80GiB", "v5e-4", "v4-8")}  # or on one device so large
PARTS = {f"{model}@{name}": (model, name) for models in WHERE for name in WHERE[models] for model in models}


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
    titles = ("models", "slice or device", "fits", "mesh (pop x model)", "GiB per chip", "of it sources")
    print("|", " | ".join([*titles, "per generation", "utilised", "pictures per second"]), "|")
    print("|---|---|---|---|---:|---:|---:|---:|---:|")
    for part, (model, name) in PARTS.items():
        if (found := (results or {}).get(part)) is None:
            continue
        mesh, seconds, used = found["mesh"], found["seconds_per_generation"], found["utilisation"]
        drawing = [p for p in found["programs"] if p.get("drawn") and p["runs"] and p["seconds"]]
        cells = [
            model,
            name,
            "yes" if found["fits"] else "no",
            f"{mesh['pop']} x {mesh['model']}",
            f"{found['peak_gib']:.2f} of {found['limit_gib']:.2f}",
            f"{found['sources_gib']:.2f}",
            "" if seconds is None else f"{seconds / 60:.1f} min",
            "" if used is None else f"{used:.1%}",
            ", ".join(f"{p['drawn'] / p['seconds']:.3g}" for p in drawing),
        ]
        print("|", " | ".join(cells), "|")


def main() -> None:
    args = make_parser(__doc__, __file__, parts=PARTS, table=True).parse_args()
    for part in [] if args.table else args.parts:
        model, name = PARTS[part]
        if known(args.output, part) is not None:
            continue
        config, began = CONFIGS / f"{model}.yaml", time.monotonic()
        chip = None if name in SLICES else assumed_chip(name)
        devices = jax.devices()[:1] if chip else slice_devices(SLICES[name])
        with tempfile.TemporaryDirectory() as work:
            setup = set_up(stand_in(jm.read_config(config), shapes_beside(config), Path(work)), devices)
            plan = best_plan(setup, devices, chip)
        took = {"planning_seconds": round(time.monotonic() - began, 1)}
        record(args.output, kept(plan, SLICES.get(name, name)) | took, part)
        print(*lines_of(plan, part), sep="\n", flush=True)
    table(known(args.output))


if __name__ == "__main__":
    main()
