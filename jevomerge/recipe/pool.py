"""Sources that are one model, each with an adapter of its own: the model is read once, the adapters are not folded in.

What an adapter replaces, and what it adds to anything but a linear map, is read as in any other source.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.lora import LowRank
from jevomerge.checkpoint.source import abstract_leaf, read_leaf
from jevomerge.devices.mesh import everywhere, put
from jevomerge.methods.bank import Adapters, is_product
from jevomerge.models.specs import ParamSpec, flatten, shardings, unflatten
from jevomerge.recipe.adapter import adapter_of, low_rank_of, read_pair
from jevomerge.recipe.sources import Sources


def load_pool(
    sources: Sources, mesh: Mesh | None = None, *, abstract: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, Adapters]]:
    """As `Sources.load`, but that what only adapters differ in is one array for all, and what they add, by path."""
    part = sources.parts[0]
    shared = [spec for spec in sources.specs if _is_shared(spec, sources)]
    trees, base = sources.load(mesh, abstract=abstract, but={s.path for s in shared})
    flat, flat_base = [flatten(tree) for tree in trees], flatten(base or {})
    bare = copy.copy(part.checkpoints[0])
    bare.adapter = None  # type: ignore[attr-defined]
    make, where, adapters = abstract_leaf if abstract else read_leaf, shardings(mesh, shared), {}
    for spec in shared:
        leaf = make(spec, [(bare, name) for name in spec.names()], where[spec.path])
        for tree in (*flat, *([] if part.base is None else [flat_base])):
            tree[spec.path] = leaf
        if is_product(spec):
            adapters[spec.path] = _adapters(spec, sources, mesh, abstract)
    return [unflatten(tree) for tree in flat], unflatten(flat_base) if part.base else None, adapters


def adapted(sources: Sources) -> int:
    """How many numbers the adapters of a pool have for linear maps."""
    specs = [spec for spec in sources.specs if _is_shared(spec, sources) and is_product(spec)]
    return sum(spec.count * sum(_ranks(spec, sources)) * sum(spec.shape) for spec in specs)


def _low_rank(spec: ParamSpec, sources: Sources) -> list[list[LowRank | None]]:
    """What each source adds to each tensor of a leaf."""
    return [[low_rank_of(c, name) for name in spec.names()] for c in sources.parts[0].checkpoints]


def _is_shared(spec: ParamSpec, sources: Sources) -> bool:
    """Whether a leaf is one array in all sources, but for what adapters add to a linear map."""
    replaced = {name for c in sources.parts[0].checkpoints if (a := adapter_of(c)) is not None for name in a.replaced}
    added = [low for of_source in _low_rank(spec, sources) for low in of_source if low is not None]
    return replaced.isdisjoint(spec.names()) and (
        not added or (is_product(spec) and not any(low.transposed for low in added))
    )


def _ranks(spec: ParamSpec, sources: Sources) -> tuple[int, ...]:
    """Of each source, the highest in the leaf."""
    return tuple(max((low.rank for low in found if low), default=0) for found in _low_rank(spec, sources))


def _adapters(spec: ParamSpec, sources: Sources, mesh: Mesh | None, abstract: bool) -> Adapters:
    ranks, (out, inside) = _ranks(spec, sources), spec.shape
    shapes = [(*spec.leading, sum(ranks), inside), (*spec.leading, out, sum(ranks))]
    where = None if mesh is None else everywhere(mesh)
    rows = zip(*_low_rank(spec, sources), strict=True)
    scales = tuple(tuple(1.0 if low is None else low.scale for low in row) for row in rows)
    if abstract:
        down, up = (jax.ShapeDtypeStruct(shape, np.float32, sharding=where) for shape in shapes)
        return Adapters(down, up, ranks, scales)  # type: ignore[arg-type]
    halves = [np.zeros(shape, np.float32) for shape in shapes]
    for i, found in enumerate(_low_rank(spec, sources)):
        for at, low in zip(spec.indices(), found, strict=True):
            if low is not None:
                first = sum(ranks[:i])
                a, b = read_pair(low, spec.name(at), sources.parts[0].checkpoints[i].reference)
                halves[0][at][first : first + low.rank] = a
                halves[1][at][:, first : first + low.rank] = low.scale * b
    return Adapters(put(halves[0], where), put(halves[1], where), ranks, scales)
