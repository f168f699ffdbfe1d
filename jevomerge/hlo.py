"""What a compiled program exchanges between devices, read off its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
ITEMSIZE = {"pred": 1, "bf16": 2, "f16": 2}  # else the number of bits in the name: "f32"
INSTRUCTION = re.compile(rf"= (?P<shapes>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|mesh\[.*?\] \{.*?\}|\[[^ ]*)")


class Collective(NamedTuple):
    """One instruction; in a loop it runs more than once."""

    kind: str
    axes: frozenset[str]  # of the mesh, along which devices exchange something
    shapes: str  # what each device has afterwards
    bytes: int


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """The collectives in `compiled.as_text()` of a program for `mesh`.

    Raises:
        ValueError: for a way to write groups of devices that is not known.
    """
    found = []
    for line in text.splitlines():
        if (match := INSTRUCTION.search(line)) is None:
            continue
        groups = _groups(line, mesh.devices.size)
        axes: set[str] = set()
        for group in groups:
            where = np.stack(np.unravel_index(np.asarray(group), mesh.devices.shape), axis=1)
            axes |= {name for name, ids in zip(mesh.axis_names, where.T, strict=True) if len(set(ids.tolist())) > 1}
        found.append(Collective(match["kind"], frozenset(axes), match["shapes"], _bytes(match["shapes"])))
    return found


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
    if named := re.match(r"mesh\[([^\]]*)\] \{([^}:]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        inside = re.findall(r"'(\w+)'", named[2])
        names = list(sizes)
        turn = [names.index(n) for n in [*(n for n in names if n not in inside), *inside]]
        grid = np.arange(devices).reshape(list(sizes.values())).transpose(turn)
        return grid.reshape(-1, math.prod(sizes[n] for n in inside)).tolist()
    raise ValueError(f"groups of devices are written in a way that is not known: {line.strip()[:300]}")


def _bytes(shapes: str) -> int:
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = ITEMSIZE.get(kind) or int(re.sub(r"\D", "", kind)) / 8
        total += int(size * math.prod(int(d) for d in dims.split(",") if d))
    return total
