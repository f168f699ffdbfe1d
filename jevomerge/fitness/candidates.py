"""What a genome stands for: weights that are merged, a path through blocks, or both.

Each kind is a pytree, an argument of jitted functions.  `make` is what is worth computing once for many forward passes
of a candidate (a merge), `model` its model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
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


class Candidates:
    """What all kinds have in common."""

    batched = False  # whether members may be vmapped
    lazy = True  # whether one forward pass needs nothing made (a merge then happens in it, block by block)

    def make(self, genome: Array) -> Any:
        """(n,) -> what is computed once; None: nothing is."""
        return None

    def model(self, made: Any, genome: Array, slots: int | None = None) -> Model:
        """(n,) and what was made of it -> the model, if it is a path with room for `slots` hops (None: for any)."""
        raise NotImplementedError

    def hops(self, genomes: np.ndarray) -> np.ndarray | None:
        """(M,) how long the paths of (M, n) genomes are; None without paths."""
        return None

    def slots(self, genomes: np.ndarray) -> int | None:
        """How much room the paths of (M, n) genomes need, rounded up to 16; None without paths."""
        return None


@flax.struct.dataclass
class Whole(Candidates):
    """One model; its genome has no genes."""

    params: Params

    def model(self, made: None, genome: Array, slots: int | None = None) -> Model:
        """The model."""
        return Model(self.params)


@flax.struct.dataclass
class Merged(Candidates):
    """Parameter space: a genome is the coefficients of a merge."""

    bank: Bank
    space: Space
    merge: Merge = flax.struct.field(pytree_node=False)
    batched = True

    def make(self, genome: Array) -> Params:
        """(n,) -> merged parameters."""
        return build(self.merge, self.bank, express(self.space, genome))

    def model(self, made: Params | None, genome: Array, slots: int | None = None) -> Model:
        """The model; if nothing was made, it is merged block by block in the layer scan."""
        return Model(*in_scan(self.merge, self.bank, express(self.space, genome))) if made is None else Model(made)


@flax.struct.dataclass
class Routed(Candidates):
    """Data-flow space: a genome is a path through a stack of blocks.

    Not batched: under vmap all members would make as many hops as the longest.
    """

    params: Params
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)

    def model(self, made: None, genome: Array, slots: int | None = None) -> Model:
        """The stack with a path."""
        return Model(self.params, path=shortened(express_path(self.space, genome), slots), scale=self.scale)

    def hops(self, genomes: np.ndarray) -> np.ndarray:
        """Of each path."""
        return np.asarray(_lengths(self.space, genomes.astype(np.float32)))

    def slots(self, genomes: np.ndarray) -> int:
        """Of the longest path, rounded up to 16: a cache has room for each hop."""
        return slots_of(self.space, self.hops(genomes))


@flax.struct.dataclass
class MergedAndRouted(Candidates):
    """Both spaces at once: the genes of a merge, then those of a path through its blocks and those of other models."""

    merged: Merged
    blocks: Params  # of the other models, (M', ...) each
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)
    lazy = False

    @property
    def weights(self) -> int:
        """How many genes are the merge's."""
        return len(self.merged.space.names)

    def make(self, genome: Array) -> Params:
        """(n,) -> the stack of merged and other blocks."""
        params = self.merged.make(genome[: self.weights])
        layers = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), params["layers"], self.blocks)
        return params | {"layers": layers}

    def model(self, made: Params, genome: Array, slots: int | None = None) -> Model:
        """The stack with a path."""
        path = shortened(express_path(self.space, genome[self.weights :]), slots)
        return Model(made, path=path, scale=self.scale)

    def hops(self, genomes: np.ndarray) -> np.ndarray:
        """As for `Routed`."""
        return np.asarray(_lengths(self.space, genomes[:, self.weights :].astype(np.float32)))

    def slots(self, genomes: np.ndarray) -> int:
        """As for `Routed`."""
        return slots_of(self.space, self.hops(genomes))


def shortened(path: Path, slots: int | None) -> Path:
    """The path in `slots` slots, which must hold it."""
    return Path(path.layers[:slots], path.scales[:slots], path.length)


def slots_of(space: PathSpace, hops: np.ndarray) -> int:
    """The most hops, rounded up to 16, at most those there are."""
    return min(-(-int(np.max(hops)) // 16) * 16, space.num_slots + 1)


@jax.jit
def _lengths(space: PathSpace, genomes: Array) -> Array:
    return jax.vmap(lambda genome: express_path(space, genome).length)(genomes)
