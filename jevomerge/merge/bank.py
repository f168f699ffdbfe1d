"""From many models to one: the bank of sources, and the three ways to run a merge over it.

In memory (`build`), inside the layer scan of a forward pass (`in_scan`), and tensor by tensor from files
(`jevomerge.stream`) call the same `merge_tensor` on the same numbers.

Leaves are addressed by path ("layers.self_attn.q_proj.weight"), so everything here is a flat dict; the
nested form that the forward pass takes is made at the very end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.specs import ParamSpec, flatten, unflatten
from jevomerge.merge.field import merge_keys
from jevomerge.merge.method import MergeMethod
from jevomerge.mesh import everywhere

Leaves = dict[str, Any]


@flax.struct.dataclass
class Bank:
    """Everything a merge reads that no genome changes; a pytree, always an argument of a jitted function."""

    sources: tuple[Leaves, ...]  # N flat trees
    base: Leaves | None
    prepared: Leaves
    keys: Leaves  # ([L,] N, 2) uint32


class Merge(NamedTuple):
    """A merge method and the dtype of the model it makes; hashable, a static jit argument."""

    method: MergeMethod
    dtype: str = "float32"


def merge_tensor(
    merge: Merge, sources: Sequence[Array], base: Array | None, coefficients: Leaves, prepared: Any, keys: Array
) -> Array:
    """One tensor of the merged model, rounded once to the dtype in which it will be scored and exported."""
    return merge.method.merge(sources, base, coefficients, prepared, keys).astype(merge.dtype)


def tensor_keys(spec: ParamSpec, names: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """The keys of a leaf's random fields, ([L,] N, 2); `names` are those of the N sources of each layer."""
    rows = zip(names, spec.names(), strict=True)
    keys = np.stack([[merge_keys(seed, source, tensor) for source in row] for row, tensor in rows])
    return keys if spec.num_layers is not None else keys[0]


def make_bank(
    merge: Merge,
    specs: Sequence[ParamSpec],
    sources: Sequence[dict[str, Any]],
    base: dict[str, Any] | None,
    keys: Mapping[str, Any],
    mesh: Mesh | None = None,
) -> Bank:
    """Collect the sources (nested trees, as `Sources.load` gives them) and prepare the method once.

    `mesh` is the one that they were loaded to; what is prepared is on every device.
    """
    flat, flat_base = tuple(flatten(s) for s in sources), None if base is None else flatten(base)
    rows: list[Any] = []  # (spec, prepared) of every tensor, so that methods may pool over the model
    for spec in specs:
        for layer in range(spec.num_layers) if spec.num_layers is not None else (None,):
            pick = functools.partial(_row, path=spec.path, layer=layer)
            prepared = merge.method.prepare([pick(s) for s in flat], None if flat_base is None else pick(flat_base))
            rows.append((prepared, int(np.prod(spec.shape))))
    values = merge.method.pool(rows) if merge.method.pool else [prepared for prepared, _ in rows]
    prepared, start = {}, 0
    for spec in specs:
        stop = start + (spec.num_layers or 1)
        leaf = values[start:stop]
        prepared[spec.path] = leaf[0] if spec.num_layers is None else jax.tree.map(lambda *x: jnp.stack(x), *leaf)
        start = stop
    rest = (prepared, {path: jnp.asarray(k) for path, k in keys.items()})
    return Bank(flat, flat_base, *(rest if mesh is None else jax.device_put(rest, everywhere(mesh))))


def abstract_bank(
    merge: Merge,
    specs: Sequence[ParamSpec],
    sources: Sequence[dict[str, Any]],
    base: dict[str, Any] | None,
    keys: Mapping[str, Any],
    mesh: Mesh,
) -> Bank:
    """Shapes, dtypes and shardings of `make_bank`'s result, from those of the sources (`Sources.load(abstract=True)`).

    What a method prepares is found by tracing; a `pool`, which may be NumPy's, runs on zeros of those shapes.
    """
    flat, flat_base = tuple(flatten(s) for s in sources), None if base is None else flatten(base)
    rows: list[Any] = []
    for spec in specs:
        tensors = [
            None if leaves is None else jax.ShapeDtypeStruct(spec.shape, leaves[spec.path].dtype)
            for leaves in (*flat, flat_base)
        ]
        prepared = jax.eval_shape(merge.method.prepare, tensors[:-1], tensors[-1])
        rows += [(prepared, int(np.prod(spec.shape)))] * (spec.num_layers or 1)
    values = [prepared for prepared, _ in rows]
    if merge.method.pool:
        values = merge.method.pool([(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), p), size) for p, size in rows])
    prepared, start, where = {}, 0, everywhere(mesh)
    for spec in specs:
        leading = () if spec.num_layers is None else (spec.num_layers,)
        shapes = [(x, (*leading, *x.shape)) for x in jax.tree.leaves(values[start])]
        leaves = [jax.ShapeDtypeStruct(shape, x.dtype, sharding=where) for x, shape in shapes]
        prepared[spec.path] = jax.tree.unflatten(jax.tree.structure(values[start]), leaves)
        start += spec.num_layers or 1
    fields = {path: jax.ShapeDtypeStruct(k.shape, k.dtype, sharding=where) for path, k in keys.items()}
    return Bank(flat, flat_base, prepared, fields)


def _row(leaves: Leaves, path: str, layer: int | None) -> Array:
    return leaves[path] if layer is None else leaves[path][layer]


def build(merge: Merge, bank: Bank, coefficients: Leaves) -> dict[str, Any]:
    """The merged model as a nested pytree; `coefficients` is {path: {parameter: ([L,][N,])}}."""
    return unflatten({path: _merge_leaf(merge, bank, coefficients, path) for path in bank.sources[0]})


def in_scan(merge: Merge, bank: Bank, coefficients: Leaves) -> tuple[dict[str, Any], Callable[[Any], dict[str, Any]]]:
    """Parameters and `layer` function for `jevomerge.models.apply`, which then merges block by block.

    What is not in a block (embeddings, final norm, head) is merged at once.
    """
    blocks = {path for path in bank.sources[0] if path.startswith("layers.")}
    stacked = (
        tuple({p: s[p] for p in blocks} for s in bank.sources),
        None if bank.base is None else {p: bank.base[p] for p in blocks},
        *({p: tree[p] for p in blocks} for tree in (coefficients, bank.prepared, bank.keys)),
    )

    def layer(xs: Any) -> dict[str, Any]:
        sources, base, coefs, prepared, keys = xs
        leaves = {
            p: merge_tensor(merge, [s[p] for s in sources], base and base[p], coefs[p], prepared[p], keys[p])
            for p in blocks
        }
        return unflatten(leaves)["layers"]

    rest = {p: _merge_leaf(merge, bank, coefficients, p) for p in bank.sources[0] if p not in blocks}
    return unflatten(rest) | {"layers": stacked}, layer


def _merge_leaf(merge: Merge, bank: Bank, coefficients: Leaves, path: str) -> Array:
    """One leaf; a stacked one layer by layer, which keeps the working set to one tensor."""
    base = None if bank.base is None else bank.base[path]
    arguments = ([s[path] for s in bank.sources], base, coefficients[path], bank.prepared[path], bank.keys[path])
    if not path.startswith("layers."):
        return merge_tensor(merge, *arguments)
    return jax.lax.map(lambda xs: merge_tensor(merge, *xs), arguments)
