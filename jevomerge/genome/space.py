"""The parameter space: a vector in the unit box <-> the coefficients of a merge.

A gene is (group, source, parameter).  Groups are the whole model, or the embedding, every k layers and the
head, and each of these by component (attention, MLP, norms).  `express` is pure: an affine map from the unit
box to the genes' ranges, then a gather, so every coefficient of the recipe that is not a gene is simply a
constant in the vector that is gathered from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.checkpoint import ParamSpec
from jevomerge.config import Gene
from jevomerge.errors import InputError
from jevomerge.merge import MergeMethod


@flax.struct.dataclass
class Space:
    """A search space; a pytree but for the genes' names."""

    low: Array  # (n,) of each gene
    high: Array  # (n,)
    constants: Array  # (c,)
    index: dict[str, dict[str, Array]]  # {path: {parameter: ([L,][N,]) int32 into genes ++ constants}}
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)  # "group/source/parameter"

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name, as numbers in their ranges."""
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        return dict(zip(self.names, (low + (high - low) * np.asarray(genome)).tolist(), strict=True))


def express(space: Space, genome: Array) -> dict[str, dict[str, Array]]:
    """(n,) genome in the unit box -> {path: {parameter: ([L,][N,]) float32}}; differentiable."""
    genes = space.low + (space.high - space.low) * genome.astype(jnp.float32)
    pool = jnp.concatenate([genes, space.constants])
    return jax.tree.map(lambda index: pool[index], space.index)


def make_space(
    method: MergeMethod,
    specs: Sequence[ParamSpec],
    sources: Sequence[str],
    genome: Mapping[str, Gene],
    fixed: Mapping[str, Mapping[str, np.ndarray]],
) -> Space:
    """The space of `genome` (parameter -> gene) over a recipe's `fixed` coefficients.

    Raises:
        InputError: for a parameter that cannot take the range.
    """
    parameters = {p.name: p for p in method.parameters}
    for name in genome:
        if parameters[name].kind != "float":
            raise InputError(f"genome: `{name}` is on or off and cannot be searched; fix it in recipe.parameters")
        low, high = genome[name].range
        if name == "density" and not 0 <= low < high <= 1:
            raise InputError(f"genome: density is a share of the elements; its range {[low, high]} must be in [0, 1]")
    names: dict[str, tuple[float, float]] = {}
    constants: dict[float, int] = {}
    index: dict[str, dict[str, np.ndarray]] = {}
    for spec in specs:
        index[spec.path] = {}
        for name, parameter in parameters.items():
            values = np.asarray(fixed[spec.path][name])
            where = np.empty(values.shape, np.int32)
            for at in np.ndindex(values.shape):
                if name in genome:
                    layer = at[0] if spec.num_layers is not None else None
                    parts = [group_of(spec, layer, genome[name])]
                    parts += [sources[at[-1]]] if parameter.per_model else []
                    gene = "/".join([*parts, name])
                    names.setdefault(gene, genome[name].range)
                    where[at] = list(names).index(gene)
                else:
                    # Negative for now: constants come after the genes, whose number is not known yet.
                    where[at] = -1 - constants.setdefault(float(values[at]), len(constants))
            index[spec.path][name] = where
    ranges = np.array(list(names.values()), np.float32)
    return Space(
        low=jnp.asarray(ranges[:, 0]),
        high=jnp.asarray(ranges[:, 1]),
        constants=jnp.asarray(list(constants), jnp.float32),
        index=jax.tree.map(lambda i: jnp.asarray(np.where(i < 0, len(names) - 1 - i, i), jnp.int32), index),
        names=tuple(names),
    )


def group_of(spec: ParamSpec, layer: int | None, gene: Gene) -> str:
    """The group of a tensor: "model", or for example "embedding", "layers 4-7", "layers 4-7 mlp", "mlp", "head"."""
    fine = gene.layers_per_group is not None or gene.components
    if not fine:
        return "model"
    if layer is None:
        return "embedding" if spec.path.startswith("embed") else "head"
    parts = []
    if gene.layers_per_group is not None:
        first = layer - layer % gene.layers_per_group
        last = min(first + gene.layers_per_group, spec.num_layers or 1) - 1
        parts.append(f"layers {first}-{last}" if last > first else f"layer {first}")
    if gene.components:
        component = next((c for c in ("self_attn", "mlp") if f".{c}." in spec.path), "norms")
        parts.append("attention" if component == "self_attn" else component)
    return " ".join(parts)
