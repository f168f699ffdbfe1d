"""The parameter space: a vector in the unit box <-> the coefficients of a merge.

A gene is (group, source, parameter).  Groups are the whole model, or the embedding, every k layers and the
head, and each of these by component, by tensor or by filters on tensor names.  `express` is pure: a map from
the unit box to the genes' ranges, then a gather, so every coefficient of the recipe that is not a gene is
simply a constant in the vector that is gathered from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.checkpoint import ParamSpec
from jevomerge.config import Gene
from jevomerge.errors import InputError
from jevomerge.recipe import Sources


@flax.struct.dataclass
class Space:
    """A search space; a pytree but for the genes' names."""

    low: Array  # (n,) of each gene
    high: Array  # (n,)
    levels: Array  # (n,) how many values a gene can take, 0 for a continuous one
    constants: Array  # (c,)
    index: dict[str, dict[str, Array]]  # {path: {parameter: ([L,][N,]) int32 into genes ++ constants}}
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)  # "group/source/parameter"

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name, as numbers in their ranges."""
        return dict(zip(self.names, np.asarray(_decode(self, np.asarray(genome), np)).tolist(), strict=True))


def express(space: Space, genome: Array) -> dict[str, dict[str, Array]]:
    """(n,) genome in the unit box -> {path: {parameter: ([L,][N,]) float32}}; differentiable in continuous genes."""
    pool = jnp.concatenate([_decode(space, genome.astype(jnp.float32), jnp), space.constants])
    return jax.tree.map(lambda index: pool[index], space.index)


def _decode(space: Space, genome: Any, np_: Any) -> Any:
    """From the unit box to the ranges; the box of a discrete gene is cut into equal parts, one per level."""
    low, high, levels = (np_.asarray(x, genome.dtype) for x in (space.low, space.high, space.levels))
    step = np_.clip(np_.floor(genome * levels), 0, np_.maximum(levels - 1, 0))
    return np_.where(levels > 0, low + step, low + (high - low) * genome)


def make_space(sources: Sources, genome: Mapping[str, Gene]) -> Space:
    """The space of `genome` (parameter -> gene) over a recipe; what is no gene stays as the recipe says.

    Raises:
        InputError: for a parameter that cannot take the range, or slices that merge different numbers of models.
    """
    width = sources.num_inputs
    parameters = {p.name: p for p in sources.method.parameters}
    bounds = {name: gene.range or parameters[name].domain for name, gene in genome.items()}
    for name, gene in genome.items():
        _check_range(name, parameters[name].kind, bounds[name])
        for text in gene.by if isinstance(gene.by, tuple) else ():
            if not any(text in t.name for t in sources.tensors):
                raise InputError(f"genome: `{name}`: the filter `{text}` matches no tensor")
    names: dict[str, int] = {}
    constants: dict[float, int] = {}
    index: dict[str, dict[str, np.ndarray]] = {}
    for spec in sources.specs:
        rows = [t for t in sources.tensors if t.spec is spec]
        index[spec.path] = {}
        for name, parameter in parameters.items():
            fixed = sources.numbers[spec.path][name]
            where = np.empty((len(rows), width if parameter.per_model else 1), np.int32)
            for (row, i), value in np.ndenumerate(fixed.reshape(where.shape)):
                if name in genome:
                    parts = [group_of(spec, rows[row].layer, genome[name])]
                    parts += [rows[row].part.checkpoints[i].name] if parameter.per_model else []
                    where[row, i] = names.setdefault("/".join([*parts, name]), len(names))
                else:
                    # Negative for now: constants come after the genes, whose number is not known yet.
                    where[row, i] = -1 - constants.setdefault(float(value), len(constants))
            index[spec.path][name] = where.reshape(fixed.shape)
    searched = [name.rpartition("/")[2] for name in names]
    ranges = np.array([bounds[name] for name in searched], np.float32).reshape(-1, 2)
    discrete = np.array([parameters[name].kind != "float" for name in searched], bool)
    return Space(
        low=jnp.asarray(ranges[:, 0]),
        high=jnp.asarray(ranges[:, 1]),
        levels=jnp.asarray(np.where(discrete, ranges[:, 1] - ranges[:, 0] + 1, 0), jnp.float32),
        constants=jnp.asarray(list(constants), jnp.float32),
        index=jax.tree.map(lambda i: jnp.asarray(np.where(i < 0, len(names) - 1 - i, i), jnp.int32), index),
        names=tuple(names),
    )


def _check_range(name: str, kind: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if name == "density" and not 0 <= low < high <= 1:
        raise InputError(f"genome: density is a share of the elements; its range {[low, high]} must be in [0, 1]")
    if kind == "bool" and (low, high) != (0, 1):
        raise InputError(f"genome: `{name}` is on or off; its range must be [0, 1], not {[low, high]}")
    if kind == "int" and (low % 1 or high % 1):
        raise InputError(f"genome: `{name}` is a whole number; its range cannot be {[low, high]}")


def start_of(space: Space, numbers: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """(n,) the genome that is nearest to a recipe's coefficients: a gene takes the mean over its group.

    Raises:
        InputError: for a coefficient outside its gene's range.
    """
    total, count = np.zeros(len(space.names)), np.zeros(len(space.names))
    for path, parameters in space.index.items():
        for name, index in parameters.items():
            at = np.asarray(index)
            mask = at < len(space.names)
            np.add.at(total, at[mask], numbers[path][name][mask])
            np.add.at(count, at[mask], 1)
    values = total / count
    low, high, levels = (np.asarray(x, np.float64) for x in (space.low, space.high, space.levels))
    for name, value, bottom, top in zip(space.names, values, low, high, strict=True):
        if not bottom - 1e-6 <= value <= top + 1e-6:
            raise InputError(
                f"start_from: the recipe has {value:g} for {name}, outside the gene's range [{bottom:g}, {top:g}]"
            )
    genome = np.where(levels > 0, (np.round(values) - low + 0.5) / np.maximum(levels, 1), (values - low) / (high - low))
    return np.clip(genome, 0, 1)


def group_of(spec: ParamSpec, layer: int | None, gene: Gene) -> str:
    """The group of a tensor: "model", or for example "embedding", "layers 4-7", "layers 4-7 mlp", "mlp", "head"."""
    parts = []
    if gene.layers_per_group is not None and layer is not None:
        first = layer - layer % gene.layers_per_group
        last = min(first + gene.layers_per_group, spec.num_layers or 1) - 1
        parts.append(f"layers {first}-{last}" if last > first else f"layer {first}")
    elif layer is None and (gene.layers_per_group is not None or gene.by in ("component", "tensor")):
        parts.append("embedding" if spec.path.startswith("embed") else "head")
    name = spec.template.format(layer=layer)
    if isinstance(gene.by, tuple):
        parts.append(next((f for f in gene.by if f in name), "rest"))
    elif gene.by == "component" and layer is not None:
        component = next((c for c in ("self_attn", "mlp") if f".{c}." in spec.path), "norms")
        parts.append("attention" if component == "self_attn" else component)
    elif gene.by == "tensor":
        parts.append(spec.path.removeprefix("layers.").removesuffix(".weight"))
    return " ".join(parts) or "model"
