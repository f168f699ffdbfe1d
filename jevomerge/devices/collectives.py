"""What a compiled program exchanges between devices, read off its text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
ITEMSIZE = {"pred": 1, "bf16": 2, "f16": 2}  # else the number of bits in the name: "f32"
INSTRUCTION = re.compile(rf"= (?P<shapes>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
CONSTANT = re.compile(r"= [su]\d+\S* constant\((\d+)\)")
CALLS = re.compile(r"(?:calls|to_apply|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")
GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|mesh\[.*?\](?:, device_ids=\(.*?\)\))? \{.*?\}|\[[^ ]*)"
)


class Collective(NamedTuple):
    """One instruction; in a loop it runs more than once."""

    kind: str
    axes: frozenset[str]  # of the mesh, along which devices exchange something
    shapes: str  # what each device has afterwards
    bytes: int
    runs: float = 1.0  # how often it is executed


def collectives(text: str, mesh: Mesh, trips: Mapping[str, float] | None = None) -> list[Collective]:
    """The collectives in `compiled.as_text()` of a program for `mesh`.

    With `trips`, the counts of the loops of dynamic length by the `jax.named_scope` around them, it is also found how
    often each is executed.

    Raises:
        ValueError: for a way to write groups of devices that is not known.
    """
    found = []
    times = {} if trips is None else executions(text, trips)
    computation = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[1]
        if (match := INSTRUCTION.search(line)) is None:
            continue
        groups = _groups(line, mesh.devices.size)
        axes: set[str] = set()
        for group in groups:
            where = np.stack(np.unravel_index(np.asarray(group), mesh.devices.shape), axis=1)
            axes |= {name for name, ids in zip(mesh.axis_names, where.T, strict=True) if len(set(ids.tolist())) > 1}
        runs = times.get(computation, 1.0)
        found.append(Collective(match["kind"], frozenset(axes), match["shapes"], _bytes(match["shapes"]), runs))
    return found


def executions(text: str, trips: Mapping[str, float]) -> dict[str, float]:
    """How often each computation of a compiled program runs.

    A loop's count is the one that the compiler knows, else that of its scope in `trips`, else the constant that its
    condition compares with; else 1.
    """
    calls: dict[str, list[tuple[str, float]]] = {}  # {computation: [(caller, times)]}
    constants: dict[str, list[int]] = {}
    loops: list[tuple[str, str, str, str]] = []
    computation, entry = "", ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[1]
            entry = computation if line.startswith("ENTRY") else entry
        elif loop := LOOP.search(line):
            loops.append((computation, loop[1], loop[2], line))
        else:
            constants.setdefault(computation, []).extend(map(int, CONSTANT.findall(line)))
            for names in CALLS.findall(line):
                for name in names.split(", "):
                    calls.setdefault(name.lstrip("%"), []).append((computation, 1.0))
    for caller, condition, body, line in loops:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        scope = re.search(r'op_name="[^"]*?([^/"]+)/while"', line)
        bounds = constants.get(condition, [])
        if known:
            count = float(known[1])
        elif scope and bare(scope[1]) in trips:
            count = trips[bare(scope[1])]
        else:
            count = float(bounds[0]) if len(bounds) == 1 else 1.0
        calls.setdefault(body, []).append((caller, count))

    @functools.cache
    def runs(name: str) -> float:
        return 1.0 if name == entry else sum(runs(caller) * count for caller, count in calls.get(name, ()))

    return {name: runs(name) for name in (entry, *calls)}


def bare(scope: str) -> str:
    """The name of a scope without what it is transformed by.

    >>> bare("vmap(decode)")
    'decode'
    """
    return scope.rpartition("(")[2].rstrip(")")


def _groups(line: str, devices: int) -> list[list[int]]:
    match = GROUPS.search(line)
    text = match[1] if match else "?"
    if text == "{}":
        return [list(range(devices))]
    if text.startswith("{{"):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, turn = ([int(i) for i in part.split(",")] if part else None for part in iota.groups())
        assert shape is not None
        return np.arange(devices).reshape(source).transpose(turn).reshape(shape).tolist()
    if named := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}:]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        inside = re.findall(r"'(\w+)'", named[4])
        names = list(sizes)
        turn = [names.index(n) for n in [*(n for n in names if n not in inside), *inside]]
        ids = np.arange(devices)
        if named[2] is not None:  # the devices in another order
            source, order = ([int(i) for i in part.split(",")] for part in named.group(2, 3))
            ids = ids.reshape(source).transpose(order)
        grid = ids.reshape(list(sizes.values())).transpose(turn)
        return grid.reshape(-1, math.prod(sizes[n] for n in inside)).tolist()
    raise ValueError(f"groups of devices are written in a way that is not known: {line.strip()[:300]}")


def _bytes(shapes: str) -> int:
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = ITEMSIZE.get(kind) or int(re.sub(r"\D", "", kind)) / 8
        total += int(size * math.prod(int(d) for d in dims.split(",") if d))
    return total
