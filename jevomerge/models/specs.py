"""The table of a model's parameters: what each is called in a file, and where it lives in the pytree.

It is all that most of the house knows of a model: loading, exporting, merging, grouping by genes and sharding walk it.
A family makes its table from the model itself (see `models.decoder.specs`), so that the two cannot drift.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from jevomerge.devices.mesh import HOST, dealt, split
from jevomerge.devices.schema import Memory

CUT = ("heads", "channels")  # axes by which devices share a model


class Axis(NamedTuple):
    """A logical axis of a tensor."""

    name: str  # embed, heads, kv_heads, ff, vocab, expert, ...
    parts: int = 0  # into how many equal parts it may be cut: heads, not heads times their size; 0: it is never cut


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One leaf of the parameter pytree and the tensor (or tensors, one per layer) it is stored as.

    Attributes:
        path: of the leaf, "layers.self_attn.q_proj.weight".
        template: the tensors' names, "model.layers.{layer}.self_attn.q_proj.weight".
        shape: of one tensor, without the axes of `stack`.
        axes: logical axes of one tensor.
        stack: the leaf's leading axes, names as in `template` and sizes: (("layer", 32),); (): stored once.
        layers: which of the model's layers lie along the first of these axes; (): all of them.
        depth: how many layers the model has; 0: as many as lie there.
        block: where in the pytree the subtree of one such layer hangs, over which a forward pass scans: "layers".
        role: "embedding" stands before the blocks of a model, "head" after them, "other" beside them.
        component: what genes are grouped by: attention, mlp, norms, ...
        place: what its users call the block that it stands in: IN04, M00, ...; "": they have no names for blocks.
    """

    path: str
    template: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    stack: tuple[tuple[str, int], ...] = ()
    layers: tuple[int, ...] = ()
    depth: int = 0
    block: str = ""
    role: Literal["embedding", "head", "block", "other"] = "block"
    component: str = ""
    place: str = ""

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the leaf's leading axes."""
        return tuple(size for _, size in self.stack)

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape of the leaf: one tensor's, behind the leading axes."""
        return (*self.leading, *self.shape)

    @property
    def count(self) -> int:
        """How many tensors the leaf is stored as."""
        return math.prod(self.leading)

    @property
    def vocabulary(self) -> bool:
        """Whether it has a row for every token."""
        return any(axis.name == "vocab" for axis in self.axes)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Where in the leaf each tensor lies, in file order; () for a leaf that is stored once."""
        return itertools.product(*map(range, self.leading))

    @property
    def layers_in_all(self) -> int:
        """Of the model, or of what it is a part of."""
        return self.depth or self.leading[0]

    def layer(self, at: tuple[int, ...]) -> int | None:
        """The layer that the tensor there is in; None: it is in none."""
        if not at:
            return None
        return self.layers[at[0]] if self.layers else at[0]

    def name(self, at: tuple[int, ...] = ()) -> str:
        """What the tensor there is called in a checkpoint."""
        return self.name_in(self.layer(at), at[1:])

    def name_in(self, layer: int | None, rest: tuple[int, ...] = ()) -> str:
        """What the tensor of a layer of any model is called, `rest` saying where along the other axes of `stack`."""
        numbers = () if layer is None else (layer, *rest)
        return self.template.format(**{axis: i for (axis, _), i in zip(self.stack, numbers, strict=True)})

    def names(self) -> list[str]:
        """The names of all its tensors, in file order."""
        return [self.name(at) for at in self.indices()]


def tensor_names(specs: Sequence[ParamSpec]) -> Iterator[tuple[str, ParamSpec, tuple[int, ...]]]:
    """Every tensor of a checkpoint in file order: (name, its spec, where in the leaf)."""
    for spec in specs:
        for at in spec.indices():
            yield spec.name(at), spec, at


def shardings(mesh: Mesh | None, specs: Sequence[ParamSpec]) -> dict[str, NamedSharding | None]:
    """Where each leaf of a model lies, {path: ...}; None without a mesh: on the first device.

    Layers lie beside each other on every device; experts, which are a tensor each in the files, may lie apart. What
    cannot be cut between heads is cut inside of them, rather than that every device has all of it.
    """

    def place(spec: ParamSpec) -> NamedSharding | None:
        parts = [*(size if name == "expert" else 0 for name, size in spec.stack), *(axis.parts for axis in spec.axes)]
        found = split(mesh, parts)
        if found is None or any(found.spec):
            return found
        return split(mesh, [size if n else 0 for n, size in zip(parts, spec.leaf_shape, strict=True)])

    return {s.path: place(s) for s in specs}


def waiting(where: NamedSharding | None, spec: ParamSpec, memory: Memory) -> NamedSharding | None:
    """Where a leaf waits for the device that it lies on otherwise: matrices do, of a mesh.

    XLA fetches no rows of a stack of vectors, which are small.
    """
    if memory == "device" or len(spec.shape) < 2:
        return where
    assert where is not None
    if memory == "mesh":
        return dealt(where, spec.leaf_shape, len(spec.stack))
    return where.with_memory_kind(HOST)


def heads_of(specs: Sequence[ParamSpec]) -> int:
    """Into how many parts a model is cut at most: its attention heads, or a U-Net's channels."""
    parts = {name: max((a.parts for s in specs for a in s.axes if a.name == name), default=0) for name in CUT}
    return parts["heads"] or parts["channels"] or 1


def layered(path: str, pattern: str) -> str:
    """What the tensors of a stacked leaf are called: its path with "{layer}" at the pattern's first wildcard.

    >>> layered("net.blocks.kernel", "net.blocks.*")
    'net.blocks.{layer}.kernel'
    """
    at = re.split(r"[*?[]", pattern)[0].rfind(".") + 1
    return f"{path[:at]}{{layer}}.{path[at:]}"


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}: the nested form the forward pass takes."""
    return unflatten_dict(leaves, sep=".")


def flatten(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `unflatten`."""
    return flatten_dict(params, sep=".")
