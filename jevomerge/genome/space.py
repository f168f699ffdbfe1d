"""The parameter space: a vector in the unit box <-> the coefficients of a merge.

A gene is (group, source, parameter). Groups are the whole model, or the embedding, every k layers and the
head, and each of these by component, by tensor or by filters on tensor names. With `smooth` the layers have
control points instead, and what lies between two of them is on the line that joins them, as in mergekit's
gradients. `express` is pure: a map from the unit box to the genes' ranges, then a gather, so every coefficient
of the recipe that is not a gene is simply a constant in the vector that is gathered from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.genome.names import GeneName, Layers, Point
from jevomerge.genome.schema import Gene
from jevomerge.models.diffusion.places import sakana
from jevomerge.recipe.parts import Tensor, by_leaf
from jevomerge.recipe.sources import Sources
from jevomerge.schema import Origin, validate


@flax.struct.dataclass
class Space:
    """A search space; a pytree but for the genes' names."""

    low: Array  # (n,) of each gene
    high: Array  # (n,)
    levels: Array  # (n,) how many values a gene can take, 0 for a continuous one
    constants: Array  # (c,)
    ends: Array  # (b, 2) int32, the genes between which each of b interpolated coefficients lies
    share: Array  # (b,) how much of the way from the first to the second
    index: dict[str, dict[str, Array]]  # {path: {parameter: ([L,][N,]) int32 into genes ++ constants ++ interpolated}}
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)  # "group/source/parameter"

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name, as numbers in their ranges."""
        return dict(zip(self.names, np.asarray(_decode(self, np.asarray(genome), np)).tolist(), strict=True))


def express(space: Space, genome: Array) -> dict[str, dict[str, Array]]:
    """(n,) genome in the unit box -> {path: {parameter: ([L,][N,]) float32}}; differentiable in continuous genes."""
    genes = _decode(space, genome.astype(jnp.float32), jnp)
    between = (1 - space.share) * genes[space.ends[:, 0]] + space.share * genes[space.ends[:, 1]]
    pool = jnp.concatenate([genes, space.constants, between])
    return jax.tree.map(lambda index: pool[index], space.index)


def _decode(space: Space, genome: Any, xp: Any) -> Any:
    """From the unit box to the ranges; the box of a discrete gene is cut into equal parts, one per level."""
    low, high, levels = (xp.asarray(x, genome.dtype) for x in (space.low, space.high, space.levels))
    step = xp.clip(xp.floor(genome * levels), 0, xp.maximum(levels - 1, 0))
    return xp.where(levels > 0, low + step, low + (high - low) * genome)


def make_space(sources: Sources, genome: Mapping[str, Gene | Mapping[str, Any] | Sequence[float]]) -> Space:
    """The space of `genome` over a recipe; what is no gene stays as the recipe says.

    Args:
        sources: of the recipe.
        genome: {parameter: its gene, or what a run's YAML has for it: a mapping, or only the range}.

    Raises:
        InputError: for a parameter that cannot take the range, or slices that merge different numbers of models.
    """
    genes = {
        name: gene if isinstance(gene, Gene) else validate(Gene, gene, Origin(prefix=("genome", name)))
        for name, gene in genome.items()
    }
    inputs = sources.num_inputs
    parameters = {p.name: p for p in sources.method.parameters}
    if unknown := sorted(genes.keys() - parameters.keys()):
        raise InputError(f"genome: {sources.method.name} has no parameter `{unknown[0]}`")
    bounds = {name: gene.range or parameters[name].domain for name, gene in genes.items()}
    for name, gene in genes.items():
        _check_range(name, parameters[name].kind, bounds[name])
        if gene.layers_per_group is not None and not any(spec.stack for spec in sources.specs):
            raise InputError(f"genome: `{name}`: layers_per_group: the models have no layers; leave it out")
        named = any(spec.place for spec in sources.specs)
        if not named and {"block", "sakana"} & {*words_of(gene)}:
            raise InputError(f"genome: `{name}`: by: {gene.by}: only image models have such groups; give another")
        if named and (gene.smooth or gene.layers_per_group):
            raise InputError(f"genome: `{name}`: a U-Net has blocks and no layers; group it with `by: block`")
        if gene.smooth is not None:
            _check_smooth(name, parameters[name].kind, gene.smooth, sources)
        for text in gene.by if isinstance(gene.by, tuple) else ():
            if not any(text in t.name for t in sources.tensors):
                raise InputError(f"genome: `{name}`: the filter `{text}` matches no tensor")
    names: dict[str, int] = {}
    constants: dict[float, int] = {}
    between: dict[tuple[int, int, float], int] = {}
    index: dict[str, dict[str, np.ndarray]] = {}
    for spec, rows in by_leaf(sources.tensors).items():
        index[spec.path] = {}
        width = len(rows[0].part.checkpoints) if spec.component in sources.eyes else inputs
        for name, parameter in parameters.items():
            fixed = sources.coefficients[spec.path][name]
            where = np.empty((len(rows), width if parameter.per_model else 1), np.int32)
            for (row, i), value in np.ndenumerate(fixed.reshape(where.shape)):
                # Negative for now: these come after the genes, whose number is not known yet.
                if name not in genes:
                    where[row, i] = -1 - constants.setdefault(float(value), len(constants))
                    continue
                source = rows[row].part.checkpoints[i].name if parameter.per_model else ""
                places, part, share = group_of(rows[row], genes[name])
                texts = [str(GeneName(place, part, source, name)) for place in places]
                ends = [names.setdefault(text, len(names)) for text in texts]
                where[row, i] = (
                    ends[0] if share == 0 else BETWEEN - between.setdefault((ends[0], ends[1], share), len(between))
                )
            index[spec.path][name] = where.reshape(fixed.shape)
    last = len(names) + len(constants)

    def place(i: np.ndarray) -> Array:
        return jnp.asarray(
            np.where(i <= BETWEEN, last + BETWEEN - i, np.where(i < 0, len(names) - 1 - i, i)), jnp.int32
        )

    searched = [GeneName.parse(name).parameter for name in names]
    ranges = np.array([bounds[name] for name in searched], np.float32).reshape(-1, 2)
    discrete = np.array([parameters[name].kind != "float" for name in searched], bool)
    return Space(
        low=jnp.asarray(ranges[:, 0]),
        high=jnp.asarray(ranges[:, 1]),
        levels=jnp.asarray(np.where(discrete, ranges[:, 1] - ranges[:, 0] + 1, 0), jnp.float32),
        constants=jnp.asarray(list(constants), jnp.float32),
        ends=jnp.asarray(np.array([pair for *pair, _ in between], np.int32).reshape(-1, 2)),
        share=jnp.asarray([share for *_, share in between], jnp.float32),
        index=jax.tree.map(place, index),
        names=tuple(names),
    )


BETWEEN = -(2**30)  # of the interpolated coefficients, while they are counted


def _check_smooth(name: str, kind: str, points: int, sources: Sources) -> None:
    layers = min((spec.layers_in_all for spec in sources.specs if spec.stack), default=0)
    if kind != "float":
        raise InputError(f"genome: `{name}`: smooth: nothing lies between on and off, or whole numbers; leave it out")
    if points > layers:
        raise InputError(f"genome: `{name}`: smooth: {points} points are more than the {layers} layers; give fewer")


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
    values = _of_recipe(space, numbers)
    for name, value, bottom, top in zip(space.names, values, *_bounds(space), strict=True):
        if not bottom - 1e-6 <= value <= top + 1e-6:
            raise InputError(
                f"start_from: the recipe has {value:g} for {name}, outside the gene's range [{bottom:g}, {top:g}]"
            )
    return _encode(space, values)


def starts(space: Space, sources: Sources, which: Sequence[str]) -> np.ndarray:
    """(k, n) the genomes that are models which a search may begin with, source by source in the recipe's order.

    A gene that picks sources, a `weight` or slerp's `t`, picks one of them, or all alike for the average; those of
    `UNCHANGED` leave it as it is, but for a low density where it is to be sparsified; all others are as the recipe, or
    else the method's default, says, as far as their ranges go.

    Args:
        space: of the genomes.
        sources: of its recipe.
        which: of "sources", "average" (of all sources) and "sparsified" (each source with its lowest density).

    Raises:
        InputError: where no gene picks sources, or a range does not hold what it takes: a candidate near a source is
            not one, and would be taken for it.
    """
    count, given = sources.num_inputs, _of_recipe(space, sources.coefficients)
    low, high = _bounds(space)
    names = [GeneName.parse(name) for name in space.names]
    searched = {name.parameter for name in names}
    if not which:
        return np.zeros((0, len(names)))
    if not sources.plain or sources.eyes:
        raise InputError("search.start: only whole models can be members; leave it out, or merge no slices and no eyes")
    two_ends = "t" in searched and sources.method.base == "first" and count == 2
    if not ("weight" in searched or two_ends):
        raise InputError(
            f"search.start: no gene of this search with {sources.method.name} picks a source; search `weight` (slerp: "
            "`t`), or leave it out"
        )
    if "sparsified" in which and "density" not in searched:
        raise InputError("search.start: `sparsified` needs a gene `density`; add it to `genome` or leave it out")
    for name in (UNCHANGED.keys() & {p.name for p in sources.method.parameters}) - searched:
        if any((leaf[name] != UNCHANGED[name]).any() for leaf in sources.coefficients.values()):
            sources.notes.add(f"search.start: with the recipe's `{name}` no candidate is a source itself")

    def genome(what: str, shares: np.ndarray) -> np.ndarray:
        """(n,) of the model that takes these shares (N,) of the sources."""
        values = np.clip(given, low, high)
        for i, name in enumerate(names):
            if name.parameter == "weight":
                values[i] = shares[sources.names.index(name.source)]
            elif name.parameter == "t" and two_ends:
                values[i] = shares[1]
            elif name.parameter == "density" and what == "sparsified":
                values[i] = low[i]
            elif name.parameter in UNCHANGED:
                values[i] = UNCHANGED[name.parameter]
            if not low[i] - 1e-6 <= values[i] <= high[i] + 1e-6:
                raise InputError(
                    f"search.start: `{what}` needs {values[i]:g} for {space.names[i]}, outside the gene's range "
                    f"[{low[i]:g}, {high[i]:g}]; widen it or leave `{what}` out"
                )
        return _encode(space, values)

    shares = {"sources": np.eye(count), "average": np.full((1, count), 1 / count), "sparsified": np.eye(count)}
    return np.stack([genome(what, row) for what in which for row in shares[what]])


# With these a merge that takes all of one source is that source.
UNCHANGED = {"density": 1.0, "gamma": 0.0, "epsilon": 0.0, "lambda": 1.0}


def _of_recipe(space: Space, numbers: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """(n,) what a recipe has for the genes: the mean over each one's group, control points by least squares."""
    genes, ends = len(space.names), np.asarray(space.ends)
    first = genes + len(space.constants)  # of what is interpolated
    total, count = np.zeros(first + len(ends)), np.zeros(first + len(ends))
    for path, parameters in space.index.items():
        for name, index in parameters.items():
            np.add.at(total, np.asarray(index), numbers[path][name])
            np.add.at(count, np.asarray(index), 1)
    mean = total / np.maximum(count, 1)
    values = mean[:genes]
    if not len(ends):
        return values
    points, rows = np.unique(ends), np.arange(len(ends))
    lines, share = np.zeros((len(ends), genes)), np.asarray(space.share, np.float64)
    lines[rows, ends[:, 0]], lines[rows, ends[:, 1]] = 1 - share, share
    weights = np.concatenate([np.eye(genes)[points], lines])[:, points]
    wanted = np.concatenate([points, first + rows])
    often = np.sqrt(count[wanted])
    found = np.linalg.lstsq(often[:, None] * weights, often * mean[wanted])[0]
    # A point that no layer is at may be beyond all numbers of the recipe, but it stays in the range if these do.
    low, high = (bound[points] for bound in _bounds(space))
    known = np.where(weights > 0, mean[wanted][:, None], np.nan)
    values[points] = np.clip(found, np.fmin(low, np.nanmin(known, 0)), np.fmax(high, np.nanmax(known, 0)))
    return values


def _bounds(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each gene, (n,) float64."""
    return np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)


def _encode(space: Space, values: np.ndarray) -> np.ndarray:
    """From the ranges to the unit box: (n,) -> (n,) float64; of a discrete gene the middle of its part."""
    (low, high), levels = _bounds(space), np.asarray(space.levels, np.float64)
    genome = np.where(levels > 0, (np.round(values) - low + 0.5) / np.maximum(levels, 1), (values - low) / (high - low))
    return np.clip(genome, 0, 1)


def words_of(gene: Gene) -> list[str]:
    """What a gene goes by, taken apart: ["block", "component"]; [] for filters."""
    return gene.by.split(" x ") if isinstance(gene.by, str) else []


def group_of(tensor: Tensor, gene: Gene) -> tuple[list[Layers | Point | str], str, float]:
    """The place and the part of the `GeneName` of the group that a tensor is in.

    Returns:
        its place, or the two control points that it lies between; the part; how much of the way it is from the first
        point to the second.
    """
    spec, layer = tensor.spec, tensor.layer
    places: list[Layers | Point | str] = [""]
    part, share = "", 0.0
    deep = gene.layers_per_group is not None or gene.smooth is not None
    if gene.layers_per_group is not None and layer is not None:
        first = layer - layer % gene.layers_per_group
        places = [Layers(first, min(first + gene.layers_per_group, spec.layers_in_all) - 1)]
    elif gene.smooth is not None and layer is not None:
        exact = round(layer / (spec.layers_in_all - 1) * (gene.smooth - 1), 9)  # 7 / 25 * 25 is not 7
        share = exact % 1
        places = [Point(i + 1, gene.smooth) for i in range(int(exact), math.ceil(exact) + 1)]
    elif spec.role in ("embedding", "head") and (deep or gene.by in ("component", "tensor")):
        places = [spec.role]
    elif "block" in words_of(gene):
        places = [spec.place]
    if isinstance(gene.by, tuple):
        part = next((f for f in gene.by if f in tensor.name), "rest")
    elif ("component" in words_of(gene) and spec.role == "block") or (
        spec.role == "other" and (deep or gene.by == "component")
    ):
        part = spec.component
    elif "sakana" in words_of(gene):
        part = sakana(tensor.name)
    elif gene.by == "tensor":
        part = spec.path.removeprefix(f"{spec.block}.").removesuffix(".weight")
    return places, part, share
