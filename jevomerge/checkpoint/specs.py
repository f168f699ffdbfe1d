"""The table of a model's parameters: what each is called in a file, and where it lives in the pytree.

The table is read off the Flax model itself (`jax.eval_shape` of its initialisation), so there is one source
of truth for names, shapes and logical axes.  Loading, exporting, merging by group and sharding all walk it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jevomerge.models import DecoderConfig, init


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One leaf of the parameter pytree and the tensor (or tensors, one per layer) it is stored as."""

    path: str  # "layers.self_attn.q_proj.weight"
    template: str  # "model.layers.{layer}.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # of one tensor, without the layer axis
    axes: tuple[str, ...]  # logical axes of one tensor
    num_layers: int | None  # None: stored once

    def names(self) -> list[str]:
        """The checkpoint's names of this leaf's tensors, in layer order."""
        return [self.template.format(layer=i) for i in range(self.num_layers or 1)]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape of the leaf: with the layer axis if it has one."""
        return self.shape if self.num_layers is None else (self.num_layers, *self.shape)


@functools.cache
def param_specs(config: DecoderConfig) -> tuple[ParamSpec, ...]:
    """The parameter table of an architecture, sorted by path."""
    abstract = flatten_dict(jax.eval_shape(lambda: init(jax.random.key(0), config)), sep=".")

    def spec(path: str, leaf: nn.Partitioned[Any]) -> ParamSpec:
        stacked = path.startswith("layers.")
        prefix = "" if path.startswith("lm_head") else "model."
        return ParamSpec(
            path=path,
            template=prefix + path.replace("layers.", "layers.{layer}."),
            shape=leaf.value.shape[1:] if stacked else leaf.value.shape,
            axes=tuple(leaf.names),  # type: ignore[arg-type]
            num_layers=config.num_hidden_layers if stacked else None,
        )

    return tuple(spec(path, leaf) for path, leaf in sorted(abstract.items()))


def tensor_names(specs: Sequence[ParamSpec]) -> Iterator[tuple[str, ParamSpec, int | None]]:
    """Every tensor of a checkpoint in file order: (name, its spec, its layer or None)."""
    for spec in specs:
        for i, name in enumerate(spec.names()):
            yield name, spec, None if spec.num_layers is None else i


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}: the nested form the forward pass takes."""
    return unflatten_dict(leaves, sep=".")


def flatten(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `unflatten`."""
    return flatten_dict(params, sep=".")
