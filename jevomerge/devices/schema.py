"""The YAML schema of the mesh."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jevomerge.schema import Strict

Memory = Literal["device", "host", "int8"]  # where the models lie that are merged; see `methods.packed`


class MeshShape(Strict):
    """The devices as a grid; what is not given follows from their number and, if they say how much it is, memory."""

    pop: int | None = Field(None, gt=0)  # how many candidates are scored at a time, each ...
    model: int | None = Field(None, gt=0)  # ... by so many devices, over which its weights are split
