"""What a run needs, found without running it: its programs are compiled from shapes, for devices that may be absent."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax

from jevomerge.config import RunConfig, StagedConfig


def plan_config(config: RunConfig | StagedConfig, topology: str | None = None, *, sweep: bool = False) -> Iterator[str]:
    """The lines that `jevomerge plan` prints: for each stage of a config, on a TPU slice or (None) on this machine.

    Raises:
        InputError: for whatever is wrong with the config, its models or data, and for a slice that does not exist.
    """
    from jevomerge.evolve.staged import set_up
    from jevomerge.plan.chips import larger_slices, slice_devices
    from jevomerge.plan.measure import best_plan
    from jevomerge.plan.report import advice, lines_of, summary

    def devices_of(topology: str | None) -> list[jax.Device]:
        return jax.devices() if topology is None else slice_devices(topology)

    devices = devices_of(topology)
    for setup in set_up(config, devices):
        yield f"{setup.config.name}: {setup.problem.title}, {len(setup.problem.names)} genes"
        if not sweep:
            plan = best_plan(setup, devices)
            yield from lines_of(plan, topology or f"{len(devices)} x {devices[0].device_kind}")
            if not plan.fits:
                yield f"  to make it fit: {advice(setup, plan, devices)}"
            continue
        for name in larger_slices(topology) if topology else [None]:
            for members in (1, 2, 4, 8):
                setup.config = setup.config.model_copy(update={"members_per_device": members})
                plan = best_plan(setup, devices_of(name))
                yield f"  {name or 'this machine':12}{summary(plan)}"
                if not plan.fits or members * 2 > math.ceil(plan.population / plan.mesh.shape["pop"]):
                    break
