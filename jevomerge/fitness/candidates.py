"""What a genome stands for: weights that are merged, a path through blocks, or both.

Each kind is a pytree, an argument of jitted functions, with two methods: `lazy` is what a forward pass needs at least
(a merge happens block by block inside it), `whole` is for many forward passes (the merge has been made).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.genome import Space, express
from jevomerge.genome.path import PathSpace, express_path
from jevomerge.merge import Bank, Merge, build, in_scan
from jevomerge.models import Params, Path, Scaling


class Model(NamedTuple):
    """The arguments of `jevomerge.models.apply` that make up one model."""

    params: Any
    layer: Callable[[Any], Params] = lambda p: p
    path: Path | None = None
    scale: Scaling = "stream"


@flax.struct.dataclass
class Merged:
    """Parameter space: a genome is the coefficients of a merge."""

    bank: Bank
    space: Space
    merge: Merge = flax.struct.field(pytree_node=False)
    batched = True  # members may be vmapped

    def lazy(self, genome: Array) -> Model:
        """(n,) -> a model that is merged in the layer scan."""
        return Model(*in_scan(self.merge, self.bank, express(self.space, genome)))

    def whole(self, genome: Array) -> Model:
        """(n,) -> a merged model."""
        return Model(_build(self, genome))


@jax.jit
def _build(merged: Merged, genome: Array) -> Params:
    return build(merged.merge, merged.bank, express(merged.space, genome))


@flax.struct.dataclass
class Routed:
    """Data-flow space: a genome is a path through a stack of blocks."""

    params: Params
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)
    batched = False  # under vmap all members would make as many hops as the longest

    def lazy(self, genome: Array) -> Model:
        """(n,) -> the stack with a path."""
        return Model(self.params, path=express_path(self.space, genome), scale=self.scale)

    def whole(self, genome: Array) -> Model:
        """(n,) -> the same with as few slots as hops need, rounded up to 16, for a cache has room for each."""
        return shortened(self.lazy(genome))


@flax.struct.dataclass
class MergedAndRouted:
    """Both spaces at once: the genes of a merge, then those of a path through its blocks and those of other models."""

    merged: Merged
    blocks: Params  # of the other models, (M', ...) each
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)
    batched = False

    def lazy(self, genome: Array) -> Model:
        """(n,) -> a stack of merged and other blocks with a path."""
        weights = len(self.merged.space.names)
        params = build(self.merged.merge, self.merged.bank, express(self.merged.space, genome[:weights]))
        layers = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), params["layers"], self.blocks)
        return Model(params | {"layers": layers}, path=express_path(self.space, genome[weights:]), scale=self.scale)

    def whole(self, genome: Array) -> Model:
        """(n,) -> the same, made once."""
        params, path = _join(self, genome)
        return shortened(Model(params, path=path, scale=self.scale))


@jax.jit
def _join(both: MergedAndRouted, genome: Array) -> tuple[Params, Path | None]:
    model = both.lazy(genome)
    return model.params, model.path


Candidates = Merged | Routed | MergedAndRouted


def shortened(model: Model) -> Model:
    """The model with as few slots as its hops need, rounded up to 16."""
    assert model.path is not None
    slots = min(-(-int(model.path.length) // 16) * 16, model.path.layers.shape[0])
    path = Path(model.path.layers[:slots], model.path.scales[:slots], model.path.length)
    return model._replace(path=path)
