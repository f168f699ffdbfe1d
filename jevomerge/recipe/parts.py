"""What a merge is made of: slices whose models have been opened, and the tensors of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jevomerge.checkpoint.source import Source
from jevomerge.models.specs import ParamSpec
from jevomerge.recipe.schema import Parameters, RecipeModel
from jevomerge.schema import Location


class Part(NamedTuple):
    """A slice whose models have been opened; the base, if the method wants one, is not among the inputs."""

    inputs: tuple[RecipeModel, ...]
    where: tuple[Location, ...]  # of the inputs in the file
    scopes: tuple[tuple[Location, Parameters], ...]
    checkpoints: tuple[Source, ...]
    first: tuple[int, ...]  # layer that each takes part from
    base: Source | None
    base_first: int
    length: int  # layers


class Tensor(NamedTuple):
    """One tensor of the merged model and what it is made of."""

    spec: ParamSpec
    at: tuple[int, ...]  # where in the leaf; () for what is not in a layer
    part: Part
    row: int  # layer within the part

    @property
    def layer(self) -> int | None:
        """Of the merged model; None for what is not in a layer."""
        return self.spec.layer(self.at)

    @property
    def name(self) -> str:
        """What it will be called."""
        return self.spec.name(self.at)

    def input_name(self, i: int) -> str:
        """What the `i`-th input calls it."""
        return self._name_from(self.part.first[i])

    @property
    def base_name(self) -> str:
        """What the base model calls it."""
        return self._name_from(self.part.base_first)

    def _name_from(self, first: int) -> str:
        return self.spec.name_in(first + self.row if self.at else None, self.at[1:])

    @property
    def position(self) -> float:
        """Its point on a gradient: depth in its slice; what is not in a layer stands at the first one's."""
        if not self.at:
            return 0.0
        return self.row / (self.part.length - 1) if self.part.length > 1 else 1.0


def lay_out(specs: Sequence[ParamSpec], parts: Sequence[Part], eyes: Mapping[str, Part]) -> list[Tensor]:
    """All tensors of a merged model in file order.

    Embeddings belong to the first slice, norm and head to the last, and what `eyes` has a part for to that.
    """
    layers = [(part, row) for part in parts for row in range(part.length)]
    tensors = []
    for spec in specs:
        for at in spec.indices():
            layer = spec.layer(at)
            if (own := eyes.get(spec.component)) is not None:
                part, row = own, layer or 0
            elif layer is not None and layers:
                part, row = layers[layer]
            else:  # a model without layers may have stacks of its own
                part, row = parts[0 if spec.role == "embedding" else -1], layer or 0
            tensors.append(Tensor(spec, at, part, row))
    return tensors


def by_leaf(tensors: Sequence[Tensor]) -> dict[ParamSpec, list[Tensor]]:
    """The tensors of each leaf."""
    leaves: dict[ParamSpec, list[Tensor]] = {}
    for tensor in tensors:
        leaves.setdefault(tensor.spec, []).append(tensor)
    return leaves
