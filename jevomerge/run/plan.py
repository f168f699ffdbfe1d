"""`jevomerge plan`: what a run needs, from its programs, compiled from shapes for devices that may be absent."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jevomerge.checkpoint.files import write_atomically
from jevomerge.config import RunConfig, StagedConfig, read_plannable
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.planning.chips import GIB, Chip, chip_of, larger_slices, slice_devices
from jevomerge.planning.lengths import expected_lengths
from jevomerge.planning.measure import best_plan, use_of
from jevomerge.planning.programs import export_program
from jevomerge.planning.report import advice, lines_of, numbers_of, summary
from jevomerge.planning.sharing import line as sharing_line
from jevomerge.planning.sharing import settled_sharing
from jevomerge.planning.standins import shapes_beside, stand_in, stand_ins
from jevomerge.planning.timing import in_words, time_candidates
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.schema import Given
from jevomerge.search.setup import Setup, set_up_stages


def plan(
    config: Given | RunConfig | StagedConfig,
    topology: str | None = None,
    sweep: bool = False,
    measure: bool = False,
    *,
    chip: Chip | None = None,
    new_tokens: int | None = None,
    numbers: str | Path | None = None,
    observer: Observer = SILENT,
) -> list[str]:
    """Say what a run needs: memory, time, and what to change if it does not fit. No weights are read.

    Models and data in a file NAME.shapes.json beside the config need not be here; see `planning.standins`.

    Args:
        config: the YAML of a run, of several stages, or of a recipe for `merge`; or what it holds.
        topology: a TPU slice such as "v5e:4x8", which need not be there; None: this machine.
        sweep: one line for each slice of that chip, from `topology` on, and each members_per_device.
        measure: also score some candidates on this machine, which reads the weights, and say how long a run takes.
        chip: one device of which this is known (`planning.chips.assumed_chip`), instead of this machine; what the
            compiler for this machine says of memory is taken for what its own would.
        new_tokens: how long texts are taken to be; None: as the task says, or as the sources wrote in a run of that
            name in runs/, or as long as they may be.
        numbers: a file for all numbers that the lines have, as JSON; bytes, FLOPs and seconds.
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
    lines, found = list[str](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as work:
        shapes = shapes_beside(Path(config)) if isinstance(config, str | Path) and not measure else None
        if shapes is not None and shapes.exists():
            observer.note(f"{shapes} stands in for the models and data that it names: nothing is downloaded")
        else:
            shapes = None
        told: Iterator[str | dict[str, Any]]
        planned = read_plannable(config)
        if isinstance(planned, Recipe):
            models = None if shapes is None else stand_ins(shapes, Path(work))[1]
            told = merging(planned if models is None else planned.with_models(models))
        else:
            run = planned if shapes is None else stand_in(planned, shapes, Path(work))
            told = plans(run, topology, sweep, measure, chip, new_tokens)
        try:
            for part in told:
                if isinstance(part, str):
                    observer.line(part)
                    lines.append(part)
                else:
                    found.append(part)
        finally:
            if numbers is not None and found:
                write_atomically(Path(numbers), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return lines


def merging(recipe: Recipe) -> Iterator[str | dict[str, Any]]:
    """What `jevomerge merge` needs: it makes one tensor after another."""
    sources = Sources(recipe)
    program = export_program(sources, jax.local_devices()[0])
    use = use_of(program, program.traced.lower().compile(), None, [])
    tensors = [(c, name) for c in sources.checkpoints for name in c.tensors]
    read = sum(math.prod(c.tensors[name].shape) * c.tensors[name].dtype.itemsize for c, name in tensors)
    written = sum(math.prod(t.spec.shape) for t in sources.tensors) * jnp.dtype(sources.dtype).itemsize
    yield f"{sources.method.name} of {', '.join(sources.names)}: merged tensor by tensor, nothing is searched"
    yield f"  models of {read / 1e9:.2f} GB are read, {written / 1e9:.2f} GB are merged and written"
    yield f"  memory: {use.bytes / GIB:.2f} GiB for the largest tensor, `{program.name.removeprefix('export ')}`"
    yield {"title": sources.method.name, "read": read, "written": written, "peak": use.bytes}


def plans(
    config: RunConfig | StagedConfig,
    topology: str | None,
    sweep: bool,
    measure: bool = False,
    chip: Chip | None = None,
    new_tokens: int | None = None,
) -> Iterator[str | dict[str, Any]]:
    """The lines of one plan after the other, and behind those of each its numbers."""
    devices = devices_of(topology)[: 1 if chip else None]
    if chip is not None:
        speeds = f"{chip.bandwidth / 1e12:g} TB/s, {chip.flops / 1e12:g} TFLOP/s in bfloat16"
        yield f"assumed of the device: {speeds}, {chip.link / 1e9:g} GB/s from the host"
    runs, failures = Path("runs") / config.name, list[str]()
    for setup in set_up_stages(config, devices):
        folder = runs if setup.config.name == config.name else runs / setup.config.name
        setup = dataclasses.replace(setup, new_tokens=expected_lengths(setup, new_tokens, folder))
        name = setup.config.name
        about = {"name": name, "title": setup.problem.title, "genes": len(setup.problem.names)}
        about |= {"new_tokens": {task: told._asdict() for task, told in setup.new_tokens.items()}}
        yield f"{name}: {setup.problem.title}, {len(setup.problem.names)} genes"
        for task, told in setup.new_tokens.items():
            wait = "" if told.longest == told.mean else f", the longest {told.longest:g}"
            yield f"  texts of {task}: {told.mean:g} tokens{wait} ({told.told})"
        if sweep:
            yield from sweeping(setup, topology, about)
            continue
        setup = settled_sharing(setup, chip or chip_of(devices[0]))
        found = best_plan(setup, devices, chip)
        yield f"  {sharing_line(setup.at(found.memory), chip or chip_of(devices[0]))}"
        where = topology or (chip and chip.name) or f"{len(devices)} x {devices[0].device_kind}"
        yield from lines_of(found, where)
        if not found.fits:
            way, changed = advice(setup, found, devices)
            yield f"  to make it fit: {way}"
            if chip is not None and changed is None:
                lacking = (found.peak - chip.memory) / GIB
                failures.append(f"{name} does not fit on {chip.name}: {lacking:.2f} GiB are lacking")
            if chip is not None and changed is not None:
                about["way"], found = way, changed
                yield from lines_of(found, where)
        elif measure:
            timing, evaluations = time_candidates(setup), setup.config.search.evaluations
            about |= {"measured": timing._asdict()}
            yield (
                f"  measured: {timing.candidate:.3g} s for a candidate, {timing.first:.3g} s before the second; "
                f"the search, {evaluations} evaluations: {in_words(timing.of(evaluations))}"
            )
        yield about | numbers_of(found)
    if failures:
        raise InputError("\n".join(failures))


def sweeping(setup: Setup, topology: str | None, about: Mapping[str, Any]) -> Iterator[str | dict[str, Any]]:
    """One line for each slice of the chip, from `topology` on, and each members_per_device; and their numbers."""
    for name in larger_slices(topology) if topology else [None]:
        for members in (1, 2, 4, 8):
            tried = dataclasses.replace(setup, judge=setup.judge.on(setup.mesh, members))
            config = setup.config.model_copy(update={"members_per_device": members})
            found = best_plan(dataclasses.replace(tried, config=config), devices_of(name))
            yield f"  {name or 'this machine':12}{summary(found)}"
            yield {**about, "topology": name, **numbers_of(found)}
            if not found.fits or members * 2 > math.ceil(found.population / found.mesh.shape["pop"]):
                break


def devices_of(topology: str | None) -> list[jax.Device]:
    """A slice's, or (None) those of this machine."""
    return jax.devices() if topology is None else slice_devices(topology)
