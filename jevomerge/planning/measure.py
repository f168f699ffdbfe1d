"""A run on a mesh, compiled: its memory, arithmetic, traffic and the time that these allow."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.devices.collectives import collectives
from jevomerge.devices.mesh import HOST, make_mesh, taken_for
from jevomerge.devices.schema import Memory
from jevomerge.devices.signals import safe_point
from jevomerge.models.specs import heads_of
from jevomerge.planning.chips import GIB, Chip, chip_of
from jevomerge.planning.cost import cost_of
from jevomerge.planning.programs import Kind, Program, export_program, programs
from jevomerge.search.setup import Setup, memories_of

# How the TPU compiler says that a program does not fit.
TOO_LARGE = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of ")
# Of the compiler for CPUs, which compute in float32: it must not keep all weights in it through the loop over tokens.
AS_ELSEWHERE = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
WORTH = 0.8  # of the time: what more devices for a member must bring it to
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Use(NamedTuple):
    """What one execution of a program takes of each device; bytes, FLOPs and seconds."""

    kind: Kind
    name: str
    runs: int  # in one generation
    once: Mapping[str, int]  # beside the generations, in the whole run: how often, and for what
    merged: int  # members' weights, or a whole model's, beside the sources
    cache: int
    temporaries: int  # without the cache
    flops: float  # of matrix products
    other: float  # other operations
    moved: float  # to and from memory
    exchanged: Mapping[str, float] | None  # between devices, by axes of the mesh; None: not known
    compute: float | None = None
    memory: float | None = None
    network: float | None = None
    estimate: float | None = None  # the compiler's own, which counts a loop's body once
    unknown: tuple[str, ...] = ()  # loops counted once
    pictures: int = 0  # features or views, of a batch and the next one
    drawn: int = 0  # how many pictures it draws, on all devices
    fetched: int = 0  # bytes from the memory of the host
    link: float | None = None  # seconds of that
    needed: float = 0.0  # of `runs`, if no slice of the mesh scored copies
    host: int = 0  # bytes of the memory of the host, beside the models that candidates are made of

    @property
    def bytes(self) -> int:
        """All that it takes beside what is there through the whole run."""
        return self.merged + self.cache + self.temporaries + self.pictures

    @property
    def seconds(self) -> float | None:
        """The longer of computing and moving, and then exchanging and fetching."""
        if self.compute is None or self.memory is None or self.network is None:
            return None
        return max(self.compute, self.memory) + self.network + (self.link or 0.0)


class Plan(NamedTuple):
    """A run on a mesh."""

    mesh: Mesh
    members_per_device: int
    population: int
    generations: int
    sources: int  # bytes on each device, through the whole run
    prepared: int  # what the merge method keeps beside them
    uses: list[Use]
    limit: float | None  # bytes of a device; None: not known
    chip: Chip | None
    failed: str | None = None  # why a program could not be compiled
    kept: int = 0  # bytes of the host, or of a folder, that features of pictures take
    memory: Memory = "device"  # where the models of the recipe lie,
    waiting: int = 0  # of which so many bytes, for each device, in the memory of the host,
    host_limit: float | None = None  # which has so many for each; None: not known

    @property
    def peak(self) -> int:
        """Bytes of a device at the worst moment."""
        most = max((u.bytes for u in self.uses), default=0)
        return self.sources + self.prepared + most

    @property
    def host(self) -> int:
        """Bytes of the memory of the host, for each device, at the worst moment."""
        return self.waiting + max((u.host for u in self.uses), default=0)

    @property
    def fits(self) -> bool:
        """Whether memory is enough."""
        return self.failed is None and self.roomy and (self.limit is None or self.peak <= self.limit)

    @property
    def roomy(self) -> bool:
        """Whether the memory of the host is enough."""
        return self.host_limit is None or self.host <= self.host_limit

    @property
    def generation(self) -> float | None:
        """Seconds of a generation; None where the chip's peaks are not known."""
        return self._seconds([u.runs for u in self.uses])

    @property
    def rest(self) -> float | None:
        """Seconds of what is beside the generations: gradients, finalists, sources and result."""
        return self._seconds([sum(u.once.values()) for u in self.uses])

    def _seconds(self, runs: Sequence[int]) -> float | None:
        seconds = [u.seconds for u in self.uses]
        if None in seconds or self.failed:
            return None
        return sum(n * (s or 0.0) for n, s in zip(runs, seconds, strict=True))

    @property
    def work(self) -> dict[str, float]:
        """FLOPs of matrix products on each device in the whole run, by what they are for."""
        found = {"search": sum(self.generations * u.runs * u.flops for u in self.uses)}
        for use in self.uses:
            for purpose, runs in use.once.items():
                found[purpose] = found.get(purpose, 0.0) + runs * use.flops
        return {k: n for k, n in found.items() if n}

    @property
    def utilisation(self) -> float | None:
        """The share of the chips' peak arithmetic that useful members' matrix products are."""
        if not self.generation or self.chip is None:
            return None
        used = sum(u.needed * u.flops for u in self.uses)
        return used / (self.generation * self.chip.flops)

    @property
    def beside_scoring(self) -> float | None:
        """The share of a generation's time in which nothing is scored, but made."""
        seconds = [(u.seconds or 0.0) * u.runs for u in self.uses if u.kind != "score"]
        return sum(seconds) / self.generation if self.generation else None

    @property
    def useful(self) -> float:
        """The share of what is scored in a generation that is of candidates: elsewhere slices score copies."""
        scored = sum(u.runs * u.flops for u in self.uses if u.needed)
        return sum(u.needed * u.flops for u in self.uses) / scored if scored else 1.0


def bytes_per_device(tree: Any, host: bool = False) -> int:
    """Of the arrays (or shapes) of a pytree, on one device; what several leaves are is there once.

    `host`: for one device, in the memory of the host.
    """
    total = 0
    for x in {id(x): x for x in jax.tree.leaves(tree)}.values():
        sharding = getattr(x, "sharding", None)
        if (getattr(sharding, "memory_kind", None) == HOST) != host:
            continue
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


def memory_limit(device: jax.Device) -> float | None:
    """Bytes that a device has; None where it does not say (a CPU)."""
    if (chip := chip_of(device)) is not None:
        return chip.memory
    stats = device.memory_stats() if device.platform != "cpu" else None
    return None if stats is None else stats.get("bytes_limit")


def host_limit(device: jax.Device, chip: Chip | None) -> float | None:
    """Bytes of the memory of the host for each device; None: not known."""
    if chip is not None:
        return chip.host
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages / sum(d.process_index == device.process_index for d in device.client.devices())


def plan_on(
    setup: Setup,
    mesh: Mesh,
    members_per_device: int,
    which: Callable[..., Any] = programs,
    chip: Chip | None = None,
) -> Plan:
    """Compile every program that a run runs on a mesh, or only `which`; nothing is read and nothing is executed.

    Compiling stops at the first program that is too large for a device. `chip`: what the devices are taken for, if not
    for what they are.
    """
    device = mesh.devices.flat[0]
    limit = memory_limit(device) if chip is None else chip.memory
    chip = chip or chip_of(device)
    candidates = setup.load(mesh, abstract=True)
    sources, prepared = map(bytes_per_device, candidates.held())
    waiting = bytes_per_device(candidates.held(), host=True)
    plan = Plan(
        mesh, members_per_device, setup.strategy.population_size,
        setup.config.search.evaluations // setup.strategy.population_size, sources, prepared, [], limit, chip,
        kept=kept_of(setup), memory=setup.memory, waiting=waiting, host_limit=host_limit(device, chip),
    )  # fmt: skip
    if not plan.fits:
        return plan  # nothing more needs to be known
    judge, current = setup.judge.on(mesh, members_per_device), list[Program]()
    # Not for a CPU, where a model may be taken apart; but what was traced before for one, JAX does not trace again.
    elsewhere = "gpu" if chip is not None and chip != chip_of(device) else None
    options = AS_ELSEWHERE if elsewhere and device.platform == "cpu" else None

    def compiled(program: Program) -> Any:
        safe_point()
        current.append(program)
        least = least_of(program, plan.uses)
        if limit is not None and sources + prepared + least.bytes > limit:
            raise TooLarge(least)
        return program.traced.lower().compile(compiler_options=options)

    try:
        with taken_for(elsewhere):
            for program, executable in which(setup, judge, candidates, compiled):
                plan.uses.append(use_of(program, executable, chip, plan.uses))
                if (copied := executable.memory_analysis().host_temp_size_in_bytes) > max(waiting, GIB) / 100:
                    told = f"`{program.name}` would copy {copied / GIB:.2f} GiB within the memory of the host"
                    return plan._replace(failed=told)
        if setup.problem.sources is not None:  # a path is exported by NumPy
            export = export_program(setup.problem.sources, device)
            plan.uses.append(use_of(export, compiled(export), chip, plan.uses))
    except TooLarge as error:
        return plan._replace(uses=[*plan.uses, error.use], failed=f"`{error.use.name}` needs more than there is")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        program, found = current[-1], TOO_LARGE.search(str(error))
        size, unit = (found[1] or found[3], found[2] or found[4]) if found else ("0", "G")
        temporaries = int(float(size) * UNITS[unit])
        failed = Use(program.kind, program.name, program.runs, program.once, 0, 0, temporaries, 0, 0, 0, {})
        return plan._replace(uses=[*plan.uses, failed], failed=f"the compiler refuses `{program.name}`")
    return plan


class TooLarge(Exception):
    """A program needs more than a device has, which is known before it is compiled."""

    def __init__(self, use: Use):
        super().__init__(use.name)
        self.use = use


def least_of(program: Program, before: Sequence[Use]) -> Use:
    """What a program takes of each device at least, if the compiler splits all that it may."""
    itemsize, ways = np.dtype(program.dtype).itemsize, program.mesh.shape["model"]
    merged, cache = before[0].merged if program.made else bytes_per_device(program.model), 0
    if program.kind == "merge":
        made = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.traced.out_info))
        merged = made // program.mesh.size
    elif program.kind == "score":
        cache = itemsize * program.members * sum(map(math.prod, program.cache)) // ways
    return Use(program.kind, program.name, program.runs, program.once, merged, cache, 0, 0, 0, 0, {})


def use_of(program: Program, compiled: Any, chip: Chip | None, before: list[Use]) -> Use:
    """What a compiled program takes of each device."""
    memory, mesh = compiled.memory_analysis(), program.mesh
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # jaxlib 0.10.2 cannot read some of what libtpu 0.0.52 writes for v5p
        text = None
    ways = mesh.shape["model"]
    cost = cost_of(program.traced.jaxpr, program.trips)
    merges = program.kind == "merge"
    merged = (
        memory.output_size_in_bytes if merges else before[0].merged if program.made else bytes_per_device(program.model)
    )
    outputs = 0 if merges else memory.output_size_in_bytes
    if program.kind == "export":  # its inputs come from files, beside all that is there
        outputs += memory.argument_size_in_bytes
    cache = min(cache_on_device(program, text), memory.temp_size_in_bytes)
    found = collectives(text, mesh, program.trips) if mesh.size > 1 and text else []
    exchanged: dict[str, float] = {}
    network = 0.0
    for c in found:
        n = math.prod(mesh.shape[axis] for axis in c.axes)
        if n > 1:
            # Of a ring: what each device sends; an all-reduce is a reduce-scatter and an all-gather.
            sent = c.bytes * c.runs * (n - 1) / n * (2 if c.kind == "all-reduce" else 1)
            name = " and ".join(axis for axis in mesh.axis_names if axis in c.axes)
            exchanged[name] = exchanged.get(name, 0.0) + sent
            network += sent
    analysis = compiled.cost_analysis() or {}
    estimate = analysis.get("optimal_seconds")
    flops, moved, fetched = cost.matmul / ways, cost.bytes / ways, cost.fetched / ways
    return Use(
        program.kind, program.name, program.runs, program.once, merged, cache,
        memory.temp_size_in_bytes - cache + outputs, flops,
        cost.other / ways, moved, None if text is None else exchanged,
        None if chip is None else flops / chip.flops,
        None if chip is None else moved / chip.bandwidth,
        None if chip is None else network / (chip.interconnect / 2),  # one direction
        estimate if estimate is not None and estimate > 0 else None,
        tuple(sorted(cost.unknown)), program.pictures, program.drawn, int(fetched),
        None if chip is None else fetched / chip.link, program.needed, bytes_per_device(program.model, host=True),
    )  # fmt: skip


def kept_of(setup: Setup) -> int:
    """Bytes of what is kept of pictures, as far as there is room for it."""
    room = setup.config.features
    return setup.judge.kept if room.folder is not None else min(setup.judge.kept, room.bytes)


def cache_on_device(program: Program, text: str | None) -> int:
    """Bytes of what is remembered on each device: their shapes, as the compiler has split them (or, unread, evenly)."""
    itemsize = np.dtype(program.dtype).itemsize
    if text is None:
        return itemsize * program.members * sum(map(math.prod, program.cache)) // program.mesh.shape["model"]
    total, each = 0, "" if program.members == 1 else f"{program.members},"
    for depth, rows, heads, *inside, size in program.cache:  # of which heads and size may be split
        shape = "".join(f"{n}," for n in inside)
        stacked, alone = (
            [
                int(n) * int(m)
                for n, m in re.findall(rf"(?:bf16|f16|f32)\[{each}{before},(\d+),{shape}(\d+)\]", text)
                if heads % int(n) == size % int(m) == 0
            ]
            for before in (f"{depth},{rows}", f"{rows}")
        )
        # Where blocks are taken apart, other arrays may have the shape of a smaller part.
        part = min(stacked, default=max(alone, default=0))
        total += itemsize * program.members * math.prod((depth, rows, *inside)) * part
    return total


def best_plan(setup: Setup, devices: Sequence[jax.Device], chip: Chip | None = None) -> Plan:
    """The plan of a run on devices, on the mesh and with the members per device of its config, or chosen for it.

    `chip` as for `plan_on`.

    The models of the recipe where the config says, or in the first place where they fit (`places_of`).
    As few devices per member as memory allows (the members of a population exchange nothing, the devices of a member
    do), or more if these are much faster, then as many members at once as memory allows and the population has, unless
    they generate, which they do one after another anyway; of those that share what they read as many as the setup says,
    or fewer that fit. Where devices do not say how much memory they have, 1 and what the setup says, which is fastest
    on a CPU.
    If nothing fits, the plan with the most devices per member says so.
    """
    plans = list[Plan]()
    for memory in places_of(setup, devices, chip):
        plans.append(_best_mesh(setup.at(memory), devices, chip))
        if plans[-1].fits or (memory == "host" and plans[-1].roomy):  # eight bits would spare the host alone
            break
    return next((p for p in plans if p.fits), min(plans, key=lambda p: (not p.roomy, not p.uses, p.peak)))


def places_of(setup: Setup, devices: Sequence[jax.Device], chip: Chip | None) -> list[Memory]:
    """Where the models of the recipe may lie, in the order in which it is tried.

    Where devices do not say how much memory they have, on these. Where candidates are merged once for many passes, in
    parts on all devices rather than whole on each: that costs no more than a gathering for each candidate.
    """
    possible = list(memories_of(setup.config))
    if chip is None and memory_limit(devices[0]) is None:
        return possible[:1]
    once = not setup.together and any(task.rollout.many_passes for task in setup.judge.tasks)
    left_out = "mesh" if len(devices) == 1 else "device" if once and "mesh" in possible else None
    return [m for m in possible if m != left_out or len(possible) == 1]


def _best_mesh(setup: Setup, devices: Sequence[jax.Device], chip: Chip | None) -> Plan:
    """The same with the models where `setup` has them."""
    config, members = setup.config, setup.judge.members_per_device
    if config.mesh.model or config.mesh.pop or (chip is None and memory_limit(devices[0]) is None):
        mesh = make_mesh(config.mesh.pop, config.mesh.model, devices)
        return more_members(setup, plan_on(setup, mesh, members, chip=chip))
    heads = heads_of(setup.problem.model.specs)
    ways = [n for n in (1 << i for i in range(len(devices).bit_length())) if len(devices) % n == 0]
    best: Plan | None = None
    for model in sorted(ways, key=lambda n: (heads % n != 0, n)):  # last those that cut inside of heads
        for some in {members: None, members // 4: None, 1: None} if setup.together else (members,):
            plan = plan_on(setup, make_mesh(None, model, devices), max(1, some), chip=chip)
            if plan.fits:
                break
        if best is not None and not (plan.fits and (plan.generation or 0.0) < WORTH * (best.generation or 0.0)):
            break
        best = plan if plan.fits else best
    return plan if best is None else more_members(setup, best)


def more_members(setup: Setup, plan: Plan) -> Plan:
    """The plan with as many members on each device as fit, up to eight, if the config leaves it open."""
    generating = any(task.rollout.many_passes for task in setup.judge.tasks)
    if setup.config.members_per_device or setup.together or generating or not plan.fits or plan.limit is None:
        return plan
    wanted = math.ceil(plan.population / plan.mesh.shape["pop"])
    for members in (8, 4, 2):
        if members <= wanted and (more := plan_on(setup, plan.mesh, members, chip=plan.chip)).fits:
            return more
    return plan
