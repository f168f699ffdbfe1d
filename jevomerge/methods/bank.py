"""From many models to one: the bank of sources, and the three ways to run a merge over it.

In memory (`build`), inside the layer scan of a forward pass (`in_scan`), and tensor by tensor from files
(`jevomerge.recipe.to_folder`) call the same `merge_tensor` on the same numbers.

Leaves are addressed by path ("layers.self_attn.q_proj.weight"), so everything here is a flat dict; the
nested form that the forward pass takes is made at the very end.

Sources may lie in the memory of the host, and packed (`methods.packed`). Then what comes first in the scan over a
leaf's layers, before anything is computed, is that one layer moves to the device: so the device never holds more of
them, and the compiler need not copy on the host. The same way a layer is gathered whose parts lie on several devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jevomerge.devices.mesh import WHOLE, Dealt, apart, dealt_axes, everywhere, gathered, moved, on_host
from jevomerge.methods.factors import even_factors, merge_factors, prepare_factors
from jevomerge.methods.field import merge_keys
from jevomerge.methods.method import MergeMethod, float32
from jevomerge.methods.packed import unpacked
from jevomerge.models.members import LowRank, Unmerged
from jevomerge.models.model import Layer
from jevomerge.models.specs import ParamSpec, flatten, unflatten

Leaves = dict[str, Any]


@flax.struct.dataclass
class Bank:
    """Everything a merge reads that no genome changes; a pytree, always an argument of a jitted function."""

    sources: tuple[Leaves, ...]  # N flat trees; a leaf that has fewer sources is in the first ones; some `Packed`
    base: Leaves | None  # of the leaves that have one
    prepared: Leaves
    keys: Leaves  # (..., N, 2) uint32, behind the leading axes of the leaf
    specs: tuple[ParamSpec, ...] = flax.struct.field(pytree_node=False)  # of these leaves
    kept: Leaves = flax.struct.field(default_factory=dict)  # {path: ((K,) rows, (K, ...) what stands there unmerged)}
    # {path: Adapters} of leaves that are the same array in all sources and the base but for these.
    adapters: Leaves = flax.struct.field(default_factory=dict)
    # ((path, axes), ...) of leaves of which each slice of a mesh's `pop` has a part.
    dealt: tuple[tuple[str, Dealt], ...] = flax.struct.field(pytree_node=False, default=())

    def over_pop(self) -> Bank:
        """Over what each of the arrays is dealt, as `spread` takes it."""
        axes = dict(self.dealt)

        def of(leaves: Leaves) -> Leaves:
            return {p: P(*[None] * (x.ndim + axes[p].pop), "pop") if p in axes else WHOLE for p, x in leaves.items()}

        whole: dict[str, Any] = dict.fromkeys(("prepared", "keys", "kept", "adapters"), WHOLE)
        base = None if self.base is None else of(self.base)
        return dataclasses.replace(self, sources=tuple(map(of, self.sources)), base=base, **whole)

    def source(self, i: int, path: str) -> Array:
        """A leaf of a source."""
        leaf: Array = self.sources[i][path]
        return self.adapters[path].source(i, leaf).whole() if path in self.adapters else leaf


class Adapted(NamedTuple):
    """A tensor of a source that is another model's, and what an adapter adds to it."""

    weight: Array  # (..., O, I)
    down: Array  # (..., R, I) float32, A
    up: Array  # (..., O, R) float32, B times its scale

    def whole(self) -> Array:
        """(..., O, I) the sum, in float32 and rounded once, as adapters are folded when files are read."""
        return (self.weight.astype(jnp.float32) + self.up @ self.down).astype(self.weight.dtype)


@flax.struct.dataclass
class Adapters:
    """What the adapters of N sources, which are one model otherwise, add to a leaf: side by side along R."""

    down: Array  # (..., R, I) float32
    up: Array  # (..., O, R) float32
    ranks: tuple[int, ...] = flax.struct.field(pytree_node=False)  # R of each source; 0: it has none there
    scales: tuple[tuple[float, ...], ...] = flax.struct.field(pytree_node=False)  # of each source, in each tensor

    def source(self, i: int, weight: Array) -> Adapted:
        """The leaf of a source."""
        ranks = slice(sum(self.ranks[:i]), sum(self.ranks[: i + 1]))
        return Adapted(weight, self.down[..., ranks, :], self.up[..., ranks])


class Merge(NamedTuple):
    """A merge method and the dtype of the model it makes; hashable, a static jit argument."""

    method: MergeMethod
    dtype: str = "float32"
    factors: bool = False  # whether the matrices of adapters are merged each by itself (`methods.factors`)


def merge_tensor(
    merge: Merge,
    sources: Sequence[Array | Adapted],
    base: Array | None,
    coefficients: Leaves,
    prepared: Any,
    keys: Array,
) -> Array:
    """One tensor of the merged model, rounded once to the dtype in which it will be scored and exported."""
    adapted = [x for x in sources if isinstance(x, Adapted)]
    if merge.factors and any(x.down.size for x in adapted):
        down, up = merge_factors(merge.method, *_pairs(adapted, prepared[0]), coefficients, prepared, keys)
        return (float32(adapted[0].weight) + up @ down).astype(merge.dtype)
    whole = [x.whole() if isinstance(x, Adapted) else x for x in sources]
    return merge.method.merge(whole, base, coefficients, prepared, keys).astype(merge.dtype)


def tensor_keys(spec: ParamSpec, names: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """The keys of a leaf's random fields, (..., N, 2); `names` are those of the N sources of each tensor."""
    rows = zip(names, spec.names(), strict=True)
    keys = np.stack([[merge_keys(seed, source, tensor) for source in row] for row, tensor in rows])
    return keys.reshape(*spec.leading, *keys.shape[1:])


def make_bank(
    merge: Merge,
    specs: Sequence[ParamSpec],
    sources: Sequence[dict[str, Any]],
    base: dict[str, Any] | None,
    keys: Mapping[str, Any],
    mesh: Mesh | None = None,
    kept: Leaves | None = None,
    adapters: Leaves | None = None,
) -> Bank:
    """Collect the sources (nested trees, as `Sources.load` gives them) and prepare the method once.

    `mesh` is the one that they were loaded to; what is prepared, and `kept`, is on every device. With `adapters` the
    method must be linear, so that it prepares nothing that they would change, or merge their matrices (`factors`).
    """
    flat, flat_base = tuple(flatten(s) for s in sources), None if base is None else flatten(base)
    rows: list[Any] = []  # (prepared, size) of every tensor, so that methods may pool over the model
    for spec in specs:
        inputs, own = _of_leaf(flat, flat_base, spec.path)
        for i, at in enumerate(spec.indices()):
            arrays, origin = jax.tree.map(lambda x, at=at: _taken(x, at), (inputs, own))
            if merge.factors and (low := _low_rank(adapters, spec)) is not None:
                one = dataclasses.replace(low, down=low.down[at], up=low.up[at])
                prepared = _prepare_factors(merge, one, jnp.asarray(low.scales[i], jnp.float32))
            else:
                prepared = merge.method.prepare(unpacked(arrays, origin), origin)
            rows.append((prepared, int(np.prod(spec.shape))))
    values = merge.method.pool(rows) if merge.method.pool else [prepared for prepared, _ in rows]
    prepared, start = {}, 0
    for spec in specs:
        own = values[start : start + spec.count]
        prepared[spec.path] = jax.tree.map(functools.partial(_stacked, spec), *own) if spec.stack else own[0]
        start += spec.count
    fields, rows_kept = jax.tree.map(jnp.asarray, (dict(keys), kept or {}))
    if mesh is not None:
        prepared, fields, rows_kept = jax.device_put((prepared, fields, rows_kept), everywhere(mesh))
    return Bank(flat, flat_base, prepared, fields, tuple(specs), rows_kept, adapters or {}, _dealt(flat[0]))


def _dealt(leaves: Leaves) -> tuple[tuple[str, Dealt], ...]:
    """Which leaves lie in parts on the slices of `pop`."""
    axes = {path: dealt_axes(x) for path, x in leaves.items()}
    return tuple((path, found) for path, found in axes.items() if found is not None)


def _low_rank(adapters: Leaves | None, spec: ParamSpec) -> Adapters | None:
    """What adapters add to a leaf, if any does."""
    low: Adapters | None = (adapters or {}).get(spec.path)
    return low if low is not None and any(low.ranks) else None


def _prepare_factors(merge: Merge, low: Adapters, scales: Array) -> Any:
    """Of one tensor; `scales`: (N,)."""
    adapted = [low.source(i, scales) for i in range(len(low.ranks))]  # whose weights nobody looks at
    return prepare_factors(merge.method, *_pairs(adapted, scales), scales)


def _pairs(adapted: Sequence[Adapted], scales: Array) -> tuple[list[Array], list[Array]]:
    """A and B, this without its scale."""
    ups = [x.up / scale for x, scale in zip(adapted, jnp.where(scales == 0, 1.0, scales), strict=True)]
    return even_factors([x.down for x in adapted], ups)


def _taken(x: Array, at: tuple[int, ...]) -> Array:
    """`x[at]`, whole and in the memory of the device, to which no more than one layer moves."""
    if at and on_host(x):
        x, at = _layer(x, at[0]), at[1:]
    taken = moved(x)[at] if at else moved(x)
    if dealt_axes(x) is None:
        return taken
    assert isinstance(x.sharding, NamedSharding)
    axes = [None if axis == "pop" else axis for axis in x.sharding.spec]
    return jax.device_put(taken, NamedSharding(x.sharding.mesh, P(*axes[len(at) :])))


@jax.jit
def _layer(x: Array, i: int) -> Array:
    return moved(jax.lax.dynamic_index_in_dim(x, i, keepdims=False))


def _stacked(spec: ParamSpec, *tensors: Array) -> Array:
    """What belongs to each tensor of a leaf, behind the leading axes of the leaf."""
    return jnp.stack(tensors).reshape(*spec.leading, *tensors[0].shape)


def _of_leaf(sources: Sequence[Leaves], base: Leaves | None, path: str) -> tuple[list[Any], Any]:
    """A leaf of the sources that have it, and of the base."""
    return [leaves[path] for leaves in sources if path in leaves], (base or {}).get(path)


def abstract_bank(
    merge: Merge,
    specs: Sequence[ParamSpec],
    sources: Sequence[dict[str, Any]],
    base: dict[str, Any] | None,
    keys: Mapping[str, Any],
    mesh: Mesh,
    kept: Leaves | None = None,
    adapters: Leaves | None = None,
) -> Bank:
    """Shapes, dtypes and shardings of `make_bank`'s result, from those of the sources (`Sources.load(abstract=True)`).

    What a method prepares is found by tracing; a `pool`, which may be NumPy's, runs on zeros of those shapes.
    """
    flat, flat_base = tuple(flatten(s) for s in sources), None if base is None else flatten(base)
    rows: list[Any] = []
    for spec in specs:
        sides = _of_leaf(flat, flat_base, spec.path)
        depth = len(spec.stack)
        tensors = jax.tree.map(lambda x, n=depth: jax.ShapeDtypeStruct(x.shape[n:], x.dtype), sides)
        if merge.factors and (low := _low_rank(adapters, spec)) is not None:
            pair = [jax.ShapeDtypeStruct(x.shape[depth:], x.dtype) for x in (low.down, low.up)]
            scales = jax.ShapeDtypeStruct((len(low.ranks),), np.float32)
            prepared = jax.eval_shape(
                lambda down, up, scales, low=low: _prepare_factors(
                    merge, dataclasses.replace(low, down=down, up=up), scales
                ),
                *pair,
                scales,
            )
        else:
            prepared = jax.eval_shape(lambda x, own: merge.method.prepare(unpacked(x, own), own), *tensors)
        rows += [(prepared, int(np.prod(spec.shape)))] * spec.count
    values = [prepared for prepared, _ in rows]
    if merge.method.pool:
        values = merge.method.pool([(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), p), size) for p, size in rows])
    prepared, start, where = {}, 0, everywhere(mesh)
    for spec in specs:
        shapes = [(x, (*spec.leading, *x.shape)) for x in jax.tree.leaves(values[start])]
        leaves = [jax.ShapeDtypeStruct(shape, x.dtype, sharding=where) for x, shape in shapes]
        prepared[spec.path] = jax.tree.unflatten(jax.tree.structure(values[start]), leaves)
        start += spec.count
    fields, rows_kept = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (dict(keys), kept or {})
    )
    return Bank(flat, flat_base, prepared, fields, tuple(specs), rows_kept, adapters or {}, _dealt(flat[0]))


def build(merge: Merge, bank: Bank, coefficients: Leaves) -> dict[str, Any]:
    """The merged model as a nested pytree; `coefficients` is {path: {parameter: (..., [N])}}."""
    return unflatten({spec.path: _merge_leaf(merge, bank, coefficients, spec) for spec in bank.specs})


def in_scan(merge: Merge, bank: Bank, coefficients: Leaves) -> tuple[dict[str, Any], Layer]:
    """Parameters and `layer` function for `jevomerge.models.model.apply`, which then merges block by block.

    What is not in a block (embeddings, final norm, head) is merged at once.
    """
    blocks: dict[str, list[ParamSpec]] = {}
    for spec in bank.specs:
        if spec.block:
            blocks.setdefault(spec.block, []).append(spec)

    def layer(block: str, xs: Any) -> dict[str, Any]:
        leaves = {spec.path.removeprefix(f"{block}."): _row(merge, bank, spec)(xs[spec.path]) for spec in blocks[block]}
        return unflatten(leaves)

    params = {s.path: _merge_leaf(merge, bank, coefficients, s) for s in bank.specs if not s.block}
    stacked = {
        block: {spec.path: _arguments(bank, coefficients, spec.path) for spec in specs}
        for block, specs in blocks.items()
    }
    return unflatten({**params, **stacked}), layer


def unmerged(merge: Merge, bank: Bank, coefficients: Leaves) -> Leaves:
    """What differs between members of a method that is linear, {path: ...}, for `together`.

    Of a matrix that is multiplied by, or whose rows are looked up, that is the factors of the sources and of the base,
    (..., N [+ 1]) float32; of all else, which is small or read in other ways, what is merged.
    """
    assert merge.method.linear
    assert not merge.factors
    return {
        s.path: _factors(merge, bank, coefficients, s) if stays(bank, s) else _merge_leaf(merge, bank, coefficients, s)
        for s in bank.specs
    }


def settle(merge: Merge, bank: Bank, coefficients: Leaves) -> Bank:
    """The bank of `merge.method.settled`: each source as it is merged alone with weight one, in float32.

    `coefficients`: as of `build`, of which those are looked at that this linear method lacks.
    """
    assert merge.method.settled is not None
    plain = {"weight": 1.0, "normalize": 0.0, "lambda": 1.0}
    own = [p for p in merge.method.parameters if p.name not in plain]

    def alone(i: int, spec: ParamSpec) -> Array:
        inputs, base, _, prepared, keys = _arguments(bank, coefficients, spec.path)
        given = {p.name: coefficients[spec.path][p.name] for p in own}
        given = {p.name: x[..., i : i + 1] if p.per_model else x for p, x in zip(own, given.values(), strict=True)}
        given |= {name: jnp.full((*spec.leading, *([1] if name == "weight" else [])), x) for name, x in plain.items()}
        arguments = [inputs[i]], base, given, prepared[i : i + 1], keys[..., i : i + 1, :]
        return _merged_alone(Merge(merge.method), spec.stack, arguments)

    sources = tuple({s.path: alone(i, s) for s in bank.specs} for i in range(len(bank.sources)))
    return dataclasses.replace(bank, sources=sources, prepared=dict.fromkeys(bank.prepared, ()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merged_alone(merge: Merge, stack: tuple[tuple[str, int], ...], arguments: tuple[Any, ...]) -> Array:
    return _over(stack, lambda xs: merge_tensor(merge, *xs))(arguments)


def abstract_settled(bank: Bank) -> Bank:
    """Shapes, dtypes and shardings of `settle`'s result, from those of the bank."""
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding), bank.sources)
    return dataclasses.replace(bank, sources=wide, prepared=dict.fromkeys(bank.prepared, ()))


def together(bank: Bank, own: Leaves) -> dict[str, Any]:
    """The model of a member as a nested pytree, whose matrices are `Unmerged`; `own` is what `unmerged` gave."""

    def leaf(spec: ParamSpec) -> Any:
        if not stays(bank, spec):
            return own[spec.path]
        inputs, base = _of_leaf(bank.sources, bank.base, spec.path)
        factors = own[spec.path]
        if (found := bank.adapters.get(spec.path)) is None:
            return Unmerged((*inputs, *([] if base is None else [base])), factors)
        each = jnp.repeat(
            factors[..., : len(inputs)], np.asarray(found.ranks), axis=-1, total_repeat_length=sum(found.ranks)
        )
        return Unmerged((inputs[0],), jnp.sum(factors, axis=-1, keepdims=True), LowRank(found.down, found.up, each))

    return unflatten({spec.path: leaf(spec) for spec in bank.specs})


def stays(bank: Bank, spec: ParamSpec) -> bool:
    """Whether a leaf is of matrices that are not merged."""
    return is_product(spec) and spec.path not in bank.kept


def is_product(spec: ParamSpec) -> bool:
    """Whether a leaf is of matrices that tokens are multiplied by, all by all; those of experts are for few each."""
    return len(spec.shape) == 2 and all(name == "layer" for name, _ in spec.stack)


def shares(method: MergeMethod, count: int, has_base: bool, coefficients: Leaves, prepared: Any, keys: Array) -> Array:
    """How much of each of `count` sources, and of the base, a linear method takes: it merges unit vectors."""
    units = list(jnp.eye(count + has_base, dtype=jnp.float32))
    return method.merge(units[:count], units[-1] if has_base else None, coefficients, prepared, keys)


def _factors(merge: Merge, bank: Bank, coefficients: Leaves, spec: ParamSpec) -> Array:
    inputs, base = _of_leaf(bank.sources, bank.base, spec.path)
    factors = functools.partial(shares, merge.method, len(inputs), base is not None)
    for _ in spec.stack:
        factors = jax.vmap(factors)
    return factors(coefficients[spec.path], bank.prepared[spec.path], bank.keys[spec.path])


def _merge_leaf(merge: Merge, bank: Bank, coefficients: Leaves, spec: ParamSpec) -> Array:
    arguments = _arguments(bank, coefficients, spec.path)
    first = spec.stack[:1]
    merged = _over(first, _row(merge, bank, spec))(arguments)
    if spec.path not in bank.kept:
        return merged
    rows, values = bank.kept[spec.path]
    return merged.at[rows].set(values.astype(merge.dtype))


def _arguments(bank: Bank, coefficients: Leaves, path: str) -> tuple[Any, ...]:
    """Of `merge_tensor` for a leaf, behind its leading axes."""
    inputs, base = _of_leaf(bank.sources, bank.base, path)
    if path in bank.adapters:
        inputs = [bank.adapters[path].source(i, x) for i, x in enumerate(inputs)]
    return inputs, base, coefficients[path], bank.prepared[path], bank.keys[path]


def _row(merge: Merge, bank: Bank, spec: ParamSpec) -> Callable[[tuple[Any, ...]], Array]:
    """`merge_tensor` of a leaf's layer over the leading axes that are left; what is not all here comes first."""
    axes = dict(bank.dealt).get(spec.path)

    def f(arguments: tuple[Any, ...]) -> Array:
        inputs, base, *rest = arguments
        return merge_tensor(merge, unpacked(inputs, base), base, *rest)

    def here(x: Array) -> Array:
        return moved(x) if axes is None else gathered(moved(x), axes)

    each = _over(spec.stack[1:], f)
    return lambda arguments: each((*jax.tree.map(here, arguments[:2]), *arguments[2:]))


def _over(stack: Sequence[tuple[str, int]], f: Callable[[tuple[Any, ...]], Array]) -> Callable[[Any], Array]:
    """`f` over these leading axes, one tensor after another: the working set is that of one.

    Experts that lie on different devices are merged where they are.
    """
    for name, size in reversed(stack):
        f = functools.partial(jax.lax.map, f)
        if name == "expert":
            f = functools.partial(apart, f, size=size)
    return f
