"""Which slices of a mesh score which members on which batches.

Members that are too few to fill a mesh share out their examples: the slices are dealt to several *ways*, each of which
has all members and every so many-th batch. What a member makes of a batch does not depend on where it does so.

P slices, W ways, M members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.devices.mesh import by_member, everywhere


class Slices(NamedTuple):
    """How M members lie on P slices, in each of which there is room for some."""

    total: int  # P
    room: int  # for members in each
    members: int  # M, at most P * room
    ways: int  # W

    @property
    def each(self) -> int:
        """Slices of a way; those behind the last way's repeat what the first ones do."""
        return math.ceil(self.members / self.room)

    def fill(self, genomes: np.ndarray) -> np.ndarray:
        """(M, n) -> (P * room, n), filled up with copies of the last one."""
        slots = np.arange(self.total * self.room) % (self.each * self.room)
        return genomes[np.minimum(slots, self.members - 1)]

    @property
    def owners(self) -> dict[int, tuple[int, int]]:
        """{slot: its way and its member}, without copies."""
        width = self.each * self.room
        return {w * width + m: (w, m) for w in range(self.ways) for m in range(self.members)}

    def way(self, number: int) -> int:
        """That of a slice; of one behind the last way's the first."""
        return way if (way := number // self.each) < self.ways else 0


def slices_for(mesh: Mesh, room: int, members: int, divisible: bool) -> Slices:
    """As many ways as there are slices for; `divisible`: whether there may be more than one."""
    count = mesh.shape["pop"]
    ways = count // math.ceil(members / room) if divisible else 1
    return Slices(count, room, members, ways)


class Placing:
    """Puts batches on a mesh."""

    def __init__(self, mesh: Mesh):
        """Nothing lies there yet."""
        self.mesh = mesh
        # Arrays of JAX that came in all batches, and where they lie; none is let go, or another might have its id.
        self._placed: dict[int, tuple[Array, Array]] = {}

    def __call__(self, batches: Sequence[Any], slices: Slices | None = None) -> Any:
        """The batches of W ways or fewer as `run_members` takes them; without `slices` one for all.

        Arrays of JAX come again with every other batch: they are put there once.
        """
        return jax.tree.map(lambda *leaves: self._leaf(leaves, slices), *batches)

    def _leaf(self, leaves: Sequence[Any], slices: Slices | None) -> Any:
        first = leaves[0]
        if self.mesh.size == 1:
            return first
        if not isinstance(first, Array) or any(leaf is not first for leaf in leaves):
            return self._put(leaves, slices)
        if id(first) not in self._placed:
            self._placed[id(first)] = (first, self._put([first], slices))
        return self._placed[id(first)][1]

    def _put(self, leaves: Sequence[Any], slices: Slices | None) -> Array:
        leaves, count = [np.asarray(leaf) for leaf in leaves], self.mesh.shape["pop"]
        first = leaves[0]
        if count == 1:
            return jax.make_array_from_callback(first.shape, everywhere(self.mesh), lambda index: first[index])

        def part(index: Any) -> np.ndarray:
            ways = [0 if slices is None else slices.way(p) for p in range(*index[0].indices(count))]
            return np.stack([leaves[way if way < len(leaves) else 0] for way in ways])

        return jax.make_array_from_callback((count, *np.shape(first)), by_member(self.mesh), part)
