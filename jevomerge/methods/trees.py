"""Any merge method on any pytrees: dictionaries, Flax modules' states, lists, dataclasses.

`merge` lines the trees up leaf by leaf, gives every leaf its coefficients and the keys of its random fields, and hands
it to the `merge_tensor` that recipes use. So the result is a recipe's, bit for bit, where the names of sources and
tensors and the seed are equal.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.methods.bank import Merge, merge_tensor
from jevomerge.methods.field import merge_keys
from jevomerge.methods.method import MergeMethod, Parameter
from jevomerge.methods.prepare import traced
from jevomerge.methods.registry import get_method
from jevomerge.models.specs import layered

LAYER = "{layer}"  # in the name of a stacked leaf: where the number of a layer goes

Keys = tuple[str, ...]  # the way to a leaf: keys of dictionaries, names of attributes, indices


class Leaf(NamedTuple):
    """The same leaf of all trees, to be merged.

    Attributes:
        keys: where it is.
        name: of its tensor; with a "{layer}" if several are stacked in it.
        axis: along which they are; None if it is one tensor.
        sources: N arrays of one shape.
        base: the base's, of that shape, or None.
    """

    keys: Keys
    name: str
    axis: int | None
    sources: list[Array]
    base: Array | None

    @property
    def layers(self) -> int | None:
        """How many tensors are stacked in it; None if it is one."""
        return None if self.axis is None else self.sources[0].shape[self.axis]

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return [self.name if self.axis is None else self.name.replace(LAYER, str(i)) for i in range(self.layers or 1)]

    def tensors(self) -> Iterator[tuple[list[Array], Array | None]]:
        """Sources and base of each of its tensors."""
        if self.axis is None:
            yield self.sources, self.base
            return
        for i in range(self.sources[0].shape[self.axis]):
            row = (slice(None),) * self.axis + (i,)
            yield [x[row] for x in self.sources], None if self.base is None else self.base[row]


def merge(
    method: str | MergeMethod,
    trees: Sequence[Any],
    base: Any = None,
    *,
    sources: Sequence[str] | None = None,
    names: Callable[[str], str] | Mapping[str, str] | Any = None,
    seed: int = 0,
    stacked: Mapping[str, int] | None = None,
    dtype: Any = None,
    semantics: str = "mergekit",
    **coefficients: Any,
) -> Any:
    """Merge pytrees of one structure into one more of it.

    Works under jit, vmap and grad, over coefficients and over trees, and on sharded arrays. What a method prepares
    (norms, sorted values) is computed on every call: at once, also inside jit, unless the trees are traced.

    >>> a, b, base = ({"w": jnp.array(x)} for x in ([2.0, 0.0], [0.0, 4.0], [1.0, 1.0]))
    >>> merge("linear", [a, b], weight=[0.75, 0.25])
    {'w': Array([1.5, 1. ], dtype=float32)}
    >>> merge("task_arithmetic", [a, b], base, weight={"w": 0.5}, **{"lambda": 2.0})
    {'w': Array([1., 3.], dtype=float32)}
    >>> jax.vmap(lambda w: merge("task_arithmetic", [a, b], base, weight=w)["w"])(jnp.eye(2))
    Array([[2., 0.],
           [0., 4.]], dtype=float32)

    Args:
        method: as in recipes, or one of your own.
        trees: N of them, of one structure and shapes. Floating-point arrays are merged; whatever else a tree holds
            (integers, switches, None) must be equal everywhere and stays as it is.
        base: the base model's tree, if the method has a use for one. A method that starts from one of its sources
            (slerp) takes it for the first of them.
        sources: N names, which seed the sources' random fields; "0", "1", ... if not given.
        names: of the tensors, which seed the random fields too. A tensor's name is the path of its leaf, joined by
            dots ("layers.0.kernel"; the leaves of an nnx.State end in ".value"), unless a function of that path, a
            mapping from it or a tree of names says otherwise.
        seed: of the random fields.
        stacked: {pattern: axis}. Leaves whose path matches the glob ("layers.*") hold one tensor per layer along that
            axis, and are merged layer by layer. The names of their tensors have the layer's number at the first
            wildcard ("layers.7.kernel"), or where `names` has a "{layer}".
        dtype: of the merged leaves; that of the first tree's leaf if not given.
        semantics: "mergekit", "paper" or "peft", where they differ.
        coefficients: the method's parameters. Each is a number, for parameters per model also N of them; for a stacked
            leaf also (L,) or (L, N), layer by layer; or a tree of these that ends at or above the leaves of `trees`.
            Parameters that are not given have their defaults.

    Returns:
        A tree like the first.

    Raises:
        InputError: for trees that do not match, and coefficients that the method does not have or does not get; each
            with the name of the leaf or the parameter.
    """
    method = get_method(method, semantics) if isinstance(method, str) else method
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise InputError(f"dtype: {dtype} is not a floating-point type")
    sides = _sides(method, trees, base)
    count = len(sides) - (base is not None and method.base in ("required", "optional"))  # of sources
    sources = [str(i) for i in range(count)] if sources is None else sources
    if len(sources) != count or len(set(sources)) < count:
        raise InputError(f"sources: {count} different names, one per source, not {list(sources)}")

    structure, rows = _line_up(sides)
    named = _names(names, stacked or {}, rows, structure)
    leaves = [
        Leaf(keys, *named[keys], arrays[:count], arrays[count] if arrays[count:] else None)
        for keys, row in rows.items()
        if _is_merged(row[0]) and row[0].size and (arrays := [_array(x) for x in row])
    ]
    spread = _coefficients(method, coefficients, leaves, list(rows), count)
    merged = {keys: row[0] for keys, row in rows.items()}
    for leaf, own, prepared in zip(leaves, spread, _prepare(method, leaves), strict=True):
        kind = Merge(method, jnp.dtype(leaf.sources[0].dtype if dtype is None else dtype).name)
        keys = np.array([[merge_keys(operator.index(seed), s, name) for s in sources] for name in leaf.names])
        arguments = (leaf.sources, leaf.base, own, prepared, keys[0] if leaf.axis is None else keys)
        merged[leaf.keys] = _merge_leaf(kind, leaf.axis, *arguments)
    return jax.tree.unflatten(structure, list(merged.values()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merge_leaf(kind: Merge, axis: int | None, *arguments: Any) -> Array:
    """One leaf, from the arguments of `merge_tensor`; a stacked one layer by layer, as recipes do."""
    # The barriers make it the same program wherever it is called: constants of a surrounding jit are not folded in,
    # and what comes after is not fused with it, either of which would round some elements differently.
    sources, base, *rest = jax.lax.optimization_barrier(arguments)
    if axis is None:
        merged = merge_tensor(kind, sources, base, *rest)
    else:
        first = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), (sources, base))
        merged = jnp.moveaxis(jax.lax.map(lambda xs: merge_tensor(kind, *xs), (*first, *rest)), 0, axis)
    return jax.lax.optimization_barrier(merged)


def _prepare(method: MergeMethod, leaves: Sequence[Leaf]) -> list[Any]:
    """What the method prepares, of every leaf; of a stacked one with the layer axis in front."""
    concrete = not traced(*(x for leaf in leaves for x in (*leaf.sources, leaf.base)))
    with jax.ensure_compile_time_eval() if concrete else contextlib.nullcontext():
        rows = []
        for leaf in leaves:
            rows += [(method.prepare(*tensor), leaf.sources[0].size // (leaf.layers or 1)) for tensor in leaf.tensors()]
        values = iter(method.pool(rows) if method.pool and rows else [prepared for prepared, _ in rows])
        of_layers = [[next(values) for _ in range(leaf.layers or 1)] for leaf in leaves]
        return [
            own[0] if leaf.layers is None else jax.tree.map(lambda *x: jnp.stack(x), *own)
            for leaf, own in zip(leaves, of_layers, strict=True)
        ]


# --- trees and their leaves ---------------------------------------------------------------------------------


def _sides(method: MergeMethod, trees: Sequence[Any], base: Any) -> dict[str, Any]:
    """The sources by what to call them in messages, and the base last if the method wants one."""
    if not isinstance(trees, list | tuple):
        raise InputError(f"trees: a list of trees, not a {type(trees).__name__}")
    if base is None and method.base == "required":
        raise InputError(f"base: {method.name} needs one")
    sides = {f"trees[{i}]": tree for i, tree in enumerate(trees)}
    if base is not None and method.base == "first":
        sides = {"base": base} | {label: tree for label, tree in sides.items() if tree is not base}
    fewest, most = method.num_sources
    if not fewest <= len(sides) <= (most or len(sides)):
        wanted = f"{fewest}" if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
        raise InputError(f"trees: {method.name} merges {wanted}, not {len(sides)}")
    return sides | ({} if base is None or method.base in ("none", "first") else {"base": base})


def _line_up(sides: Mapping[str, Any]) -> tuple[Any, dict[Keys, tuple[Any, ...]]]:
    """Structure of the first tree, and of every leaf its value in each tree."""
    flat: dict[str, dict[Keys, Any]] = {}
    structures: dict[str, Any] = {}
    for label, tree in sides.items():
        leaves, structures[label] = jax.tree.flatten_with_path(tree, is_leaf=lambda x: x is None)
        flat[label] = {_keys(path): x for path, x in leaves}
        if len({".".join(keys) for keys in flat[label]}) < len(leaves):
            raise InputError(f"{label} has leaves whose paths are equal when joined by dots")
    first, mine = next(iter(flat.items()))
    for label, its in flat.items():
        for keys in [*mine, *its]:
            if (keys in mine) != (keys in its):
                there, lacking = (first, label) if keys in mine else (label, first)
                raise InputError(f"{lacking} has no leaf `{'.'.join(keys)}`, {there} has")
        if structures[label] != structures[first]:
            remedy = "in different containers (dict and FrozenDict, say) or with different static fields"
            raise InputError(f"{first} and {label} have the same leaves, but {remedy}")
        for keys, x in mine.items():
            _check_alike(".".join(keys), (first, x), (label, its[keys]))
    return structures[first], {keys: tuple(tree[keys] for tree in flat.values()) for keys in mine}


def _check_alike(path: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Refuse two leaves, with the names of their trees, that can neither be merged nor kept."""
    (first, x), (label, y) = one, other
    if any(_is_array(z) and jax.dtypes.issubdtype(z.dtype, jax.dtypes.extended) for z in (x, y)):
        raise InputError(f"`{path}` holds random keys ({x.dtype}), which cannot be merged; take it out of the trees")
    if _is_merged(x) and _is_merged(y) and x.shape == y.shape:
        return
    if _is_merged(x) or _is_merged(y):
        mine, its = (f"{z.dtype} {list(z.shape)}" if _is_array(z) else f"{z!r}" for z in (x, y))
        raise InputError(f"`{path}` is {mine} in {first}, but {its} in {label}")
    if x is y:
        return
    if traced(x, y):
        raise InputError(f"`{path}` is kept if equal everywhere, which is unknown of what is traced; take it out")
    if x is None or y is None or not np.array_equal(x, y):
        raise InputError(f"`{path}` is not merged but kept, and it differs between {first} and {label}")


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _is_merged(x: Any) -> bool:
    """Whether leaves like this are merged; the others are kept."""
    return _is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _array(x: Any) -> Array:
    """A NumPy array as one of JAX's, with a value inside jit too."""
    if isinstance(x, jax.Array):
        return x
    with jax.ensure_compile_time_eval():
        return jnp.asarray(x)


def _keys(path: Any) -> Keys:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _names(
    names: Any, stacked: Mapping[str, int], rows: Mapping[Keys, tuple[Any, ...]], structure: Any
) -> dict[Keys, tuple[str, int | None]]:
    """Name and layer axis of every leaf that is merged."""
    merged = {".".join(keys): keys for keys, row in rows.items() if _is_merged(row[0])}
    for pattern in stacked:
        if not any(fnmatchcase(path, pattern) for path in merged):
            raise InputError(
                f"stacked: no leaf's path matches `{pattern}`; paths are such as {', '.join([*merged][:3])}"
            )
    given: Any = {}
    if callable(names):
        given = {path: names(path) for path in merged}
    elif names is not None:
        leaves, own = jax.tree.flatten(names, is_leaf=lambda x: x is None)
        if own == structure:
            given = dict(zip((".".join(keys) for keys in rows), leaves, strict=True))
        elif isinstance(names, Mapping) and names.keys() <= {".".join(keys) for keys in rows}:
            given = names
        else:
            raise InputError("names: a function of a path, a mapping from paths, or a tree like those that are merged")
    found = {}
    for path, keys in merged.items():
        name, axis = _stack(path, rows[keys][0].shape, stacked)
        name = given.get(path, name)
        if not isinstance(name, str) or (axis is not None and LAYER not in name):
            more = f' with a "{LAYER}", for it is stacked' if axis is not None else ""
            raise InputError(f"names: `{path}` needs a text{more}, not {name!r}")
        found[keys] = (name, axis)
    return found


def _stack(path: str, shape: tuple[int, ...], stacked: Mapping[str, int]) -> tuple[str, int | None]:
    """What a leaf's tensors are called if nobody says so, and their axis."""
    for pattern, axis in stacked.items():
        if fnmatchcase(path, pattern):
            if not -len(shape) <= axis < len(shape):
                raise InputError(f"stacked: `{path}` has no axis {axis}, its shape is {list(shape)}")
            return layered(path, pattern), axis % len(shape)
    return path, None


# --- coefficients -------------------------------------------------------------------------------------------


def _coefficients(
    method: MergeMethod, given: Mapping[str, Any], leaves: Sequence[Leaf], paths: Sequence[Keys], count: int
) -> list[dict[str, Array]]:
    """Of every leaf: {parameter: ([L,][N,])}."""
    known = [p.name for p in method.parameters]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"it has {', '.join(known) or 'none'}"
            raise InputError(f"{method.name} has no parameter `{name}`; {hint}")
    values = {p.name: p.default if given.get(p.name) is None else given[p.name] for p in method.parameters}
    if missing := [name for name, value in values.items() if value is None]:
        raise InputError(f"{method.name} needs {', '.join(f'`{name}`' for name in missing)}")
    spread = [_spread(p, values[p.name], leaves, paths, count) for p in method.parameters]
    return [dict(zip(known, own, strict=True)) for own in zip(*spread, strict=True)] if spread else [{} for _ in leaves]


def _spread(p: Parameter, value: Any, leaves: Sequence[Leaf], paths: Sequence[Keys], count: int) -> list[Array]:
    """The parameter's value for every leaf: what the tree `value` has there or above."""

    def is_value(x: Any) -> bool:
        """Whether a list is no tree but one number per source."""
        if not p.per_model or not isinstance(x, list | tuple) or len(x) != count:
            return False
        return all(isinstance(y, int | float) or (_is_array(y) and y.ndim == 0) for y in x)

    prefix = {_keys(path): x for path, x in jax.tree.leaves_with_path(value, is_leaf=is_value)}
    found = []
    for leaf in leaves:
        above = next((leaf.keys[:n] for n in range(len(leaf.keys) + 1) if leaf.keys[:n] in prefix), None)
        if above is None:
            one = f"a number, {count} numbers" if p.per_model else "a number"
            raise InputError(
                f"`{p.name}` has no value for leaf `{'.'.join(leaf.keys)}`; it is {one} or a tree of these"
            )
        found.append(_shaped(p, prefix[above], leaf))
    for keys in prefix:
        if not any(other[: len(keys)] == keys for other in paths):
            raise InputError(f"`{p.name}` has a value for `{'.'.join(keys)}`, which the trees do not have")
    return found


def _shaped(p: Parameter, value: Any, leaf: Leaf) -> Array:
    """A value as the merge of a leaf takes it: ([L,][N,])."""
    xp: Any = jnp if traced(*jax.tree.leaves(value)) else np
    x = xp.asarray(value, xp.float32)
    if xp is np and p.kind != "float" and not (x % 1 == 0 if p.kind == "int" else (x == 0) | (x == 1)).all():
        raise InputError(f"`{p.name}` is {'a whole number' if p.kind == 'int' else 'on or off'}, not {value}")
    shape = [len(leaf.sources)] if p.per_model else []
    shapes = [[], shape, shape if leaf.layers is None else [leaf.layers, *shape]]
    if list(x.shape) not in shapes:
        allowed = " or ".join(str(s) for s in dict.fromkeys(map(tuple, shapes)))
        raise InputError(f"`{p.name}` of leaf `{'.'.join(leaf.keys)}` has the shape {x.shape}, not {allowed}")
    return xp.broadcast_to(x, shapes[-1])
