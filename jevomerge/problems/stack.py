"""The blocks of several checkpoints in a row, through which a path leads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.source import Source, abstract_leaf, read_leaf
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.models.specs import ParamSpec, shardings, unflatten, waiting


class Stack:
    """The blocks of several checkpoints in a row, M in all; everything else is the first one's."""

    def __init__(self, checkpoints: Sequence[Source]):
        """Check that one forward pass can run all of them.

        Raises:
            InputError: naming what differs.
        """
        first = checkpoints[0]
        self.blocks = [(c, i) for c in checkpoints for i in range(len(c.model.kinds))]
        self.model: Language = first.model.resized([kind for c in checkpoints for kind in c.model.kinds])
        self.specs = self.model.specs
        for other in checkpoints[1:]:  # the others' vocabularies are never seen
            if differing := first.model.unlike(other.model):
                raise InputError(
                    f"{other.folder} and {first.folder} differ in {', '.join(differing)} (config.json); "
                    "a path can only lead through models whose blocks compute the same function of their weights"
                )

    def read(self, path: str, block: int | None, rest: tuple[int, ...] = ()) -> np.ndarray:
        """The tensor of a leaf of `self.specs`, of one block if it is in one, from its file.

        `rest` says where it is along the leaf's other leading axes.
        """
        checkpoint, layer = (self.blocks[0][0], None) if block is None else self.blocks[block]
        spec = next(s for s in self.specs if s.path == path)
        if spec.role == "embedding":
            checkpoint.check_head()
        return checkpoint.tensor(spec.name_in(layer, rest))

    def load(self, mesh: Mesh | None = None, memory: Memory = "device", *, abstract: bool = False) -> Params:
        """All in memory, blocks on a leading axis of length M; `abstract` as in `Sources.load`.

        `memory`: in which the blocks are.
        """
        first = self.blocks[0][0]
        if not abstract:
            first.check_head()
        make = abstract_leaf if abstract else read_leaf

        def places(spec: ParamSpec) -> list[tuple[Source, str]]:
            if not spec.stack:
                return [(first, spec.name())]
            owners = ((*self.blocks[spec.layer(at) or 0], at[1:]) for at in spec.indices())
            return [(checkpoint, spec.name_in(layer, rest)) for checkpoint, layer, rest in owners]

        where = shardings(mesh, self.specs)
        where |= {s.path: waiting(where[s.path], s, memory) for s in self.specs if s.block}
        return unflatten({s.path: make(s, places(s), where[s.path]) for s in self.specs})
