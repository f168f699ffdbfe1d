"""How CLIP's texts and the parts of an image pipeline run: plain functions over a `Tree`, a place in the parameters.

    def shortened(tree: Tree, x: Array) -> Array:
        return tree("conv", Conv(x.shape[-1], stride=2), nn.silu(tree("norm", GroupNorm(8, 1e-5), x)))

Paths are the checkpoint's names of tensors. The same function over a `Sketch` writes down instead which parameters it
asks for: there is no second description of the structure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import Params
from jevomerge.models.specs import Axis, ParamSpec, flatten

Block = Callable[["Tree", Array], Array]


class Stack(NamedTuple):
    """Blocks of one kind."""

    path: str
    depth: int


class Wanted(NamedTuple):
    """A parameter that a part asks for."""

    path: str
    shape: tuple[int, ...]  # of one block's
    axes: tuple[str, ...]
    stack: Stack | None

    def spec(self, component: str, parts: Mapping[str, int]) -> ParamSpec:
        """It in a table of parameters; `parts` says into how many an axis may be cut."""
        stack = self.stack
        return ParamSpec(
            path=self.path,
            template=self.path.replace(stack.path, f"{stack.path}.{{layer}}", 1) if stack else self.path,
            shape=self.shape,
            axes=tuple(Axis(name, parts.get(name, 0)) for name in self.axes),
            stack=(("layer", stack.depth),) if stack else (),
            block=stack.path if stack else "",
            component=component,
        )


class Tree:
    """A place in a nested dictionary of parameters."""

    def __init__(self, params: Params):
        """`params` are those whose names begin here."""
        self.params = params

    def at(self, path: str) -> Tree:
        """The place at a path from here, "resnets.0"."""
        return Tree(functools.reduce(lambda place, name: place[name], path.split("."), self.params))

    def run(self, module: nn.Module, *inputs: Any) -> Any:
        """What a module makes of the inputs with the parameters here."""
        return module.apply({"params": self.params}, *inputs)

    def __call__(self, path: str, module: nn.Module, *inputs: Any) -> Any:
        """The same with those at a path from here."""
        return self.at(path).run(module, *inputs)

    def stack(self, path: str, depth: int, block: Block, x: Array, which: range | None = None) -> Array:
        """x through blocks of one kind that are stacked at `path` along a leading axis: all `depth`, or `which`.

        One block is compiled, whatever the depth.
        """
        stored = self.at(path).params

        def body(x: Array, i: Array) -> tuple[Array, None]:
            params = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, keepdims=False), stored)
            return block(Tree(params), x), None

        return jax.lax.scan(body, x, jnp.array(range(depth) if which is None else which, jnp.int32))[0]


class Sketch(Tree):
    """A place where nothing is computed, but written down what a part asks for. To be used under `jax.eval_shape`."""

    def __init__(self, found: list[Wanted], path: str = "", stack: Stack | None = None):
        """What is `found` from this `path` on, within a stack of blocks or not."""
        self.found, self.path, self.within = found, path, stack

    def at(self, path: str) -> Sketch:
        """The place at a path from here."""
        return Sketch(self.found, f"{self.path}.{path}" if self.path else path, self.within)

    def run(self, module: nn.Module, *inputs: Any) -> Any:
        """Zeros in the shape of what the module makes of the inputs."""
        output, params = _abstract(module, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs))
        for name, leaf in flatten(params).items():
            self.found.append(Wanted(f"{self.path}.{name}", leaf.value.shape, tuple(map(str, leaf.names)), self.within))
        return jnp.zeros(output.shape, output.dtype)

    def stack(self, path: str, depth: int, block: Block, x: Array, which: range | None = None) -> Array:
        """The same x, of which blocks keep the shape."""
        place = self.at(path)
        return block(Sketch(self.found, place.path, Stack(place.path, depth)), x)


def sketched(run: Callable[[Sketch], Any]) -> list[Wanted]:
    """What a function of a place asks for there, sorted."""
    found: list[Wanted] = []
    jax.eval_shape(lambda: run(Sketch(found)))
    return sorted(set(found))


@functools.cache
def _abstract(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, Params]:
    """What a module makes of such inputs, and its parameters boxed with their logical axes: shapes alone."""
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
    return output, variables["params"]
