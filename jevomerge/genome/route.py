"""The data-flow space: a vector in the unit box <-> a token's path through the layers of several models.

    space = PathSpace(models=("a", "b"), depths=(32, 32), repeats=3)      # n = 192 slots + 193 scales
    genome = encode(space, hops_of([("a", 0, 24), ("b", 16, 32), ("a", 31, 32)]))
    path = express_path(space, genome)                                    # layers, scales, length: pure, jitted
    describe(space, path)                                                 # [Hop("a", 0, 1.0), ...]

The M layers of all models lie one after another, model A's first, and the row is repeated r times: T = M r slots, and
the path visits those that are on, in their order (arXiv:2403.13187, Methods). Two hops are not up to the genome: slot
0, A's first layer, is always on, and A's last layer is appended where the path does not end with it, because A's
embedding and head are used. The input of a hop is multiplied by its scale, which comes from

    none     nowhere: all scales are 1
    per_hop  a gene per slot and one for an appended end: T + 1 genes, what the released EvoLLM-JP-v1-10B stores
    matrix   W in R^{MxM}, W_ij for a hop from layer i to layer j; the first hop comes from none and has scale 1
    network  pi(i, j, t), a small network whose size does not depend on M; t is the slot; the first hop as above
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.route import Route

Scales = Literal["none", "per_hop", "matrix", "network"]

ON, OFF = 5 / 6, 1 / 2  # genes of A's first pass and of all other slots at the start: 1/2 + 2 sigma and 1/2 (the paper)
NETWORK_RANGE = 3.0  # a weight of the network is in +/- this, which makes it N(0, 1) in a first generation of sigma 1/6


class Hop(NamedTuple):
    """A hop for humans: a layer of a model and the scale of its input."""

    model: str
    layer: int
    scale: float = 1.0


@jax.tree_util.register_static
@dataclass(frozen=True)
class PathSpace:
    """A search space of paths; the first model is A. Hashable, and a pytree without leaves."""

    models: tuple[str, ...]
    depths: tuple[int, ...]
    repeats: int = 3
    scaling: Scales = "per_hop"
    scale_range: tuple[float, float] = (0.5, 1.5)
    hidden: int = 8  # units of the network

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not self.models or len(self.models) != len(self.depths) or len(set(self.models)) < len(self.models):
            raise InputError(f"paths need models by name and their depths, not {self.models} and {self.depths}")
        if min(self.depths) < 1 or self.repeats < 1 or self.hidden < 1:
            raise InputError(f"depths, repeats and hidden must be 1 or more: {self}")
        if self.scaling not in get_args(Scales):
            raise InputError(f"scaling {self.scaling!r}: choose one of {', '.join(get_args(Scales))}")
        if not low < 1 < high:
            raise InputError(f"scale_range {[low, high]} must have 1, the scale of an ordinary model, inside")

    @property
    def num_layers(self) -> int:
        """M, the layers of all models."""
        return sum(self.depths)

    @property
    def num_slots(self) -> int:
        """T = M r."""
        return self.num_layers * self.repeats

    @property
    def num_scales(self) -> int:
        """How many genes the scales have."""
        features = 2 * (1 + len(self.models)) + 1
        network = self.hidden * (features + 2) + 1
        matrix, per_hop = self.num_layers**2, self.num_slots + 1
        return {"none": 0, "per_hop": per_hop, "matrix": matrix, "network": network}[self.scaling]

    @property
    def num_genes(self) -> int:
        """The slots, then the scales."""
        return self.num_slots + self.num_scales

    @property
    def layers(self) -> tuple[tuple[str, int], ...]:
        """(model, layer in it) of all M layers."""
        return tuple((m, i) for m, depth in zip(self.models, self.depths, strict=True) for i in range(depth))

    @property
    def end(self) -> int:
        """Model A's last layer."""
        return self.depths[0] - 1

    @property
    def one(self) -> float:
        """Where scale 1 lies in the range, as a share of it."""
        low, high = self.scale_range
        return (1 - low) / (high - low)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the genes: "slot 17 = a:5", then "scale 17 = a:5", "scale a:5 -> b:3" or "network 12"."""
        layers = [f"{model}:{i}" for model, i in self.layers]
        slots = [f"{t} = {layers[t % self.num_layers]}" for t in range(self.num_slots)]
        scales = {
            "none": [],
            "per_hop": [f"scale {slot}" for slot in slots] + [f"scale end = {layers[self.end]}"],
            "matrix": [f"scale {i} -> {j}" for i in layers for j in layers],
            "network": [f"network {k}" for k in range(self.num_scales)],
        }[self.scaling]
        return (*(f"slot {slot}" for slot in slots), *scales)

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name: slots 1 or 0, scales (or the network's weights) in their range."""
        genome = np.asarray(genome, np.float32)
        low, high = (-NETWORK_RANGE, NETWORK_RANGE) if self.scaling == "network" else self.scale_range
        slots = (genome[: self.num_slots] > 0.5) | (np.arange(self.num_slots) == 0)
        numbers = np.concatenate([slots, low + (high - low) * genome[self.num_slots :]])
        return dict(zip(self.names, numbers.tolist(), strict=True))


def express_path(space: PathSpace, genome: Array) -> Route:
    """(n,) genome in the unit box -> its path, T + 1 slots, those not used at scale 1; differentiable in the scales."""
    genome = genome.astype(jnp.float32)
    layers, slots, length = _hops(space, genome)
    used = jnp.arange(layers.size) < length
    return Route(layers, jnp.where(used, _scales(space, genome[space.num_slots :], layers, slots), 1.0), length)


def active(space: PathSpace, genome: Array) -> Array:
    """(n,) bool: which genes matter in this genome; a scale does only where its hop is in the path."""
    layers, slots, length = _hops(space, genome.astype(jnp.float32))
    used = jnp.arange(layers.size) < length
    scales = jnp.full(space.num_scales, space.scaling == "network")
    if space.scaling == "per_hop":
        scales = scales.at[slots].set(used)
    elif space.scaling == "matrix":
        index = jnp.roll(layers, 1) * space.num_layers + layers
        scales = scales.at[jnp.where(used.at[0].set(False), index, scales.size)].set(True, mode="drop")
    return jnp.concatenate([jnp.arange(space.num_slots) > 0, scales])


def distinct(space: PathSpace, genomes: np.ndarray) -> np.ndarray:
    """(P, n) genomes -> (P, n) float32, equal where paths are: slots as 1 or 0, scales that do not matter as 0."""
    genomes = genomes.astype(np.float32)
    matters = np.array(active_genes(space, genomes))
    matters[:, 0] = True
    values = np.concatenate([genomes[:, : space.num_slots] > 0.5, genomes[:, space.num_slots :]], axis=1)
    values[:, 0] = 1  # the first hop is not up to the genome
    return np.where(matters, values, 0).astype(np.float32)


@jax.jit
def active_genes(space: PathSpace, genomes: Array) -> Array:
    """(P, n) bool: `active` of (P, n) genomes."""
    return jax.vmap(lambda genome: active(space, genome))(genomes)


def _hops(space: PathSpace, genome: Array) -> tuple[Array, Array, Array]:
    """Layers (T + 1,), slots (T + 1,) and length () of the path; slot T is the appended end."""
    total = space.num_slots
    layer = jnp.append(jnp.arange(total) % space.num_layers, space.end).astype(jnp.int32)
    on = (genome[:total] > 0.5).at[0].set(True)
    last = total - 1 - jnp.argmax(on[::-1])
    on = jnp.append(on, layer[last] != space.end)
    slots = jnp.argsort(~on, stable=True).astype(jnp.int32)  # those that are on first, in their order
    length = jnp.sum(on, dtype=jnp.int32)
    return jnp.where(jnp.arange(total + 1) < length, layer[slots], 0), slots, length


def _scales(space: PathSpace, genes: Array, layers: Array, slots: Array) -> Array:
    low, high = space.scale_range
    if space.scaling == "none":
        return jnp.ones(layers.shape, jnp.float32)
    if space.scaling == "per_hop":
        return low + (high - low) * genes[slots]
    before = jnp.roll(layers, 1)
    if space.scaling == "matrix":
        scales = low + (high - low) * genes[before * space.num_layers + layers]
    else:
        # The logit of scale 1 is added, so that weights of 0 mean no scaling, whatever the range.
        offset = math.log(space.one / (1 - space.one))
        scales = low + (high - low) * jax.nn.sigmoid(_network(space, genes, before, layers, slots) + offset)
    return scales.at[0].set(1.0)


def _network(space: PathSpace, genes: Array, before: Array, layers: Array, slots: Array) -> Array:
    """(T + 1,) outputs of one hidden layer of tanh; 0 at the centre of the box.

    A layer is its relative depth in [-1, 1] and its model as one-hot. Weights count as divided by the root of their
    number, so that what one gene does depends little on the number of models and hidden units.
    """
    which = np.repeat(np.arange(len(space.models)), space.depths)
    depth = np.concatenate([np.linspace(-1, 1, d) if d > 1 else np.zeros(1) for d in space.depths])
    feature = jnp.asarray(np.column_stack([depth, np.eye(len(space.models))[which]]), jnp.float32)  # (M, 1 + N)
    time = 2 * slots.astype(jnp.float32) / space.num_slots - 1
    inputs = jnp.concatenate([feature[before], feature[layers], time[:, None]], axis=1)  # (T + 1, F)
    hidden, width = space.hidden, inputs.shape[1]
    weights = NETWORK_RANGE * (2 * genes - 1)
    first, bias, second, last = jnp.split(weights, np.cumsum([hidden * width, hidden, hidden]))
    units = jnp.tanh(inputs @ first.reshape(width, hidden) / math.sqrt(width) + bias[None, :])
    return units @ second / math.sqrt(hidden) + last


# --- plain data ---------------------------------------------------------------------------------------------


def describe(space: PathSpace, path: Route) -> list[Hop]:
    """The hops of a path, or of anything with its fields."""
    count = int(path.length)
    layers, scales = np.asarray(path.layers)[:count], np.asarray(path.scales, np.float64)[:count]
    where = (space.layers[i] for i in layers)
    return [Hop(model, layer, scale) for (model, layer), scale in zip(where, scales.tolist(), strict=True)]


def encode(space: PathSpace, hops: Sequence[Hop], on: float = ON, off: float = OFF) -> np.ndarray:
    """A genome (n,) float64 of these hops: slots in use have the gene `on`, the others `off`, scales not in use are 1.

    The first generation around it, N(genome, sigma^2), has a slot on with probability Phi((gene - 1/2) / sigma): with
    the defaults and sigma 1/6, as in the paper, 98 % of the hops and half of everything else; `off=1/6` makes that 2 %.

    Raises:
        InputError: for a path that the space does not hold.
    """
    index = {layer: i for i, layer in enumerate(space.layers)}
    if unknown := [f"{h.model}:{h.layer}" for h in hops if (h.model, h.layer) not in index]:
        raise InputError(f"a path through {unknown[0]}: the models are {space.models}, their depths {space.depths}")
    layers = [index[h.model, h.layer] for h in hops]
    if not layers or layers[0] != 0 or layers[-1] != space.end:
        raise InputError(f"a path must begin with layer 0 and end with layer {space.end} of {space.models[0]}")
    if (slots := place(space, layers)) is None:
        raise InputError(f"this path of {len(hops)} hops goes backwards too often for repeats = {space.repeats}")
    genome = np.full(space.num_genes, 0.5 if space.scaling == "network" else space.one)
    genome[: space.num_slots] = off
    genome[[t for t in slots if t < space.num_slots]] = on
    low, high = space.scale_range
    scales: dict[int, float] = {}
    for k, (hop, slot, layer) in enumerate(zip(hops, slots, layers, strict=True)):
        if space.scaling == "per_hop":
            gene = slot
        elif space.scaling == "matrix" and k > 0:
            gene = layers[k - 1] * space.num_layers + layer
        elif hop.scale == 1:
            continue
        else:
            raise InputError(f"scaling {space.scaling!r} cannot give hop {k}, {hop.model}:{hop.layer}, {hop.scale:g}")
        if not low - 1e-6 <= hop.scale <= high + 1e-6:  # a float32 may lie a little outside
            raise InputError(f"scale {hop.scale:g} of {hop.model}:{hop.layer} is outside the range {[low, high]}")
        if scales.setdefault(gene, hop.scale) != hop.scale:
            raise InputError(f"scaling 'matrix' has one scale for all hops to {hop.model}:{hop.layer} from one layer")
    for gene, scale in scales.items():
        genome[space.num_slots + gene] = np.clip((scale - low) / (high - low), 0, 1)
    return genome


def place(space: PathSpace, layers: Sequence[int]) -> list[int] | None:
    """The earliest slots that hold these layers in this order, T for an appended end; None if they do not fit."""
    slots: list[int] = []
    for layer in layers:
        after = slots[-1] + 1 if slots else 0
        slots.append(after + (layer - after) % space.num_layers)
    if slots[-1] >= space.num_slots and layers[-1] == space.end and layers[-2] != space.end:
        slots[-1] = max(space.num_slots, slots[-2] + 1)
    return slots if slots[-1] <= space.num_slots else None


def hops_of(slices: Sequence[tuple[str, int, int]]) -> list[Hop]:
    """The hops of a mergekit passthrough recipe: slices (model, first layer, one past the last), at scale 1."""
    return [Hop(model, i) for model, first, stop in slices for i in range(first, stop)]


def slices_of(hops: Sequence[Hop]) -> list[tuple[str, int, int]]:
    """The fewest slices whose passthrough recipe is this path.

    Raises:
        InputError: for a scale other than 1, which slices cannot say.
    """
    slices: list[tuple[str, int, int]] = []
    for model, layer, scale in hops:
        if scale != 1:
            raise InputError(f"{model}:{layer} has scale {scale:g}: slices cannot say that")
        if slices and slices[-1][0] == model and slices[-1][2] == layer:
            slices[-1] = (model, slices[-1][1], layer + 1)
        else:
            slices.append((model, layer, layer + 1))
    return slices
