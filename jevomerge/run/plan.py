"""`jevomerge plan`: what a run needs, from its programs, compiled from shapes for devices that may be absent."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from jevomerge.config import RunConfig, StagedConfig, read_config
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.planning.chips import GIB, Chip, chip_of, larger_slices, slice_devices
from jevomerge.planning.measure import best_plan
from jevomerge.planning.report import advice, lines_of, summary
from jevomerge.planning.sharing import line as sharing_line
from jevomerge.planning.sharing import settled_sharing
from jevomerge.planning.standins import shapes_beside, stand_in
from jevomerge.planning.timing import in_words, time_candidates
from jevomerge.schema import Given
from jevomerge.search.setup import set_up_stages


def plan(
    config: Given | RunConfig | StagedConfig,
    topology: str | None = None,
    sweep: bool = False,
    measure: bool = False,
    *,
    chip: Chip | None = None,
    observer: Observer = SILENT,
) -> list[str]:
    """Say what a run needs: memory, time, and what to change if it does not fit. No weights are read.

    Models and data in a file NAME.shapes.json beside the config need not be here; see `planning.standins`.

    Args:
        config: the YAML of a run or of several stages, or what it holds.
        topology: a TPU slice such as "v5e:4x8", which need not be there; None: this machine.
        sweep: one line for each slice of that chip, from `topology` on, and each members_per_device.
        measure: also score some candidates on this machine, which reads the weights, and say how long a run takes.
        chip: one device of which this is known (`planning.chips.assumed_chip`), instead of this machine; what the
            compiler for this machine says of memory is taken for what its own would.
        observer: is told the lines as they are found.

    Returns:
        the lines of all stages.

    Raises:
        InputError: for whatever is wrong with the config, its models or data, for a slice that does not exist, and if
            it does not fit on `chip`.
    """
    if chip is not None and (topology is not None or sweep or measure):
        raise InputError("plan: --device-memory is one device; leave --topology, --sweep and --measure out")
    if measure and topology is not None:
        raise InputError("plan: --measure is for this machine; leave --topology out")
    lines, found = list[str](), read_config(config)
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as work:
        if not measure and isinstance(config, str | Path) and (shapes := shapes_beside(Path(config))).exists():
            observer.note(f"{shapes} stands in for the models and data that it names: nothing is downloaded")
            found = stand_in(found, shapes, Path(work))
        for line in plans(found, topology, sweep, measure, chip):
            observer.line(line)
            lines.append(line)
    return lines


def plans(
    config: RunConfig | StagedConfig,
    topology: str | None,
    sweep: bool,
    measure: bool = False,
    chip: Chip | None = None,
) -> Iterator[str]:
    """The lines, one plan after the other."""
    devices = devices_of(topology)[: 1 if chip else None]
    if chip is not None:
        yield f"assumed of the device: {chip.bandwidth / 1e12:g} TB/s and {chip.flops / 1e12:g} TFLOP/s in bfloat16"
    for setup in set_up_stages(config, devices):
        yield f"{setup.config.name}: {setup.problem.title}, {len(setup.problem.names)} genes"
        if not sweep:
            setup = settled_sharing(setup, chip or chip_of(devices[0]))
            found = best_plan(setup, devices, chip)
            yield f"  {sharing_line(setup, chip or chip_of(devices[0]))}"
            yield from lines_of(found, topology or (chip and chip.name) or f"{len(devices)} x {devices[0].device_kind}")
            if not found.fits:
                yield f"  to make it fit: {advice(setup, found, devices)}"
                if chip is not None:
                    lacking = (found.peak - chip.memory) / GIB
                    raise InputError(f"{setup.config.name} does not fit on {chip.name}: {lacking:.2f} GiB are lacking")
            elif measure:
                timing, evaluations = time_candidates(setup), setup.config.search.evaluations
                yield (
                    f"  measured: {timing.candidate:.3g} s for a candidate, {timing.first:.3g} s before the second; "
                    f"the search, {evaluations} evaluations: {in_words(timing.of(evaluations))}"
                )
            continue
        for name in larger_slices(topology) if topology else [None]:
            for members in (1, 2, 4, 8):
                tried = dataclasses.replace(setup, judge=setup.judge.on(setup.mesh, members))
                tried = dataclasses.replace(
                    tried, config=setup.config.model_copy(update={"members_per_device": members})
                )
                found = best_plan(tried, devices_of(name))
                yield f"  {name or 'this machine':12}{summary(found)}"
                if not found.fits or members * 2 > math.ceil(found.population / found.mesh.shape["pop"]):
                    break


def devices_of(topology: str | None) -> list[jax.Device]:
    """A slice's, or (None) those of this machine."""
    return jax.devices() if topology is None else slice_devices(topology)
