"""A user's own pytree and apply function as a model: plain functions, linen and nnx modules.

    model = own_model(apply, params)          # apply(params, x); params: any pytree of arrays
    model = own_model(module, params)         # a linen module and its parameters, or `module.init(...)` whole
    model = own_model(module)                 # an nnx module, whose `nnx.Param`s are the parameters

What is merged are the leaves, by the names that `leaf_paths` gives them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jevomerge.models.layers import Params
from jevomerge.models.model import Stackless
from jevomerge.models.specs import Axis, ParamSpec, flatten, layered, unflatten


@dataclasses.dataclass(frozen=True)
class OwnModel(Stackless):
    """A pytree and what it computes, as a `models.model.Model`."""

    apply: Callable[..., Any]  # (params as their owner has them, ...) -> whatever it computes
    specs: tuple[ParamSpec, ...]
    treedef: Any  # of the owner's tree
    paths: tuple[str, ...]  # of its leaves, in its order
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def unlike(self, other: Any) -> dict[str, bool]:
        """Whether it is another function."""
        return {} if self == other else {"the function": False}

    def as_given(self, params: Params) -> Any:
        """Nested dictionaries -> the tree as its owner has it."""
        leaves = flatten(params)
        return jax.tree.unflatten(self.treedef, [leaves[path] for path in self.paths])

    def as_dict(self, tree: Any) -> Params:
        """The inverse.

        Raises:
            ValueError: for a tree that is not like the one that the model was made with.
        """
        if (treedef := jax.tree.structure(tree)) != self.treedef:
            raise ValueError(f"its tree is {treedef}, the model's {self.treedef}")
        leaves = dict(zip(self.paths, jax.tree.leaves(tree), strict=True))
        for spec in self.specs:
            if (shape := jnp.shape(leaves[spec.path])) != spec.leaf_shape:
                raise ValueError(f"{spec.path} has shape {list(shape)}, the model's {list(spec.leaf_shape)}")
        return unflatten({path: leaves[path] for path in sorted(leaves)})


def own_model(apply: Any, params: Any = None, *, stacked: Mapping[str, int] | None = None) -> OwnModel:
    """A model of a user's own, to be merged and searched like any other.

    Args:
        apply: a pure function `(params, ...)`, a linen module, or an nnx module.
        params: a pytree of floating-point arrays as `apply` takes it; of an nnx module its own.
        stacked: {pattern: 0}: leaves whose path matches the glob ("blocks.*") hold one tensor per layer along their
            first axis, and are merged layer by layer. Their tensors' names have the layer's number at the first
            wildcard ("blocks.7.kernel").

    Raises:
        ValueError: for leaves that are no floating-point arrays, and for paths that are not distinct.
    """
    if isinstance(apply, nnx.Module):
        graph, own, rest = nnx.split(apply, nnx.Param, ...)  # type: ignore[misc]
        params = own if params is None else params

        def function(params: Any, *args: Any, **kwargs: Any) -> Any:
            return nnx.merge(graph, params, rest)(*args, **kwargs)

    elif isinstance(apply, nn.Module):
        module, whole = apply, isinstance(params, Mapping) and "params" in params

        def function(params: Any, *args: Any, **kwargs: Any) -> Any:
            return module.apply(params if whole else {"params": params}, *args, **kwargs)

    else:
        function = apply
    if params is None:
        raise ValueError("own_model: `params` is missing")
    paths, leaves, treedef = leaf_paths(params)
    for path in paths:
        if any(other.startswith(f"{path}.") for other in paths) or paths.count(path) > 1:
            raise ValueError(f"own_model: two leaves are called {path}, or one inside another; rename one of them")
    specs = [_spec(path, leaf, stacked or {}) for path, leaf in zip(paths, leaves, strict=True)]
    return OwnModel(function, tuple(sorted(specs, key=lambda s: s.path)), treedef, tuple(paths))


def _spec(path: str, leaf: Any, stacked: Mapping[str, int]) -> ParamSpec:
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(f"own_model: {path} is {kind}; only floating-point arrays can be merged, keep the rest apart")
    component = path.partition(".")[0]
    pattern = next((p for p in stacked if fnmatchcase(path, p)), None)
    if pattern is None:
        return ParamSpec(path, path, tuple(leaf.shape), (Axis(""),) * leaf.ndim, component=component)
    if stacked[pattern] != 0 or not leaf.ndim:
        raise ValueError(f"own_model: stacked: layers of {path} {list(leaf.shape)} must lie along axis 0")
    axes, stack = (Axis(""),) * (leaf.ndim - 1), (("layer", leaf.shape[0]),)
    return ParamSpec(path, layered(path, pattern), tuple(leaf.shape[1:]), axes, stack, component=component)


def leaf_paths(tree: Any) -> tuple[list[str], list[Any], Any]:
    """What each leaf of a pytree is called (keys, attributes and indices joined by "."), the leaves, the structure."""
    found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if isinstance(tree, nnx.State):  # whose leaves are the values of variables
        names = [name.removesuffix(".value") for name in names]
    return names, [leaf for _, leaf in found], treedef
