"""The YAML schema of the mesh."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jevomerge.schema import Strict

# Where the models lie that are merged: on the devices, where each slice of `pop` has all or a part of them; in the
# memory of the host, as they are or packed (`methods.packed`).
Memory = Literal["device", "mesh", "host", "int8"]


class MeshShape(Strict):
    """The devices as a grid; what is not given follows from their number and, if they say how much it is, memory."""

    pop: int | None = Field(None, gt=0)  # how many candidates are scored at a time, each ...
    model: int | None = Field(None, gt=0)  # ... by so many devices, over which its weights are split
